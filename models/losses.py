"""Losses of next-token prediction."""

from __future__ import annotations

import dataclasses

from meshtf import mtf
from models.ops.cross_entropy import softmax_statistics


@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """Losses of each token, float32 [batch, sequence].

    Attributes:
      cross_entropy: -log p(label), in nats.
      log_z: log of the softmax's denominator.
    """

    cross_entropy: mtf.Tensor
    log_z: mtf.Tensor

    def training_loss(self, z_loss: float) -> mtf.Tensor:
        """The scalar to minimise: mean cross-entropy + z_loss * mean(log_z^2), which keeps the logits from drifting.

        Source: Shazeer et al. 2018, Mesh-TensorFlow; the z-loss as in its `softmax_cross_entropy_with_logits`.
        """
        loss = mtf.reduce_mean(self.cross_entropy)
        return loss + mtf.reduce_mean(mtf.square(self.log_z)) * z_loss if z_loss else loss


def token_losses(logits: mtf.Tensor, labels: mtf.Tensor) -> TokenLosses:
    """Cross-entropy of every token.

    Args:
      logits: [batch, sequence, vocab].
      labels: int32 [batch, sequence].
    """
    log_z, label_logit = softmax_statistics(logits, labels)
    return TokenLosses(log_z - label_logit, log_z)
