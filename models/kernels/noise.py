"""Random numbers that are a function of place, and dropout made of them."""

from __future__ import annotations

import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """The 32-bit finaliser of MurmurHash3 (Austin Appleby, public domain): every input bit changes every output bit
    half the time.
    """
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))
    bits = bits * tf.constant(0x85EBCA6B, tf.uint32)
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(13, tf.uint32)))
    bits = bits * tf.constant(0xC2B2AE35, tf.uint32)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))


def uniform(key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Uniform numbers in (0, 1) that depend on the key and each element's place in the whole tensor only.

    A slice of the tensor gets the numbers that the whole tensor has there, so that dropout and sampling give the same
    result on any mesh, with any number of microbatches, after a resume, and when a layer is computed again. The hash
    goes over the dimensions one by one, so that no index overflows, whatever the tensor's size.

    Args:
      key: int32 scalar.
      rows: int32 [batch], the place of each row in the whole batch.
      starts: int32 [rank - 1], where this slice begins along the other dimensions.
      shape: of this slice, batch first.

    Returns:
      float32 tensor of that shape.
    """
    indices = [rows] + [starts[axis] + tf.range(size) for axis, size in enumerate(shape[1:])]
    bits = _mix(tf.cast(key, tf.uint32))
    for index in indices:
        bits = _mix(
            bits[..., None]
            + (tf.cast(index, tf.uint32) + tf.constant(1, tf.uint32)) * tf.constant(0x9E3779B9, tf.uint32)
        )
    return (tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) + 0.5) * 2.0**-24


def dropout_factor(
    key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor, shape: tuple[int, ...], rate: float
) -> tf.Tensor:
    return tf.where(uniform(key, rows, starts, shape) >= rate, 1.0 / (1.0 - rate), 0.0)


@functools.cache
def dropout(rate: float) -> Kernel:
    """(x, key, rows, starts) -> x with a share `rate` of its elements zeroed, the others divided by 1 - rate; also
    its gradient, given dy.
    """

    def kernel(x: tf.Tensor, key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        return x * tf.cast(dropout_factor(key, rows, starts, tuple(x.shape), rate), x.dtype)

    return compiled(kernel)
