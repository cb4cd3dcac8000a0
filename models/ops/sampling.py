"""Sampling of the next token."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from meshtf import mtf, tf
from models.kernels import sampling as kernels
from models.kernels.vocabulary import Vocabulary
from models.ops.mesh_operation import SliceKernel


class RowParams(NamedTuple):
    """Sampling parameters of the rows.

    Attributes:
        floats: float32 [batch, float_settings], as `kernels.sampling.param_arrays` gives them.
        integers: int32 [batch, integer_settings], likewise.
        seeds: int32 [batch], at least 0.
        n_top: int32 [batch], how many of the most likely tokens to report.
    """

    floats: mtf.Tensor
    integers: mtf.Tensor
    seeds: mtf.Tensor
    n_top: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The next token of each row.

    Attributes:
        tokens: int32 [batch].
        log_probs: float32 [batch], of those tokens, before temperature, penalties and filters.
        top_tokens: int32 [batch, top], the most likely tokens, most likely first; 0 if no row wants any.
        top_log_probs: float32 [batch, top], likewise.
        ended: int32 [batch], 1 + a token that ends the text, 0 for others.
    """

    tokens: mtf.Tensor
    log_probs: mtf.Tensor
    top_tokens: mtf.Tensor
    top_log_probs: mtf.Tensor
    ended: mtf.Tensor


def sample_next_tokens(
    logits: mtf.Tensor,
    params: RowParams,
    tokens: mtf.Tensor,
    prompt_lengths: mtf.Tensor,
    lengths: mtf.Tensor,
    vocabulary: Vocabulary,
) -> NextTokens:
    """Samples the next token of each row, a function of its own logits, parameters, seed and history, on any mesh.

    Args:
        logits: [batch, vocab].
        params: of the rows.
        tokens: int32 [batch, memory_length], of each row, valid before `lengths`.
        prompt_lengths: int32 [batch], the tokens of the prompt among them.
        lengths: int32 [batch].
        vocabulary: the ids that may be sampled.
    """
    whole_logits, whole_tokens = (mtf.rename_dimension(x, x.shape.dims[1].name, "whole") for x in (logits, tokens))
    inputs = [whole_logits, *params, whole_tokens, prompt_lengths, lengths]
    top = lengths.shape + [mtf.Dimension("top", kernels.MAX_TOP)]
    outputs = [(shape, dtype) for shape in (lengths.shape, top) for dtype in (tf.int32, tf.float32)]
    outputs.append((lengths.shape, tf.int32))
    kernel = kernels.sample_next_tokens(vocabulary)
    return NextTokens(*SliceKernel("sample_next_tokens", kernel, inputs, outputs).outputs)
