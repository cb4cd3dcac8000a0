"""Random numbers as a function of the index of an element, and dropout."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np

from meshtf import tf
from models.kernels.compile import Kernel, compiled


def noise_key(seed: int, step: int) -> np.int32:
    """Returns the random key of one step: a function of seed and step, so that a resumed run draws the same noise."""
    return np.int32(zlib.crc32(f"{seed}/{step}".encode()) & 0x7FFFFFFF)


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """Applies the 32-bit finaliser of MurmurHash3 (Austin Appleby, public domain).

    Every input bit changes every output bit half the time.
    """
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))
    bits = bits * tf.constant(0x85EBCA6B, tf.uint32)
    bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(13, tf.uint32)))
    bits = bits * tf.constant(0xC2B2AE35, tf.uint32)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32)))


def _absorbed(bits: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Hashes one more index into the bits; both are broadcast."""
    number = tf.cast(index, tf.uint32) + tf.constant(1, tf.uint32)
    return _mix(bits + number * tf.constant(0x9E3779B9, tf.uint32))


def uniform(
    key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor | Sequence[tf.Tensor], shape: tuple[int, ...]
) -> tf.Tensor:
    """Returns uniform numbers in (0, 1) that depend only on the key and each element's index in the whole tensor.

    A slice gets the numbers that the whole tensor has there, so that dropout and sampling give the same
    result on any mesh, with any number of microbatches, after a resume, and when a layer is computed again. The hash
    takes in one dimension after another, so that no index overflows, whatever the size of the tensor.

    Args:
        key: int32 scalar.
        rows: int32 [batch], the index of each row in the whole batch.
        starts: int32 [rank - 1], where this slice begins along the other dimensions; for two dimensions, the start may
            be of each row, [batch, 1].
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
    """Returns exponential random numbers with mean 1: int32 [B], [B] -> float32 [B, n_numbers], all above 0.

    They depend only on a row's seed and position, and on the index of each number. Seed and position make 64 bits of
    key, so that no two seeds collide within the length of a text; with the 32 bits of `uniform` some pairs of rows
    would share numbers, shifted by a few positions. The numbers are exact down to 2^-33, so that even a token of that
    probability is sampled as often as it should be.
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
    """Returns 0 for dropped elements and 1 / (1 - rate) for the others; takes the arguments of `uniform`."""
    return tf.where(uniform(key, rows, starts, shape) >= rate, 1.0 / (1.0 - rate), 0.0)


@functools.cache
def dropout(rate: float) -> Kernel:
    """Returns the kernel of dropout, which is also its own gradient.

    (x, key, rows, starts) -> x with a share `rate` of its elements zeroed, the others divided by 1 - rate; also
    its gradient, given dy.
    """

    def kernel(x: tf.Tensor, key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        return x * tf.cast(dropout_factor(key, rows, starts, tuple(x.shape), rate), x.dtype)

    return compiled(kernel)
