"""Linear attention of whole sequences, and of one position at a time from the sums over earlier positions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import linear_attention as kernels
from models.kernels.compile import Kernel
from models.ops.mesh_operation import MeshOperation, SliceKernel, mesh_axes, redistribute, slice_size, slice_start
from models.ops.packing import Packing


class CausalLinearAttention(MeshOperation):
    """queries, keys, values [batch, sequence, heads, features_per_head] -> outputs like the queries.

    With segments, one more input [batch, sequence] says where they begin. Of a sequence that is split, each processor
    receives the sums over the slices of the others, and no keys.
    """

    def __init__(self, inputs: Sequence[mtf.Tensor], normalization: str) -> None:
        self._normalization = normalization
        super().__init__(inputs, [(inputs[0].shape, inputs[0].dtype)], "causal_linear_attention")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, queries: LaidOut, keys: LaidOut, values: LaidOut, *segments: LaidOut
    ) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        slices = _slices_of(mesh_impl, self.inputs[0])
        if slices is None:
            kernel = _by(self._normalization, kernels.causal_linear_attention)
            return [mesh_impl.slicewise(kernel, queries, keys, values, *segments)]
        kernel = _by(self._normalization, kernels.causal_linear_attention_of_slice)
        before = slices.before(keys, values, segments, slices.edges(segments))
        return [mesh_impl.slicewise(kernel, queries, keys, values, slices.begin(), before, *segments)]

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        inputs = [*self.inputs[:3], grad_ys[0], *self.inputs[3:]]
        gradients = CausalLinearAttentionGradient(inputs, self._normalization).outputs
        return [*gradients, *[None] * len(self.inputs[3:])]

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Two products: of the keys with the values, and of the queries with their sums."""
        return 2 * _product_flops(mesh_impl, self.inputs[0])


class CausalLinearAttentionGradient(MeshOperation):
    """queries, keys, values, d_outputs, and where segments begin if there are any -> d_queries, d_keys, d_values."""

    def __init__(self, inputs: Sequence[mtf.Tensor], normalization: str) -> None:
        self._normalization = normalization
        super().__init__(inputs, [(x.shape, x.dtype) for x in inputs[:3]], "causal_linear_attention_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        slices, (_, keys, values, _, *segments) = _slices_of(mesh_impl, self.inputs[0]), inputs
        if slices is None:
            kernel = _by(self._normalization, kernels.causal_linear_attention_gradient)
            return mesh_impl.slicewise(kernel, *inputs)
        edges, begin = slices.edges(segments), slices.begin()
        before = slices.before(keys, values, segments, edges)
        kernel = _by(self._normalization, kernels.slice_query_gradients)
        d_queries, *kept, d_state, reference = mesh_impl.slicewise(kernel, *inputs[:4], begin, before, *segments)
        kernel, d_states = kernels.state_gradient_after, slices.all(d_state)
        after = mesh_impl.slicewise(kernel, d_states, reference, slices.number(), *edges)
        kernel = _by(self._normalization, kernels.slice_key_value_gradients)
        given = (*inputs[:3], begin, before, after, inputs[3], *kept, *segments)
        return [d_queries, *mesh_impl.slicewise(kernel, *given)]

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Six products: the sums of the forward pass again, and five of the gradient."""
        return 6 * _product_flops(mesh_impl, self.inputs[0])


@dataclasses.dataclass(frozen=True)
class _Slices:
    """A sequence that is split over a mesh axis."""

    mesh_impl: mtf.MeshImpl
    axis: int
    sequence: mtf.Dimension

    def number(self) -> LaidOut:
        """Returns the number of a processor's slice."""
        return self.mesh_impl.laid_out_pcoord(self.axis)

    def begin(self) -> LaidOut:
        """Returns the first position of a processor's slice."""
        return slice_start(self.mesh_impl, self.sequence)

    def all(self, x: LaidOut) -> LaidOut:
        """[...] -> [slices, ...], one of each processor."""
        return self.mesh_impl.allconcat(self.mesh_impl.slicewise(lambda own: own[None], x), self.axis, 0)

    def edges(self, segments: Sequence[LaidOut]) -> list[LaidOut]:
        """Returns the `edges` of the kernels; nothing without segments."""
        return [self.all(self.mesh_impl.slicewise(_first_and_last, x)) for x in segments]

    def before(self, keys: LaidOut, values: LaidOut, segments: Sequence[LaidOut], edges: Sequence[LaidOut]) -> LaidOut:
        """Returns the sums that a slice begins with."""
        own = self.mesh_impl.slicewise(kernels.slice_state, keys, values, *segments)
        return self.mesh_impl.slicewise(kernels.state_before, self.all(own), self.number(), *edges)


def _first_and_last(x: tf.Tensor) -> tf.Tensor:
    """[B, S] -> [B, 2]."""
    return tf.stack([x[:, 0], x[:, -1]], 1)


def _slices_of(mesh_impl: mtf.MeshImpl, queries: mtf.Tensor) -> _Slices | None:
    sequence = queries.shape.dims[1]
    axes = mesh_axes(mesh_impl, [sequence])
    return _Slices(mesh_impl, axes[0], sequence) if axes else None


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
        queries: [batch, sequence, heads, features_per_head].
        keys: as queries.
        values: as queries.
        normalization: "position" or "feature".
        segment_starts: where the segment of each position begins, int32 [batch, sequence]: a position sees its own
            segment only; None: each row is one segment.

    Returns:
        [batch, sequence, heads, features_per_head].

    Source: GPT-Neo, kept for checkpoints; Katharopoulos et al. 2020, Transformers are RNNs, section 3.
    """
    segments = [] if segment_starts is None else [segment_starts]
    return CausalLinearAttention([queries, keys, values, *segments], normalization).outputs[0]


def linear_attention(
    queries: mtf.Tensor, keys: mtf.Tensor, values: mtf.Tensor, segment_starts: mtf.Tensor | None = None
) -> mtf.Tensor:
    """Computes linear attention in which every position sees all, or all of its segment.

    out_t = sum over d of softmax(q_t)[d] * sum over s of softmax(k[d])[s] v_s; arguments and result as of
    `causal_linear_attention`.

    Source: GPT-Neo, kept for checkpoints; Shen et al. 2021, Efficient Attention, section 3.2.
    """
    segments = [] if segment_starts is None else [segment_starts]
    whole = [redistribute(x, "sequence", "whole") for x in (queries, keys, values, *segments)]
    likes = [(x.shape, x.dtype) for x in whole[:3]]

    def gradient(operation: mtf.Operation, d_outputs: mtf.Tensor) -> list[mtf.Tensor | None]:
        inputs, kernel = [*operation.inputs[:3], d_outputs, *operation.inputs[3:]], kernels.linear_attention_gradient
        gradients = LinearAttentionGradient("linear_attention_gradient", kernel, inputs, likes).outputs
        return [*gradients, *[None] * len(segments)]

    attended = LinearAttention("linear_attention", kernels.linear_attention, whole, likes[:1], gradient).outputs[0]
    return redistribute(attended, "whole", "sequence")


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
