"""One turn of a beam search, and the rows of caches that follow the beams."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import beams as kernels
from models.ops.mesh_operation import MeshOperation, redistribute


@dataclasses.dataclass(frozen=True)
class Beams:
    """What a search holds, as `models.kernels.beams.Beams`: batch are the beams.

    Attributes:
        n_written: int32 scalar.
        tokens: int32 [batch, new_tokens].
        log_probs: float32 [batch].
        ended_tokens: int32 [batch, new_tokens].
        ended_lengths: int32 [batch].
        ended_scores: float32 [batch].
        is_open: bool scalar.
    """

    n_written: mtf.Tensor
    tokens: mtf.Tensor
    log_probs: mtf.Tensor
    ended_tokens: mtf.Tensor
    ended_lengths: mtf.Tensor
    ended_scores: mtf.Tensor
    is_open: mtf.Tensor

    def tensors(self) -> list[mtf.Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a turn gives.

    Attributes:
        parents: int32 [beams], the beam that each open text continues.
        last: int32 [beams], the token that each adds.
        beams: as they are after it.
    """

    parents: mtf.Tensor
    last: mtf.Tensor
    beams: Beams


class TakeTurn(MeshOperation):
    """logits [beams, whole], length_penalty, n_wanted, those of `Beams` -> those of `Turn`."""

    def __init__(self, inputs: Sequence[mtf.Tensor], eos_id: int):
        self._eos_id = eos_id
        each = mtf.Shape(inputs[0].shape.dims[:1])
        kept = [(x.shape, x.dtype) for x in inputs[3:]]
        super().__init__(inputs, [(each, tf.int32), (each, tf.int32), *kept], "take_turn")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        return mesh_impl.slicewise(kernels.turn(self._eos_id), *inputs)


def take_turn(logits: mtf.Tensor, beams: Beams, length_penalty: mtf.Tensor, n_wanted: mtf.Tensor, eos_id: int) -> Turn:
    """Adds a token to the open texts, and takes out those that end.

    Args:
        logits: [batch, vocab], after the open texts; batch are the beams.
        beams: before the turn.
        length_penalty: float32 scalar; an ended text's score is its log-probability / its length ** length_penalty.
        n_wanted: int32 scalar; at so many new tokens every text ends.
        eos_id: ends a text.
    """
    whole = redistribute(redistribute(logits, "batch", "beams"), "vocab", "whole")
    parents, last, *after = TakeTurn([whole, length_penalty, n_wanted, *beams.tensors()], eos_id).outputs
    return Turn(parents, last, Beams(*after))


class RowsOf(MeshOperation):
    """x [whole, ...], places int32 [beams] -> [beams, ...]."""

    def __init__(self, x: mtf.Tensor, places: mtf.Tensor):
        shape = mtf.Shape(places.shape.dims + x.shape.dims[1:])
        super().__init__([x, places], [(shape, x.dtype)], "rows_of")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        return (mesh_impl.slicewise(kernels.rows_of, *inputs),)


def rows_of(x: mtf.Tensor, places: mtf.Tensor) -> mtf.Tensor:
    """Rows of a tensor, in another order or more than once: x [batch, ...], int32 [beams] -> [batch, ...] of as many
    rows as there are beams.
    """
    return redistribute(RowsOf(mtf.rename_dimension(x, "batch", "whole"), places).outputs[0], "beams", "batch")
