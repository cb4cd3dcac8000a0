"""Where several texts lie in a row, as mesh tensors."""

from __future__ import annotations

from typing import NamedTuple

from meshtf import mtf


class Packing(NamedTuple):
    """Where the parts of packed texts lie; see `models.kernels.packing`.

    Attributes:
        part_starts: int32 [batch, sequence], the index in the row at which the part of each token begins: a context,
            or a continuation, which sees itself and its context.
        context_starts: int32 [batch, sequence], the index at which the context of its text begins.
        positions: int32 [batch, sequence], the position of each token in its context followed by its continuation.
    """

    part_starts: mtf.Tensor
    context_starts: mtf.Tensor
    positions: mtf.Tensor
