"""Linear attention on slices: each feature of a query has a share in the output, and each feature of the keys weighs
the values by a softmax over the positions.

Everything is float32 inside. Causal attention goes over chunks of positions, one after another, and hands the sums over
all positions so far from each to the next: memory grows with the sequence, not with its square, and none of it is the
sums of every position.

Exponentials are taken relative to a reference: for each feature, the largest key up to the first position of the chunk.
A result depends on no reference, only its rounding does, so references have no gradient. Within a chunk keys may rise
above the reference, but by no more than `STEEPEST`; where they do, in any feature of any chunk, each position becomes a
chunk of its own, and no exponential exceeds 1. That is slower, and right for any keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from meshtf import tf
from models.kernels.compile import compiled

CHUNK = 64  # positions at most; on CPUs 32 are a little faster and 128 a little slower; fewer steps suit GPUs
# Products of exp(STEEPEST), of exp(-STEEPEST) and of shares or gradients up to exp(40) away from 1 stay in float32.
STEEPEST = 40.0
LOG_EPSILON = math.log(1e-6)  # GPT-Neo adds 1e-6 to the sum of exponentials
STATE = ("context", "total", "largest")  # the sums that one position hands to the next, in the kernels' order
State = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
Sums = tuple[tf.Tensor, tf.Tensor]  # over positions: [B, H, D, D] of weights times values, [B, H, 1, D] of weights


def _heads_first(x: tf.Tensor) -> tf.Tensor:
    """[B, S, H, D] -> float32 [B, H, S, D]."""
    return tf.cast(tf.transpose(x, [0, 2, 1, 3]), tf.float32)


def _heads_last(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] -> [B, S, H, D], in the dtype of another tensor."""
    return tf.cast(tf.transpose(x, [0, 2, 1, 3]), like.dtype)


