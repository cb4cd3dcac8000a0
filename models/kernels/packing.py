"""Which positions see one another where several texts lie in a row.

A text is a context and any number of continuations of it, each of which sees the context and itself alone: the context
is computed once. Shape legend: B batch, S sequence.
"""

from __future__ import annotations

from typing import NamedTuple

from meshtf import tf


class Packing(NamedTuple):
    """Where the parts of packed texts lie; a part is a context or a continuation.

    Attributes:
        part_starts: int32 [B, S], the index in the row at which the part of each token begins.
        context_starts: int32 [B, S], the index at which the context of its text begins.
        positions: int32 [B, S], the position of each token in a text of its context and its own continuation.
    """

    part_starts: tf.Tensor
    context_starts: tf.Tensor
    positions: tf.Tensor

    def visible(self, radius: int | None = None) -> tf.Tensor:
        """Returns which tokens see which others, bool [B, S, S].

        Args:
            radius: tokens see only the positions less than this away; None: no limit.
        """
        order = tf.range(self.part_starts.shape[1])
        own, of_context = (starts[:, :, None] == self.part_starts[:, None] for starts in self[:2])
        visible = (own | of_context) & (order[:, None] >= order)
        if radius is None:
            return visible
        return visible & (self.positions[:, :, None] - self.positions[:, None] < radius)
