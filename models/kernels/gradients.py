"""Of gradients, on slices."""

from __future__ import annotations

from meshtf import tf


def sum_of_squares(*tensors: tf.Tensor) -> tf.Tensor:
    """Tensors of any shapes -> float32 scalar. Not compiled: TensorFlow's own sum is several times faster on CPUs."""
    return 2.0 * tf.add_n([tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors])
