"""Multi-head attention: whole sequences for training and prompts, one position at a time with a cache for decoding."""

from __future__ import annotations

import dataclasses
import math

from meshtf import mtf, tf
from models import variables
from models.context import Context
from models.kernels.attention import MASKED_LOGIT
from models.ops.activations import bias_add
from models.ops.attention import causal_attention
from models.ops.mesh_operation import offsets, relabel, write_at


@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of one layer, each [batch, memory_length, heads, features_per_head]."""

    keys: mtf.Tensor
    values: mtf.Tensor


def attention_radius(context: Context, layer: int) -> int | None:
    """How many positions back the layer sees, itself included; None for global attention."""
    return {"global": None, "local": context.model.local_attention_radius}[context.model.attention_types[layer]]


def _queries_keys_values(context: Context, x: mtf.Tensor, scope: str) -> tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]:
    """[..., embd] -> three times [..., heads, features_per_head], by one product, which is faster than three."""
    dims = context.dims
    # The usual division of the logits by sqrt(features_per_head) is folded into the first queries: a released
    # checkpoint has it in its weights.
    std = 1.0 / math.sqrt(context.model.n_embd)
    stds = {"q": std / math.sqrt(context.model.features_per_head), "k": std, "v": std}
    weights = [
        context.variable(f"{scope}/{name}", [dims.embd, dims.projected_heads], variables.normal(std))
        for name, std in stds.items()
    ]
    kinds_dim = mtf.Dimension("queries_keys_values", len(weights))
    row_dims = x.shape.dims[:-1]
    stacked = mtf.stack(weights, kinds_dim.name, axis=1)
    projected = mtf.einsum([x, stacked], output_shape=[*row_dims, kinds_dim, dims.projected_heads])
    heads_shape = [*row_dims, dims.heads, dims.features_per_head]
    queries, keys, values = (mtf.reshape(part, heads_shape) for part in mtf.unstack(projected, kinds_dim))
    return queries, keys, values


def _output(context: Context, attended: mtf.Tensor, scope: str) -> mtf.Tensor:
    """[batch, sequence, heads, features_per_head] -> [batch, sequence, embd]."""
    dims = context.dims
    row_dims = attended.shape.dims[:-2]
    weight = context.variable(
        f"{scope}/o", [dims.projected_heads, dims.embd], variables.normal(1.0 / math.sqrt(context.model.n_embd))
    )
    bias = context.variable(f"{scope}/compute_output_bias/o_b", [dims.embd], variables.zeros)
    joined = mtf.reshape(attended, row_dims + [dims.projected_heads])
    y = bias_add(mtf.einsum([joined, weight], output_shape=row_dims + [dims.embd]), bias)
    return context.dropout(y, context.model.res_dropout, f"{scope}/residual")


def whole_sequence_attention(context: Context, x: mtf.Tensor, layer: int) -> tuple[mtf.Tensor, Cache]:
    """Causal attention of every position of a sequence.

    Args:
      x: [batch, sequence, embd], normalised.
      layer: which picks the variables `h{layer}/attn/{q,k,v,o}` [embd, embd] and `.../compute_output_bias/o_b` [embd].

    Returns:
      [batch, sequence, embd], and the keys and values as a cache.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; local: Child et al. 2019, Sparse
    Transformers, section 4.
    """
    scope = f"h{layer}/attn"
    queries, keys, values = _queries_keys_values(context, x, scope)
    keys, values = (relabel(t, "sequence", "memory_length") for t in (keys, values))
    rate = context.model.attn_dropout if context.is_training else 0.0
    attended = causal_attention(queries, keys, values, attention_radius(context, layer), rate, context.noise_of(scope))
    return _output(context, attended, scope), Cache(keys, values)


def _masked(context: Context, logits: mtf.Tensor, position: mtf.Tensor, radius: int | None) -> mtf.Tensor:
    """Logits [batch, heads, memory_length] with those of places that the position does not see put out."""
    nearest_unseen = -(radius or context.dims.memory_length.size)

    def mask(offset: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return tf.where((offset <= 0) & (offset > nearest_unseen), logits, MASKED_LOGIT)

    ages = offsets(context.dims.memory_length, position, logits.shape)
    return mtf.cwise(mask, [ages, logits], output_dtype=logits.dtype)


def one_position_attention(
    context: Context, x: mtf.Tensor, layer: int, cache: Cache, position: mtf.Tensor
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
    scope = f"h{layer}/attn"
    queries, new_keys, new_values = _queries_keys_values(context, x, scope)
    dims = context.dims
    cache = Cache(
        write_at(cache.keys, dims.memory_length, position, new_keys),
        write_at(cache.values, dims.memory_length, position, new_values),
    )
    logits = mtf.einsum([queries, cache.keys], output_shape=[dims.batch, dims.heads, dims.memory_length])
    masked = _masked(context, mtf.cast(logits, tf.float32), position, attention_radius(context, layer))
    weights = mtf.cast(mtf.softmax(masked, dims.memory_length), x.dtype)
    return _output(context, mtf.einsum([weights, cache.values], output_shape=queries.shape), scope), cache
