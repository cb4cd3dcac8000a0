"""Decoding on slices: rows of different lengths, and the KV cache that each position is added to.

Shape legend: B batch, M positions of the cache or of the text, S positions of a prompt, H heads, K key and value heads,
G heads that share one of those, D features_per_head, N rows to insert.

A row that is not to be updated gets an index out of range: XLA skips such an update.
"""

from __future__ import annotations

import functools

from meshtf import tf
from models.kernels.attention import MASKED_LOGIT, capped
from models.kernels.compile import Kernel, compiled
from models.kernels.grouping import Groups
from models.kernels.vocabulary import Vocabulary


@compiled
def write_rows(whole: tf.Tensor, positions: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """([B, M, ...], int32 [B], [B, ...]) -> [B, M, ...] with each row's element written at its position."""
    return tf.tensor_scatter_nd_update(whole, tf.stack([tf.range(whole.shape[0]), positions], 1), rows)


@compiled
def gather_positions(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """([B, S, ...], int32 [B] or [B, N]) -> [B, ...] or [B, N, ...]."""
    return tf.gather(x, positions, batch_dims=1)


@compiled
def insert_rows(whole: tf.Tensor, rows: tf.Tensor, indices: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
    """Replaces rows of a slice.

    ([B, ...], [N, ...], int32 [N], int32 [1]) -> [B, ...] with those rows whose index lies in this slice, which begins
    at `starts`.
    """
    own = indices - starts
    own = tf.where((own >= 0) & (own < whole.shape[0]), own, whole.shape[0])
    return tf.tensor_scatter_nd_update(whole, own[:, None], rows)


@functools.cache
def cache_of_prompt(cache_length: int, dtype: str) -> Kernel:
    """Returns the kernel that lays the keys or values of prompts out as a cache.

    (x [B, S, K, D], lengths int32 [B]) -> [B, K, M, D], position p at index p % M: all positions, or the last M
    before each row's length; other elements are not read.
    """

    def kernel(x: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        n_positions = x.shape[1]
        if n_positions <= cache_length:
            x = tf.pad(x, [[0, 0], [0, cache_length - n_positions], [0, 0], [0, 0]])
        else:
            last = lengths[:, None] - 1
            positions = last - tf.math.floormod(last - tf.range(cache_length), cache_length)
            x = tf.gather(x, tf.maximum(positions, 0), batch_dims=1)
        return tf.cast(tf.transpose(x, [0, 2, 1, 3]), dtype)

    return compiled(kernel)


def _write_position(cache: tf.Tensor, positions: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """([B, K, M, D], int32 [B], [B, K, D]) -> [B, K, M, D]."""
    batch, n_heads = cache.shape[:2]
    row, head, index = (
        tf.broadcast_to(x, [batch, n_heads])
        for x in (tf.range(batch)[:, None], tf.range(n_heads)[None], positions[:, None])
    )
    return tf.tensor_scatter_nd_update(cache, tf.stack([row, head, index], -1), tf.cast(rows, cache.dtype))


Partial = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def _attend_to_block(
    queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, is_seen: tf.Tensor, softcap: float | None
) -> Partial:
    """Computes softmax attention to one block of the cache.

    Args:
        queries: [B, K, D, G].
        keys: [B, K, M, D].
        values: as keys.
        is_seen: bool [B, M].
        softcap: bounds the logits; None: no bound.

    Returns:
        Partial sums of softmax attention over the block: the largest logit [B, K, G], the sum of exponentials
        [B, K, G], and the values weighted by them [B, K, D, G], all float32.
    """
    logits = capped(tf.cast(tf.matmul(tf.cast(keys, queries.dtype), queries), tf.float32), softcap)
    logits = tf.where(is_seen[:, None, :, None], logits, MASKED_LOGIT)
    largest = tf.reduce_max(logits, 2)
    weights = tf.exp(logits - largest[:, :, None])
    weighted = tf.matmul(tf.cast(values, queries.dtype), tf.cast(weights, queries.dtype), transpose_a=True)
    return largest, tf.reduce_sum(weights, 2), tf.cast(weighted, tf.float32)


def _no_partial(queries: tf.Tensor) -> Partial:
    """Returns the partial sums of a block in which no row sees anything."""
    rows = queries[:, :, 0].shape
    return tf.fill(rows, MASKED_LOGIT), tf.zeros(rows), tf.zeros(queries.shape)


def _merged(partials: list[Partial]) -> tuple[tf.Tensor, tf.Tensor]:
    """Merges the partial sums of all blocks into outputs [B, H, D] and log_z [B, H]."""
    n_batch, n_kv_heads, n_features, n_shared = partials[0][2].shape
    n_heads = n_kv_heads * n_shared
    largest = functools.reduce(tf.maximum, [partial[0] for partial in partials])
    scales = [tf.exp(partial[0] - largest) for partial in partials]
    total = tf.add_n([scale * partial[1] for scale, partial in zip(scales, partials, strict=True)])
    weighted = tf.add_n([scale[:, :, None] * partial[2] for scale, partial in zip(scales, partials, strict=True)])
    outputs = tf.transpose(weighted / total[:, :, None], [0, 1, 3, 2])
    log_z = largest + tf.math.log(total)
    return tf.reshape(outputs, [n_batch, n_heads, n_features]), tf.reshape(log_z, [n_batch, n_heads])


def _grouped(queries: tf.Tensor, n_kv_heads: int) -> tf.Tensor:
    """[B, H, D] -> [B, K, D, G]."""
    n_batch, n_heads, n_features = queries.shape
    shape = [n_batch, n_kv_heads, n_heads // n_kv_heads, n_features]
    return tf.transpose(tf.reshape(queries, shape), [0, 1, 3, 2])


@functools.cache
def attend(n_blocks: int, group_size: int, softcap: float | None) -> Kernel:
    """Returns the kernel of attention to the cache.

    (queries [B, H, D], key, value [B, K, D], positions int32 [B], blocks of keys [B, K, M of the block, D], as many of
    values, int32 [1], where the slice of heads begins) -> (outputs [B, H, D], log_z float32 [B, H], the blocks with
    this position added): each row's position sees itself and up to M - 1 positions before it.

    `group_size` heads share a key and value head, which is read once for all of them.

    The cache is split into blocks so that blocks which no row has reached are not read: reading it is most of the work.

    Source for merging the blocks: Dao et al. 2022, FlashAttention, section 3.1.
    """

    def kernel(
        queries: tf.Tensor, key: tf.Tensor, value: tf.Tensor, positions: tf.Tensor, *others: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        *cache, starts = others
        groups = Groups(queries.shape[1], key.shape[1], group_size)
        grouped = _grouped(queries, groups.n_blocks)

        def attend_to(keys: tf.Tensor, values: tf.Tensor, is_seen: tf.Tensor) -> Partial:
            own = [groups.own(x, starts, axis=1) for x in (keys, values)]
            return _attend_to_block(grouped, *own, is_seen, softcap)

        blocks = list(zip(cache[:n_blocks], cache[n_blocks:], strict=True))
        cache_length = sum(keys.shape[2] for keys, _ in blocks)
        index, last_written = positions % cache_length, tf.reduce_max(tf.minimum(positions, cache_length - 1))
        written, partials, begin = [], [], 0
        for keys, values in blocks:
            size = keys.shape[2]
            own = index - begin
            own = tf.where((own >= 0) & (own < size), own, size)
            keys, values = _write_position(keys, own, key), _write_position(values, own, value)
            age = tf.math.floormod(positions[:, None] - begin - tf.range(size), cache_length)
            attend_here = functools.partial(attend_to, keys, values, age <= positions[:, None])
            nothing = functools.partial(_no_partial, grouped)
            partials.append(attend_here() if begin == 0 else tf.cond(last_written >= begin, attend_here, nothing))
            written.append((keys, values))
            begin += size
        outputs, log_z = _merged(partials)
        keys, values = zip(*written, strict=True)
        return tf.cast(outputs, queries.dtype), log_z, *keys, *values

    return compiled(kernel)


@functools.cache
def most_likely(n_top: int, vocabulary: Vocabulary) -> Kernel:
    """Returns the kernel that finds the most likely tokens, which leave out ids that are no token.

    (logits [B, S, V]) -> top_tokens int32 [B, S, top], top_log_probs float32 [B, S, top].
    """

    def kernel(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        log_probs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        missing = [[0, 0], [0, 0], [0, max(0, n_top - log_probs.shape[-1])]]
        top = tf.math.top_k(tf.pad(vocabulary.without_unused(log_probs), missing, constant_values=-float("inf")), n_top)
        return top.indices, top.values

    return compiled(kernel)
