"""Sampling of the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import sampling as kernels
from models.ops.mesh_operation import MeshOperation


@dataclasses.dataclass(frozen=True)
class RowParams:
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

    def tensors(self) -> list[mtf.Tensor]:
        """Returns the fields in order."""
        return [self.floats, self.integers, self.seeds, self.n_top]


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """The next token of each row.

    Attributes:
        tokens: int32 [batch].
        log_probs: float32 [batch], of those tokens, before temperature, penalties and filters.
        top_tokens: int32 [batch, top], the most likely tokens, most likely first; 0 if no row wants any.
        top_log_probs: float32 [batch, top], likewise.
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
        """Computes the outputs from the slices of the inputs."""
        return mesh_impl.slicewise(kernels.sample_next_tokens(self._eos_id), *inputs)


def sample_next_tokens(
    logits: mtf.Tensor,
    params: RowParams,
    tokens: mtf.Tensor,
    prompt_lengths: mtf.Tensor,
    lengths: mtf.Tensor,
    eos_id: int,
) -> NextTokens:
    """Samples the next token of each row, a function of its own logits, parameters, seed and history, on any mesh.

    Args:
        logits: [batch, vocab].
        params: of the rows.
        tokens: int32 [batch, memory_length], of each row, valid before `lengths`.
        prompt_lengths: int32 [batch], the tokens of the prompt among them.
        lengths: int32 [batch].
        eos_id: the token that ends a text.
    """
    whole_logits, whole_tokens = (mtf.rename_dimension(x, x.shape.dims[1].name, "whole") for x in (logits, tokens))
    inputs = [whole_logits, *params.tensors(), whole_tokens, prompt_lengths, lengths]
    return NextTokens(*SampleNextTokens(inputs, eos_id).outputs)
