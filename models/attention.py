"""The attention half of a block: projections to queries, keys and values, a kind of attention, and the output."""

from __future__ import annotations

import math

from meshtf import mtf
from models import variables
from models.attention_interface import QKV, AttentionKind, Cache
from models.context import Context
from models.layer import Layer
from models.linear_attention import LINEAR
from models.ops.activations import bias_add
from models.positions import rotate_by_positions, sequence_positions
from models.softmax_attention import GLOBAL, LOCAL

# By the names of `attention_types`; a layer of type "none" has no attention.
ATTENTION_KINDS: dict[str, AttentionKind] = {"global": GLOBAL, "local": LOCAL, "linear": LINEAR}


def _init_stds(context: Context) -> dict[str, float]:
    """Standard deviations of the initial weights.

    GPT-Neo does not divide logits by sqrt(features_per_head): that factor is in its initial query weights, and in the
    weights of released checkpoints.
    """
    std = 1.0 / math.sqrt(context.model.n_embd)
    folded = 1.0 if context.model.scale_attn_weights else math.sqrt(context.model.features_per_head)
    return {"q": std / folded, "k": std, "v": std}


def _project(context: Context, x: mtf.Tensor, scope: str) -> list[mtf.Tensor]:
    """[..., embd] -> queries, keys and values, each [..., heads * features_per_head].

    Whole sequences take one product, which is faster than three; single positions take three, because joining the
    weights would take longer.
    """
    dims = context.dims
    weights = [
        context.variable(f"{scope}/{name}", [dims.embd, dims.projected_heads], variables.normal(std))
        for name, std in _init_stds(context).items()
    ]
    if x.shape.ndims == 2:
        shape = [*x.shape.dims[:-1], dims.projected_heads]
        return _add_biases(context, [mtf.einsum([x, weight], output_shape=shape) for weight in weights], scope)
    kinds_dim = mtf.Dimension("queries_keys_values", len(weights))
    stacked = mtf.stack(weights, kinds_dim.name, axis=1)
    projected = mtf.einsum([x, stacked], output_shape=[*x.shape.dims[:-1], kinds_dim, dims.projected_heads])
    return _add_biases(context, mtf.unstack(projected, kinds_dim), scope)


def _add_biases(context: Context, projected: list[mtf.Tensor], scope: str) -> list[mtf.Tensor]:
    if not context.model.qkv_bias:
        return projected
    dims = [context.dims.projected_heads]
    biases = [context.variable(f"{scope}/{name}_bias", dims, variables.zeros) for name in "qkv"]
    return [bias_add(x, bias) for x, bias in zip(projected, biases, strict=True)]


def _qkv(context: Context, x: mtf.Tensor, layer: Layer, positions: mtf.Tensor) -> QKV:
    """[..., embd] at those positions -> [..., heads, features_per_head] each."""
    shape = [*x.shape.dims[:-1], context.dims.heads, context.dims.features_per_head]
    queries, keys, values = (mtf.reshape(y, shape) for y in _project(context, x, f"{layer.scope}/attn"))
    if context.model.scale_attn_weights:
        queries *= 1.0 / math.sqrt(context.model.features_per_head)
    queries, keys = (rotate_by_positions(context, y, positions) for y in (queries, keys))
    return QKV(queries, keys, values)


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
    return context.dropout(y, context.model.res_dropout, f"{layer.name}/attn/residual")


def full_attention(context: Context, x: mtf.Tensor, layer: Layer) -> mtf.Tensor:
    """Computes the attention of every position of whole sequences, or of packed texts if the context has them.

    Args:
        context: the settings of the graph.
        x: [batch, sequence, embd], normalised.
        layer: its variables are `{scope}/attn/{q,k,v,o}` [embd, embd], `.../compute_output_bias/o_b` [embd], with
            `qkv_bias` `.../{q,k,v}_bias` [embd], and those of the kind of attention.

    Returns:
        [batch, sequence, embd].
    """
    qkv, kind = _qkv(context, x, layer, sequence_positions(context)), ATTENTION_KINDS[layer.attention]
    attend = kind.full if context.packing is None else kind.packed
    return _output(context, attend(context, layer, qkv), layer)


def prefill_attention(context: Context, x: mtf.Tensor, layer: Layer, lengths: mtf.Tensor) -> tuple[mtf.Tensor, Cache]:
    """Computes `full_attention` of prompts, and the cache from which `decode_attention` continues.

    Args:
        context: its memory_length is that of the cache.
        x: [batch, sequence, embd], normalised.
        layer: as in `full_attention`.
        lengths: int32 [batch]; what follows a prompt in its row leaves no trace in the cache.
    """
    qkv, kind = _qkv(context, x, layer, sequence_positions(context)), ATTENTION_KINDS[layer.attention]
    y = _output(context, kind.full(context, layer, qkv), layer)
    return y, kind.prefill(context, layer, qkv, lengths)


def decode_attention(
    context: Context, x: mtf.Tensor, layer: Layer, cache: Cache, positions: mtf.Tensor
) -> tuple[mtf.Tensor, Cache]:
    """Computes the attention of one position of each row to the cache and to itself.

    Args:
        context: its memory_length is that of the cache.
        x: [batch, embd], normalised.
        layer: as in `full_attention`.
        cache: of this layer, valid before the positions.
        positions: int32 [batch].

    Returns:
        [batch, embd], and the cache with these positions added.
    """
    qkv, kind = _qkv(context, x, layer, positions), ATTENTION_KINDS[layer.attention]
    attended, cache = kind.decode(context, layer, qkv, cache, positions)
    return _output(context, attended, layer), cache
