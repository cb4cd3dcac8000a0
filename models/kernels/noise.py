"""Random numbers that are a function of place, and dropout made of them."""

from __future__ import annotations

import functools
import zlib

import numpy as np

from meshtf import tf
from models.kernels.compile import Kernel, compiled


def noise_key(seed: int, step: int) -> np.int32:
    """Returns the random key of one step: a function of seed and step, so that a resumed run draws the same noise."""
    return np.int32(zlib.crc32(f"{seed}/{step}".encode()) & 0x7FFFFFFF)


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """The 32-bit finaliser of MurmurHash3 (Austin Appleby, public domain): every input bit changes every output bit
    half the time.
    """
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))
    bits = bits * tf.constant(0x85EBCA6B, tf.uint32)
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(13, tf.uint32)))
    bits = bits * tf.constant(0xC2B2AE35, tf.uint32)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))


def _absorbed(bits: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The bits that follow from these and one more index; both are broadcast."""
    number = tf.cast(index, tf.uint32) + tf.constant(1, tf.uint32)
    return _mix(bits + number * tf.constant(0x9E3779B9, tf.uint32))


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
        bits = _absorbed(bits[..., None], index)
    return (tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) + 0.5) * 2.0**-24


def exponential(seeds: tf.Tensor, positions: tf.Tensor, n_numbers: int) -> tf.Tensor:
    """Exponentially distributed numbers with the mean 1 that depend on a row's seed and position, and each number's
    own place only: int32 [B], [B] -> float32 [B, n_numbers], all above 0.

    A row's seed and position make 64 bits of key, so that no two seeds meet in a text's length; with the 32 of
    `uniform` some pairs of rows would share their numbers, moved by a few places. The numbers keep their digits down to
    2^-33, so that even a token of that probability is drawn as often as it should be.
    """
    first, second = (
        _absorbed(_mix(tf.cast(seeds, tf.uint32)), positions),
        _absorbed(_mix(tf.cast(positions, tf.uint32)), seeds),
    )
    bits = _mix(tf.bitwise.bitwise_xor(_absorbed(first[:, None], tf.range(n_numbers)), second[:, None]))
    # Below 1 also after rounding.
    return -tf.math.log1p(-tf.minimum((tf.cast(bits, tf.float32) + 0.5) * 2.0**-32, 1.0 - 2.0**-24))


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
