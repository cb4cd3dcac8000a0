"""Softmax attention of whole sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import attention as kernels
from models.kernels.attention import AttentionParams
from models.ops.dropout import Noise
from models.ops.grouping import SharedHeads
from models.ops.mesh_operation import (
    MeshOperation,
    SliceKernel,
    lazy_sum,
    mesh_axes,
    redistribute,
    slice_size,
    slice_starts,
)
from models.ops.packing import Packing
from models.ops.ring_attention import block_products, ring_attention, ring_attention_gradient, ring_of

Attended = tuple[mtf.Tensor, mtf.Tensor]


@dataclasses.dataclass(frozen=True)
class _AttentionDims:
    """Of queries [batch, sequence, heads, features_per_head] and keys [batch, memory_length, kv_heads, ...]."""

    sequence: mtf.Dimension
    memory: mtf.Dimension
    heads: mtf.Dimension
    kv_heads: mtf.Dimension

    @staticmethod
    def of(queries: mtf.Tensor, keys: mtf.Tensor) -> _AttentionDims:
        return _AttentionDims(queries.shape.dims[1], keys.shape.dims[1], queries.shape.dims[2], keys.shape.dims[2])

    def is_aligned(self, mesh_impl: mtf.MeshImpl) -> bool:
        return self.sequence.size == self.memory.size and not mesh_axes(mesh_impl, [self.sequence, self.memory])

    def shared(self, mesh_impl: mtf.MeshImpl) -> SharedHeads:
        return SharedHeads(mesh_impl, self.heads, self.kv_heads)

    def starts(self, mesh_impl: mtf.MeshImpl) -> LaidOut:
        return slice_starts(mesh_impl, [self.heads, self.sequence, self.memory])


class SoftmaxAttention(MeshOperation):
    """queries, keys, values, key, rows -> outputs like the queries, log_z float32 [batch, heads, sequence].

    With segments, two more inputs say where those of the queries and of the keys begin.
    """

    def __init__(self, inputs: Sequence[mtf.Tensor], params: AttentionParams) -> None:
        self.params = params
        batch_dim, sequence_dim, heads_dim, _ = inputs[0].shape.dims
        log_z_shape = mtf.Shape([batch_dim, heads_dim, sequence_dim])
        super().__init__(inputs, [(inputs[0].shape, inputs[0].dtype), (log_z_shape, tf.float32)], "softmax_attention")

    def lower_slices(
        self,
        mesh_impl: mtf.MeshImpl,
        queries: LaidOut,
        keys: LaidOut,
        values: LaidOut,
        key: LaidOut,
        rows: LaidOut,
        *segments: LaidOut,
    ) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        ring = ring_of(mesh_impl, self.params, *self.inputs[:2])
        if ring is not None:
            return ring_attention(ring, queries, keys, values, key, rows, *segments)
        dims = _AttentionDims.of(*self.inputs[:2])
        starts, axes = dims.starts(mesh_impl), mesh_axes(mesh_impl, [dims.memory])
        keys, values = map(dims.shared(mesh_impl).repeated, (keys, values))
        if not axes:
            kernel = kernels.attention(self.params, dims.is_aligned(mesh_impl))
            return mesh_impl.slicewise(kernel, queries, keys, values, starts, key, rows, *segments)
        largest = mesh_impl.slicewise(kernels.attention_largest_logit(self.params), queries, keys, starts, *segments)
        largest = mesh_impl.allreduce(largest, axes, "MAX")
        kernel = kernels.attention_sums(self.params)
        sums = mesh_impl.slicewise(kernel, queries, keys, values, starts, key, rows, largest, *segments)
        total, weighted = (mesh_impl.allreduce(part, axes, "SUM") for part in sums)
        dtype = self.outputs[0].dtype
        return (
            mesh_impl.slicewise(
                lambda w, t: tf.cast(w / tf.transpose(t, [0, 2, 1])[..., None], dtype), weighted, total
            ),
            mesh_impl.slicewise(lambda largest, total: largest + tf.math.log(total), largest, total),
        )

    def gradient(self, grad_ys: Sequence[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        outputs, log_z = self.outputs
        d_outputs = mtf.zeros_like(outputs) if grad_ys[0] is None else grad_ys[0]
        d_log_z = [] if grad_ys[1] is None else [grad_ys[1]]
        inputs = [*self.inputs, outputs, log_z, d_outputs, *d_log_z]
        return [*SoftmaxAttentionGradient(inputs, self.params).outputs, *[None] * len(self.inputs[3:])]

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Two products: the logits and the outputs."""
        return 2 * _product_flops(mesh_impl, self.params, *self.inputs[:2])


