"""The output layer and the cross-entropy in blocks of tokens: the logits of all tokens are never in memory at once.

Training needs the gradient of one weighted mean, and the weights are known before the pass. So each block of logits
gives its part of the loss and of all gradients at once, and is forgotten: nothing is computed twice.

Source: Hsu et al. 2024, Liger Kernel: Efficient Triton Kernels for LLM Training, section 3.2, "Fused Linear Cross
Entropy".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import blocks
from models.kernels import cross_entropy as kernels
from models.kernels.activations import sum_of_rows
from models.ops.cross_entropy import slice_softmax
from models.ops.mesh_operation import MeshOperation, lazy_sum, loop, mesh_axes, slice_size, slice_start, zeros

# The logits of a block: 167 tokens of GPT-2's. Each block reads and writes a gradient as large as the whole table, so
# larger vocabularies have larger blocks.
BLOCK_BYTES, SMALLEST_BLOCK = 32 << 20, 128
# What a block adds to the gradient of the table at a time: only this much of its own gradient is in memory.
TABLE_PART_BYTES, MOST_TABLE_PARTS = 16 << 20, 32


@dataclasses.dataclass(frozen=True)
class OutputLayer:
    """From the last state to the logits.

    Attributes:
        table: [vocab, embd] or [embd, vocab].
        bias: [vocab]; None: there is none.
        softcap: bounds the logits smoothly to (-softcap, softcap), see `soft_cap`; None: no bound.
        is_trained: whether table and bias have gradients.
    """

    table: mtf.Tensor
    bias: mtf.Tensor | None
    softcap: float | None
    is_trained: bool

    @property
    def variables(self) -> list[mtf.Tensor]:
        """The table and, if there is one, the bias."""
        return [self.table] if self.bias is None else [self.table, self.bias]


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The sizes of one processor's slices, and what they are split over."""

    vocab: mtf.Dimension
    is_vocab_first: bool  # in the table
    table: tuple[int, int]
    n_tokens: int
    n_features: int
    n_blocks: int
    embd_axes: list[int]

    @staticmethod
    def of(mesh_impl: mtf.MeshImpl, state: mtf.Tensor, table: mtf.Tensor) -> _Sizes:
        embd_dim = state.shape.dims[-1]
        (vocab_dim,) = (dim for dim in table.shape.dims if dim != embd_dim)
        n_tokens = slice_size(mesh_impl, state.shape.dims[:-1])
        block_bytes = n_tokens * slice_size(mesh_impl, [vocab_dim]) * state.dtype.size
        return _Sizes(
            vocab=vocab_dim,
            is_vocab_first=table.shape.dims[0] == vocab_dim,
            table=tuple(mesh_impl.slice_shape(table.shape)),
            n_tokens=n_tokens,
            n_features=slice_size(mesh_impl, [embd_dim]),
            n_blocks=min(math.ceil(block_bytes / BLOCK_BYTES), max(1, n_tokens // SMALLEST_BLOCK)),
            embd_axes=mesh_axes(mesh_impl, [embd_dim]),
        )

    @property
    def block_size(self) -> int:
        """The tokens of a block; the last one is filled up."""
        return math.ceil(self.n_tokens / self.n_blocks)


@dataclasses.dataclass(frozen=True)
class _Product:
    """The product of left [tokens, rows], transposed, and right [tokens, columns]: float32 [rows, columns]."""

    left: LaidOut
    right: LaidOut


Slices = tuple[tuple[int, ...], tf.DType]  # the shape and type of slices
Rows, Terms, Sums = list[LaidOut], list[LaidOut | _Product], list[LaidOut]


def _over_blocks(
    mesh_impl: mtf.MeshImpl,
    sizes: _Sizes,
    inputs: Sequence[LaidOut],
    block: Callable[..., tuple[Rows, Terms]],
    rows: Sequence[Slices],
    sums: Sequence[Slices],
) -> tuple[Rows, Sums]:
    """Applies a function to one block of tokens after another.

    Args:
        mesh_impl: where.
        sizes: of the slices.
        inputs: [tokens, ...]; the tokens that fill the last block up are zeros.
        block: from the inputs of a block to what belongs to each token and what is summed over the blocks.
        rows: what it returns for each token, without the dimension of the tokens.
        sums: what it returns to be summed; products are float32 matrices.
    """
    if sizes.n_blocks == 1:
        whole, terms = block(*inputs)
        return whole, [_value(mesh_impl, term) for term in terms]
    n_blocks, size = sizes.n_blocks, sizes.block_size
    in_blocks = [mesh_impl.slicewise(functools.partial(blocks.split, n_blocks=n_blocks, size=size), x) for x in inputs]

    def step(index: tf.Tensor, *state: LaidOut) -> list[LaidOut]:
        new_rows, terms = block(*(mesh_impl.slicewise(lambda x: tf.gather(x, index), x) for x in in_blocks))
        written = [
            mesh_impl.slicewise(lambda x, own: blocks.write(x, index, own), *pair)
            for pair in zip(state, new_rows, strict=False)
        ]
        added = [_added(mesh_impl, *pair) for pair in zip(state[len(rows) :], terms, strict=True)]
        return [*written, *added]

    first = [zeros(mesh_impl, (n_blocks, size, *shape), dtype) for shape, dtype in rows]
    first += [zeros(mesh_impl, shape_in_parts(shape), dtype) for shape, dtype in sums]
    last = loop(mesh_impl, n_blocks, step, first)
    whole = [_joined(mesh_impl, x, sizes.n_tokens) for x in last[: len(rows)]]
    totals = [
        _joined(mesh_impl, x, shape[0]) if len(shape) > 1 else x
        for (shape, _), x in zip(sums, last[len(rows) :], strict=True)
    ]
    return whole, totals


def shape_in_parts(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a float32 matrix in parts, [parts, rows of a part, columns]; others as they are."""
    if len(shape) < 2:
        return shape
    n_parts = min(math.ceil(math.prod(shape) * tf.float32.size / TABLE_PART_BYTES), MOST_TABLE_PARTS)
    return n_parts, math.ceil(shape[0] / n_parts), shape[1]


def _joined(mesh_impl: mtf.MeshImpl, x: LaidOut, n_rows: int) -> LaidOut:
    return mesh_impl.slicewise(functools.partial(blocks.joined, n_rows=n_rows), x)


def _value(mesh_impl: mtf.MeshImpl, term: LaidOut | _Product) -> LaidOut:
    return mesh_impl.slicewise(blocks.product, term.left, term.right) if isinstance(term, _Product) else term


def _added(mesh_impl: mtf.MeshImpl, total: LaidOut, term: LaidOut | _Product) -> LaidOut:
    if isinstance(term, _Product):
        return mesh_impl.slicewise(blocks.add_product, total, term.left, term.right)
    return mesh_impl.slicewise(tf.add, total, term)


def _flat(mesh_impl: mtf.MeshImpl, x: LaidOut, n_tokens: int) -> LaidOut:
    """[batch, sequence, ...] -> [tokens, ...]."""
    return mesh_impl.slicewise(lambda x: tf.reshape(x, [n_tokens, *x.shape[2:]]), x)


def _like(mesh_impl: mtf.MeshImpl, x: LaidOut, tensor: mtf.Tensor) -> LaidOut:
    """[tokens, ...] -> slices of the shape of a tensor [batch, sequence, ...]."""
    return mesh_impl.slicewise(lambda x: tf.reshape(x, mesh_impl.slice_shape(tensor.shape)), x)


def _block_logits(
    mesh_impl: mtf.MeshImpl, sizes: _Sizes, softcap: float | None, state: LaidOut, table: LaidOut, *bias: LaidOut
) -> LaidOut:
    """[tokens, embd] -> [tokens, vocab]."""
    products = mesh_impl.slicewise(functools.partial(tf.matmul, transpose_b=sizes.is_vocab_first), state, table)
    products = mesh_impl.allreduce(products, sizes.embd_axes, "SUM")
    if softcap is None and not bias:
        return products
    return mesh_impl.slicewise(kernels.finished_logits(softcap), products, *bias)


def _bias_gradient(d_logits: tf.Tensor) -> tf.Tensor:
    """[tokens, vocab] -> float32 [vocab]."""
    return tf.cast(sum_of_rows(d_logits), tf.float32)


class TokenCrossEntropy(MeshOperation):
    """state [batch, sequence, embd], labels int32 [batch, sequence], table, bias -> float32 [batch, sequence].

    Without a gradient.
    """

    def __init__(self, state: mtf.Tensor, layer: OutputLayer, labels: mtf.Tensor) -> None:
        self._softcap = layer.softcap
        super().__init__([state, labels, *layer.variables], [(labels.shape, tf.float32)], "token_cross_entropy")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, state: LaidOut, labels: LaidOut, *layer: LaidOut
    ) -> Sequence[LaidOut]:
        """Computes the output from the slices of the inputs."""
        sizes = _Sizes.of(mesh_impl, self.inputs[0], self.inputs[2])

        def block(state: LaidOut, labels: LaidOut) -> tuple[Rows, Terms]:
            logits = _block_logits(mesh_impl, sizes, self._softcap, state, *layer)
            softmax = slice_softmax(mesh_impl, sizes.vocab, logits, labels)
            return [mesh_impl.slicewise(tf.subtract, softmax.log_z, softmax.label_logit)], []

        flat = [_flat(mesh_impl, x, sizes.n_tokens) for x in (state, labels)]
        (losses,), _ = _over_blocks(mesh_impl, sizes, flat, block, rows=[((), tf.float32)], sums=[])
        return [_like(mesh_impl, losses, self.outputs[0])]


class LinearCrossEntropy(MeshOperation):
    """The training loss, the weighted mean of the cross-entropy, and the gradients of the first.

    state [batch, sequence, embd], labels int32 and weights float32 [batch, sequence], table, bias -> two float32
    scalars, and like the inputs d_state and, if the layer is trained, d_table and d_bias, which are float32.
    """

    def __init__(
        self, state: mtf.Tensor, layer: OutputLayer, labels: mtf.Tensor, weights: mtf.Tensor, z_loss: float
    ) -> None:
        self._softcap, self._z_loss, self._is_trained = layer.softcap, z_loss, layer.is_trained
        scalars = [(mtf.Shape([]), tf.float32)] * 2
        of_layer = [(x.shape, tf.float32) for x in layer.variables if layer.is_trained]
        outputs = [*scalars, (state.shape, state.dtype), *of_layer]
        super().__init__([state, labels, weights, *layer.variables], outputs, "linear_cross_entropy")

    def lower_slices(
        self,
        mesh_impl: mtf.MeshImpl,
        state: LaidOut,
        labels: LaidOut,
        weights: LaidOut,
        table: LaidOut,
        *bias: LaidOut,
    ) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        sizes = self.sizes(mesh_impl)
        start = slice_start(mesh_impl, sizes.vocab)
        times_table = functools.partial(tf.matmul, transpose_b=not sizes.is_vocab_first)
        cross_entropy = kernels.weighted_cross_entropy(self._z_loss, self._softcap, self.inputs[0].dtype)

        def block(state: LaidOut, labels: LaidOut, weights: LaidOut) -> tuple[Rows, Terms]:
            logits = _block_logits(mesh_impl, sizes, self._softcap, state, table, *bias)
            softmax = slice_softmax(mesh_impl, sizes.vocab, logits, labels)
            capped = [] if self._softcap is None else [logits]
            *terms, d_logits = mesh_impl.slicewise(cross_entropy, *softmax, labels, weights, start, *capped)
            if self._is_trained:
                terms.append(_Product(d_logits, state) if sizes.is_vocab_first else _Product(state, d_logits))
                terms += [mesh_impl.slicewise(_bias_gradient, d_logits) for _ in bias]
            return [mesh_impl.slicewise(times_table, d_logits, table)], terms

        flat = [_flat(mesh_impl, x, sizes.n_tokens) for x in (state, labels, weights)]
        rows = [((sizes.n_features,), self.outputs[2].dtype)]
        of_sums = [(tuple(mesh_impl.slice_shape(y.shape)), tf.float32) for y in self._sums]
        (d_state,), sums = _over_blocks(mesh_impl, sizes, flat, block, rows, of_sums)
        loss, mean, *d_layer = (lazy_sum(mesh_impl, x, self.inputs[1].shape.dims) for x in sums)
        d_state = _like(mesh_impl, d_state, self.outputs[2])
        return [loss, mean, lazy_sum(mesh_impl, d_state, [sizes.vocab]), *d_layer]

    @property
    def _sums(self) -> list[mtf.Tensor]:
        """The outputs that are summed over tokens."""
        return [*self.outputs[:2], *self.outputs[3:]]

    def sizes(self, mesh_impl: mtf.MeshImpl) -> _Sizes:
        """Returns the sizes of a processor's slices and blocks."""
        return _Sizes.of(mesh_impl, self.inputs[0], self.inputs[3])

    def gradient(self, grad_ys: Sequence[mtf.Tensor | None]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs: those that the forward pass has found, times that of the loss."""
        d_loss, d_mean, *_ = grad_ys
        assert d_mean is None, "only the training loss has a gradient"
        d_state, *d_layer = (_times(x, d_loss) for x in self.outputs[2:])
        return [d_state, None, None, *(d_layer or [None] * len(self.inputs[3:]))]

    def flops(self, mesh_impl: mtf.MeshImpl) -> float:
        """Three products: the logits and both gradients; two if the table is frozen."""
        n_products = 3 if self._is_trained else 2
        return n_products * 2.0 * slice_size(mesh_impl, {*self.inputs[0].shape.dims, *self.inputs[3].shape.dims})


def _times(x: mtf.Tensor, scalar: mtf.Tensor) -> mtf.Tensor:
    """Returns x times a float32 scalar; x itself if that is the constant 1, as in training: the table is large."""
    is_one = isinstance(scalar.operation, mtf.Constant) and scalar.operation._value == 1.0
    return x if is_one else x * mtf.cast(scalar, x.dtype)


def token_cross_entropy(state: mtf.Tensor, layer: OutputLayer, labels: mtf.Tensor) -> mtf.Tensor:
    """Returns each token's cross-entropy in nats, without a gradient.

    Args:
        state: [batch, sequence, embd].
        layer: gives the logits; vocab, embd or neither may be split.
        labels: int32 [batch, sequence].

    Returns:
        float32 [batch, sequence].
    """
    return TokenCrossEntropy(state, layer, labels).outputs[0]


def linear_cross_entropy(
    state: mtf.Tensor, layer: OutputLayer, labels: mtf.Tensor, weights: mtf.Tensor, z_loss: float
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Returns the training loss, and the mean of the cross-entropy, which has no gradient; float32 scalars in nats.

    The loss is the weighted sum of cross-entropy + z_loss * log_z^2; the z-loss keeps logits from drifting.

    Args:
        state: [batch, sequence, embd].
        layer: gives the logits; batch, sequence, and vocab or embd may be split.
        labels: int32 [batch, sequence].
        weights: float32 [batch, sequence]; they sum to 1 over the whole batch.
        z_loss: coefficient of the z-loss.

    Source: Shazeer et al. 2018, Mesh-TensorFlow; the z-loss as in its `softmax_cross_entropy_with_logits`.
    """
    loss, mean, *_ = LinearCrossEntropy(state, layer, labels, weights, z_loss).outputs
    return loss, mean
