"""Decoding on slices: rows of different lengths, and the cache of keys and values that each position adds to.

Shape legend: B batch, M places of the cache or of the text, S positions of a prompt, H heads, D features_per_head, N
rows of another tensor.

Where a row must not be written its place is one that does not exist: XLA leaves such an update out.
"""

from __future__ import annotations

import functools

from meshtf import tf
from models.kernels.attention import MASKED_LOGIT
from models.kernels.compile import Kernel, compiled


@compiled
def write_rows(whole: tf.Tensor, places: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """([B, M, ...], int32 [B], [B, ...]) -> [B, M, ...] with each row's piece at its place."""
    return tf.tensor_scatter_nd_update(whole, tf.stack([tf.range(whole.shape[0]), places], 1), rows)


@compiled
def rows_at(x: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """([B, S, ...], int32 [B]) -> [B, ...]."""
    return tf.gather(x, places, batch_dims=1)


@compiled
def insert_rows(whole: tf.Tensor, rows: tf.Tensor, places: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """([B, ...], [N, ...], int32 [N], int32) -> [B, ...] with those rows whose place lies in this slice, which
    begins at `start`.
    """
    own = places - start
    own = tf.where((own >= 0) & (own < whole.shape[0]), own, whole.shape[0])
    return tf.tensor_scatter_nd_update(whole, own[:, None], rows)


@functools.cache
def cache_of_prompt(n_places: int, dtype: str) -> Kernel:
    """(x [B, S, H, D], lengths int32 [B]) -> [B, H, M, D], position p at place p % M: all positions, or the last M
    before each row's length; what stands at other places is not read.
    """

    def kernel(x: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        n_positions = x.shape[1]
        if n_positions <= n_places:
            x = tf.pad(x, [[0, 0], [0, n_places - n_positions], [0, 0], [0, 0]])
        else:
            last = lengths[:, None] - 1
            positions = last - tf.math.floormod(last - tf.range(n_places), n_places)
            x = tf.gather(x, tf.maximum(positions, 0), batch_dims=1)
        return tf.cast(tf.transpose(x, [0, 2, 1, 3]), dtype)

    return compiled(kernel)


def _write_position(cache: tf.Tensor, places: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """([B, H, M, D], int32 [B], [B, H, D]) -> [B, H, M, D]."""
    batch, n_heads = cache.shape[:2]
    row, head, place = (
        tf.broadcast_to(index, [batch, n_heads])
        for index in (tf.range(batch)[:, None], tf.range(n_heads)[None], places[:, None])
    )
    return tf.tensor_scatter_nd_update(cache, tf.stack([row, head, place], -1), tf.cast(rows, cache.dtype))


Part = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def _attend_to_block(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, is_seen: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Attention over a part of the places: largest logit [B, H], sum of exponentials [B, H] and values weighted by them
    [B, H, D], all float32; `is_seen` is bool [B, M].
    """
    logits = tf.linalg.matvec(tf.cast(keys, queries.dtype), queries)
    logits = tf.where(is_seen[:, None], tf.cast(logits, tf.float32), MASKED_LOGIT)
    largest = tf.reduce_max(logits, -1)
    weights = tf.exp(logits - largest[..., None])
    weighted = tf.linalg.matvec(tf.cast(values, queries.dtype), tf.cast(weights, queries.dtype), transpose_a=True)
    return largest, tf.reduce_sum(weights, -1), tf.cast(weighted, tf.float32)


def _no_part(queries: tf.Tensor) -> Part:
    """What a block gives in which no row sees anything."""
    rows = queries.shape[:2]
    return tf.fill(rows, MASKED_LOGIT), tf.zeros(rows), tf.zeros(queries.shape)


def _merged(parts: list[Part]) -> tuple[tf.Tensor, tf.Tensor]:
    """Outputs [B, H, D] and log_z [B, H] of all places, from those of the blocks."""
    largest = functools.reduce(tf.maximum, [part[0] for part in parts])
    scales = [tf.exp(part[0] - largest) for part in parts]
    total = tf.add_n([scale * part[1] for scale, part in zip(scales, parts, strict=True)])
    weighted = tf.add_n([scale[..., None] * part[2] for scale, part in zip(scales, parts, strict=True)])
    return weighted / total[..., None], largest + tf.math.log(total)


@functools.cache
def attend(n_blocks: int) -> Kernel:
    """(queries, key, value [B, H, D], positions int32 [B], blocks of keys [B, H, M of the block, D], as many of values)
    -> (outputs [B, H, D], log_z float32 [B, H], the blocks with this position in them): each row's position sees itself
    and those of the M - 1 before it that there are.

    The cache lies in blocks so that those which no row has come to are not read: to read it is most of the work.
    """

    def kernel(
        queries: tf.Tensor, key: tf.Tensor, value: tf.Tensor, positions: tf.Tensor, *cache: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        blocks = list(zip(cache[:n_blocks], cache[n_blocks:], strict=True))
        n_places = sum(keys.shape[2] for keys, _ in blocks)
        place, last_written = positions % n_places, tf.reduce_max(tf.minimum(positions, n_places - 1))
        written, parts, begin = [], [], 0
        for keys, values in blocks:
            size = keys.shape[2]
            own = place - begin
            own = tf.where((own >= 0) & (own < size), own, size)
            keys, values = _write_position(keys, own, key), _write_position(values, own, value)
            age = tf.math.floormod(positions[:, None] - begin - tf.range(size), n_places)
            attend_here = functools.partial(_attend_to_block, queries, keys, values, age <= positions[:, None])
            nothing = functools.partial(_no_part, queries)
            parts.append(attend_here() if begin == 0 else tf.cond(last_written >= begin, attend_here, nothing))
            written.append((keys, values))
            begin += size
        outputs, log_z = _merged(parts)
        keys, values = zip(*written, strict=True)
        return tf.cast(outputs, queries.dtype), log_z, *keys, *values

    return compiled(kernel)


@functools.cache
def scores(n_top: int) -> Kernel:
    """(logits [B, S, V], tokens int32 [B, S]) -> log_probs float32 [B, S], top_tokens int32 [B, S, top], top_log_probs
    float32 [B, S, top]: of each token by the logits at its place, and of the likeliest ones there.
    """

    def kernel(logits: tf.Tensor, tokens: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        log_probs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        missing = [[0, 0], [0, 0], [0, max(0, n_top - log_probs.shape[-1])]]
        top = tf.math.top_k(tf.pad(log_probs, missing, constant_values=-float("inf")), n_top)
        return tf.gather(log_probs, tokens, batch_dims=2), top.indices, top.values

    return compiled(kernel)
