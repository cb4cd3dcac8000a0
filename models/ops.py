"""Mesh operations that mesh-TensorFlow lacks or composes slowly: each is a kernel on the slices with collectives
between.

An operation here may be laid out in any way that its shapes allow: where the dimension that it reduces over is split,
partial results are reduced over those mesh axes; where it is whole, one compiled kernel does it all. No one-hot
products: GPT-Neo's `mtf.gather` and its cross-entropy multiply by a one-hot matrix of the vocabulary, forward and
backward, which costs as much as the logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from meshtf import mtf, tf
from models import kernels


@dataclasses.dataclass(frozen=True)
class Noise:
    """Where the random numbers of one step come from.

    Attributes:
      key: int32 scalar, new for each step.
      rows: int32 [batch], the place of each row in the whole batch.
    """

    key: mtf.Tensor
    rows: mtf.Tensor

    def tensors(self) -> list[mtf.Tensor]:
        return [self.key, self.rows]


def _mesh_axes(mesh_impl: mtf.MeshImpl, dims: Sequence[mtf.Dimension]) -> list[int]:
    axes = (mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims)
    return [axis for axis in axes if axis is not None]


def _starts(mesh_impl: mtf.MeshImpl, dims: Sequence[mtf.Dimension]) -> object:
    """Laid-out int32 [len(dims)]: where each processor's slice begins along these dimensions."""
    axes = [mesh_impl.tensor_dimension_to_mesh_axis(dim) for dim in dims]
    sizes = [
        dim.size if axis is None else dim.size // mesh_impl.shape[axis].size
        for dim, axis in zip(dims, axes, strict=True)
    ]

    def stack(*coordinates: int | tf.Tensor) -> tf.Tensor:
        remaining = iter(coordinates)
        return tf.stack([0 if axis is None else next(remaining) * size for axis, size in zip(axes, sizes, strict=True)])

    return mesh_impl.slicewise(stack, *[mesh_impl.laid_out_pcoord(axis) for axis in axes if axis is not None])


def _start(mesh_impl: mtf.MeshImpl, dim: mtf.Dimension) -> object:
    return mesh_impl.slicewise(lambda starts: starts[0], _starts(mesh_impl, [dim]))


class MeshOperation(mtf.Operation):
    """An operation whose slices are computed by `lower_slices(mesh_impl, *inputs)`, a tuple of laid-out outputs, one
    a shape.
    """

    def __init__(self, inputs: Sequence[mtf.Tensor], outputs: Sequence[tuple[mtf.Shape, tf.DType]], name: str):
        super().__init__(list(inputs), name=name)
        self._outputs = [mtf.Tensor(self, shape, dtype, index=index) for index, (shape, dtype) in enumerate(outputs)]

    def lower(self, lowering: mtf.Lowering) -> None:
        inputs = [lowering.tensors[x].to_laid_out_tensor() for x in self.inputs]
        for output, laid_out in zip(self.outputs, self.lower_slices(lowering.mesh_impl(self), *inputs), strict=True):
            lowering.set_tensor_lowering(output, laid_out)

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: object) -> Sequence[object]:
        raise NotImplementedError


def _lazy_sum(mesh_impl: mtf.MeshImpl, laid_out: object, dims: Sequence[mtf.Dimension]) -> object:
    """A sum over dims of which each processor holds its part; the allreduce is put off, so that sums of sums are
    reduced once.
    """
    axes = _mesh_axes(mesh_impl, dims)
    return mtf.LazyAllreduceSum(mesh_impl, laid_out, axes) if axes else laid_out


def relabel(x: mtf.Tensor, old_name: str, new_name: str) -> mtf.Tensor:
    """Renames a dimension, and moves the data if the two names are laid out differently.

    By way of a name that no layout splits: where both names are split, over different mesh axes, mesh-TensorFlow
    would split again before it joins, and so mix up the order.
    """
    return mtf.rename_dimension(mtf.rename_dimension(x, old_name, "whole"), "whole", new_name)


