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


@compiled
def attend(
    queries: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    positions: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(queries, key, value [B, H, D], keys, values [B, H, M, D], positions int32 [B]) -> (outputs [B, H, D], log_z
    float32 [B, H], and the caches with this position in them): each row's position sees itself and those of the M - 1
    before it that there are.
    """
    n_places = keys.shape[2]
    place = positions % n_places
    keys, values = _write_position(keys, place, key), _write_position(values, place, value)
    age = tf.math.floormod(positions[:, None] - tf.range(n_places), n_places)
    logits = tf.linalg.matvec(tf.cast(keys, queries.dtype), queries)
    logits = tf.where((age <= positions[:, None])[:, None], tf.cast(logits, tf.float32), MASKED_LOGIT)
    log_z = tf.reduce_logsumexp(logits, -1)
    weights = tf.cast(tf.exp(logits - log_z[..., None]), queries.dtype)
    return tf.linalg.matvec(tf.cast(values, queries.dtype), weights, transpose_a=True), log_z, keys, values


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
