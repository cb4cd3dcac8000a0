"""One step of beam search, and the rows of caches in the order of the beams."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import beams as kernels
from models.ops.mesh_operation import MeshOperation, redistribute


@dataclasses.dataclass(frozen=True)
class Beams:
    """The state of a search, as in `models.kernels.beams.Beams`; the batch is the beams.

    Attributes:
        length: int32 scalar.
        tokens: int32 [batch, new_tokens].
        log_probs: float32 [batch].
        finished_tokens: int32 [batch, new_tokens].
        finished_lengths: int32 [batch].
        finished_scores: float32 [batch].
        is_open: bool scalar.
    """

    length: mtf.Tensor
    tokens: mtf.Tensor
    log_probs: mtf.Tensor
    finished_tokens: mtf.Tensor
    finished_lengths: mtf.Tensor
    finished_scores: mtf.Tensor
    is_open: mtf.Tensor

    def tensors(self) -> list[mtf.Tensor]:
        """Returns the fields in order."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclasses.dataclass(frozen=True)
class BeamStep:
    """The result of a step.

    Attributes:
        parents: int32 [beams], the beam that each active beam continues.
        last: int32 [beams], the token that each adds.
        beams: the state after the step.
    """

    parents: mtf.Tensor
    last: mtf.Tensor
    beams: Beams


class BeamStepOperation(MeshOperation):
    """logits [beams, whole], length_penalty, max_new_tokens, the fields of `Beams` -> those of `BeamStep`."""

    def __init__(self, inputs: Sequence[mtf.Tensor], eos_id: int):
        self._eos_id = eos_id
        each = mtf.Shape(inputs[0].shape.dims[:1])
        kept = [(x.shape, x.dtype) for x in inputs[3:]]
        super().__init__(inputs, [(each, tf.int32), (each, tf.int32), *kept], "beam_step")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return mesh_impl.slicewise(kernels.beam_step(self._eos_id), *inputs)


def beam_step(
    logits: mtf.Tensor, beams: Beams, length_penalty: mtf.Tensor, max_new_tokens: mtf.Tensor, eos_id: int
) -> BeamStep:
    """Adds a token to the active beams, and moves those that end to the finished texts.

    Args:
        logits: [batch, vocab], after the active beams; the batch is the beams.
        beams: the state before the step.
        length_penalty: float32 scalar; the score of a finished text is log-probability / length ** length_penalty.
        max_new_tokens: int32 scalar, the length at which every text ends.
        eos_id: the token that ends a text.
    """
    whole = redistribute(redistribute(logits, "batch", "beams"), "vocab", "whole")
    parents, last, *after = BeamStepOperation([whole, length_penalty, max_new_tokens, *beams.tensors()], eos_id).outputs
    return BeamStep(parents, last, Beams(*after))


class GatherRows(MeshOperation):
    """x [whole, ...], rows int32 [beams] -> [beams, ...]."""

    def __init__(self, x: mtf.Tensor, rows: mtf.Tensor):
        shape = mtf.Shape(rows.shape.dims + x.shape.dims[1:])
        super().__init__([x, rows], [(shape, x.dtype)], "gather_rows")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(kernels.gather_rows, *inputs),)


def gather_rows(x: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
    """Gathers rows of a tensor: x [batch, ...], rows int32 [beams] -> [batch, ...] with one row for each beam."""
    return redistribute(GatherRows(mtf.rename_dimension(x, "batch", "whole"), rows).outputs[0], "beams", "batch")