def offsets(dim: mtf.Dimension, position: mtf.Tensor, shape: mtf.Shape) -> mtf.Tensor:
    """How far each place along a dimension lies from a position, an int32 scalar: int32 of the given shape."""
    return mtf.broadcast(mtf.mtf_range(position.mesh, dim, tf.int32) - position, shape)


def write_at(whole: mtf.Tensor, dim: mtf.Dimension, position: mtf.Tensor, piece: mtf.Tensor) -> mtf.Tensor:
    """The whole tensor with the piece, which lacks `dim`, at one position along it."""
    inputs = [offsets(dim, position, whole.shape), mtf.broadcast(piece, whole.shape), whole]
    return mtf.cwise(lambda offset, new, old: tf.where(offset == 0, new, old), inputs, output_dtype=whole.dtype)


# ----------------------------------------------------------------------------------------------------------- embedding


class EmbeddingLookup(MeshOperation):
    """table [vocab, embd], ids [...] -> [..., embd]."""

    def __init__(self, table: mtf.Tensor, ids: mtf.Tensor):
        super().__init__([table, ids], [(ids.shape + [table.shape.dims[1]], table.dtype)], "embedding_lookup")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, table: object, ids: object) -> Sequence[object]:
        vocab_dim = self.inputs[0].shape.dims[0]
        axes = _mesh_axes(mesh_impl, [vocab_dim])
        if not axes:
            return (mesh_impl.slicewise(tf.gather, table, ids),)
        partial = mesh_impl.slicewise(_gather_own_rows, table, ids, _start(mesh_impl, vocab_dim))
        return (mtf.LazyAllreduceSum(mesh_impl, partial, axes),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        table, ids = self.inputs
        return [EmbeddingGradient(ids, grad_ys[0], table.shape).outputs[0], None]


class EmbeddingGradient(MeshOperation):
    """ids [...], d_embedded [..., embd] -> [vocab, embd]: each row the sum over the places that looked it up."""

    def __init__(self, ids: mtf.Tensor, d_embedded: mtf.Tensor, table_shape: mtf.Shape):
        super().__init__([ids, d_embedded], [(table_shape, d_embedded.dtype)], "embedding_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, ids: object, d_embedded: object) -> Sequence[object]:
        table_shape = self.outputs[0].shape
        n_rows = mesh_impl.slice_shape(table_shape)[0]

        def sum_rows(ids: tf.Tensor, d_embedded: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
            local, is_here = kernels.labels_in_slice(tf.reshape(ids, [-1]), start, n_rows)
            # A negative segment is left out: rows of another processor's slice of the vocabulary.
            return tf.math.unsorted_segment_sum(
                tf.reshape(d_embedded, [-1, d_embedded.shape[-1]]), tf.where(is_here, local, -1), n_rows
            )

        partial = mesh_impl.slicewise(sum_rows, ids, d_embedded, _start(mesh_impl, table_shape.dims[0]))
        return (_lazy_sum(mesh_impl, partial, self.inputs[0].shape.dims),)


def _gather_own_rows(table: tf.Tensor, ids: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    local, is_here = kernels.labels_in_slice(ids, start, table.shape[0])
    return tf.gather(table, local) * tf.cast(is_here, table.dtype)[..., None]


def embedding_lookup(table: mtf.Tensor, ids: mtf.Tensor) -> mtf.Tensor:
    """Rows of a table, with a gradient that adds rows up.

    Args:
      table: [vocab, embd]; vocab, embd or neither may be split.
      ids: int32 [...], each in [0, vocab).

    Returns:
      [..., embd] in the table's dtype.
    """
    return EmbeddingLookup(table, ids).outputs[0]


# ---------------------------------------------------------------------------------------------------------- layer norm


class LayerNorm(MeshOperation):
    """x [..., embd], gain [embd], bias [embd] -> y [..., embd], mean [...], inverse_std [...]."""

    def __init__(self, x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, epsilon: float):
        self._epsilon = epsilon
        rows = mtf.Shape(x.shape.dims[:-1])
        super().__init__([x, gain, bias], [(x.shape, x.dtype), (rows, tf.float32), (rows, tf.float32)], "layer_norm")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: object, gain: object, bias: object) -> Sequence[object]:
        embd_dim = self.inputs[0].shape.dims[-1]
        axes = _mesh_axes(mesh_impl, [embd_dim])
        if not axes:
            return mesh_impl.slicewise(kernels.layer_norm(self._epsilon), x, gain, bias)
        total = mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_embd, x), axes, "SUM")
        mean = mesh_impl.slicewise(lambda total: total / embd_dim.size, total)
        squares = mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_squares_about, x, mean), axes, "SUM")
        inverse_std = mesh_impl.slicewise(
            lambda squares: tf.math.rsqrt(squares / embd_dim.size + self._epsilon), squares
        )
        return mesh_impl.slicewise(kernels.scale_and_shift, x, mean, inverse_std, gain, bias), mean, inverse_std

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        x, gain, _ = self.inputs
        _, mean, inverse_std = self.outputs
        return LayerNormGradient(x, mean, inverse_std, gain, grad_ys[0]).outputs


