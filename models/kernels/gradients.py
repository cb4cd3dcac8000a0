"""Norms of gradients on slices."""

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

    The sum of each tensor is not compiled, as TensorFlow's own is several times faster on CPUs. All additions after it
    are: otherwise TensorFlow's graph optimiser would order them differently on each processor, and the
    processors' copies of a variable would drift apart.
    """
    return _doubled_sum(*[tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors])
