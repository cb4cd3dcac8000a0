"""Multi-head attention: whole sequences for training and prompts, and single positions with a cache for decoding."""

from __future__ import annotations

import math

from meshtf import mtf, tf
from models import positions, variables
from models.context import Context
from models.kernels.attention import AttentionRule
from models.layer import Layer
from models.ops.activations import bias_add
from models.ops.attention import Attended, merged_attention, softmax_attention
from models.ops.decoding import attend, cache_of_prompt, split_cache
from models.ops.linear_attention import (
    causal_linear_attention,
    linear_attention,
    linear_attention_step,
    linear_state,
    linear_state_of_nothing,
)
from models.ops.mesh_operation import redistribute

# What a layer keeps from position to position, by name: blocks of keys and values [batch, heads, places,
# features_per_head], of all positions or of those that a local layer sees, or the sums of linear attention.
Cache = dict[str, mtf.Tensor]


def _init_stds(context: Context) -> dict[str, float]:
    """Standard deviations of the first weights.

    GPT-Neo does not divide logits by sqrt(features_per_head); it has that in its first queries, and a released
    checkpoint in its weights.
    """
    std = 1.0 / math.sqrt(context.model.n_embd)
    folded = 1.0 if context.model.scale_attn_weights else math.sqrt(context.model.features_per_head)
    return {"q": std / folded, "k": std, "v": std}


def _projected(context: Context, x: mtf.Tensor, scope: str) -> list[mtf.Tensor]:
    """[..., embd] -> queries, keys and values, each [..., heads * features_per_head]: of whole sequences by one
    product, which is faster than three; of single positions by three, for to join the weights would take longer.
    """
    dims = context.dims
    weights = [
        context.variable(f"{scope}/{name}", [dims.embd, dims.projected_heads], variables.normal(std))
        for name, std in _init_stds(context).items()
    ]
    if x.shape.ndims == 2:
        shape = [*x.shape.dims[:-1], dims.projected_heads]
        return _biased(context, [mtf.einsum([x, weight], output_shape=shape) for weight in weights], scope)
    kinds_dim = mtf.Dimension("queries_keys_values", len(weights))
    stacked = mtf.stack(weights, kinds_dim.name, axis=1)
    projected = mtf.einsum([x, stacked], output_shape=[*x.shape.dims[:-1], kinds_dim, dims.projected_heads])
    return _biased(context, mtf.unstack(projected, kinds_dim), scope)


def _biased(context: Context, parts: list[mtf.Tensor], scope: str) -> list[mtf.Tensor]:
    if not context.model.qkv_bias:
        return parts
    dims = [context.dims.projected_heads]
    biases = [context.variable(f"{scope}/{name}_bias", dims, variables.zeros) for name in "qkv"]
    return [bias_add(part, bias) for part, bias in zip(parts, biases, strict=True)]


def _queries_keys_values(
    context: Context, x: mtf.Tensor, scope: str, places: mtf.Tensor
) -> tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]:
    """[..., embd] -> three times [..., heads, features_per_head]; `places` are the positions of x."""
    shape = [*x.shape.dims[:-1], context.dims.heads, context.dims.features_per_head]
    queries, keys, values = (mtf.reshape(part, shape) for part in _projected(context, x, scope))
    if context.model.scale_attn_weights:
        queries *= 1.0 / math.sqrt(context.model.features_per_head)
    return positions.rotated(context, queries, places), positions.rotated(context, keys, places), values


def _output(context: Context, attended: mtf.Tensor, layer: Layer) -> mtf.Tensor:
    """[..., heads, features_per_head] -> [..., embd]."""
    dims, scope = context.dims, f"{layer.scope}/attn"
    row_dims = attended.shape.dims[:-2]
    weight = context.variable(
        f"{scope}/o", [dims.projected_heads, dims.embd], variables.normal(1.0 / math.sqrt(context.model.n_embd))
    )
    bias = context.variable(f"{scope}/compute_output_bias/o_b", [dims.embd], variables.zeros)
    joined = mtf.reshape(attended, row_dims + [dims.projected_heads])
    y = bias_add(mtf.einsum([joined, weight], output_shape=row_dims + [dims.embd]), bias)
    return context.dropout(y, context.model.res_dropout, f"{layer.place}/attn/residual")


def _radius(context: Context, layer: Layer) -> int | None:
    """How many positions back the layer sees, itself included; None: all."""
    return context.model.local_attention_radius if layer.attention == "local" else None


def _has_memory(context: Context, layer: Layer) -> bool:
    return layer.attention == "global" and context.model.num_mem_kv > 0


def _memory(context: Context, layer: Layer) -> list[mtf.Tensor]:
    """Learned keys and values: each [mem_kv_sequence, heads, features_per_head].

    Source: Sukhbaatar et al. 2019, Augmenting Self-attention with Persistent Memory, section 3.1.
    """
    dims = context.dims
    shape = [mtf.Dimension("mem_kv_sequence", context.model.num_mem_kv), dims.heads, dims.features_per_head]
    initializer = variables.normal(1.0 / math.sqrt(context.model.features_per_head))
    return [context.variable(f"{layer.scope}/attn/attention/{name}", shape, initializer) for name in ("mem_k", "mem_v")]


# Whole sequences.


