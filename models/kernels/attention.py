"""Softmax attention on slices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from meshtf import tf
from models.kernels.compile import Kernel, compiled
from models.kernels.noise import dropout_factor
from models.kernels.packing import Packing

MASKED_LOGIT = -1e10  # GPT-Neo's causal bias
# The float32 weights of a part: those of a larger block are computed in parts of its queries, or they would grow with
# the square of the length. Each part reads all keys again, so it has enough queries to be worth that.
PART_BYTES, SMALLEST_PART = 32 << 20, 64


@dataclasses.dataclass(frozen=True)
class AttentionParams:
    """The mask and the dropout of attention.

    Attributes:
        is_causal: position p sees no later position.
        radius: position p sees only the positions less than `radius` away from it; None: no limit.
        dropout_rate: of the attention weights.
        softcap: bounds the logits, see `capped`; None: no bound.
        has_segments: position p sees only its own segment; the kernels then take two more inputs, `segments`: where
            those of the queries and of the keys begin, int32 [B, S] and [B, M].
    """

    is_causal: bool
    radius: int | None
    dropout_rate: float
    softcap: float | None = None
    has_segments: bool = False


@dataclasses.dataclass(frozen=True)
class Halo:
    """Keys of other slices around those at the positions of the queries, for a sequence that is split.

    Attributes:
        before: how many keys come before the one at the position of the first query.
        n_positions: of the whole sequence; keys at other positions stand for none.
    """

    before: int
    n_positions: int


class _Block(NamedTuple):
    """Some queries, and the keys that any of them may see."""

    queries: slice
    keys: slice


def _whole(n_queries: int, n_keys: int) -> _Block:
    return _Block(slice(0, n_queries), slice(0, n_keys))


def _blocks(
    params: AttentionParams,
    is_aligned: bool,
    n_queries: int,
    n_keys: int,
    smallest: int = 64,
    halo: Halo | None = None,
) -> Iterator[_Block]:
    """Splits aligned attention into blocks of queries, each with only the keys it can see.

    That halves the work if attention is causal, and saves more if it is local.

    Args:
        params: the mask.
        is_aligned: queries and keys begin at one position and have the same length, but for the halo of the keys; where
            nothing is masked by positions, they may begin anywhere.
        n_queries: of this slice.
        n_keys: of this slice.
        smallest: the fewest queries of a block.
        halo: of the keys.
    """
    if not is_aligned:
        yield _whole(n_queries, n_keys)
        return
    reach = n_keys if params.radius is None else params.radius - 1
    before = halo.before if halo else 0
    size = max(smallest, -(-n_queries // 8))
    for begin in range(0, n_queries, size):
        end = min(begin + size, n_queries)
        key_end = end + before if params.is_causal else min(n_keys, end + before + reach)
        yield _Block(slice(begin, end), slice(max(0, begin + before - reach), key_end))


def _heads_first(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, [0, 2, 1, 3])


def _sum_blocks(parts: list[tuple[_Block, tf.Tensor]], n_keys: int) -> tf.Tensor:
    """Adds [B, H, keys of the block, D] parts into [B, H, M, D]."""
    return tf.add_n(
        [tf.pad(part, [[0, 0], [0, 0], [keys.start, n_keys - keys.stop], [0, 0]]) for (_, keys), part in parts]
    )


def _visible(
    params: AttentionParams, starts: tf.Tensor, block: _Block, segments: Sequence[tf.Tensor], halo: Halo | None
) -> tf.Tensor | None:
    """Booleans that broadcast to [B, H, S of block, M of block]; None: no mask."""
    position = (starts[1] + tf.range(block.queries.start, block.queries.stop))[:, None]
    key_position = (starts[2] + tf.range(block.keys.start, block.keys.stop))[None, :]
    masks = [key_position <= position] if params.is_causal else []
    if params.radius is not None:
        masks.append(tf.abs(position - key_position) < params.radius)
    if halo is not None:
        masks.append((key_position >= 0) & (key_position < halo.n_positions))
    if params.has_segments:
        of_queries, of_keys = segments
        masks.append(of_queries[:, None, block.queries, None] == of_keys[:, None, None, block.keys])
    return functools.reduce(tf.logical_and, masks) if masks else None


def capped(logits: tf.Tensor, softcap: float | None) -> tf.Tensor:
    """Bounds float32 logits smoothly to (-softcap, softcap); returns the logits themselves without a bound.

    Source: Bello et al. 2016, Neural Combinatorial Optimization, section 3; Gemma 2.
    """
    return logits if softcap is None else softcap * tf.tanh(logits / softcap)


def _masked_logits(
    params: AttentionParams,
    queries: tf.Tensor,
    keys: tf.Tensor,
    starts: tf.Tensor,
    block: _Block,
    segments: Sequence[tf.Tensor],
    halo: Halo | None = None,
) -> tf.Tensor:
    """[B, H, S, D], [B, H, M, D] -> float32 [B, H, S of block, M of block]."""
    logits = tf.matmul(queries[:, :, block.queries], keys[:, :, block.keys], transpose_b=True)
    logits = capped(tf.cast(logits, tf.float32), params.softcap)
    visible = _visible(params, starts, block, segments, halo)
    return logits if visible is None else tf.where(visible, logits, MASKED_LOGIT)


def _weights_dropout(
    params: AttentionParams, weights: tf.Tensor, key: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor, block: _Block
) -> tf.Tensor:
    if not params.dropout_rate:
        return weights
    block_starts = starts + tf.constant([0, block.queries.start, block.keys.start])
    return weights * dropout_factor(key, rows, block_starts, tuple(weights.shape), params.dropout_rate)


def _softmax_of_block(
    logits: tf.Tensor, values: tf.Tensor, drop: Callable[[tf.Tensor], tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """float32 [B, H, S, M], [B, H, M, D] -> outputs [B, H, S, D] and log_z [B, H, S]; `drop` thins the weights."""
    largest = tf.reduce_max(logits, -1, keepdims=True)
    exponentials = tf.exp(logits - largest)
    total = tf.reduce_sum(exponentials, -1, keepdims=True)
    weighted = tf.matmul(tf.cast(drop(exponentials), values.dtype), values)
    outputs = tf.cast(tf.cast(weighted, tf.float32) / total, values.dtype)
    return outputs, (largest + tf.math.log(total))[..., 0]


# What a block makes of its queries: tensors [B, H, S of block, ...], and sums over them [B, H, M of block, D].
Made = tuple[list[tf.Tensor], list[tf.Tensor]]


def n_parts_of(n_rows: int, n_queries: int, n_keys: int) -> int:
    """Returns the number of parts of a block, a divisor of its queries; `n_rows` is B times H.

    It is the least that keeps the weights of a part small, or the largest that leaves it enough queries.
    """
    least = -(-4 * n_rows * n_queries * n_keys // PART_BYTES)
    divisors = [n for n in range(1, max(1, n_queries // SMALLEST_PART) + 1) if n_queries % n == 0]
    return next((n for n in divisors if n >= least), divisors[-1])


def _in_parts(
    block: _Block,
    starts: tf.Tensor,
    segments: Sequence[tf.Tensor],
    of_queries: Sequence[tf.Tensor],
    function: Callable[..., Made],
) -> Made:
    """Returns function(block, starts, segments, *of_queries), in parts of its queries if their weights are large.

    Args:
        block: the queries, and the keys that they see.
        starts: of the slice.
        segments: of the queries and of the keys, or nothing.
        of_queries: tensors of all queries, [B, H, S, ...].
        function: gets a part as a block of tensors and starts of its own.
    """
    n_queries, n_keys = (each.stop - each.start for each in block)
    n_parts = n_parts_of(of_queries[0].shape[0] * of_queries[0].shape[1], n_queries, n_keys)
    if n_parts == 1:
        return function(block, starts, segments, *of_queries)
    size = n_queries // n_parts
    part = _Block(slice(0, size), block.keys)
    of_parts = [tf.stack(tf.split(x[:, :, block.queries], n_parts, 2)) for x in of_queries]
    queries_segments = [tf.stack(tf.split(x[:, block.queries], n_parts, 1)) for x in segments[:1]]

    def made_of(index: tf.Tensor) -> Made:
        own_starts = starts + tf.stack([0, block.queries.start + index * size, 0])
        own_segments = [*(x[index] for x in queries_segments), *segments[1:]]
        return function(part, own_starts, own_segments, *(x[index] for x in of_parts))

    def step(index: tf.Tensor, arrays: list[tf.TensorArray], sums: list[tf.Tensor]) -> tuple:
        made, terms = made_of(index)
        arrays = [array.write(index, x) for array, x in zip(arrays, made, strict=True)]
        return index + 1, arrays, [total + tf.cast(x, tf.float32) for total, x in zip(sums, terms, strict=True)]

    made, terms = made_of(tf.constant(0))
    arrays = [tf.TensorArray(x.dtype, n_parts, element_shape=x.shape).write(0, x) for x in made]
    first = tf.constant(1), arrays, [tf.cast(x, tf.float32) for x in terms]
    _, arrays, sums = tf.while_loop(lambda index, *_: index < n_parts, step, first)
    return [_joined(array.stack()) for array in arrays], [
        tf.cast(x, term.dtype) for x, term in zip(sums, terms, strict=True)
    ]


def _joined(x: tf.Tensor) -> tf.Tensor:
    """[parts, B, H, S of part, ...] -> [B, H, S, ...]."""
    n_parts, n_batch, n_heads, size, *others = x.shape
    by_row = tf.transpose(x, [1, 2, 0, *range(3, x.shape.rank)])
    return tf.reshape(by_row, [n_batch, n_heads, n_parts * size, *others])


@functools.cache
def attention_largest_logit(params: AttentionParams) -> Kernel:
    """(queries [B, S, H, D], keys [B, M, H, D], starts, *segments) -> float32 [B, H, S]; for keys that are split."""

    def kernel(queries: tf.Tensor, keys: tf.Tensor, starts: tf.Tensor, *segments: tf.Tensor) -> tf.Tensor:
        queries, keys = _heads_first(queries), _heads_first(keys)

        def find(block: _Block, starts: tf.Tensor, segments: Sequence[tf.Tensor], queries: tf.Tensor) -> Made:
            return [tf.reduce_max(_masked_logits(params, queries, keys, starts, block, segments), -1)], []

        whole = _whole(queries.shape[2], keys.shape[2])
        ((largest,), _) = _in_parts(whole, starts, segments, [queries], find)
        return largest

    return compiled(kernel)


@functools.cache
def attention_sums(params: AttentionParams) -> Kernel:
    """Returns the kernel of partial sums of attention, for keys that are split over the mesh.

    (queries, keys, values, starts, key, rows, largest [B, H, S], *segments) -> (sum of exponentials [B, H, S],
    weighted values float32 [B, S, H, D]).
    """

    def kernel(
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        starts: tf.Tensor,
        key: tf.Tensor,
        rows: tf.Tensor,
        largest: tf.Tensor,
        *segments: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        queries, keys, values = _heads_first(queries), _heads_first(keys), _heads_first(values)

        def add(
            block: _Block, starts: tf.Tensor, segments: Sequence[tf.Tensor], queries: tf.Tensor, largest: tf.Tensor
        ) -> Made:
            logits = _masked_logits(params, queries, keys, starts, block, segments)
            exponentials = tf.exp(logits - largest[:, :, block.queries, None])
            dropped = _weights_dropout(params, exponentials, key, rows, starts, block)
            return [tf.reduce_sum(exponentials, -1), tf.matmul(dropped, tf.cast(values, tf.float32))], []

        whole = _whole(queries.shape[2], keys.shape[2])
        ((total, weighted), _) = _in_parts(whole, starts, segments, [queries, largest], add)
        return total, _heads_first(weighted)

    return compiled(kernel)


@functools.cache
def attention(params: AttentionParams, is_aligned: bool, halo: Halo | None = None) -> Kernel:
    """Returns the kernel of softmax attention.

    (queries [B, S, H, D], keys, values [B, M, H, D], starts int32 [3], key, rows, *segments) -> (outputs
    [B, S, H, D], log_z float32 [B, H, S]).

    `starts` are the offsets of this slice in the whole [heads, sequence, memory_length]. The logits are not
    divided by sqrt(D): GPT-Neo folds that into the initial queries.
    """

    def kernel(
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        starts: tf.Tensor,
        key: tf.Tensor,
        rows: tf.Tensor,
        *segments: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        queries, keys, values = _heads_first(queries), _heads_first(keys), _heads_first(values)

        def attend(block: _Block, starts: tf.Tensor, segments: Sequence[tf.Tensor], queries: tf.Tensor) -> Made:
            logits = _masked_logits(params, queries, keys, starts, block, segments, halo)
            drop = functools.partial(_weights_dropout, params, key=key, rows=rows, starts=starts, block=block)
            return [*_softmax_of_block(logits, values[:, :, block.keys], drop)], []

        blocks = _blocks(params, is_aligned, queries.shape[2], keys.shape[2], halo=halo)
        made = [_in_parts(block, starts, segments, [queries], attend)[0] for block in blocks]
        outputs, log_z = (tf.concat(parts, 2) for parts in zip(*made, strict=True))
        return _heads_first(outputs), log_z

    return compiled(kernel)


@functools.cache
def packed_attention(radius: int | None, softcap: float | None) -> Kernel:
    """Returns the kernel of causal softmax attention of packed texts.

    (queries, keys, values [B, S, H, D], *packing int32 [B, S]) -> (outputs [B, S, H, D], log_z float32 [B, H, S]).
    """
    params = AttentionParams(is_causal=True, radius=None, dropout_rate=0.0)  # a context may lie anywhere before

    def kernel(
        queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, *packing: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        queries, keys, values = map(_heads_first, (queries, keys, values))
        visible, blocks = Packing(*packing).visible(radius), []
        # Few blocks, as each takes long to compile: each task needs a program, and may need it for a few batches.
        for own, seen in _blocks(params, True, queries.shape[2], keys.shape[2], smallest=128):
            logits = tf.cast(tf.matmul(queries[:, :, own], keys[:, :, seen], transpose_b=True), tf.float32)
            logits = tf.where(visible[:, None, own, seen], capped(logits, softcap), MASKED_LOGIT)
            blocks.append(_softmax_of_block(logits, values[:, :, seen], lambda weights: weights))
        outputs, log_z = (tf.concat(parts, 2) for parts in zip(*blocks, strict=True))
        return _heads_first(outputs), log_z

    return compiled(kernel)


@compiled
def gradient_row_sums(outputs: tf.Tensor, d_outputs: tf.Tensor, *d_log_z: tf.Tensor) -> tf.Tensor:
    """(outputs, d_outputs [B, S, H, D], d_log_z [B, H, S] or nothing) -> what each row subtracts, float32 [B, H, S].

    Source: Dao et al. 2022, FlashAttention, appendix B.2; it needs the whole output, and no logits.
    """
    products = tf.cast(_heads_first(d_outputs), tf.float32) * tf.cast(_heads_first(outputs), tf.float32)
    row_sums = tf.reduce_sum(products, -1)
    return row_sums - d_log_z[0] if d_log_z else row_sums


@functools.cache
def attention_gradient(params: AttentionParams, is_aligned: bool) -> Kernel:
    """Returns the kernel of the gradient of softmax attention, which recomputes the weights.

    (queries, keys, values, starts, key, rows, *segments, outputs, log_z, d_outputs, d_log_z [B, H, S] or nothing) ->
    (d_queries, d_keys, d_values), the weights computed again.
    """
    gradient = attention_block_gradient(params, is_aligned)

    def kernel(*inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        n_inputs = 8 if params.has_segments else 6
        outputs, log_z, d_outputs, *d_log_z = inputs[n_inputs:]
        return gradient(*inputs[:n_inputs], log_z, gradient_row_sums(outputs, d_outputs, *d_log_z), d_outputs)

    return compiled(kernel)


@functools.cache
def attention_block_gradient(params: AttentionParams, is_aligned: bool, halo: Halo | None = None) -> Kernel:
    """Returns the kernel of the gradient of some keys' part in softmax attention.

    (queries, keys, values, starts, key, rows, *segments, log_z, row_sums [B, H, S], d_outputs) -> (d_queries, d_keys,
    d_values), where log_z and row_sums are those over all keys.

    Source: Dao et al. 2022, FlashAttention, section 3.1: only log_z of each row is kept from the forward pass.
    """

    def kernel(
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        starts: tf.Tensor,
        key: tf.Tensor,
        rows: tf.Tensor,
        *others: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        *segments, log_z, row_sums, d_outputs = others
        dtype, n_keys = queries.dtype, keys.shape[1]
        queries, keys, values, d_outputs = map(_heads_first, (queries, keys, values, d_outputs))

        def differentiate(
            block: _Block,
            starts: tf.Tensor,
            segments: Sequence[tf.Tensor],
            queries: tf.Tensor,
            log_z: tf.Tensor,
            row_sums: tf.Tensor,
            d_outputs: tf.Tensor,
        ) -> Made:
            own, seen = block
            logits = _masked_logits(params, queries, keys, starts, block, segments, halo)
            weights = tf.exp(logits - log_z[:, :, own, None])
            d_dropped = tf.matmul(d_outputs[:, :, own], values[:, :, seen], transpose_b=True)
            d_weights = _weights_dropout(params, tf.cast(d_dropped, tf.float32), key, rows, starts, block)
            d_logits = weights * (d_weights - row_sums[:, :, own, None])
            if params.softcap is not None:
                d_logits *= 1.0 - tf.square(logits / params.softcap)  # the weights of masked logits are 0
            d_logits = tf.cast(d_logits, dtype)
            dropped = tf.cast(_weights_dropout(params, weights, key, rows, starts, block), dtype)
            d_keys = tf.matmul(d_logits, queries[:, :, own], transpose_a=True)
            d_values = tf.matmul(dropped, d_outputs[:, :, own], transpose_a=True)
            return [tf.matmul(d_logits, keys[:, :, seen])], [d_keys, d_values]

        blocks = list(_blocks(params, is_aligned, queries.shape[2], n_keys, halo=halo))
        of_queries = [queries, log_z, row_sums, d_outputs]
        made = [_in_parts(block, starts, segments, of_queries, differentiate) for block in blocks]
        d_queries = [own for (own,), _ in made]
        d_keys, d_values = (
            [(block, sums[index]) for block, (_, sums) in zip(blocks, made, strict=True)] for index in range(2)
        )
        return (
            _heads_first(tf.concat(d_queries, 2)),
            _heads_first(_sum_blocks(d_keys, n_keys)),
            _heads_first(_sum_blocks(d_values, n_keys)),
        )

    return compiled(kernel)
