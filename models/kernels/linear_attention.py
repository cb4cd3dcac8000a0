"""Linear attention on slices: each feature of a query has a share in the output, and each feature of the keys weighs
the values by a softmax over the positions.

Everything is float32 inside. Exponentials are taken relative to each feature's largest key so far, so that none
exceeds 1, whatever the keys. A causal sum goes over blocks of positions that double in size: the right one of two
neighbours takes what it needs from the left one. Memory grows with the sequence, not with its square.
"""

from __future__ import annotations

import functools
import math

from meshtf import tf
from models.kernels.compile import Kernel, compiled

LOG_EPSILON = math.log(1e-6)  # GPT-Neo adds 1e-6 to the sum of exponentials
STATE = ("context", "total", "largest")  # the sums that one position hands to the next, in the kernels' order
State = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def _heads_first(x: tf.Tensor) -> tf.Tensor:
    """[B, S, H, D] -> float32 [B, H, S, D]."""
    return tf.cast(tf.transpose(x, [0, 2, 1, 3]), tf.float32)


def _heads_last(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[B, H, S or more, D] -> [B, S, H, D], in the length and the dtype of another tensor."""
    return tf.cast(tf.transpose(x[:, :, : like.shape[1]], [0, 2, 1, 3]), like.dtype)


def _padded(x: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] with zeros up to the next power of 2; they are behind every position, so none takes them in."""
    n_positions = x.shape[2]
    return tf.pad(x, [[0, 0], [0, 0], [0, (1 << (n_positions - 1).bit_length()) - n_positions], [0, 0]])


def _block_sizes(x: tf.Tensor) -> list[int]:
    """1, 2, 4 ... up to half of S."""
    return [1 << level for level in range((x.shape[2] - 1).bit_length())]


def _neighbours(x: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """[B, H, S, D] -> the blocks of a size that are first, third ..., and the others: [B, H, blocks / 2, size, D]."""
    left, right = tf.unstack(tf.reshape(x, [*x.shape[:2], -1, 2, size, x.shape[3]]), axis=3)
    return left, right


def _joined(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """The inverse of `_neighbours`."""
    return tf.reshape(tf.stack([left, right], 3), [*left.shape[:2], -1, left.shape[4]])


def _running_max(keys: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] -> the largest key up to each position, at least that of epsilon."""
    largest = tf.maximum(keys, LOG_EPSILON)
    for size in _block_sizes(keys):
        left, right = _neighbours(largest, size)
        largest = _joined(left, tf.maximum(left[..., -1:, :], right))
    return largest


def _running_sum(x: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] twice -> sum over s <= t of x_s exp(largest_s - largest_t)."""
    for size in _block_sizes(x):
        (left, right), (left_largest, right_largest) = (_neighbours(part, size) for part in (x, largest))
        decay = tf.exp(left_largest[..., -1:, :] - right_largest)
        x = _joined(left, right + decay * left[..., -1:, :])
    return x


def _running_sum_gradient(d_sums: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """What the gradient of `_running_sum` is for x: sum over t >= s of d_sums_t exp(largest_s - largest_t)."""
    return tf.reverse(_running_sum(tf.reverse(d_sums, [2]), -tf.reverse(largest, [2])), [2])


def _from_itself(shares: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """What each position takes from its own value; arguments as of `_from_left_neighbour`."""
    return tf.reduce_sum(shares * tf.exp(keys - largest), -1, keepdims=True) * values


def _from_left_neighbour(
    size: int, shares: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, largest: tf.Tensor
) -> tf.Tensor:
    """What every second block of positions takes from the block before it; zeros for the others.

    Args:
      size: of a block.
      shares: [B, H, S, D], each feature's share in the output over its sum of exponentials.
      keys: [B, H, S, D].
      values: [B, H, S, D].
      largest: [B, H, S, D], each feature's largest key so far.
    """
    left_largest, right_largest = _neighbours(largest, size)
    boundary = left_largest[..., -1:, :]
    # As keys <= boundary <= right_largest, both factors are at most 1: one vanishes only where their product does.
    shares = _neighbours(shares, size)[1] * tf.exp(boundary - right_largest)
    weights = tf.exp(_neighbours(keys, size)[0] - boundary)
    left_values = _neighbours(values, size)[0]
    if size < keys.shape[3]:
        right = tf.matmul(tf.matmul(shares, weights, transpose_b=True), left_values)
    else:
        right = tf.matmul(shares, tf.matmul(weights, left_values, transpose_a=True))
    return _joined(tf.zeros_like(right), right)


def _totals(keys: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] -> each feature's sum of exponentials so far and epsilon, over exp(largest)."""
    return _running_sum(tf.exp(keys - largest), largest) + tf.exp(LOG_EPSILON - largest)


@compiled
def _prepared(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """[B, S, H, D] three times -> shares, keys, values and largest, as `_from_left_neighbour` takes them."""
    queries, keys, values = (_padded(_heads_first(x)) for x in (queries, keys, values))
    largest = _running_max(keys)
    return tf.nn.softmax(queries) / _totals(keys, largest), keys, values, largest


def _taken(size: int, *inputs: tf.Tensor) -> tf.Tensor:
    """What positions take from the block of a size before theirs; 0 stands for the position itself."""
    return _from_left_neighbour(size, *inputs) if size else _from_itself(*inputs)


# A kernel for each size of block: one for all would hold the parts of every size at the same time.


@functools.cache
def _add_taken(size: int) -> Kernel:
    """(outputs, shares, keys, values, largest) -> outputs with what this size of block adds."""

    def kernel(outputs: tf.Tensor, *inputs: tf.Tensor) -> tf.Tensor:
        return outputs + _taken(size, *inputs)

    return compiled(kernel)


@functools.cache
def _add_taken_gradient(size: int) -> Kernel:
    """(d_shares, d_keys, d_values, d_outputs, shares, keys, values, largest) -> the first three with what this size of
    block adds.
    """

    def kernel(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        sums, d_outputs, inputs, largest = arguments[:3], arguments[3], list(arguments[4:7]), arguments[7]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = _taken(size, *inputs, largest)
        parts = tape.gradient(outputs, inputs, d_outputs)
        return tuple(total + part for total, part in zip(sums, parts, strict=True))

    return compiled(kernel)


def causal_linear_attention(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D]) -> outputs [B, S, H, D].

    Source: GPT-Neo, kept for checkpoints; Katharopoulos et al. 2020, Transformers are RNNs, section 3.
    """
    inputs = _prepared(queries, keys, values)
    outputs = tf.zeros_like(inputs[0])
    for size in [0, *_block_sizes(outputs)]:
        outputs = _add_taken(size)(outputs, *inputs)
    return _heads_last(outputs, queries)


@compiled
def _input_gradients(
    queries: tf.Tensor, keys: tf.Tensor, largest: tf.Tensor, d_shares: tf.Tensor, d_keys: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Queries [B, S, H, D], the others [B, H, S, D] -> d_queries and the whole of d_keys, [B, H, S, D]."""
    features, totals = tf.nn.softmax(_padded(_heads_first(queries))), _totals(keys, largest)
    d_features = d_shares / totals
    # The largest key only keeps numbers in range: no result depends on it, so it has no gradient.
    d_totals = -d_features * features / totals
    d_keys += tf.exp(keys - largest) * _running_sum_gradient(d_totals, largest)
    return features * (d_features - tf.reduce_sum(d_features * features, -1, keepdims=True)), d_keys


def causal_linear_attention_gradient(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, d_outputs: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """(queries, keys, values, d_outputs) -> (d_queries, d_keys, d_values); no more is kept from the forward pass."""
    inputs, d_heads_first = _prepared(queries, keys, values), _padded(_heads_first(d_outputs))
    sums = [tf.zeros_like(x) for x in inputs[:3]]
    for size in [0, *_block_sizes(d_heads_first)]:
        sums = _add_taken_gradient(size)(*sums, d_heads_first, *inputs)
    d_shares, d_keys, d_values = sums
    d_queries, d_keys = _input_gradients(queries, inputs[1], inputs[3], d_shares, d_keys)
    return tuple(_heads_last(gradient, queries) for gradient in (d_queries, d_keys, d_values))


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
def linear_state(keys: tf.Tensor, values: tf.Tensor) -> State:
    """(keys, values [B, S, H, D]) -> context [B, H, D, D], total and largest [B, H, D]."""
    keys, values = _heads_first(keys), _heads_first(values)
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