class LayerNormGradient(MeshOperation):
    """x, mean, inverse_std, gain, dy -> dx [..., embd], d_gain [embd], d_bias [embd]."""

    def __init__(self, x: mtf.Tensor, mean: mtf.Tensor, inverse_std: mtf.Tensor, gain: mtf.Tensor, dy: mtf.Tensor):
        outputs = [(x.shape, x.dtype), (gain.shape, gain.dtype), (gain.shape, gain.dtype)]
        super().__init__([x, mean, inverse_std, gain, dy], outputs, "layer_norm_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: object) -> Sequence[object]:
        *row_dims, embd_dim = self.inputs[0].shape.dims
        sums = mesh_impl.slicewise(kernels.layer_norm_gradient_sums, *inputs)
        sums = [mesh_impl.allreduce(part, _mesh_axes(mesh_impl, [embd_dim]), "SUM") for part in sums]
        dx, d_gain, d_bias = mesh_impl.slicewise(kernels.layer_norm_gradient(embd_dim.size), *inputs, *sums)
        return dx, _lazy_sum(mesh_impl, d_gain, row_dims), _lazy_sum(mesh_impl, d_bias, row_dims)


def layer_norm(x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, epsilon: float) -> mtf.Tensor:
    """Normalises the last dimension and applies an affine map.

    Args:
      x: [..., embd].
      gain: [embd].
      bias: [embd].
      epsilon: added to the variance.

    Returns:
      [..., embd] in x's dtype; statistics are float32.

    Source: Ba et al. 2016, Layer Normalization, equation 4.
    """
    return LayerNorm(x, gain, bias, epsilon).outputs[0]


# ---------------------------------------------------------------------------------------------------------- activation


class BiasedActivation(MeshOperation):
    """x [..., features], bias [features] -> activation(x + bias)."""

    def __init__(self, x: mtf.Tensor, bias: mtf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor]):
        self._activation = activation
        super().__init__([x, bias], [(x.shape, x.dtype)], "biased_activation")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: object, bias: object) -> Sequence[object]:
        return (mesh_impl.slicewise(kernels.biased_activation(self._activation), x, bias),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        return BiasedActivationGradient(*self.inputs, grad_ys[0], self._activation).outputs


class BiasedActivationGradient(MeshOperation):
    """x, bias, dy -> dx [..., features], d_bias [features]."""

    def __init__(self, x: mtf.Tensor, bias: mtf.Tensor, dy: mtf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor]):
        self._activation = activation
        super().__init__([x, bias, dy], [(x.shape, x.dtype), (bias.shape, bias.dtype)], "biased_activation_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: object) -> Sequence[object]:
        dx, d_bias = mesh_impl.slicewise(kernels.biased_activation_gradient(self._activation), *inputs)
        return dx, _lazy_sum(mesh_impl, d_bias, self.inputs[0].shape.dims[:-1])


def biased_activation(x: mtf.Tensor, bias: mtf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor]) -> mtf.Tensor:
    """activation(x + bias), element by element, fused.

    Args:
      x: [..., features].
      bias: [features].
      activation: an element-wise TensorFlow function.
    """
    return BiasedActivation(x, bias, activation).outputs[0]


