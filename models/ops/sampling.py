"""The choice of the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import sampling as kernels
from models.ops.mesh_operation import MeshOperation


@dataclasses.dataclass(frozen=True)
class RowParams:
    """What each row asks for.

    Attributes:
        floats: float32 [batch, float_settings], as `kernels.sampling.param_arrays` gives them.
        integers: int32 [batch, integer_settings], likewise.
        seeds: int32 [batch], at least 0.
        n_top: int32 [batch], how many of the likeliest tokens to tell.
    """

    floats: mtf.Tensor
    integers: mtf.Tensor
    seeds: mtf.Tensor
    n_top: mtf.Tensor

    def tensors(self) -> list[mtf.Tensor]:
        return [self.floats, self.integers, self.seeds, self.n_top]


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The next token of each row.

    Attributes:
        tokens: int32 [batch].
        log_probs: float32 [batch], under the logits as they come: before temperature, penalties and filters.
        top_tokens: int32 [batch, top], the likeliest ones, likeliest first; 0 when no row asks for any.
        top_log_probs: float32 [batch, top], of them, likewise.
    """

    tokens: mtf.Tensor
    log_probs: mtf.Tensor
    top_tokens: mtf.Tensor
    top_log_probs: mtf.Tensor


class SampleNextTokens(MeshOperation):
    """logits [batch, whole], those of `RowParams`, tokens [batch, whole], two lengths -> those of `NextTokens`."""

    def __init__(self, inputs: Sequence[mtf.Tensor], eos_id: int):
        self._eos_id = eos_id
        batch_dim = inputs[0].shape.dims[0]
        each, top = mtf.Shape([batch_dim]), mtf.Shape([batch_dim, mtf.Dimension("top", kernels.MAX_TOP)])
        super().__init__(
            inputs, [(each, tf.int32), (each, tf.float32), (top, tf.int32), (top, tf.float32)], "sample_next_tokens"
        )

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        return mesh_impl.slicewise(kernels.sample_next_tokens(self._eos_id), *inputs)


def sample_next_tokens(
    logits: mtf.Tensor,
    rules: RowParams,
    tokens: mtf.Tensor,
    prompt_lengths: mtf.Tensor,
    lengths: mtf.Tensor,
    eos_id: int,
) -> NextTokens:
    """Chooses the next token of each row: a function of its logits, rule, seed and history only, on any mesh.

    Args:
        logits: [batch, vocab].
        rules: of the rows.
        tokens: int32 [batch, memory_length], what each row holds, valid before `lengths`.
        prompt_lengths: int32 [batch], how many of them are the prompt.
        lengths: int32 [batch].
        eos_id: ends a text.
    """
    whole_logits, whole_tokens = (mtf.rename_dimension(x, x.shape.dims[1].name, "whole") for x in (logits, tokens))
    inputs = [whole_logits, *rules.tensors(), whole_tokens, prompt_lengths, lengths]
    return NextTokens(*SampleNextTokens(inputs, eos_id).outputs)
