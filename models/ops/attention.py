"""Softmax attention of whole sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from meshtf import mtf, tf
from models.kernels import attention as kernels
from models.ops.dropout import Noise
from models.ops.mesh_operation import MeshOperation, lazy_sum, mesh_axes, slice_starts


@dataclasses.dataclass(frozen=True)
class _AttentionDims:
    """The dimensions of queries [batch, sequence, heads, features_per_head] and keys [batch, memory_length, ...]."""

    sequence: mtf.Dimension
    memory: mtf.Dimension
    heads: mtf.Dimension

    @staticmethod
    def of(queries: mtf.Tensor, keys: mtf.Tensor) -> _AttentionDims:
        return _AttentionDims(queries.shape.dims[1], keys.shape.dims[1], queries.shape.dims[2])

    def kind(self, mesh_impl: mtf.MeshImpl, radius: int | None, dropout_rate: float) -> kernels.AttentionKind:
        return kernels.AttentionKind(radius, dropout_rate, not mesh_axes(mesh_impl, [self.sequence, self.memory]))

    def starts(self, mesh_impl: mtf.MeshImpl) -> object:
        return slice_starts(mesh_impl, [self.heads, self.sequence, self.memory])


class CausalAttention(MeshOperation):
    """queries, keys, values, key, rows -> outputs like the queries, log_z float32 [batch, heads, sequence]."""

    def __init__(self, inputs: Sequence[mtf.Tensor], radius: int | None, dropout_rate: float):
        self._radius = radius
        self._dropout_rate = dropout_rate
        batch_dim, sequence_dim, heads_dim, _ = inputs[0].shape.dims
        log_z_shape = mtf.Shape([batch_dim, heads_dim, sequence_dim])
        super().__init__(inputs, [(inputs[0].shape, inputs[0].dtype), (log_z_shape, tf.float32)], "causal_attention")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, queries: object, keys: object, values: object, key: object, rows: object
    ) -> Sequence[object]:
        dims = _AttentionDims.of(*self.inputs[:2])
        kind, starts = dims.kind(mesh_impl, self._radius, self._dropout_rate), dims.starts(mesh_impl)
        axes = mesh_axes(mesh_impl, [dims.memory])
        if not axes:
            return mesh_impl.slicewise(kernels.attention(kind), queries, keys, values, starts, key, rows)
        largest = mesh_impl.slicewise(kernels.attention_largest_logit(kind), queries, keys, starts)
        largest = mesh_impl.allreduce(largest, axes, "MAX")
        sums = mesh_impl.slicewise(kernels.attention_sums(kind), queries, keys, values, starts, key, rows, largest)
        total, weighted = (mesh_impl.allreduce(part, axes, "SUM") for part in sums)
        dtype = self.outputs[0].dtype
        return (
            mesh_impl.slicewise(
                lambda w, t: tf.cast(w / tf.transpose(t, [0, 2, 1])[..., None], dtype), weighted, total
            ),
            mesh_impl.slicewise(lambda largest, total: largest + tf.math.log(total), largest, total),
        )

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        inputs = [*self.inputs, *self.outputs, grad_ys[0]]
        return [*CausalAttentionGradient(inputs, self._radius, self._dropout_rate).outputs, None, None]


class CausalAttentionGradient(MeshOperation):
    """The forward inputs, the forward outputs, d_outputs -> d_queries, d_keys, d_values."""

    def __init__(self, inputs: Sequence[mtf.Tensor], radius: int | None, dropout_rate: float):
        self._radius = radius
        self._dropout_rate = dropout_rate
        super().__init__(inputs, [(x.shape, x.dtype) for x in inputs[:3]], "causal_attention_gradient")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, queries: object, keys: object, values: object, *others: object
    ) -> Sequence[object]:
        dims = _AttentionDims.of(*self.inputs[:2])
        kernel = kernels.attention_gradient(dims.kind(mesh_impl, self._radius, self._dropout_rate))
        d_queries, d_keys, d_values = mesh_impl.slicewise(
            kernel, queries, keys, values, dims.starts(mesh_impl), *others
        )
        return (
            lazy_sum(mesh_impl, d_queries, [dims.memory]),
            lazy_sum(mesh_impl, d_keys, [dims.sequence]),
            lazy_sum(mesh_impl, d_values, [dims.sequence]),
        )


def causal_attention(
    queries: mtf.Tensor, keys: mtf.Tensor, values: mtf.Tensor, radius: int | None, dropout_rate: float, noise: Noise
) -> mtf.Tensor:
    """Softmax attention in which position p sees the positions up to p, or only the last `radius` of them.

    Args:
      queries: [batch, sequence, heads, features_per_head]; the logits are not scaled.
      keys: [batch, memory_length, heads, features_per_head].
      values: as keys.
      radius: None for global attention; otherwise p sees (p - radius, p].
      dropout_rate: of the weights.
      noise: for the dropout.

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    return CausalAttention([queries, keys, values, *noise.tensors()], radius, dropout_rate).outputs[0]