def _chunk_length(n_positions: int) -> int:
    """Of the fewest chunks, such that the last one is about as long as the others."""
    return -(-n_positions // -(-n_positions // CHUNK))


def _chunked(x: tf.Tensor, length: int, filling: float = 0.0) -> tf.Tensor:
    """[B, S, H, D] -> float32 [C, B, H, length, D], C chunks, the last one filled up."""
    n_batch, n_positions, n_heads, n_features = x.shape
    n_chunks = -(-n_positions // length)
    filled = [[0, 0], [0, n_chunks * length - n_positions], [0, 0], [0, 0]]
    x = tf.pad(tf.cast(x, tf.float32), filled, constant_values=filling)
    return tf.transpose(tf.reshape(x, [n_batch, n_chunks, length, n_heads, n_features]), [1, 0, 3, 2, 4])


def _whole(chunks: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """The inverse of `_chunked`, in the length and the dtype of another tensor."""
    n_chunks, n_batch, n_heads, length, n_features = chunks.shape
    x = tf.reshape(tf.transpose(chunks, [1, 0, 3, 2, 4]), [n_batch, n_chunks * length, n_heads, n_features])
    return tf.cast(x[:, : like.shape[1]], like.dtype)


def _chunked_keys(keys: tf.Tensor, length: int) -> tf.Tensor:
    """Keys filled up with one that is above no reference."""
    return _chunked(keys, length, LOG_EPSILON)


def _largest(chunked_keys: tf.Tensor) -> tf.Tensor:
    """Each chunk's largest keys, [C, B, H, 1, D]."""
    return tf.reduce_max(chunked_keys, 3, keepdims=True)


def _running_max(x: tf.Tensor) -> tf.Tensor:
    """Along the first dimension, the largest so far."""
    for level in range((x.shape[0] - 1).bit_length()):
        size = 1 << level
        x = tf.concat([x[:size], tf.maximum(x[size:], x[:-size])], 0)
    return x


def _references(chunked_keys: tf.Tensor) -> tf.Tensor:
    """[C, B, H, L, D] -> [C + 1, B, H, 1, D], each chunk's reference, at least epsilon, and that of a chunk to come."""
    largest = _largest(chunked_keys)
    so_far = _running_max(tf.concat([tf.fill(largest[:1].shape, LOG_EPSILON), largest], 0))
    return tf.concat([tf.maximum(so_far[:-1], chunked_keys[:, :, :, :1]), so_far[-1:]], 0)


def _are_gentle(keys: tf.Tensor, length: int) -> tf.Tensor:
    """Whether keys [B, S, H, D] stay within reach of the references of chunks of a length; false if any is NaN."""
    keys = _chunked_keys(keys, length)
    return tf.reduce_max(_largest(keys) - _references(keys)[:-1]) <= STEEPEST


def _in_chunks(run: Callable[..., object], queries: tf.Tensor, keys: tf.Tensor, *others: tf.Tensor) -> object:
    """run(length, queries, keys, *others), with the length of chunks that suits the keys."""
    length = _chunk_length(keys.shape[1])
    return tf.cond(
        _are_gentle(keys, length),
        lambda: run(length, queries, keys, *others),
        lambda: run(1, queries, keys, *others),
    )


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """What the sums are made of, in chunks.

    Attributes:
        features: [C, B, H, L, D], of the queries, each position's adding up to 1.
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
        return range(self.values.shape[0])

    def no_context(self) -> tf.Tensor:
        return tf.zeros([*self.epsilon.shape[:2], self.values.shape[4], self.values.shape[4]])


def _cut(length: int, queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> _Chunks:
    keys = _chunked_keys(keys, length)
    references = _references(keys)
    return _Chunks(
        features=tf.nn.softmax(_chunked(queries, length)),
        weights=tf.exp(keys - references[:-1]),
        values=_chunked(values, length),
        decays=tf.exp(references[:-1] - references[1:]),
        epsilon=tf.exp(LOG_EPSILON - references[0]),
    )


def _scan(
    step: Callable[[Sums, tf.Tensor], tuple[Sums, Sequence[tf.Tensor]]],
    order: Sequence[int],
    sums: Sums,
    likes: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Goes over the chunks.

    Args:
        step: (sums, index of a chunk) -> (sums for the next one, results for this one).
        order: of the chunks.
        sums: for the first step.
        likes: a tensor [C, ...] for each result, of its shape once those of all chunks are together.

    Returns:
        the results [C, ...].
    """
    places = tf.constant(list(order))

    def turn(index: tf.Tensor, sums: Sums, arrays: Sequence[tf.TensorArray]) -> tuple:
        sums, results = step(sums, places[index])
        return index + 1, sums, [array.write(places[index], x) for array, x in zip(arrays, results, strict=True)]

    arrays = [tf.TensorArray(tf.float32, len(order), element_shape=like.shape[1:]) for like in likes]
    return [array.stack() for array in tf.while_loop(lambda index, *_: index < len(order), turn, (0, sums, arrays))[2]]


def _up_to_itself(x: tf.Tensor) -> tf.Tensor:
    """[..., L, L] with zeros where a position (row) would take from one behind it (column)."""
    return tf.linalg.band_part(x, -1, 0)


def _products(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """[B, H, L, D] twice -> [B, H, L, L], of each position with itself and those before it."""
    return _up_to_itself(tf.matmul(one, other, transpose_b=True))


def _sums_of_positions(x: tf.Tensor, transpose_a: bool = False) -> tf.Tensor:
    """[B, H, L, D] -> at each position, the sum over it and those before it; transposed: and those behind it."""
    return tf.matmul(_up_to_itself(tf.ones([x.shape[2], x.shape[2]])), x, transpose_a=transpose_a)


def _decayed(sums: Sums, decay: tf.Tensor) -> Sums:
    """The sums relative to the neighbour's reference."""
    context, total = sums
    return context * tf.linalg.matrix_transpose(decay), total * decay


def _with(sums: Sums, weights: tf.Tensor, values: tf.Tensor, summands: tf.Tensor) -> Sums:
    """The sums and one chunk's: of weights times values, and of summands."""
    context, total = sums
    context += tf.matmul(weights, values, transpose_a=True)
    return context, total + tf.reduce_sum(summands, 2, keepdims=True)


def _outputs(length: int, queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """[B, S, H, D] three times -> [B, S, H, D], in chunks of a length."""
    chunks = _cut(length, queries, keys, values)

    def step(sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        (context, total), weights, values = sums, chunks.weights[at], chunks.values[at]
        shares = chunks.features[at] / (_sums_of_positions(weights) + total)
        outputs = tf.matmul(_products(shares, weights), values) + tf.matmul(shares, context)
        return _decayed(_with(sums, weights, values, weights), chunks.decays[at]), [outputs]

    (outputs,) = _scan(step, chunks.order(), (chunks.no_context(), chunks.epsilon), [chunks.values])
    return _whole(outputs, queries)


def _shares_and_gradient(chunks: _Chunks, d_outputs: tf.Tensor) -> list[tf.Tensor]:
    """Each feature's share in the outputs over its sum of weights, and d_features, [C, B, H, L, D]."""

    def step(sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        (context, total), weights, values = sums, chunks.weights[at], chunks.values[at]
        totals = _sums_of_positions(weights) + total
        d_shares = tf.matmul(_products(d_outputs[at], values), weights)
        d_shares += tf.matmul(d_outputs[at], context, transpose_b=True)
        results = [chunks.features[at] / totals, d_shares / totals]
        return _decayed(_with(sums, weights, values, weights), chunks.decays[at]), results

    return _scan(step, chunks.order(), (chunks.no_context(), chunks.epsilon), [chunks.features] * 2)


def _gradients_from_behind(
    chunks: _Chunks, d_outputs: tf.Tensor, shares: tf.Tensor, d_totals: tf.Tensor
) -> list[tf.Tensor]:
    """d_keys and d_values, [C, B, H, L, D]: of the sums that the last chunk is handed, then of those before it."""

    def step(d_sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        d_context, d_total = d_sums = _decayed(d_sums, chunks.decays[at])
        weights, values, d_rows = chunks.weights[at], chunks.values[at], d_outputs[at]
        d_values = tf.matmul(_products(shares[at], weights), d_rows, transpose_a=True) + tf.matmul(weights, d_context)
        d_weights = tf.matmul(_products(d_rows, values), shares[at], transpose_a=True)
        d_weights += tf.matmul(values, d_context, transpose_b=True)
        d_weights += _sums_of_positions(d_totals[at], transpose_a=True) + d_total
        return _with(d_sums, shares[at], d_rows, d_totals[at]), [d_weights * weights, d_values]

    nothing = (chunks.no_context(), tf.zeros_like(chunks.epsilon))
    return _scan(step, chunks.order()[::-1], nothing, [chunks.weights, chunks.values])


def _gradients(
    length: int, queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, d_outputs: tf.Tensor
) -> list[tf.Tensor]:
    """[B, S, H, D] four times -> d_queries, d_keys and d_values, in chunks of a length."""
    chunks, d_outputs = _cut(length, queries, keys, values), _chunked(d_outputs, length)
    shares, d_features = _shares_and_gradient(chunks, d_outputs)
    d_keys, d_values = _gradients_from_behind(chunks, d_outputs, shares, -d_features * shares)
    features = chunks.features
    d_queries = features * (d_features - tf.reduce_sum(d_features * features, -1, keepdims=True))
    return [_whole(gradient, queries) for gradient in (d_queries, d_keys, d_values)]


@compiled
def causal_linear_attention(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D]) -> outputs [B, S, H, D].

    Source: GPT-Neo, kept for checkpoints; Katharopoulos et al. 2020, Transformers are RNNs, section 3.
    """
    return _in_chunks(_outputs, queries, keys, values)


@compiled
def causal_linear_attention_gradient(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, d_outputs: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """(queries, keys, values, d_outputs) -> (d_queries, d_keys, d_values); no more is kept from the forward pass.

    Source: Katharopoulos et al. 2020, Transformers are RNNs, section 3.3.1: sums from both ends give the gradient.
    """
    return tuple(_in_chunks(_gradients, queries, keys, values, d_outputs))


def _everywhere(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] three times -> [B, H, S, D], every position seeing all."""
    context = tf.matmul(tf.nn.softmax(keys, 2), values, transpose_a=True)
    return tf.matmul(tf.nn.softmax(queries), context)


@compiled
def linear_attention(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D]) -> outputs [B, S, H, D].

    Source: GPT-Neo, kept for checkpoints; Shen et al. 2021, Efficient Attention, section 3.2.
    """
    return _heads_last(_everywhere(*map(_heads_first, (queries, keys, values))), queries)


@compiled
def linear_attention_gradient(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, d_outputs: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """(queries, keys, values, d_outputs) -> (d_queries, d_keys, d_values)."""
    inputs = [_heads_first(x) for x in (queries, keys, values)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = _everywhere(*inputs)
    gradients = tape.gradient(outputs, inputs, _heads_first(d_outputs))
    return tuple(_heads_last(gradient, queries) for gradient in gradients)


@compiled
def linear_state(keys: tf.Tensor, values: tf.Tensor, lengths: tf.Tensor) -> State:
    """(keys, values [B, S, H, D], lengths int32 [B]) -> context [B, H, D, D], total and largest [B, H, D], of the
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
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, context: tf.Tensor, total: tf.Tensor, largest: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(queries, keys, values [B, H, D], the state) -> (outputs [B, H, D], the new state)."""
    features = tf.nn.softmax(tf.cast(queries, tf.float32))
    keys, values = tf.cast(keys, tf.float32), tf.cast(values, tf.float32)
    new_largest = tf.maximum(largest, keys)
    decay, weight = tf.exp(largest - new_largest), tf.exp(keys - new_largest)
    context = context * decay[..., None] + weight[..., None] * values[..., None, :]
    total = total * decay + weight
    outputs = tf.linalg.matvec(context, features / total, transpose_a=True)
    return tf.cast(outputs, queries.dtype), context, total, new_largest
