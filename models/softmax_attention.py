"""Softmax attention: over all positions (global), or over the nearest ones (local).

Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; local: Child et al. 2019, Generating Long Sequences
with Sparse Transformers, section 4.
"""

from __future__ import annotations

import functools
import math

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import variables
from models.attention_interface import QKV, AttentionKind, Cache
from models.context import Context
from models.kernels.attention import AttentionParams, capped
from models.layer import Layer
from models.ops.attention import Attended, merged_attention, packed_attention, softmax_attention
from models.ops.grouping import repeat_heads
from models.ops.kv_cache import attend, cache_of_prompt, split_cache
from models.ops.mesh_operation import redistribute


def _radius(context: Context, layer: Layer) -> int | None:
    """How many positions back the layer sees, its own included; None: all."""
    return context.model.local_attention_radius if layer.attention == "local" else None


def _has_memory(context: Context, layer: Layer) -> bool:
    return layer.attention == "global" and context.model.num_mem_kv > 0


def _memory(context: Context, layer: Layer) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Returns learned keys and values, each [mem_kv_sequence, heads, features_per_head].

    They are the variables `{scope}/attn/attention/{mem_k,mem_v}` [mem_kv_sequence, kv_heads, features_per_head].

    Source: Sukhbaatar et al. 2019, Augmenting Self-attention with Persistent Memory, section 3.1.
    """
    dims, scope = context.dims, f"{layer.scope}/attn/attention"
    shape = [mtf.Dimension("mem_kv_sequence", context.model.num_mem_kv), dims.kv_heads, dims.features_per_head]
    initializer = variables.normal(1.0 / math.sqrt(context.model.base_features_per_head))
    keys, values = (context.variable(f"{scope}/{name}", shape, initializer) for name in ("mem_k", "mem_v"))
    return repeat_heads(keys, dims.heads), repeat_heads(values, dims.heads)


# Whole sequences.


def _full(context: Context, layer: Layer, qkv: QKV) -> mtf.Tensor:
    keys, values = (redistribute(x, "sequence", "memory_length") for x in (qkv.keys, qkv.values))
    rate = context.model.attn_dropout if context.is_training else 0.0
    starts, noise = context.segment_starts, context.noise_of(f"{layer.name}/attn")
    model = context.model
    params = AttentionParams(
        model.is_causal, _radius(context, layer), rate, model.attention_softcap, has_segments=starts is not None
    )
    attended = softmax_attention(qkv.queries, keys, values, params, noise, starts)
    return _with_memory(context, layer, qkv, attended, rate)


def _packed(context: Context, layer: Layer, qkv: QKV) -> mtf.Tensor:
    keys, values = (repeat_heads(x, context.dims.heads) for x in (qkv.keys, qkv.values))
    radius, softcap = _radius(context, layer), context.model.attention_softcap
    attended = packed_attention(qkv.queries, keys, values, context.packing, radius, softcap)
    return _with_memory(context, layer, qkv, attended, rate=0.0)


def _with_memory(context: Context, layer: Layer, qkv: QKV, attended: Attended, rate: float) -> mtf.Tensor:
    """Returns the outputs of attention to positions and, if the layer has them, to learned keys."""
    if _has_memory(context, layer):
        attended = merged_attention(attended, _attend_to_memory(context, layer, qkv.queries, rate))
    return attended[0]


def _attend_to_memory(context: Context, layer: Layer, queries: mtf.Tensor, rate: float) -> Attended:
    keys, values = (mtf.broadcast(x, [context.dims.batch, *x.shape.dims]) for x in _memory(context, layer))
    params = AttentionParams(False, radius=None, dropout_rate=rate, softcap=context.model.attention_softcap)
    return softmax_attention(queries, keys, values, params, context.noise_of(f"{layer.name}/attn/memory"))


# Decoding.


def _cache_dim(context: Context, layer: Layer) -> mtf.Dimension:
    """The positions that the layer's cache holds: all, or as many as a local layer sees."""
    memory_dim, radius = context.dims.memory_length, _radius(context, layer)
    return memory_dim if radius is None else mtf.Dimension("window", min(radius, memory_dim.size))


def _empty_cache(context: Context, layer: Layer) -> Cache:
    dims = context.dims
    shape = [dims.batch, dims.kv_heads, _cache_dim(context, layer), dims.features_per_head]
    zeros = mtf.zeros(context.mesh, shape, context.cache_dtype)
    return split_cache(zeros, zeros)


def _prefill(context: Context, layer: Layer, qkv: QKV, lengths: mtf.Tensor) -> Cache:
    dim, dtype = _cache_dim(context, layer), context.cache_dtype
    return split_cache(*(cache_of_prompt(x, lengths, dim, dtype) for x in (qkv.keys, qkv.values)))


def _decode(context: Context, layer: Layer, qkv: QKV, cache: Cache, positions: mtf.Tensor) -> tuple[mtf.Tensor, Cache]:
    softcap = context.model.attention_softcap
    attended, cache = attend(qkv.queries, qkv.keys, qkv.values, cache, positions, softcap)
    if _has_memory(context, layer):
        attended = merged_attention(attended, _attend_to_memory_from_one_position(context, layer, qkv.queries))
    return attended[0], cache


def _attend_to_memory_from_one_position(context: Context, layer: Layer, queries: mtf.Tensor) -> Attended:
    """Outputs [batch, heads, features_per_head] and log_z [batch, heads]."""
    keys, values = _memory(context, layer)
    length_dim = keys.shape.dims[0]
    logits = mtf.cast(mtf.einsum([queries, keys], output_shape=[*queries.shape.dims[:-1], length_dim]), tf.float32)
    softcap = context.model.attention_softcap
    if softcap is not None:
        logits = mtf.cwise(functools.partial(capped, softcap=softcap), [logits])
    log_z = mtf.reduce_logsumexp(logits, length_dim)
    weights = mtf.cast(mtf.exp(logits - log_z), values.dtype)
    return mtf.einsum([weights, values], output_shape=queries.shape), log_z


# Floating-point operations.


def mean_seen(n_positions: int, radius: int, is_causal: bool) -> float:
    """Returns how many positions less than `radius` away a position sees on average, itself included."""
    reach = min(n_positions, radius)
    seen_before = reach * (reach + 1) / 2 + (n_positions - reach) * reach
    return (seen_before if is_causal else 2 * seen_before - n_positions) / n_positions


def _attended_features(model: ModelConfig) -> int:
    return model.n_head * model.features_per_head


def _global_flops(model: ModelConfig) -> float:
    return 4.0 * _attended_features(model) * (mean_seen(model.n_ctx, model.n_ctx, model.is_causal) + model.num_mem_kv)


def _local_flops(model: ModelConfig) -> float:
    return 4.0 * _attended_features(model) * mean_seen(model.n_ctx, model.local_attention_radius, model.is_causal)


GLOBAL = AttentionKind(_full, _packed, _prefill, _decode, _empty_cache, _global_flops)
LOCAL = AttentionKind(_full, _packed, _prefill, _decode, _empty_cache, _local_flops)