class SoftmaxAttentionGradient(MeshOperation):
    """The gradient of softmax attention.

    The forward inputs, the forward outputs, d_outputs and, if there is one, d_log_z -> d_queries, d_keys,
    d_values.
    """

    def __init__(self, inputs: Sequence[mtf.Tensor], params: AttentionParams) -> None:
        self.params = params
        super().__init__(inputs, [(x.shape, x.dtype) for x in inputs[:3]], "softmax_attention_gradient")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, queries: LaidOut, keys: LaidOut, values: LaidOut, *others: LaidOut
    ) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        dims, ring = _AttentionDims.of(*self.inputs[:2]), ring_of(mesh_impl, self.params, *self.inputs[:2])
        shared = dims.shared(mesh_impl)
        if ring is not None:
            d_queries, *of_keys = ring_attention_gradient(ring, queries, keys, values, *others)
            return [d_queries, *map(shared.total, of_keys)]
        kernel = kernels.attention_gradient(self.params, dims.is_aligned(mesh_impl))
        wide = map(shared.repeated, (keys, values))
        d_queries, *of_keys = mesh_impl.slicewise(kernel, queries, *wide, dims.starts(mesh_impl), *others)
        sums = [shared.total(shared.summed(x), [dims.sequence]) for x in of_keys]
        return [lazy_sum(mesh_impl, d_queries, [dims.memory]), *sums]

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Five products: the logits again, and four of the gradient."""
        return 5 * _product_flops(mesh_impl, self.params, *self.inputs[:2])


def _product_flops(mesh_impl: mtf.MeshImpl, params: AttentionParams, queries: mtf.Tensor, keys: mtf.Tensor) -> float:
    """Of one product of queries with keys, on one processor."""
    ring, (batch_dim, _, heads_dim, features_dim) = ring_of(mesh_impl, params, queries, keys), queries.shape.dims
    if ring is not None:
        return 2.0 * slice_size(mesh_impl, [batch_dim, heads_dim, features_dim]) * block_products(ring)
    return 2.0 * slice_size(mesh_impl, [*queries.shape.dims, keys.shape.dims[1]])


def softmax_attention(
    queries: mtf.Tensor,
    keys: mtf.Tensor,
    values: mtf.Tensor,
    params: AttentionParams,
    noise: Noise,
    segment_starts: mtf.Tensor | None = None,
) -> Attended:
    """Computes softmax attention, without scaling the logits.

    Args:
        queries: [batch, sequence, heads, features_per_head].
        keys: [batch, memory_length, kv_heads, features_per_head], of as many positions as the queries if the mask
            depends on positions; the dimension may have another name. As in `repeat_heads`, heads may share keys.
        values: as keys.
        params: the mask, and the dropout of the weights.
        noise: for the dropout.
        segment_starts: where the segment of each position begins, int32 [batch, sequence], if the mask has segments.

    Returns:
        The outputs [batch, sequence, heads, features_per_head], and log_z float32 [batch, heads, sequence], the
        logarithm of the sum of the exponentials, which `merged_attention` needs.
    """
    assert params.has_segments == (segment_starts is not None)
    segments = []
    if segment_starts is not None:
        segments = [segment_starts, redistribute(segment_starts, "sequence", keys.shape.dims[1].name)]
    outputs, log_z = SoftmaxAttention([queries, keys, values, *noise, *segments], params).outputs
    return outputs, log_z


def packed_attention(
    queries: mtf.Tensor,
    keys: mtf.Tensor,
    values: mtf.Tensor,
    packing: Packing,
    radius: int | None,
    softcap: float | None = None,
) -> Attended:
    """Computes causal softmax attention of packed texts, without scaling the logits; it has no gradient.

    Args:
        queries: [batch, sequence, heads, features_per_head]; batch and heads may be split.
        keys: as queries.
        values: as queries.
        packing: where the texts lie.
        radius: a position sees only the positions of its text less than this away; None: no limit.
        softcap: bounds the logits; None: no bound.

    Returns:
        As of `softmax_attention`.
    """
    batch_dim, sequence_dim, heads_dim, _ = queries.shape.dims
    outputs = [(queries.shape, queries.dtype), (mtf.Shape([batch_dim, heads_dim, sequence_dim]), tf.float32)]
    inputs = [queries, keys, values, *packing]
    kernel = kernels.packed_attention(radius, softcap)
    attended, log_z = SliceKernel("packed_attention", kernel, inputs, outputs).outputs
    return attended, log_z


def merged_attention(one: Attended, other: Attended) -> Attended:
    """Merges attention over two sets of keys into attention over both.

    Dropout stays correct: each part has dropped its own weights, and log_z counts all of them.

    Args:
        one: outputs [batch, ..., heads, features_per_head] and log_z float32, one for each row of features.
        other: as one.

    Returns:
        As one.

    Source: Dao et al. 2022, FlashAttention, section 3.1, for merging blocks of keys.
    """
    (outputs, log_z), (other_outputs, other_log_z) = one, other
    share = mtf.sigmoid(log_z - other_log_z)
    kept = mtf.cast(outputs, tf.float32) * share
    added = mtf.cast(other_outputs, tf.float32) * (1.0 - share)
    return mtf.cast(kept + added, outputs.dtype), log_z + mtf.softplus(other_log_z - log_z)
