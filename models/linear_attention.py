"""Linear attention: time and memory linear in the length, and a cache whose size does not depend on it.

Source: Katharopoulos et al. 2020, Transformers are RNNs, section 3; Shen et al. 2021, Efficient Attention, section 3.2,
where every position sees all; the normalisation is GPT-Neo's, kept for its checkpoints.
"""

from __future__ import annotations

from configs.schema import ModelConfig
from meshtf import mtf
from models.attention_interface import QKV, AttentionKind, Cache
from models.context import Context
from models.layer import Layer
from models.ops import linear_attention as ops
from models.ops.grouping import repeat_heads


def _of_each_head(context: Context, qkv: QKV) -> list[mtf.Tensor]:
    return [repeat_heads(x, context.dims.heads) for x in (qkv.keys, qkv.values)]


def _full(context: Context, layer: Layer, qkv: QKV) -> mtf.Tensor:
    inputs, starts = (qkv.queries, *_of_each_head(context, qkv)), context.segment_starts
    if not context.model.is_causal:
        return ops.linear_attention(*inputs, starts)
    return ops.causal_linear_attention(*inputs, context.model.linear_attention_normalization, starts)


def _packed(context: Context, layer: Layer, qkv: QKV) -> mtf.Tensor:
    normalization = context.model.linear_attention_normalization
    return ops.packed_linear_attention(qkv.queries, *_of_each_head(context, qkv), context.packing, normalization)


def _prefill(context: Context, layer: Layer, qkv: QKV, lengths: mtf.Tensor) -> Cache:
    return ops.linear_state(qkv.keys, qkv.values, lengths)


def _decode(context: Context, layer: Layer, qkv: QKV, cache: Cache, positions: mtf.Tensor) -> tuple[mtf.Tensor, Cache]:
    normalization = context.model.linear_attention_normalization
    return ops.linear_attention_step(qkv.queries, qkv.keys, qkv.values, cache, normalization)


def _empty_cache(context: Context, layer: Layer) -> Cache:
    dims = context.dims
    return ops.empty_linear_state(context.mesh, [dims.batch, dims.kv_heads, dims.features_per_head])


def _flops(model: ModelConfig) -> float:
    return 4.0 * model.n_head * model.features_per_head**2


LINEAR = AttentionKind(_full, _packed, _prefill, _decode, _empty_cache, _flops)
