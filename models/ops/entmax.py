"""The entmax loss."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import entmax as kernels
from models.ops.mesh_operation import MeshOperation


class EntmaxLoss(MeshOperation):
    """logits [batch, sequence, whole], labels [batch, sequence] -> loss, tau, both float32 [batch, sequence]."""

    def __init__(self, logits: mtf.Tensor, labels: mtf.Tensor):
        super().__init__([logits, labels], [(labels.shape, tf.float32)] * 2, "entmax_loss")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, logits: LaidOut, labels: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return mesh_impl.slicewise(kernels.entmax_loss, logits, labels)

    def gradient(self, grad_ys: Sequence[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        return [EntmaxLossGradient(*self.inputs, self.outputs[1], grad_ys[0]).outputs[0], None]


class EntmaxLossGradient(MeshOperation):
    """logits, labels, tau, d_loss -> d_logits [batch, sequence, whole]."""

    def __init__(self, logits: mtf.Tensor, labels: mtf.Tensor, tau: mtf.Tensor, d_loss: mtf.Tensor):
        super().__init__([logits, labels, tau, d_loss], [(logits.shape, logits.dtype)], "entmax_loss_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(kernels.entmax_loss_gradient, *inputs),)


def entmax_loss(logits: mtf.Tensor, labels: mtf.Tensor) -> mtf.Tensor:
    """Returns the loss whose gradient is entmax(logits) - one_hot(label).

    Args:
        logits: [batch, sequence, vocab]; where vocab is split, every processor of that mesh axis gets the whole
            logits and computes the same, because each pass would need a sum over all processors.
        labels: int32 [batch, sequence].

    Returns:
        float32 [batch, sequence], at least 0.
    """
    return EntmaxLoss(mtf.rename_dimension(logits, "vocab", "whole"), labels).outputs[0]
