"""Linear attention on slices: queries are a softmax over features, keys a softmax over positions.

Everything is float32 inside. Causal attention scans chunks of positions and carries the sums over all earlier positions
from one chunk to the next: memory is linear in the length, and the sums of single positions are never stored.

Exponentials are relative to a reference: for each feature, the largest key up to the first position of the chunk. The
result does not depend on the references, only its rounding does, so references have no gradient. Within a chunk keys
may exceed the reference by at most `MAX_EXPONENT`. Where any key exceeds it by more, every position becomes a chunk of
its own, and no exponential exceeds 1: slower, but exact for all keys.

Positions may be in segments, of which none sees another: each begins with epsilon alone. The reference of a chunk is
then that of the segment that its first position belongs to, and a segment that begins within the chunk may also start
at most `MAX_EXPONENT` below it.

A slice of a longer sequence begins with the sums over the slices before it. Their keys are relative to a reference of
their own, the largest, and hold no epsilon. Sums and reference are one tensor, packed for the way between processors.

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
from models.kernels.grouping import Groups
from models.kernels.packing import Packing

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


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where positions stand in their rows.

    Attributes:
        starts: int32 [B, S], where the segment of each position begins; None: each row is one segment.
        begin: the position of the first, an int32 scalar.
        before: packed sums over earlier positions, as far as the first one sees them; None: there are none.
    """

    starts: tf.Tensor | None = None
    begin: tf.Tensor | int = 0
    before: tf.Tensor | None = None

    def largest(self, keys: tf.Tensor) -> tf.Tensor:
        """Returns the largest key before keys [..., B, H, L, D], at least epsilon: [1, B, H, 1, D]."""
        if self.before is None:
            return tf.fill([1, *keys.shape[1:3], 1, keys.shape[-1]], LOG_EPSILON)
        return _unpack(self.before)[2][None]


