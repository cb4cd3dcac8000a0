"""Which ids of a model's vocabulary are tokens: a model may have more rows than its tokenizer has ids."""

from __future__ import annotations

import dataclasses
import functools

from meshtf import tf

IdRanges = tuple[tuple[int, int], ...]  # (first, one past the last) of each


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What generation knows of the ids; fixed when a program is compiled.

    Attributes:
        eos_id: the token that ends a text.
        unused: ids that are no token, so that no text may hold them. Those that end a text never count among them.
        other_ends: tokens besides eos that end a text.
    """

    eos_id: int
    unused: IdRanges = ()
    other_ends: tuple[int, ...] = ()

    def is_end(self, tokens: tf.Tensor) -> tf.Tensor:
        """Returns which tokens end a text: int32 [...] -> bool [...]."""
        return functools.reduce(tf.logical_or, [tokens == end for end in self.other_ends], tokens == self.eos_id)

    def is_unused(self, n_vocab: int) -> tf.Tensor:
        """Returns which ids are no token, bool [V]."""
        ids = tf.range(n_vocab)
        is_in = [(ids >= first) & (ids < end) for first, end in self.unused]
        return tf.reduce_any(tf.stack([tf.zeros([n_vocab], tf.bool), *is_in]), 0) & ~self.is_end(ids)

    def without_unused(self, log_probs: tf.Tensor) -> tf.Tensor:
        """[..., V] -> [..., V], with -inf for ids that are no token."""
        return tf.where(self.is_unused(log_probs.shape[-1]), -float("inf"), log_probs) if self.unused else log_probs
