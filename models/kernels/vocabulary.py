"""Which ids of a model's vocabulary are tokens: a model may have more rows than its tokenizer has ids."""

from __future__ import annotations

import dataclasses

from meshtf import tf

IdRanges = tuple[tuple[int, int], ...]  # (first, one past the last) of each


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What generation knows of the ids; fixed when a program is compiled.

    Attributes:
        eos_id: the token that ends a text.
        unused: ids that are no token, so that no text may hold them. That of eos never counts among them.
    """

    eos_id: int
    unused: IdRanges = ()

    def is_eos(self, n_vocab: int) -> tf.Tensor:
        """Returns which id is eos, bool [V]."""
        return tf.range(n_vocab) == self.eos_id

    def is_unused(self, n_vocab: int) -> tf.Tensor:
        """Returns which ids are no token, bool [V]."""
        ids = tf.range(n_vocab)
        is_in = [(ids >= first) & (ids < end) for first, end in self.unused]
        return tf.reduce_any(tf.stack([tf.zeros([n_vocab], tf.bool), *is_in]), 0) & ~self.is_eos(n_vocab)

    def without_unused(self, log_probs: tf.Tensor) -> tf.Tensor:
        """[..., V] -> [..., V], with -inf for ids that are no token."""
        return tf.where(self.is_unused(log_probs.shape[-1]), -float("inf"), log_probs) if self.unused else log_probs
