"""One step of beam search, and the rows of caches in the order of the beams."""

from __future__ import annotations

from meshtf import mtf, tf
from models.kernels import beams as kernels
from models.kernels.beams import Beams
from models.kernels.vocabulary import Vocabulary
from models.ops.mesh_operation import SliceKernel, redistribute


def beam_step(
    logits: mtf.Tensor,
    beams: Beams[mtf.Tensor],
    length_penalty: mtf.Tensor,
    max_new_tokens: mtf.Tensor,
    vocabulary: Vocabulary,
) -> tuple[mtf.Tensor, mtf.Tensor, Beams[mtf.Tensor]]:
    """Adds a token to the active beams, and moves those that end to the finished texts.

    Args:
        logits: [batch, vocab], after the active beams; the batch is the beams.
        beams: the state before the step.
        length_penalty: float32 scalar; the score of a finished text is log-probability / length ** length_penalty.
        max_new_tokens: int32 scalar, the length at which every text ends.
        vocabulary: the ids that may continue a text.

    Returns:
        The beam that each active beam continues, int32 [beams]; the token that each adds, int32 [beams]; and the state
        after the step.
    """
    whole = redistribute(redistribute(logits, "batch", "beams"), "vocab", "whole")
    added = (mtf.Shape(whole.shape.dims[:1]), tf.int32)
    outputs = [added, added, *((x.shape, x.dtype) for x in beams.tensors())]
    inputs = [whole, length_penalty, max_new_tokens, *beams.tensors()]
    parents, last, *after = SliceKernel("beam_step", kernels.beam_step(vocabulary), inputs, outputs).outputs
    return parents, last, Beams(*after)


def gather_rows(x: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
    """Gathers rows of a tensor: x [batch, ...], rows int32 [beams] -> [batch, ...] with one row for each beam."""
    whole = mtf.rename_dimension(x, "batch", "whole")
    outputs = [(mtf.Shape(rows.shape.dims + x.shape.dims[1:]), x.dtype)]
    (gathered,) = SliceKernel("gather_rows", kernels.gather_rows, [whole, rows], outputs).outputs
    return redistribute(gathered, "beams", "batch")
