"""Linear attention of whole sequences, and of one position at a time from the sums over earlier positions."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from meshtf import mtf, tf
from models.kernels import linear_attention as kernels
from models.kernels.compile import Kernel
from models.ops.mesh_operation import SliceKernel, redistribute, slice_size
from models.ops.packing import Packing


class LinearAttention(SliceKernel):
    """queries, keys, values [batch, whole, heads, features_per_head] -> outputs like the queries.

    With segments, one more input [batch, whole] says where they begin.
    """

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Two products: of the keys with the values, and of the queries with their sums."""
        return 2 * _product_flops(mesh_impl, self.inputs[0])


class LinearAttentionGradient(SliceKernel):
    """queries, keys, values, d_outputs, and where segments begin if there are any -> d_queries, d_keys, d_values."""

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Six products: the sums of the forward pass again, and five of the gradient."""
        return 6 * _product_flops(mesh_impl, self.inputs[0])


def _product_flops(mesh_impl: mtf.MeshImpl, queries: mtf.Tensor) -> float:
    """Of one product of linear attention in chunks, on one processor."""
    dims = queries.shape.dims
    return 2.0 * slice_size(mesh_impl, dims) * (dims[-1].size + kernels.CHUNK)


@functools.cache
def _by(normalization: str, kernel: Kernel) -> Kernel:
    """Returns a kernel of causal attention with a member of `kernels.NORMALIZATIONS`."""
    return lambda *slices: kernel(*slices, normalization=normalization)


def _attended(
    inputs: Sequence[mtf.Tensor], segment_starts: mtf.Tensor | None, kernel: Kernel, gradient_kernel: Kernel
) -> mtf.Tensor:
    segments = [] if segment_starts is None else [segment_starts]
    whole = [redistribute(x, "sequence", "whole") for x in (*inputs, *segments)]
    likes = [(x.shape, x.dtype) for x in whole[:3]]

    def gradient(operation: mtf.Operation, d_outputs: mtf.Tensor) -> list[mtf.Tensor | None]:
        inputs = [*operation.inputs[:3], d_outputs, *operation.inputs[3:]]
        gradients = LinearAttentionGradient("linear_attention_gradient", gradient_kernel, inputs, likes).outputs
        return [*gradients, *[None] * len(segments)]

    (attended,) = LinearAttention("linear_attention", kernel, whole, likes[:1], gradient).outputs
    return redistribute(attended, "whole", "sequence")


def causal_linear_attention(
    queries: mtf.Tensor,
    keys: mtf.Tensor,
    values: mtf.Tensor,
    normalization: str = "position",
    segment_starts: mtf.Tensor | None = None,
) -> mtf.Tensor:
    """Computes linear attention in which a position sees itself and earlier ones.

    With f = softmax(q_t), C[d] = sum over s <= t of exp(k_s[d]) v_s and K[d] = 1e-6 + sum over s <= t of exp(k_s[d]):
    out_t = (sum over d of f[d] C[d]) / (sum over d of f[d] K[d]). Normalized by "feature", out_t = sum over d of
    f[d] C[d] / K[d].

    Args:
        queries: [batch, sequence, heads, features_per_head]; batch and heads may be split.
        keys: as queries.
        values: as queries.
        normalization: "position" or "feature".
        segment_starts: where the segment of each position begins, int32 [batch, sequence]: a position sees its own
            segment only; None: each row is one segment.

    Returns:
        [batch, sequence, heads, features_per_head].

    Source: GPT-Neo, kept for checkpoints; Katharopoulos et al. 2020, Transformers are RNNs, section 3.
    """
    both = (kernels.causal_linear_attention, kernels.causal_linear_attention_gradient)
    return _attended([queries, keys, values], segment_starts, *(_by(normalization, kernel) for kernel in both))


def linear_attention(
    queries: mtf.Tensor, keys: mtf.Tensor, values: mtf.Tensor, segment_starts: mtf.Tensor | None = None
) -> mtf.Tensor:
    """Computes linear attention in which every position sees all, or all of its segment.

    out_t = sum over d of softmax(q_t)[d] * sum over s of softmax(k[d])[s] v_s; arguments and result as of
    `causal_linear_attention`.

    Source: GPT-Neo, kept for checkpoints; Shen et al. 2021, Efficient Attention, section 3.2.
    """
    both = (kernels.linear_attention, kernels.linear_attention_gradient)
    return _attended([queries, keys, values], segment_starts, *both)


def packed_linear_attention(
    queries: mtf.Tensor, keys: mtf.Tensor, values: mtf.Tensor, packing: Packing, normalization: str = "position"
) -> mtf.Tensor:
    """Computes `causal_linear_attention` of packed texts, with their `packing`; it has no gradient."""
    inputs, outputs = [queries, keys, values, *packing], [(queries.shape, queries.dtype)]
    kernel = _by(normalization, kernels.packed_linear_attention)
    return SliceKernel("packed_linear_attention", kernel, inputs, outputs).outputs[0]


def _state_shapes(row: mtf.Shape) -> list[tuple[mtf.Shape, tf.DType]]:
    """Returns the shapes of context, total and largest, for keys [batch, kv_heads, features_per_head]."""
    features_dim = row.dims[-1]
    context = row + [mtf.Dimension(features_dim.name + "_out", features_dim.size)]
    return [(context, tf.float32), (row, tf.float32), (row, tf.float32)]


def empty_linear_state(mesh: mtf.Mesh, dims: Sequence[mtf.Dimension]) -> dict[str, mtf.Tensor]:
    """Returns a state shaped like that of `linear_state`, for one position's keys [batch, kv_heads, features_per_head].

    Its values are never read.
    """
    shapes = _state_shapes(mtf.Shape(dims))
    return {name: mtf.zeros(mesh, shape, dtype) for name, (shape, dtype) in zip(kernels.STATE, shapes, strict=True)}


def linear_state(keys: mtf.Tensor, values: mtf.Tensor, lengths: mtf.Tensor) -> dict[str, mtf.Tensor]:
    """Returns the sums over a prompt, from which `linear_attention_step` continues.

    Args:
        keys: [batch, sequence, kv_heads, features_per_head]; batch and kv_heads may be split.
        values: as keys.
        lengths: int32 [batch], the tokens of each prompt; what follows them is padding.

    Returns:
        "context" [batch, kv_heads, features_per_head, features_per_head_out], the sum of exp(k - largest) v; "total"
        [batch, kv_heads, features_per_head], that of exp(k - largest) and epsilon; "largest" [batch, kv_heads,
        features_per_head]. All float32.
    """
    batch_dim, _, heads_dim, features_dim = keys.shape.dims
    shapes = _state_shapes(mtf.Shape([batch_dim, heads_dim, features_dim]))
    whole = [redistribute(x, "sequence", "whole") for x in (keys, values)]
    state = SliceKernel("linear_state", kernels.linear_state, [*whole, lengths], shapes).outputs
    return dict(zip(kernels.STATE, state, strict=True))


def linear_attention_step(
    queries: mtf.Tensor,
    keys: mtf.Tensor,
    values: mtf.Tensor,
    state: dict[str, mtf.Tensor],
    normalization: str = "position",
) -> tuple[mtf.Tensor, dict[str, mtf.Tensor]]:
    """Computes causal linear attention of one position of each row.

    Args:
        queries: [batch, heads, features_per_head].
        keys: [batch, kv_heads, features_per_head]; kv_heads is split as heads are, or not at all.
        values: as keys.
        state: of the earlier positions; see `linear_state`.
        normalization: as of `causal_linear_attention`.

    Returns:
        [batch, heads, features_per_head], and the state with this position added.
    """
    inputs = [queries, keys, values, *(state[name] for name in kernels.STATE)]
    shapes = [(queries.shape, queries.dtype), *_state_shapes(keys.shape)]
    heads_dim, kv_dim = queries.shape.dims[1], keys.shape.dims[1]
    settings = {"normalization": normalization, "group_size": heads_dim.size // kv_dim.size}
    kernel = functools.partial(kernels.linear_attention_step, **settings)
    outputs, *new_state = SliceKernel("linear_attention_step", kernel, inputs, shapes, starts=[heads_dim]).outputs
    return outputs, dict(zip(kernels.STATE, new_state, strict=True))