class BiasAdd(MeshOperation):
    """x [..., features], bias [features] -> x + bias."""

    def __init__(self, x: mtf.Tensor, bias: mtf.Tensor):
        super().__init__([x, bias], [(x.shape, x.dtype)], "bias_add")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: object, bias: object) -> Sequence[object]:
        return (mesh_impl.slicewise(tf.add, x, bias),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        return [grad_ys[0], BiasGradient(grad_ys[0], self.inputs[1]).outputs[0]]


class BiasGradient(MeshOperation):
    """dy [..., features] -> d_bias [features]."""

    def __init__(self, dy: mtf.Tensor, bias: mtf.Tensor):
        super().__init__([dy], [(bias.shape, bias.dtype)], "bias_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, dy: object) -> Sequence[object]:
        return (_lazy_sum(mesh_impl, mesh_impl.slicewise(kernels.sum_of_rows, dy), self.inputs[0].shape.dims[:-1]),)


def bias_add(x: mtf.Tensor, bias: mtf.Tensor) -> mtf.Tensor:
    """x + bias, with a gradient that sums faster than mesh-TensorFlow's.

    Args:
      x: [..., features].
      bias: [features].
    """
    return BiasAdd(x, bias).outputs[0]


# ------------------------------------------------------------------------------------------------------------- dropout


class Dropout(MeshOperation):
    """x [batch, ...] -> the same shape; the elements to keep are a function of key, row and place."""

    def __init__(self, x: mtf.Tensor, noise: Sequence[mtf.Tensor], rate: float):
        self._rate = rate
        super().__init__([x, *noise], [(x.shape, x.dtype)], "dropout")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: object, key: object, rows: object) -> Sequence[object]:
        starts = _starts(mesh_impl, self.inputs[0].shape.dims[1:])
        return (mesh_impl.slicewise(kernels.dropout(self._rate), x, key, rows, starts),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        return [Dropout(grad_ys[0], self.inputs[1:], self._rate).outputs[0], None, None]


def dropout(x: mtf.Tensor, rate: float, noise: Noise) -> mtf.Tensor:
    """Zeroes a share of the elements and divides the others by the share kept; the same elements on any mesh.

    Args:
      x: [batch, ...].
      rate: the share to zero, in [0, 1); 0 gives x.
      noise: its key must differ from that of any other use in the same step.
    """
    return Dropout(x, noise.tensors(), rate).outputs[0] if rate else x


# ------------------------------------------------------------------------------------------------------- cross-entropy


class SoftmaxStatistics(MeshOperation):
    """logits [batch, sequence, vocab], labels [batch, sequence] -> log_z, label_logit, both float32 [batch,
    sequence].
    """

    def __init__(self, logits: mtf.Tensor, labels: mtf.Tensor):
        super().__init__([logits, labels], [(labels.shape, tf.float32)] * 2, "softmax_statistics")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, logits: object, labels: object) -> Sequence[object]:
        vocab_dim = self.inputs[0].shape.dims[-1]
        axes = _mesh_axes(mesh_impl, [vocab_dim])
        largest = mesh_impl.allreduce(mesh_impl.slicewise(kernels.largest_logit, logits), axes, "MAX")
        start = _start(mesh_impl, vocab_dim)
        sums = mesh_impl.slicewise(kernels.exponential_sum_and_label_logit, logits, labels, largest, start)
        total, label_logit = (mesh_impl.allreduce(part, axes, "SUM") for part in sums)
        return mesh_impl.slicewise(lambda largest, total: largest + tf.math.log(total), largest, total), label_logit

    def gradient(self, grad_ys: Sequence[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        logits, labels = self.inputs
        log_z = self.outputs[0]
        d_log_z, d_label_logit = (mtf.zeros_like(log_z) if grad is None else grad for grad in grad_ys)
        return [SoftmaxStatisticsGradient(logits, labels, log_z, d_log_z, d_label_logit).outputs[0], None]


class SoftmaxStatisticsGradient(MeshOperation):
    """logits, labels, log_z, d_log_z, d_label_logit -> d_logits [batch, sequence, vocab]."""

    def __init__(self, logits: mtf.Tensor, *others: mtf.Tensor):
        super().__init__([logits, *others], [(logits.shape, logits.dtype)], "softmax_statistics_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: object) -> Sequence[object]:
        start = _start(mesh_impl, self.inputs[0].shape.dims[-1])
        return (mesh_impl.slicewise(kernels.cross_entropy_gradient, *inputs, start),)


def softmax_statistics(logits: mtf.Tensor, labels: mtf.Tensor) -> tuple[mtf.Tensor, mtf.Tensor]:
    """What the cross-entropy is made of: -log softmax(logits)[label] = log_z - label_logit.

    Args:
      logits: [batch, sequence, vocab]; vocab may be split.
      labels: int32 [batch, sequence].

    Returns:
      log_z and label_logit, both float32 [batch, sequence].
    """
    log_z, label_logit = SoftmaxStatistics(logits, labels).outputs
    return log_z, label_logit


# ----------------------------------------------------------------------------------------------------------- attention


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
        return kernels.AttentionKind(radius, dropout_rate, not _mesh_axes(mesh_impl, [self.sequence, self.memory]))

    def starts(self, mesh_impl: mtf.MeshImpl) -> object:
        return _starts(mesh_impl, [self.heads, self.sequence, self.memory])


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
        axes = _mesh_axes(mesh_impl, [dims.memory])
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
            _lazy_sum(mesh_impl, d_queries, [dims.memory]),
            _lazy_sum(mesh_impl, d_keys, [dims.sequence]),
            _lazy_sum(mesh_impl, d_values, [dims.sequence]),
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


# ----------------------------------------------------------------------------------------------------------- gradients


class GlobalNorm(MeshOperation):
    """Tensors of any shapes -> float32 scalar."""

    def __init__(self, tensors: Sequence[mtf.Tensor]):
        super().__init__(tensors, [(mtf.Shape([]), tf.float32)], "global_norm")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *laid_out: object) -> Sequence[object]:
        by_axes: dict[tuple[int, ...], list[object]] = {}
        for tensor, slices in zip(self.inputs, laid_out, strict=True):
            by_axes.setdefault(tuple(sorted(_mesh_axes(mesh_impl, tensor.shape.dims))), []).append(slices)
        sums = [
            mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_squares, *group), list(axes), "SUM")
            for axes, group in by_axes.items()
        ]
        return (mesh_impl.slicewise(lambda *parts: tf.sqrt(tf.add_n(parts)), *sums),)


def global_norm(tensors: Sequence[mtf.Tensor]) -> mtf.Tensor:
    """The Euclidean norm of all tensors taken as one vector: float32 scalar."""
    return GlobalNorm(tensors).outputs[0]


# ------------------------------------------------------------------------------------------------------------ sampling


class Sample(MeshOperation):
    """logits [batch, vocab], key, rows -> int32 [batch]."""

    def __init__(self, logits: mtf.Tensor, noise: Noise, rule: kernels.SamplingRule):
        self._rule = rule
        super().__init__([logits, *noise.tensors()], [(mtf.Shape(logits.shape.dims[:1]), tf.int32)], "sample")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: object) -> Sequence[object]:
        return (mesh_impl.slicewise(kernels.sample(self._rule), *inputs),)


def sample(logits: mtf.Tensor, noise: Noise, rule: kernels.SamplingRule) -> mtf.Tensor:
    """Draws a token for each row; the same one on any mesh.

    Args:
      logits: [batch, vocab].
      noise: of this position.
      rule: temperature and filters.

    Returns:
      int32 [batch].
    """
    return Sample(mtf.rename_dimension(logits, "vocab", "whole"), noise, rule).outputs[0]
