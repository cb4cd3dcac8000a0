"""Of gradients, on slices."""

from __future__ import annotations

from meshtf import tf
from models.kernels.compile import compiled


@compiled
def _doubled_sum(*parts: tf.Tensor) -> tf.Tensor:
    return 2.0 * tf.add_n(parts)


@compiled
def root_of_sum(*parts: tf.Tensor) -> tf.Tensor:
    """Scalars -> the root of their sum."""
    return tf.sqrt(tf.add_n(parts))


def sum_of_squares(*tensors: tf.Tensor) -> tf.Tensor:
    """Tensors of any shapes -> float32 scalar.

    Each tensor's sum is not compiled, for TensorFlow's own is several times faster on CPUs. All additions after it are:
    TensorFlow's graph optimiser, which cannot see into them, would order them differently from processor to processor,
    and the processors' copies of a variable would drift apart.
    """
    return _doubled_sum(*[tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors])
