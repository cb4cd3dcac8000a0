"""The entmax loss."""

from __future__ import annotations

from meshtf import mtf, tf
from models.kernels import entmax as kernels
from models.ops.mesh_operation import SliceKernel


def entmax_loss(logits: mtf.Tensor, labels: mtf.Tensor) -> mtf.Tensor:
    """Returns the loss whose gradient is entmax(logits) - one_hot(label).

    Args:
        logits: [batch, sequence, vocab]; where vocab is split, every processor of that mesh axis gets the whole
            logits and computes the same, because each pass would need a sum over all processors.
        labels: int32 [batch, sequence].

    Returns:
        float32 [batch, sequence], at least 0.
    """
    whole = mtf.rename_dimension(logits, "vocab", "whole")

    def gradient(operation: mtf.Operation, d_loss: mtf.Tensor, _: None) -> list[mtf.Tensor | None]:
        inputs, d_logits = [*operation.inputs, operation.outputs[1], d_loss], (whole.shape, whole.dtype)
        return [SliceKernel("entmax_loss_gradient", kernels.entmax_loss_gradient, inputs, [d_logits]).outputs[0], None]

    outputs = [(labels.shape, tf.float32)] * 2
    return SliceKernel("entmax_loss", kernels.entmax_loss, [whole, labels], outputs, gradient).outputs[0]
