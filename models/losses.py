"""Training losses per token."""

from __future__ import annotations

import dataclasses
import math

from configs.schema import ModelConfig
from meshtf import mtf, operation_scope, tf
from models.kernels.entmax import ENTMAX_ALPHA
from models.ops.cross_entropy import softmax_statistics
from models.ops.entmax import entmax_loss


@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """The loss of each token, float32 [batch, sequence].

    Attributes:
        loss: the cross-entropy -log p(label), in nats, or the entmax loss.
        log_z: log of the denominator of the softmax; None for the entmax loss.
    """

    loss: mtf.Tensor
    log_z: mtf.Tensor | None

    def mean(self, weights: mtf.Tensor) -> mtf.Tensor:
        """Returns the weighted mean of the losses, a scalar.

        Args:
            weights: float32 [batch, sequence]; they sum to 1 over the whole batch.
        """
        return mtf.reduce_sum(weights * self.loss)

    def training_loss(self, weights: mtf.Tensor, z_loss: float) -> mtf.Tensor:
        """Returns the scalar to minimise, the mean of loss + z_loss * log_z^2; the z-loss keeps logits from drifting.

        Args:
            weights: float32 [batch, sequence]; they sum to 1 over the whole batch.
            z_loss: coefficient of the z-loss; without effect on the entmax loss.

        Source: Shazeer et al. 2018, Mesh-TensorFlow; the z-loss as in its `softmax_cross_entropy_with_logits`.
        """
        loss = self.mean(weights)
        has_z_loss = z_loss and self.log_z is not None
        return loss + mtf.reduce_sum(weights * mtf.square(self.log_z)) * z_loss if has_z_loss else loss


def as_shares(weights: mtf.Tensor) -> mtf.Tensor:
    """Normalises the weights of the labels to sum to 1; returns zeros if all are 0.

    Args:
        weights: float32 [batch, sequence], >= 0.
    """
    total = mtf.broadcast(mtf.reduce_sum(weights), weights.shape)
    return mtf.cwise(tf.math.divide_no_nan, [weights, total])


def uniform_loss(model: ModelConfig) -> float:
    """Returns the loss of a model for which all tokens, or both texts of a pair, are equally likely, in nats."""
    if model.ranks:
        return math.log(2.0)
    if not model.entmax_loss:
        return math.log(model.n_vocab)
    return (1.0 - model.n_vocab ** (1.0 - ENTMAX_ALPHA)) / (ENTMAX_ALPHA * (ENTMAX_ALPHA - 1.0))


@operation_scope("loss")
def token_losses(model: ModelConfig, logits: mtf.Tensor, labels: mtf.Tensor) -> TokenLosses:
    """Returns the losses that a model is trained with: entmax with `entmax_loss`, otherwise cross-entropy.

    Args:
        model: the model's settings.
        logits: [batch, sequence, vocab].
        labels: int32 [batch, sequence].
    """
    if model.entmax_loss:
        return TokenLosses(entmax_loss(logits, labels), log_z=None)
    log_z, label_logit = softmax_statistics(logits, labels)
    return TokenLosses(log_z - label_logit, log_z)