def _pack(context: tf.Tensor, total: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """[..., H, D, D], [..., H, 1, D], [..., H, 1, D] -> [..., H, D + 2, D]."""
    return tf.concat([context, total, largest], -2)


def _unpack(state: tf.Tensor) -> State:
    """Inverts `_pack`."""
    return state[..., :-2, :], state[..., -2:-1, :], state[..., -1:, :]


@dataclasses.dataclass(frozen=True)
class _Segments:
    """Where segments begin and end, for positions in chunks.

    Attributes:
        starts: float32 [C, B, 1, L, 1], where the segment of each position begins.
        begin: bool, like `starts`: the position is the first of its segment.
        enter: bool, like `starts`: the segment has positions in earlier chunks.
        leave: bool, like `starts`: the segment has the last position of the chunk.
        last: float32 [C, B, 1, 1, 1], where the segment of the last position begins.
    """

    starts: tf.Tensor
    begin: tf.Tensor
    enter: tf.Tensor
    leave: tf.Tensor
    last: tf.Tensor

    def same(self, at: tf.Tensor) -> tf.Tensor:
        """Returns which positions of a chunk share a segment, bool [B, 1, L, L]."""
        starts = self.starts[at]
        return starts == tf.linalg.matrix_transpose(starts)


def _segments_of(place: _Place, length: int) -> _Segments | None:
    """Returns the segments in chunks of a length; None: each row is one segment."""
    if place.starts is None:
        return None
    n_padded = -place.starts.shape[1] % length
    padded = tf.concat([place.starts, tf.repeat(place.starts[:, -1:], n_padded, 1)], 1)
    starts = _split_into_chunks(padded[:, :, None, None], length)  # float32 holds every position exactly
    positions = tf.cast(place.begin + tf.range(starts.shape[0] * length), tf.float32)
    positions = tf.reshape(positions, [-1, 1, 1, length, 1])
    last = starts[:, :, :, -1:]
    return _Segments(starts, starts == positions, starts < positions[:, :, :, :1], starts == last, last)


def _chunk_max(chunked_keys: tf.Tensor) -> tf.Tensor:
    """Returns the largest key of each feature in each chunk, [C, B, H, 1, D]."""
    return tf.reduce_max(chunked_keys, 3, keepdims=True)


def _running_max(x: tf.Tensor, last: tf.Tensor | None = None) -> tf.Tensor:
    """Returns the running maximum along the first dimension, of the chunks that end with the same segment as the last.

    Args:
        x: [C, ...].
        last: the segments that they end with, [C, ...]; None: all are in one segment.
    """
    for level in range((x.shape[0] - 1).bit_length()):
        size = 1 << level
        larger = tf.maximum(x[size:], x[:-size])
        if last is not None:
            larger = tf.where(last[size:] == last[:-size], larger, x[size:])
        x = tf.concat([x[:size], larger], 0)
    return x


def _references(chunked_keys: tf.Tensor, place: _Place, segments: _Segments | None) -> tf.Tensor:
    """[C, B, H, L, D] -> [C + 1, B, H, 1, D], the reference of each chunk, at least epsilon, and of one more chunk."""
    before = place.largest(chunked_keys)
    if segments is not None:
        return _references_in_segments(chunked_keys, before, segments)
    so_far = _running_max(tf.concat([before, _chunk_max(chunked_keys)], 0))
    return tf.concat([tf.maximum(so_far[:-1], chunked_keys[:, :, :, :1]), so_far[-1:]], 0)


def _references_in_segments(chunked_keys: tf.Tensor, before: tf.Tensor, segments: _Segments) -> tf.Tensor:
    """As `_references`, where only the keys of the segment count that the first position of a chunk belongs to."""
    largest = _chunk_max(tf.where(segments.leave, chunked_keys, LOG_EPSILON))
    last = tf.concat([segments.starts[:1, :, :, :1], segments.last], 0)  # before the chunks, that of the first position
    so_far = _running_max(tf.concat([before, tf.maximum(largest, LOG_EPSILON)], 0), last)
    earlier = tf.where(segments.enter[:, :, :, :1], so_far[:-1], LOG_EPSILON)
    return tf.concat([tf.maximum(earlier, chunked_keys[:, :, :, :1]), so_far[-1:]], 0)


def _fit_in_range(keys: tf.Tensor, length: int, place: _Place) -> tf.Tensor:
    """Whether all keys [B, S, H, D] are safe with their references, for a chunk length; False if any is NaN."""
    keys, segments = _split_keys(keys, length), _segments_of(place, length)
    references = _references(keys, place, segments)[:-1]
    rise = tf.reduce_max(_chunk_max(keys) - references)
    if segments is not None:
        first = tf.where(segments.begin, tf.maximum(keys, LOG_EPSILON), references)
        rise = tf.maximum(rise, tf.reduce_max(references - first))
    return rise <= MAX_EXPONENT


def _with_safe_chunk_length(
    run: Callable[..., object],
    normalization: str,
    place: _Place,
    queries: tf.Tensor,
    keys: tf.Tensor,
    *others: tf.Tensor,
) -> object:
    """Calls run(normalization, place, length, queries, keys, *others) with a chunk length safe for the keys."""
    length, run = _chunk_length(keys.shape[1]), functools.partial(run, NORMALIZATIONS[normalization], place)
    return tf.cond(
        _fit_in_range(keys, length, place),
        lambda: run(length, queries, keys, *others),
        lambda: run(1, queries, keys, *others),
    )


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """The terms of the sums, in chunks.

    Attributes:
        features: [C, B, H, L, D], of the queries.
        weights: [C, B, H, L, D], exp(key - reference of the chunk).
        values: [C, B, H, L, D].
        decays: [C, B, H, 1, D], exp(reference of the chunk - reference of the next one).
        references: [C + 1, B, H, 1, D].
        segments: which positions see one another; None: all are in one segment.
        before: the sums before the first chunk, relative to its reference.
    """

    features: tf.Tensor
    weights: tf.Tensor
    values: tf.Tensor
    decays: tf.Tensor
    references: tf.Tensor
    segments: _Segments | None
    before: Sums

    def order(self) -> range:
        """Returns the indices of the chunks."""
        return range(self.values.shape[0])

    def epsilon(self, at: tf.Tensor | int) -> tf.Tensor:
        """Returns epsilon over exp(reference of the chunk), [B, H, 1, D]."""
        return tf.exp(LOG_EPSILON - self.references[at])

    def visible(self, at: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """[..., L, L] with zeros where a position (row) would see a later one (column), or another segment."""
        x = tf.linalg.band_part(x, -1, 0)
        return x if self.segments is None else tf.where(self.segments.same(at), x, 0.0)

    def products(self, at: tf.Tensor, one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        """[B, H, L, D] twice -> [B, H, L, L], products of each position with those that it sees in its chunk."""
        return self.visible(at, tf.matmul(one, other, transpose_b=True))

    def sums(self, at: tf.Tensor, x: tf.Tensor, transpose_a: bool = False) -> tf.Tensor:
        """[B, H, L, D] -> at each position, the sum over those of its chunk that it sees; transposed: that see it."""
        return tf.matmul(self.visible(at, tf.ones([x.shape[2], x.shape[2]])), x, transpose_a=transpose_a)

    def totals(self, at: tf.Tensor, weights: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
        """Returns epsilon and the sum of weights at each position of a chunk, given the total over earlier chunks."""
        if self.segments is not None:  # each segment has its own epsilon, so the totals of chunks hold none
            total = self.entering(at, total) + self.epsilon(at)
        return self.sums(at, weights) + total

    def entering(self, at: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """[B, H, L or 1, D] -> [B, H, L, D] with zeros at positions that see nothing of earlier chunks."""
        return x if self.segments is None else tf.where(self.segments.enter[at], x, 0.0)

    def leaving(self, at: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """[B, H, L or 1, D] -> [B, H, L, D] with zeros at positions that later chunks do not see."""
        return x if self.segments is None else tf.where(self.segments.leave[at], x, 0.0)

    def passing(self, at: tf.Tensor, sums: Sums) -> Sums:
        """Returns the sums of the chunks before (or after) as far as the chunks after (or before) this one see them."""
        if self.segments is None:
            return sums
        context, total = (tf.where(self.segments.enter[at][:, :, -1:], x, 0.0) for x in sums)
        return context, total


def _prepare_chunks(
    normalization: Normalization,
    place: _Place,
    length: int,
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
) -> _Chunks:
    keys, segments = _split_keys(keys, length), _segments_of(place, length)
    references = _references(keys, place, segments)
    fall = references[:-1] - references[1:]
    if segments is not None:
        fall = tf.minimum(fall, MAX_EXPONENT)  # larger only between segments, where the sums begin anew
    return _Chunks(
        features=normalization.features(_split_into_chunks(queries, length), references[:-1]),
        weights=tf.exp(keys - references[:-1]),
        values=_split_into_chunks(values, length),
        decays=tf.exp(fall),
        references=references,
        segments=segments,
        before=_sums_before(place, references[0], segments is not None),
    )


def _sums_before(place: _Place, reference: tf.Tensor, has_segments: bool) -> Sums:
    """Returns the sums before the first chunk, given its reference; with epsilon, unless each segment has its own."""
    n_batch, n_heads, _, n_features = reference.shape
    context, total = tf.zeros([n_batch, n_heads, n_features, n_features]), tf.zeros(reference.shape)
    if place.before is not None:
        context, total, largest = _unpack(place.before)
        context, total = _decay((context, total), tf.exp(largest - reference))
    return context, total if has_segments else total + tf.exp(LOG_EPSILON - reference)


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


def _decay(sums: Sums, decay: tf.Tensor) -> Sums:
    """Rescales the sums to the reference of the neighbouring chunk."""
    context, total = sums
    return context * tf.linalg.matrix_transpose(decay), total * decay


def _add_chunk(sums: Sums, weights: tf.Tensor, values: tf.Tensor, summands: tf.Tensor) -> Sums:
    """Adds one chunk to the sums: weights times values, and summands."""
    context, total = sums
    context += tf.matmul(weights, values, transpose_a=True)
    return context, total + tf.reduce_sum(summands, 2, keepdims=True)


def _next_sums(chunks: _Chunks, at: tf.Tensor, sums: Sums, weights: tf.Tensor, values: tf.Tensor) -> Sums:
    """Returns the sums after a chunk, given those before it, relative to the reference of the next chunk."""
    weights = chunks.leaving(at, weights)
    return _decay(_add_chunk(chunks.passing(at, sums), weights, values, weights), chunks.decays[at])


def _outputs(
    normalization: Normalization,
    place: _Place,
    length: int,
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
) -> tf.Tensor:
    """[B, S, H, D] three times -> [B, S, H, D], in chunks of a length."""
    chunks = _prepare_chunks(normalization, place, length, queries, keys, values)

    def step(sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        (context, total), weights, values, features = sums, chunks.weights[at], chunks.values[at], chunks.features[at]
        shares = features / normalization.divisors(features, chunks.totals(at, weights, total))
        outputs = tf.matmul(chunks.products(at, shares, weights), values)
        outputs += tf.matmul(chunks.entering(at, shares), context)
        return _next_sums(chunks, at, sums, weights, values), [outputs]

    (outputs,) = _scan_chunks(step, chunks.order(), chunks.before, [chunks.values])
    return _join_chunks(outputs, queries)


def _totals_and_share_gradients(chunks: _Chunks, d_outputs: tf.Tensor) -> list[tf.Tensor]:
    """Returns totals, the sums of weights, and d_shares, [C, B, H, L, D] each."""

    def step(sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        (context, total), weights, values = sums, chunks.weights[at], chunks.values[at]
        d_shares = tf.matmul(chunks.products(at, d_outputs[at], values), weights)
        d_shares += tf.matmul(chunks.entering(at, d_outputs[at]), context, transpose_b=True)
        results = [chunks.totals(at, weights, total), d_shares]
        return _next_sums(chunks, at, sums, weights, values), results

    return _scan_chunks(step, chunks.order(), chunks.before, [chunks.features] * 2)


def _key_value_gradients(
    chunks: _Chunks, d_outputs: tf.Tensor, shares: tf.Tensor, d_totals: tf.Tensor, after: Sums
) -> list[tf.Tensor]:
    """Returns d_keys and d_values, [C, B, H, L, D] each; scans from the last chunk to the first.

    `after` are the gradients of the sums, from the positions after the last chunk.
    """

    def step(d_sums: Sums, at: tf.Tensor) -> tuple[Sums, list[tf.Tensor]]:
        d_context, d_total = d_sums = _decay(d_sums, chunks.decays[at])
        weights, values, d_rows = chunks.weights[at], chunks.values[at], d_outputs[at]
        d_values = tf.matmul(chunks.products(at, shares[at], weights), d_rows, transpose_a=True)
        d_values += chunks.leaving(at, tf.matmul(weights, d_context))
        d_weights = tf.matmul(chunks.products(at, d_rows, values), shares[at], transpose_a=True)
        d_weights += chunks.leaving(at, tf.matmul(values, d_context, transpose_b=True))
        d_weights += chunks.sums(at, d_totals[at], transpose_a=True) + chunks.leaving(at, d_total)
        of_shares, of_totals = (chunks.entering(at, x) for x in (shares[at], d_totals[at]))
        d_sums = _add_chunk(chunks.passing(at, d_sums), of_shares, d_rows, of_totals)
        return d_sums, [d_weights * weights, d_values]

    return _scan_chunks(step, chunks.order()[::-1], after, [chunks.weights, chunks.values])


def _query_gradients(
    normalization: Normalization, chunks: _Chunks, d_outputs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns d_queries, and what keys and values need for theirs: shares and d_totals; [C, B, H, L, D] each."""
    totals, d_shares = _totals_and_share_gradients(chunks, d_outputs)
    shares = chunks.features / normalization.divisors(chunks.features, totals)
    products = shares * d_shares
    d_totals = normalization.d_totals(shares, products, totals)
    return products - shares * totals * _sum_features(products), shares, d_totals


def _gradients(
    normalization: Normalization,
    place: _Place,
    length: int,
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    d_outputs: tf.Tensor,
) -> list[tf.Tensor]:
    """[B, S, H, D] four times -> d_queries, d_keys and d_values, in chunks of a length."""
    chunks = _prepare_chunks(normalization, place, length, queries, keys, values)
    d_outputs = _split_into_chunks(d_outputs, length)
    d_queries, shares, d_totals = _query_gradients(normalization, chunks, d_outputs)
    nothing = tuple(map(tf.zeros_like, chunks.before))
    d_keys, d_values = _key_value_gradients(chunks, d_outputs, shares, d_totals, nothing)
    return [_join_chunks(gradient, queries) for gradient in (d_queries, d_keys, d_values)]


@compiled
def causal_linear_attention(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    starts: tf.Tensor | None = None,
    normalization: str = "position",
) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D]) -> outputs [B, S, H, D], by a member of `NORMALIZATIONS`.

    `starts`, int32 [B, S], says where the segment of each position begins; None: each row is one segment.

    Source: GPT-Neo, kept for checkpoints; Katharopoulos et al. 2020, Transformers are RNNs, section 3.
    """
    return _with_safe_chunk_length(_outputs, normalization, _Place(starts), queries, keys, values)


@compiled
def causal_linear_attention_gradient(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    d_outputs: tf.Tensor,
    starts: tf.Tensor | None = None,
    normalization: str = "position",
) -> tuple[tf.Tensor, ...]:
    """(queries, keys, values, d_outputs) -> (d_queries, d_keys, d_values); nothing else is kept from the forward pass.

    Source: Katharopoulos et al. 2020, Transformers are RNNs, section 3.3.1: one scan in each direction.
    """
    place = _Place(starts)
    return tuple(_with_safe_chunk_length(_gradients, normalization, place, queries, keys, values, d_outputs))


# Slices of a sequence. `edges` are where the segments of the first and the last position of each slice begin, int32
# [slices, B, 2]; nothing at all if each row is one segment.


@compiled
def slice_state(keys: tf.Tensor, values: tf.Tensor, *starts: tf.Tensor) -> tf.Tensor:
    """(keys, values [B, S, H, D], starts [B, S] or nothing) -> packed sums over the segment it ends with."""
    keys, values = _heads_first(keys), _heads_first(values)
    if starts:
        keys = tf.where((starts[0] == starts[0][:, -1:])[:, None, :, None], keys, -float("inf"))
    largest = tf.maximum(tf.reduce_max(keys, 2, keepdims=True), LOG_EPSILON)
    weights = tf.exp(keys - largest)
    return _pack(tf.matmul(weights, values, transpose_a=True), tf.reduce_sum(weights, 2, keepdims=True), largest)


@compiled
def state_before(states: tf.Tensor, at: tf.Tensor, *edges: tf.Tensor) -> tf.Tensor:
    """(states of all slices [slices, B, H, D + 2, D], the number of one, edges) -> the sums that the slice begins with.

    They are zero for the first slice, and for a slice whose first position starts a segment.
    """
    is_seen = tf.reshape(tf.range(states.shape[0]) < at, [-1, 1])
    if edges:
        is_seen &= edges[0][:, :, 1] == edges[0][at, :, 0]
    is_seen = is_seen[:, :, None, None, None]
    contexts, totals, references = _unpack(states)
    references = tf.where(is_seen, references, LOG_EPSILON)
    largest = tf.reduce_max(references, 0)
    scales = tf.where(is_seen, tf.exp(references - largest), 0.0)
    context = tf.reduce_sum(contexts * tf.linalg.matrix_transpose(scales), 0)
    return _pack(context, tf.reduce_sum(totals * scales, 0), largest)


@compiled
def causal_linear_attention_of_slice(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    begin: tf.Tensor,
    before: tf.Tensor,
    *starts: tf.Tensor,
    normalization: str = "position",
) -> tf.Tensor:
    """As `causal_linear_attention`, for a slice that begins at a position, with the sums of `state_before`."""
    place = _Place(*(starts or (None,)), begin=begin, before=before)
    return _with_safe_chunk_length(_outputs, normalization, place, queries, keys, values)


@compiled
def slice_query_gradients(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    d_outputs: tf.Tensor,
    begin: tf.Tensor,
    before: tf.Tensor,
    *starts: tf.Tensor,
    normalization: str = "position",
) -> tuple[tf.Tensor, ...]:
    """Computes the gradients of the queries, and what those of keys and values are made of.

    (queries, keys, values, d_outputs [B, S, H, D], begin, before, starts) -> d_queries, shares and d_totals float32
    [B, S, H, D], the packed gradients of the sums that the slice begins with and the reference that they relate to, and
    the reference behind the slice [B, H, 1, D].
    """
    place = _Place(*(starts or (None,)), begin=begin, before=before)
    return tuple(_with_safe_chunk_length(_of_queries, normalization, place, queries, keys, values, d_outputs))


def _of_queries(
    normalization: Normalization,
    place: _Place,
    length: int,
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    d_outputs: tf.Tensor,
) -> list[tf.Tensor]:
    chunks = _prepare_chunks(normalization, place, length, queries, keys, values)
    d_rows, first = _split_into_chunks(d_outputs, length), chunks.references[:1]
    d_queries, shares, d_totals = _query_gradients(normalization, chunks, d_rows)
    scales = tf.exp(tf.minimum(first - chunks.references[:-1], 0.0))
    if chunks.segments is not None:  # the positions that see what is before the slice
        scales = tf.where(chunks.segments.starts < tf.cast(place.begin, tf.float32), scales, 0.0)
    d_context = tf.reduce_sum(tf.matmul(shares * scales, d_rows, transpose_a=True), 0)
    d_total = tf.reduce_sum(d_totals * scales, [0, 3])[:, :, None]
    kept = (_join_chunks(x, tf.cast(queries, tf.float32)) for x in (shares, d_totals))
    return [_join_chunks(d_queries, queries), *kept, _pack(d_context, d_total, first[0]), chunks.references[-1]]


@compiled
def state_gradient_after(d_states: tf.Tensor, reference: tf.Tensor, at: tf.Tensor, *edges: tf.Tensor) -> tf.Tensor:
    """Returns the gradients, from later slices, of the sums behind a slice.

    (those of the sums that each slice begins with [slices, B, H, D + 2, D], the reference behind a slice, its number,
    edges) -> packed, relative to that reference.
    """
    is_seen = tf.reshape(tf.range(d_states.shape[0]) > at, [-1, 1])
    if edges:
        is_seen &= edges[0][:, :, 0] == edges[0][at, :, 1]
    d_contexts, d_totals, references = _unpack(d_states)
    scales = tf.exp(tf.minimum(reference - references, 0.0))
    scales = tf.where(is_seen[:, :, None, None, None], scales, 0.0)
    d_context = tf.reduce_sum(d_contexts * tf.linalg.matrix_transpose(scales), 0)
    return _pack(d_context, tf.reduce_sum(d_totals * scales, 0), reference)


@compiled
def slice_key_value_gradients(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    begin: tf.Tensor,
    before: tf.Tensor,
    after: tf.Tensor,
    *others: tf.Tensor,
    normalization: str = "position",
) -> tuple[tf.Tensor, ...]:
    """Computes the gradients of keys and values.

    (queries, keys, values, begin, before, the result of `state_gradient_after`, d_outputs, shares and d_totals
    [B, S, H, D], starts) -> (d_keys, d_values [B, S, H, D]).
    """
    rows, starts = others[:3], others[3:]
    place = _Place(*(starts or (None,)), begin=begin, before=before)
    inputs = (queries, keys, values, after, *rows)
    return tuple(_with_safe_chunk_length(_of_keys_and_values, normalization, place, *inputs))


def _of_keys_and_values(
    normalization: Normalization,
    place: _Place,
    length: int,
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    after: tf.Tensor,
    *rows: tf.Tensor,
) -> list[tf.Tensor]:
    chunks = _prepare_chunks(normalization, place, length, queries, keys, values)
    chunked_rows = [_split_into_chunks(x, length) for x in rows]
    gradients = _key_value_gradients(chunks, *chunked_rows, _unpack(after)[:2])
    return [_join_chunks(gradient, queries) for gradient in gradients]


def _bidirectional(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] three times -> [B, H, S, D], where every position sees all."""
    context = tf.matmul(tf.nn.softmax(keys, 2), values, transpose_a=True)
    return tf.matmul(tf.nn.softmax(queries), context)


def _bidirectional_in_segments(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
    """[B, H, S, D] three times -> [B, H, S, D], where every position sees all of its segment."""
    queries, keys, values = map(_heads_first, (queries, keys, values))
    weights = _softmax_over_segments(keys, starts)
    return _heads_first(_products_in_segments(tf.nn.softmax(queries), weights, values, starts))


def _softmax_over_segments(keys: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
    """[B, S, H, D], int32 [B, S] -> [B, S, H, D], which sums to 1 over the positions of each segment."""
    n_batch, n_positions = starts.shape
    segments = tf.reshape(starts + n_positions * tf.range(n_batch)[:, None], [-1])

    def over_segments(reduce: Callable[..., tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        reduced = reduce(tf.reshape(x, [-1, *x.shape[2:]]), segments, n_batch * n_positions)
        return tf.reshape(tf.gather(reduced, segments), x.shape)

    largest = over_segments(tf.math.unsorted_segment_max, tf.stop_gradient(keys))
    exponentials = tf.exp(keys - tf.stop_gradient(largest))
    return exponentials / over_segments(tf.math.unsorted_segment_sum, exponentials)


def _products_in_segments(shares: tf.Tensor, weights: tf.Tensor, values: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
    """Sums, at each position, the position's shares times the weights times the values of its segment.

    Positions of the same chunk are multiplied with one another. Of another chunk, only the segment at its near end
    can be that of the position, and the sum over it is enough.

    Args:
        shares: [B, S, H, D].
        weights: [B, S, H, D].
        values: [B, S, H, D].
        starts: int32 [B, S], where the segment of each position begins.
    """
    length = _chunk_length(starts.shape[1])
    starts, shares, weights, chunks = (
        _split_into_chunks(x, length) for x in (starts[:, :, None, None], shares, weights, values)
    )
    is_same = starts == tf.linalg.matrix_transpose(starts)
    outputs = tf.matmul(tf.where(is_same, tf.matmul(shares, weights, transpose_b=True), 0.0), chunks)
    order, first, last = tf.range(starts.shape[0]), starts[:, :, :, :1], starts[:, :, :, -1:]
    for own, other, is_other in (
        (first, last, order[:, None] > order),  # the chunks before
        (last, first, order[:, None] < order),
    ):
        sums = tf.matmul(tf.where(starts == other, weights, 0.0), chunks, transpose_a=True)
        is_seen = is_other[:, :, None] & (own[:, None, :, 0, 0, 0] == other[None, :, :, 0, 0, 0])
        context = tf.einsum("cob,obhde->cbhde", tf.cast(is_seen, tf.float32), sums)
        outputs += tf.matmul(tf.where(starts == own, shares, 0.0), context)
    return _join_chunks(outputs, values)


def _all_to_all(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, starts: tf.Tensor | None) -> tf.Tensor:
    """[B, H, S, D] three times -> [B, H, S, D]."""
    if starts is None:
        return _bidirectional(queries, keys, values)
    return _bidirectional_in_segments(queries, keys, values, starts)


@compiled
def linear_attention(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, starts: tf.Tensor | None = None
) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D], starts int32 [B, S]) -> outputs [B, S, H, D].

    Source: GPT-Neo, kept for checkpoints; Shen et al. 2021, Efficient Attention, section 3.2.
    """
    return _heads_last(_all_to_all(*map(_heads_first, (queries, keys, values)), starts), queries)


@compiled
def linear_attention_gradient(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    d_outputs: tf.Tensor,
    starts: tf.Tensor | None = None,
) -> tuple[tf.Tensor, ...]:
    """(queries, keys, values, d_outputs, starts) -> (d_queries, d_keys, d_values)."""
    inputs = [_heads_first(x) for x in (queries, keys, values)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = _all_to_all(*inputs, starts)
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
    starts: tf.Tensor,
    normalization: str,
    group_size: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(queries [B, H, D], keys, values [B, K, D], state of K heads, int32 [1]) -> (outputs [B, H, D], new state).

    `group_size` heads share a key and value head; `starts` is where the slice of heads begins.
    """
    groups = Groups(queries.shape[1], keys.shape[1], group_size)
    rows = [tf.cast(x, tf.float32) for x in (queries, keys, values)]
    state = _add_position(*rows[1:], (context, total, largest))
    outputs = _outputs_after(
        NORMALIZATIONS[normalization], rows[0], tuple(groups.own(x, starts, axis=1) for x in state)
    )
    return tf.cast(outputs, queries.dtype), *state


def _add_position(keys: tf.Tensor, values: tf.Tensor, state: State) -> State:
    """float32 [B, K, D] twice, state -> the new state."""
    context, total, largest = state
    new_largest = tf.maximum(largest, keys)
    decay, weight = tf.exp(largest - new_largest), tf.exp(keys - new_largest)
    context = context * decay[..., None] + weight[..., None] * values[..., None, :]
    return context, total * decay + weight, new_largest


def _outputs_after(normalization: Normalization, queries: tf.Tensor, state: State) -> tf.Tensor:
    """Returns the outputs of the last position: float32 [B, H, D], state of K heads, each for H / K -> [B, H, D]."""
    context, total, largest = state
    n_batch, n_kv_heads, n_features = total.shape
    grouped = tf.reshape(queries, [n_batch, n_kv_heads, -1, n_features])
    features = normalization.features(grouped, largest[:, :, None])
    shares = features / normalization.divisors(features, total[:, :, None])
    # Products of a matrix with few vectors: the matrix comes first, as for one vector.
    outputs = tf.matmul(context, tf.transpose(shares, [0, 1, 3, 2]), transpose_a=True)
    return tf.reshape(tf.transpose(outputs, [0, 1, 3, 2]), queries.shape)


@compiled
def packed_linear_attention(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, *packing: tf.Tensor, normalization: str = "position"
) -> tf.Tensor:
    """(queries, keys, values [B, S, H, D], *packing int32 [B, S]) -> outputs [B, S, H, D], causal.

    All positions are one chunk, where the first token of each text makes a safe reference; else they are added one by
    one.
    """
    packed, rule = Packing(*packing), NORMALIZATIONS[normalization]
    return tf.cond(
        _fit_in_range(keys, keys.shape[1], _Place(packed.context_starts)),
        lambda: _packed_outputs(rule, packed, queries, keys, values),
        lambda: _packed_outputs_by_position(rule, packed, queries, keys, values),
    )


def _packed_outputs(
    normalization: Normalization, packed: Packing, queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor
) -> tf.Tensor:
    """[B, S, H, D] three times -> [B, S, H, D], from the weights of all pairs of positions."""
    chunks = _prepare_chunks(normalization, _Place(), keys.shape[1], queries, keys, values)
    visible, features = tf.cast(packed.visible(), tf.float32)[:, None], chunks.features[0]
    totals = tf.matmul(visible, chunks.weights[0]) + chunks.epsilon(0)
    shares = features / normalization.divisors(features, totals)
    products = visible * tf.matmul(shares, chunks.weights[0], transpose_b=True)
    return _join_chunks(tf.matmul(products, chunks.values[0])[None], queries)


def _packed_outputs_by_position(
    normalization: Normalization, packed: Packing, queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor
) -> tf.Tensor:
    """[B, S, H, D] three times -> [B, S, H, D]; a continuation begins with the state after its context."""
    by_position = [tf.transpose(tf.cast(x, tf.float32), [1, 0, 2, 3]) for x in (queries, keys, values)]
    n_positions, *rows = by_position[0].shape
    empty = (tf.zeros([*rows, rows[-1]]), tf.ones(rows), tf.fill(rows, LOG_EPSILON))

    def chosen(condition: tf.Tensor, one: State, other: State) -> State:
        """Takes the state of each row from one or the other, by a condition [B]."""
        shaped = [tf.reshape(condition, [-1] + [1] * (x.shape.ndims - 1)) for x in one]
        return tuple(tf.where(*each) for each in zip(shaped, one, other, strict=True))

    def body(index: tf.Tensor, state: State, after_context: State, outputs: tf.TensorArray) -> tuple:
        starts, context_starts, _ = (x[:, index] for x in packed)
        is_context = starts == context_starts
        before = chosen(is_context, empty, after_context)
        queries_here, *added = (x[index] for x in by_position)
        new = _add_position(*added, chosen(starts == index, before, state))
        attended = _outputs_after(normalization, queries_here, new)
        return index + 1, new, chosen(is_context, new, after_context), outputs.write(index, attended)

    outputs = tf.TensorArray(tf.float32, n_positions, element_shape=rows)
    *_, outputs = tf.while_loop(lambda index, *_: index < n_positions, body, (0, empty, empty, outputs))
    return tf.cast(tf.transpose(outputs.stack(), [1, 0, 2, 3]), queries.dtype)
