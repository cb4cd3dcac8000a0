"""Multi-head attention: whole sequences for training and prompts, one position at a time with a cache for decoding."""

from __future__ import annotations

import math

from meshtf import mtf, tf
from models import positions, variables
from models.context import Context
from models.kernels.attention import MASKED_LOGIT, AttentionRule
from models.layer import Layer
from models.ops.activations import bias_add
from models.ops.attention import Attended, merged_attention, softmax_attention
from models.ops.linear_attention import (
    causal_linear_attention,
    linear_attention,
    linear_attention_step,
    linear_state,
)
from models.ops.mesh_operation import offsets, relabel, write_at

# What a layer keeps from position to position, by name: keys and values [batch, memory_length, heads,
# features_per_head], or the sums of linear attention.
Cache = dict[str, mtf.Tensor]


def _first_stds(context: Context) -> dict[str, float]:
    """Standard deviations of the first weights.

    GPT-Neo does not divide logits by sqrt(features_per_head); it has that in its first queries, and a released
    checkpoint in its weights.
    """
    std = 1.0 / math.sqrt(context.model.n_embd)
    folded = 1.0 if context.model.scale_attn_weights else math.sqrt(context.model.features_per_head)
    return {"q": std / folded, "k": std, "v": std}


def _projected(context: Context, x: mtf.Tensor, scope: str) -> list[mtf.Tensor]:
    """[..., embd] -> queries, keys and values, each [..., heads * features_per_head], by one product, which is faster
    than three.
    """
    dims = context.dims
    weights = [
        context.variable(f"{scope}/{name}", [dims.embd, dims.projected_heads], variables.normal(std))
        for name, std in _first_stds(context).items()
    ]
    kinds_dim = mtf.Dimension("queries_keys_values", len(weights))
    stacked = mtf.stack(weights, kinds_dim.name, axis=1)
    projected = mtf.einsum([x, stacked], output_shape=[*x.shape.dims[:-1], kinds_dim, dims.projected_heads])
    parts = mtf.unstack(projected, kinds_dim)
    if not context.model.qkv_bias:
        return parts
    biases = [context.variable(f"{scope}/{name}_bias", [dims.projected_heads], variables.zeros) for name in "qkv"]
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


def whole_sequence_attention(context: Context, x: mtf.Tensor, layer: Layer) -> tuple[mtf.Tensor, Cache]:
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
    keys, values = (relabel(t, "sequence", "memory_length") for t in (keys, values))
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


def prompt_attention(context: Context, x: mtf.Tensor, layer: Layer) -> tuple[mtf.Tensor, Cache]:
    """As `whole_sequence_attention`, with the cache that `one_position_attention` goes on from."""
    y, cache = whole_sequence_attention(context, x, layer)
    return y, linear_state(**cache) if layer.attention == "linear" else cache


# One position.


def one_position_attention(
    context: Context, x: mtf.Tensor, layer: Layer, cache: Cache, position: mtf.Tensor
) -> tuple[mtf.Tensor, Cache]:
    """Attention of one position over the cache, to which its own key and value are added.

    Args:
      x: [batch, embd], normalised.
      layer: as in `whole_sequence_attention`.
      cache: of this layer, valid before `position`.
      position: int32 scalar.

    Returns:
      [batch, embd], and the new cache.
    """
    queries, key, value = _queries_keys_values(context, x, f"{layer.scope}/attn", position)
    if layer.attention == "linear":
        attended, cache = linear_attention_step(queries, key, value, cache)
        return _output(context, attended, layer), cache
    memory_dim = context.dims.memory_length
    cache = {
        "keys": write_at(cache["keys"], memory_dim, position, key),
        "values": write_at(cache["values"], memory_dim, position, value),
    }
    visible = _masked(context, _logits(queries, cache["keys"]), position, _radius(context, layer))
    attended = _softmax_weighted(visible, cache["values"], queries)
    if _has_memory(context, layer):
        keys, values = _memory(context, layer)
        attended = merged_attention(attended, _softmax_weighted(_logits(queries, keys), values, queries))
    return _output(context, attended[0], layer), cache


def _logits(queries: mtf.Tensor, keys: mtf.Tensor) -> mtf.Tensor:
    """[batch, heads, d], keys [..., length, heads, d] -> float32 [batch, heads, length]."""
    length_dim = keys.shape.dims[-3]
    logits = mtf.einsum([queries, keys], output_shape=[*queries.shape.dims[:-1], length_dim])
    return mtf.cast(logits, tf.float32)


def _masked(context: Context, logits: mtf.Tensor, position: mtf.Tensor, radius: int | None) -> mtf.Tensor:
    """Logits [batch, heads, memory_length] with those of places that the position does not see put out."""
    nearest_unseen = -(radius or context.dims.memory_length.size)

    def mask(offset: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.where((offset <= 0) & (offset > nearest_unseen), logits, MASKED_LOGIT)

    ages = offsets(context.dims.memory_length, position, logits.shape)
    return mtf.cwise(mask, [ages, logits], output_dtype=logits.dtype)


def _softmax_weighted(logits: mtf.Tensor, values: mtf.Tensor, queries: mtf.Tensor) -> Attended:
    """Values weighted by the softmax of logits [batch, heads, length], like the queries, and log_z [batch, heads]."""
    length_dim = logits.shape.dims[-1]
    log_z = mtf.reduce_logsumexp(logits, length_dim)
    weights = mtf.cast(mtf.exp(logits - log_z), values.dtype)
    return mtf.einsum([weights, values], output_shape=queries.shape), log_z