def full_attention(context: Context, x: mtf.Tensor, layer: Layer) -> tuple[mtf.Tensor, Cache]:
    """Attention of every position of a sequence.

    Args:
        x: [batch, sequence, embd], normalised.
        layer: whose variables are `{scope}/attn/{q,k,v,o}` [embd, embd], `.../compute_output_bias/o_b` [embd], with
            `qkv_bias` `.../{q,k,v}_bias` [embd], and with `num_mem_kv` `.../attention/{mem_k,mem_v}`.

    Returns:
        [batch, sequence, embd], and the keys and values, with memory_length in place of sequence.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; local: Child et al. 2019, Sparse
    Transformers, section 4; linear: Katharopoulos et al. 2020, Transformers are RNNs, section 3, in GPT-Neo's form.
    """
    places = positions.sequence_positions(context)
    queries, keys, values = _queries_keys_values(context, x, f"{layer.scope}/attn", places)
    if layer.attention == "linear":
        attend = causal_linear_attention if context.model.is_causal else linear_attention
        return _output(context, attend(queries, keys, values), layer), {"keys": keys, "values": values}
    keys, values = (redistribute(t, "sequence", "memory_length") for t in (keys, values))
    rate = context.model.attn_dropout if context.is_training else 0.0
    rule = AttentionRule(context.model.is_causal, _radius(context, layer), rate)
    attended = softmax_attention(queries, keys, values, rule, context.noise_of(f"{layer.place}/attn"))
    if _has_memory(context, layer):
        attended = merged_attention(attended, _attended_memory(context, queries, layer, rate))
    return _output(context, attended[0], layer), {"keys": keys, "values": values}


def _attended_memory(context: Context, queries: mtf.Tensor, layer: Layer, rate: float) -> Attended:
    keys, values = (mtf.broadcast(t, [context.dims.batch, *t.shape.dims]) for t in _memory(context, layer))
    rule = AttentionRule(is_causal=False, radius=None, dropout_rate=rate)
    return softmax_attention(queries, keys, values, rule, context.noise_of(f"{layer.place}/attn/memory"))


# Prompts and single positions.


def _places(context: Context, layer: Layer) -> mtf.Dimension:
    """Of a layer's cache: as many positions as there may be, or as a local layer sees."""
    memory_dim, radius = context.dims.memory_length, _radius(context, layer)
    return memory_dim if radius is None else mtf.Dimension("window", min(radius, memory_dim.size))


def empty_cache(context: Context, layer: Layer) -> Cache:
    """The cache before any position, as `decode_attention` takes it."""
    dims = context.dims
    if layer.attention == "none":
        return {}
    if layer.attention == "linear":
        return linear_state_of_nothing(context.mesh, [dims.batch, dims.heads, dims.features_per_head])
    shape = [dims.batch, dims.heads, _places(context, layer), dims.features_per_head]
    nothing = mtf.zeros(context.mesh, shape, context.cache_dtype)
    return split_cache(nothing, nothing)


def prefill_attention(context: Context, x: mtf.Tensor, layer: Layer, lengths: mtf.Tensor) -> tuple[mtf.Tensor, Cache]:
    """As `full_attention`, with the cache that `decode_attention` goes on from.

    Args:
        context: whose memory_length is that of the cache.
        x: [batch, sequence, embd], normalised.
        layer: as in `full_attention`.
        lengths: int32 [batch]; what follows them in a row leaves no trace in the cache.
    """
    y, kept = full_attention(context, x, layer)
    if layer.attention == "linear":
        return y, linear_state(kept["keys"], kept["values"], lengths)
    places_dim = _places(context, layer)
    return y, split_cache(
        *(cache_of_prompt(kept[name], lengths, places_dim, context.cache_dtype) for name in ("keys", "values"))
    )


def decode_attention(
    context: Context, x: mtf.Tensor, layer: Layer, cache: Cache, positions: mtf.Tensor
) -> tuple[mtf.Tensor, Cache]:
    """Attention of one position of each row over the cache, to which its own key and value are added.

    Args:
        x: [batch, embd], normalised.
        layer: as in `full_attention`.
        cache: of this layer, valid before the positions.
        positions: int32 [batch].

    Returns:
        [batch, embd], and the new cache.
    """
    queries, key, value = _queries_keys_values(context, x, f"{layer.scope}/attn", positions)
    if layer.attention == "linear":
        attended, cache = linear_attention_step(queries, key, value, cache)
        return _output(context, attended, layer), cache
    attended, cache = attend(queries, key, value, cache, positions)
    if _has_memory(context, layer):
        attended = merged_attention(attended, _position_over_memory(context, queries, layer))
    return _output(context, attended[0], layer), cache


def _position_over_memory(context: Context, queries: mtf.Tensor, layer: Layer) -> Attended:
    """Learned keys and values that one position sees: like the queries [batch, heads, d], and log_z [batch, heads]."""
    keys, values = _memory(context, layer)
    length_dim = keys.shape.dims[0]
    logits = mtf.cast(mtf.einsum([queries, keys], output_shape=[*queries.shape.dims[:-1], length_dim]), tf.float32)
    log_z = mtf.reduce_logsumexp(logits, length_dim)
    weights = mtf.cast(mtf.exp(logits - log_z), values.dtype)
    return mtf.einsum([weights, values], output_shape=queries.shape), log_z
