"""Linear attention on slices: queries are a softmax over features, keys a softmax over positions.

Everything is float32 inside. Causal attention scans chunks of positions and carries the sums over all earlier positions
from one chunk to the next: memory is linear in the length, and the sums of single positions are never stored.

Exponentials are relative to a reference: for each feature, the largest key up to the first position of the chunk. The
result does not depend on the references, only its rounding does, so references have no gradient. Within a chunk keys
may exceed the reference by at most `MAX_EXPONENT`. Where any key exceeds it by more, every position becomes a chunk of
its own, and no exponential exceeds 1: slower, but exact for all keys.

A position's *shares* are its features over what normalises them; its output is the sum, over itself and earlier
positions, of shares times weights times values. `NORMALIZATIONS` has the two ways to normalise causal attention.

Source: Katharopoulos et al. 2020, Transformers are RNNs, section 3.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from meshtf import tf
from models.kernels.compile import compiled

CHUNK = 64  # positions at most; on CPUs 32 is a little faster and 128 a little slower; GPUs prefer fewer steps
# Products of exp(+-MAX_EXPONENT) with shares or gradients between exp(-40) and exp(40) stay within float32.
MAX_EXPONENT = 40.0
LOG_EPSILON = math.log(1e-6)  # GPT-Neo adds 1e-6 to the sum of exponentials
STATE = ("context", "total", "largest")  # the sums carried from one position to the next, in the order of the kernels
State = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
Sums = tuple[tf.Tensor, tf.Tensor]  # over positions: [B, H, D, D] of weights times values, [B, H, 1, D] of weights


@dataclasses.dataclass(frozen=True)
class Normalization:
    """How features become shares; the gradients of the queries are the same function of the shares for all.

    Attributes:
        features: (queries, references) -> features; all [..., D].
        divisors: (features, totals) -> what the features are divided by; totals are the sums of weights.
        d_totals: (shares, shares * d_shares, totals) -> gradients of the totals.
    """

    features: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    divisors: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    d_totals: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def _sum_features(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(x, -1, keepdims=True)


# Weights are relative to a reference of each feature, so where features are added up they take the references back; a
# factor that all features of a position share cancels out. GPT-Neo's, kept for its checkpoints.
BY_POSITION = Normalization(
    features=lambda queries, references: tf.nn.softmax(queries + references),
    divisors=lambda features, totals: _sum_features(features * totals),
    d_totals=lambda shares, products, totals: -shares * _sum_features(products),
)
# Every feature is divided by its own total, so that each is a weighted mean of the values.
BY_FEATURE = Normalization(
    features=lambda queries, references: tf.nn.softmax(queries),
    divisors=lambda features, totals: totals,
    d_totals=lambda shares, products, totals: -products / totals,
)
NORMALIZATIONS = {"position": BY_POSITION, "feature": BY_FEATURE}


def _heads_first(x: tf.Tensor) -> tf.Tensor:
    """[B, S, H, D] -> float32 [B, H, S, D]."""
    return tf.cast(tf.transpose(x, [0, 2, 1, 3]), tf.float32)


def _heads_last(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] -> [B, S, H, D], in the dtype of another tensor."""
    return tf.cast(tf.transpose(x, [0, 2, 1, 3]), like.dtype)


