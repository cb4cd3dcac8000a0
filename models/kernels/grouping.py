"""Grouped queries on slices: the key and value head of each query head.

Consecutive heads form groups of one size, G; head h uses the key and value head h // G. A slice of queries may begin at
any head, while a slice of keys and values holds the heads of those queries or, if the dimension is not split, all.

Shape legend: K key and value heads of the slice, H query heads of the slice.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from meshtf import tf
from models.kernels.compile import Kernel, compiled


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of one slice of queries: blocks of consecutive heads, each with one key and value head.

    Attributes:
        n_heads: query heads of the slice.
        n_kv_heads: key and value heads of the slice.
        size: heads of a whole group, which may be more than the slice has.
    """

    n_heads: int
    n_kv_heads: int
    size: int

    @property
    def _holds_its_own(self) -> bool:
        """Whether the slice of keys and values has the heads of these queries, and no others."""
        return self.n_kv_heads * self.size == self.n_heads

    @property
    def n_blocks(self) -> int:
        """How many blocks there are, all of one length."""
        return self.n_kv_heads if self._holds_its_own else self.n_heads // math.gcd(self.n_heads, self.size)

    @property
    def block_size(self) -> int:
        """Query heads of a block."""
        return self.n_heads // self.n_blocks

    def _kv_heads(self, starts: tf.Tensor) -> tf.Tensor:
        return (starts[0] + tf.range(self.n_blocks) * self.block_size) // self.size

    def own(self, x: tf.Tensor, starts: tf.Tensor, axis: int) -> tf.Tensor:
        """Returns the key or value head of each block; `starts` int32 [1] is the first head of the slice of queries."""
        return x if self._holds_its_own else tf.gather(x, self._kv_heads(starts), axis=axis)

    def added(self, blocks: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        """Adds what belongs to the head of each block: [N, blocks, D] -> [N, K, D]."""
        if self._holds_its_own:
            return blocks
        first = tf.transpose(blocks, [1, 0, 2])
        return tf.transpose(tf.math.unsorted_segment_sum(first, self._kv_heads(starts), self.n_kv_heads), [1, 0, 2])


@functools.cache
def repeat_heads(groups: Groups) -> Kernel:
    """Returns the kernel that repeats the heads of keys or values: ([..., K, D], int32 [1]) -> [..., H, D]."""

    def kernel(x: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        axis = x.shape.rank - 2
        return tf.repeat(groups.own(x, starts, axis), groups.block_size, axis)

    return compiled(kernel)


@functools.cache
def sum_of_groups(groups: Groups) -> Kernel:
    """Returns the kernel of the gradient of `repeat_heads`: ([..., H, D], int32 [1]) -> [..., K, D].

    Where the slice has only some heads of a group, the sum is a part.
    """

    def kernel(dy: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        *others, _, n_features = dy.shape
        blocks = tf.reshape(tf.cast(dy, tf.float32), [-1, groups.n_blocks, groups.block_size, n_features])
        sums = groups.added(tf.reduce_sum(blocks, 2), starts)
        return tf.cast(tf.reshape(sums, [*others, groups.n_kv_heads, n_features]), dy.dtype)

    return compiled(kernel)
