"""The layout of the KV cache, and attention to it.

A layer's cache holds keys and values [batch, kv_heads, positions, features_per_head]. Position p is at index p modulo
the number of positions, so that a local layer keeps only the positions that it sees. The cache is split along the
positions into the blocks "keys_0", "keys_1", ... and "values_0", ...
"""

from __future__ import annotations

from meshtf import mtf, tf
from models.kernels import decoding as kernels
from models.ops.attention import Attended
from models.ops.mesh_operation import SliceKernel, redistribute

# Blocks that no row has reached yet need not be read. Each block costs a little in every step, and small ones save
# little.
MIN_BLOCK_POSITIONS, MAX_BLOCKS = 64, 8


def cache_of_prompt(x: mtf.Tensor, lengths: mtf.Tensor, cache_dim: mtf.Dimension, dtype: tf.DType) -> mtf.Tensor:
    """Returns the keys or values of a prompt in the layout of the cache.

    Args:
        x: [batch, sequence, kv_heads, features_per_head]; batch and kv_heads may be split.
        lengths: int32 [batch], of the prompt in each row.
        cache_dim: positions of the cache; if the prompt has more, only the last ones before its length are kept.
        dtype: of the cache.

    Returns:
        [batch, kv_heads, positions, features_per_head].
    """
    batch_dim, sequence_dim, heads_dim, features_dim = x.shape.dims
    inputs = [redistribute(x, sequence_dim.name, "whole"), lengths]
    outputs = [(mtf.Shape([batch_dim, heads_dim, cache_dim, features_dim]), dtype)]
    kernel = kernels.cache_of_prompt(cache_dim.size, dtype.name)
    return SliceKernel("cache_of_prompt", kernel, inputs, outputs).outputs[0]


def split_cache(keys: mtf.Tensor, values: mtf.Tensor) -> dict[str, mtf.Tensor]:
    """Splits a cache into blocks of positions.

    Args:
        keys: [batch, kv_heads, positions, features_per_head].
        values: as keys.

    Returns:
        "keys_0", "keys_1", ... and "values_0", ..., each [batch, kv_heads, positions of the block, features_per_head].
    """
    cache_dim = keys.shape.dims[2]
    size = max(MIN_BLOCK_POSITIONS, -(-cache_dim.size // MAX_BLOCKS))
    begins = range(0, cache_dim.size, size)
    return {
        f"{kind}_{number}": mtf.slice(x, begin, min(size, cache_dim.size - begin), cache_dim.name)
        for kind, x in (("keys", keys), ("values", values))
        for number, begin in enumerate(begins)
    }


def _block_order(name: str) -> tuple[str, int]:
    """Sorts keys before values, and blocks by number."""
    kind, number = name.split("_")
    return kind, int(number)


def attend(
    queries: mtf.Tensor,
    key: mtf.Tensor,
    value: mtf.Tensor,
    cache: dict[str, mtf.Tensor],
    positions: mtf.Tensor,
    softcap: float | None = None,
) -> tuple[Attended, dict[str, mtf.Tensor]]:
    """Computes softmax attention of one position of each row to the cache, after adding its key and value to it.

    Args:
        queries: [batch, heads, features_per_head]; batch and heads may be split.
        key: [batch, kv_heads, features_per_head]; kv_heads is split as heads are, or not at all.
        value: as key.
        cache: from `split_cache`; a position sees itself and as many earlier ones as the cache holds besides.
        positions: int32 [batch].
        softcap: bounds the logits; None: no bound.

    Returns:
        Outputs and log_z as of `softmax_attention`, for one position; and the new cache.
    """
    names = sorted(cache, key=_block_order)
    blocks = [cache[name] for name in names]
    log_z = (mtf.Shape(queries.shape.dims[:2]), tf.float32)
    outputs = [(queries.shape, queries.dtype), log_z, *((x.shape, x.dtype) for x in blocks)]
    heads_dim, kv_dim = queries.shape.dims[1], key.shape.dims[1]
    kernel = kernels.attend(len(blocks) // 2, heads_dim.size // kv_dim.size, softcap)
    inputs = [queries, key, value, positions, *blocks]
    attended, log_z, *blocks = SliceKernel("attend", kernel, inputs, outputs, starts=[heads_dim]).outputs
    return (attended, log_z), dict(zip(names, blocks, strict=True))