def _chunk_length(n_positions: int) -> int:
    """Returns the chunk length for the fewest chunks such that the last is about as long as the others."""
    return -(-n_positions // -(-n_positions // CHUNK))


def _split_into_chunks(x: tf.Tensor, length: int, padding: float = 0.0) -> tf.Tensor:
    """[B, S, H, D] -> float32 [C, B, H, length, D], C chunks, the last one padded."""
    n_batch, n_positions, n_heads, n_features = x.shape
    n_chunks = -(-n_positions // length)
    paddings = [[0, 0], [0, n_chunks * length - n_positions], [0, 0], [0, 0]]
    x = tf.pad(tf.cast(x, tf.float32), paddings, constant_values=padding)
    return tf.transpose(tf.reshape(x, [n_batch, n_chunks, length, n_heads, n_features]), [1, 0, 3, 2, 4])


def _join_chunks(chunks: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Inverts `_split_into_chunks`; length and dtype are those of another tensor."""
    n_chunks, n_batch, n_heads, length, n_features = chunks.shape
    x = tf.reshape(tf.transpose(chunks, [1, 0, 3, 2, 4]), [n_batch, n_chunks * length, n_heads, n_features])
    return tf.cast(x[:, : like.shape[1]], like.dtype)


def _split_keys(keys: tf.Tensor, length: int) -> tf.Tensor:
    """Splits keys into chunks; the padding never exceeds a reference."""
    return _split_into_chunks(keys, length, LOG_EPSILON)


def _chunk_max(chunked_keys: tf.Tensor) -> tf.Tensor:
    """Returns the largest key of each feature in each chunk, [C, B, H, 1, D]."""
    return tf.reduce_max(chunked_keys, 3, keepdims=True)


def _running_max(x: tf.Tensor) -> tf.Tensor:
    """Returns the running maximum along the first dimension."""
    for level in range((x.shape[0] - 1).bit_length()):
        size = 1 << level
        x = tf.concat([x[:size], tf.maximum(x[size:], x[:-size])], 0)
    return x


def _references(chunked_keys: tf.Tensor) -> tf.Tensor:
    """[C, B, H, L, D] -> [C + 1, B, H, 1, D], the reference of each chunk, at least epsilon, and of one more chunk."""
    largest = _chunk_max(chunked_keys)
    so_far = _running_max(tf.concat([tf.fill(largest[:1].shape, LOG_EPSILON), largest], 0))
    return tf.concat([tf.maximum(so_far[:-1], chunked_keys[:, :, :, :1]), so_far[-1:]], 0)


def _fit_in_range(keys: tf.Tensor, length: int) -> tf.Tensor:
    """Whether no key [B, S, H, D] exceeds its reference, for a chunk length, by too much; False if any is NaN."""
    keys = _split_keys(keys, length)
    return tf.reduce_max(_chunk_max(keys) - _references(keys)[:-1]) <= MAX_EXPONENT


def _with_safe_chunk_length(
    run: Callable[..., object], normalization: str, queries: tf.Tensor, keys: tf.Tensor, *others: tf.Tensor
) -> object:
    """Calls run(normalization, length, queries, keys, *others) with a chunk length that is safe for the keys."""
    length, run = _chunk_length(keys.shape[1]), functools.partial(run, NORMALIZATIONS[normalization])
    return tf.cond(
        _fit_in_range(keys, length), lambda: run(length, queries, keys, *others), lambda: run(1, queries, keys, *others)
    )


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """The terms of the sums, in chunks.

    Attributes:
        features: [C, B, H, L, D], of the queries.
        weights: [C, B, H, L, D], exp(key - reference of the chunk).
        values: [C, B, H, L, D].
        decays: [C, B, H, 1, D], exp(reference of the chunk - reference of the next one).
        epsilon: [B, H, 1, D], over exp(reference of the first chunk).
    """

    features: tf.Tensor
    weights: tf.Tensor
    values: tf.Tensor
    decays: tf.Tensor
    epsilon: tf.Tensor

    def order(self) -> range:
        """Returns the indices of the chunks."""
        return range(self.values.shape[0])

    def zero_context(self) -> tf.Tensor:
        """Returns the context before any chunk: zeros [B, H, D, D]."""
        return tf.zeros([*self.epsilon.shape[:2], self.values.shape[4], self.values.shape[4]])


def _prepare_chunks(
    normalization: Normalization, length: int, queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor
) -> _Chunks:
    keys = _split_keys(keys, length)
    references = _references(keys)
    return _Chunks(
        features=normalization.features(_split_into_chunks(queries, length), references[:-1]),
        weights=tf.exp(keys - references[:-1]),
        values=_split_into_chunks(values, length),
        decays=tf.exp(references[:-1] - references[1:]),
        epsilon=tf.exp(LOG_EPSILON - references[0]),
    )


def _scan_chunks(
    step: Callable[[Sums, tf.Tensor], tuple[Sums, Sequence[tf.Tensor]]],
    order: Sequence[int],
    sums: Sums,
    result_shapes: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Scans the chunks.

    Args:
        step: (sums, index of a chunk) -> (sums for the next chunk, results of this one).
        order: indices of the chunks.
        sums: for the first step.
        result_shapes: a tensor [C, ...] for each result, of the shape of that result for all chunks.

    Returns:
        The results, each [C, ...].
    """
    indices = tf.constant(list(order))

    def body(index: tf.Tensor, sums: Sums, arrays: Sequence[tf.TensorArray]) -> tuple:
        sums, results = step(sums, indices[index])
        return index + 1, sums, [array.write(indices[index], x) for array, x in zip(arrays, results, strict=True)]

    arrays = [tf.TensorArray(tf.float32, len(order), element_shape=like.shape[1:]) for like in result_shapes]
    return [array.stack() for array in tf.while_loop(lambda index, *_: index < len(order), body, (0, sums, arrays))[2]]


def _causal_mask(x: tf.Tensor) -> tf.Tensor:
    """[..., L, L] with zeros where a position (row) would see a later one (column)."""
    return tf.linalg.band_part(x, -1, 0)


def _causal_products(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """[B, H, L, D] twice -> [B, H, L, L], products of each position with itself and earlier ones."""
    return _causal_mask(tf.matmul(one, other, transpose_b=True))


def _causal_sums(x: tf.Tensor, transpose_a: bool = False) -> tf.Tensor:
    """[B, H, L, D] -> at each position, the sum over it and earlier positions; transposed: over it and later ones."""
    return tf.matmul(_causal_mask(tf.ones([x.shape[2], x.shape[2]])), x, transpose_a=transpose_a)


def _decay(sums: Sums, decay: tf.Tensor) -> Sums:
    """Rescales the sums to the reference of the neighbouring chunk."""
    context, total = sums
    return context * tf.linalg.matrix_transpose(decay), total * decay


def _add_chunk(sums: Sums, weights: tf.Tensor, values: tf.Tensor, summands: tf.Tensor) -> Sums:
    """Adds one chunk to the sums: weights times values, and summands."""
    context, total = sums
    context += tf.matmul(weights, values, transpose_a=True)
    return context, total + tf.reduce_sum(summands, 2, keepdims=True)


def _outputs(
    normalization: Normalization, length: int, queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor
) -> tf.Tensor:
    """[B, S, H, D] three times -> [B, S, H, D], in chunks of a length."""
    chunks = _prepare_chunks(normalization, length, queries, keys, values)

    def step(sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        (context, total), weights, values, features = sums, chunks.weights[at], chunks.values[at], chunks.features[at]
        shares = features / normalization.divisors(features, _causal_sums(weights) + total)
        outputs = tf.matmul(_causal_products(shares, weights), values) + tf.matmul(shares, context)
        return _decay(_add_chunk(sums, weights, values, weights), chunks.decays[at]), [outputs]

    (outputs,) = _scan_chunks(step, chunks.order(), (chunks.zero_context(), chunks.epsilon), [chunks.values])
    return _join_chunks(outputs, queries)


def _totals_and_share_gradients(chunks: _Chunks, d_outputs: tf.Tensor) -> list[tf.Tensor]:
    """Returns totals, the sums of weights, and d_shares, [C, B, H, L, D] each."""

    def step(sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        (context, total), weights, values = sums, chunks.weights[at], chunks.values[at]
        d_shares = tf.matmul(_causal_products(d_outputs[at], values), weights)
        d_shares += tf.matmul(d_outputs[at], context, transpose_b=True)
        results = [_causal_sums(weights) + total, d_shares]
        return _decay(_add_chunk(sums, weights, values, weights), chunks.decays[at]), results

    return _scan_chunks(step, chunks.order(), (chunks.zero_context(), chunks.epsilon), [chunks.features] * 2)


def _key_value_gradients(
    chunks: _Chunks, d_outputs: tf.Tensor, shares: tf.Tensor, d_totals: tf.Tensor
) -> list[tf.Tensor]:
    """Returns d_keys and d_values, [C, B, H, L, D] each; scans from the last chunk to the first."""

    def step(d_sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        d_context, d_total = d_sums = _decay(d_sums, chunks.decays[at])
        weights, values, d_rows = chunks.weights[at], chunks.values[at], d_outputs[at]
        d_values = tf.matmul(_causal_products(shares[at], weights), d_rows, transpose_a=True) + tf.matmul(
            weights, d_context
        )
        d_weights = tf.matmul(_causal_products(d_rows, values), shares[at], transpose_a=True)
        d_weights += tf.matmul(values, d_context, transpose_b=True)
        d_weights += _causal_sums(d_totals[at], transpose_a=True) + d_total
        return _add_chunk(d_sums, shares[at], d_rows, d_totals[at]), [d_weights * weights, d_values]

    zeros = (chunks.zero_context(), tf.zeros_like(chunks.epsilon))
    return _scan_chunks(step, chunks.order()[::-1], zeros, [chunks.weights, chunks.values])


def _gradients(
    normalization: Normalization,
    length: int,
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    d_outputs: tf.Tensor,
) -> list[tf.Tensor]:
    """[B, S, H, D] four times -> d_queries, d_keys and d_values, in chunks of a length."""
    chunks = _prepare_chunks(normalization, length, queries, keys, values)
    d_outputs = _split_into_chunks(d_outputs, length)
    totals, d_shares = _totals_and_share_gradients(chunks, d_outputs)
    shares = chunks.features / normalization.divisors(chunks.features, totals)
    products = shares * d_shares
    d_totals = normalization.d_totals(shares, products, totals)
    d_keys, d_values = _key_value_gradients(chunks, d_outputs, shares, d_totals)
    d_queries = products - shares * totals * _sum_features(products)
    return [_join_chunks(gradient, queries) for gradient in (d_queries, d_keys, d_values)]


@compiled
def causal_linear_attention(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, normalization: str = "position"
) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D]) -> outputs [B, S, H, D], by a member of `NORMALIZATIONS`.

    Source: GPT-Neo, kept for checkpoints; Katharopoulos et al. 2020, Transformers are RNNs, section 3.
    """
    return _with_safe_chunk_length(_outputs, normalization, queries, keys, values)


@compiled
def causal_linear_attention_gradient(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, d_outputs: tf.Tensor, normalization: str = "position"
) -> tuple[tf.Tensor, ...]:
    """(queries, keys, values, d_outputs) -> (d_queries, d_keys, d_values); nothing else is kept from the forward pass.

    Source: Katharopoulos et al. 2020, Transformers are RNNs, section 3.3.1: one scan in each direction.
    """
    return tuple(_with_safe_chunk_length(_gradients, normalization, queries, keys, values, d_outputs))


def _bidirectional(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] three times -> [B, H, S, D], where every position sees all."""
    context = tf.matmul(tf.nn.softmax(keys, 2), values, transpose_a=True)
    return tf.matmul(tf.nn.softmax(queries), context)


@compiled
def linear_attention(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D]) -> outputs [B, S, H, D].

    Source: GPT-Neo, kept for checkpoints; Shen et al. 2021, Efficient Attention, section 3.2.
    """
    return _heads_last(_bidirectional(*map(_heads_first, (queries, keys, values))), queries)


@compiled
def linear_attention_gradient(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, d_outputs: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """(queries, keys, values, d_outputs) -> (d_queries, d_keys, d_values)."""
    inputs = [_heads_first(x) for x in (queries, keys, values)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = _bidirectional(*inputs)
    gradients = tape.gradient(outputs, inputs, _heads_first(d_outputs))
    return tuple(_heads_last(gradient, queries) for gradient in gradients)


@compiled
def linear_state(keys: tf.Tensor, values: tf.Tensor, lengths: tf.Tensor) -> State:
    """Computes the state after prompts.

    (keys, values [B, S, H, D], lengths int32 [B]) -> context [B, H, D, D], total and largest [B, H, D], over the
    positions before each row's length.
    """
    keys, values = _heads_first(keys), _heads_first(values)
    is_there = tf.range(keys.shape[2]) < lengths[:, None]
    keys = tf.where(is_there[:, None, :, None], keys, -float("inf"))
    largest = tf.maximum(tf.reduce_max(keys, 2), LOG_EPSILON)
    weights = tf.exp(keys - largest[:, :, None])
    total = tf.reduce_sum(weights, 2) + tf.exp(LOG_EPSILON - largest)
    return tf.matmul(weights, values, transpose_a=True), total, largest


@compiled
def linear_attention_step(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    context: tf.Tensor,
    total: tf.Tensor,
    largest: tf.Tensor,
    normalization: str = "position",
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(queries, keys, values [B, H, D], state) -> (outputs [B, H, D], new state)."""
    rule = NORMALIZATIONS[normalization]
    keys, values = tf.cast(keys, tf.float32), tf.cast(values, tf.float32)
    new_largest = tf.maximum(largest, keys)
    decay, weight = tf.exp(largest - new_largest), tf.exp(keys - new_largest)
    context = context * decay[..., None] + weight[..., None] * values[..., None, :]
    total = total * decay + weight
    features = rule.features(tf.cast(queries, tf.float32), new_largest)
    outputs = tf.linalg.matvec(context, features / rule.divisors(features, total), transpose_a=True)
    return tf.cast(outputs, queries.dtype), context, total, new_largest
