"""The attention half of a block: projections to queries, keys and values, a kind of attention, and the output."""

from __future__ import annotations

import math

from configs.schema import QK_NORM_OF_HEAD, QK_NORM_OF_PROJECTION
from meshtf import mtf
from models import variables
from models.attention_interface import QKV, AttentionKind, Cache
from models.context import Context
from models.layer import Layer
from models.linear import linear, product, products
from models.linear_attention import LINEAR
from models.norms import rms_norm
from models.ops.activations import bias_add
from models.positions import rotate_by_positions, sequence_positions
from models.softmax_attention import GLOBAL, LOCAL

# By the names of `attention_types`; a layer of type "none" has no attention.
ATTENTION_KINDS: dict[str, AttentionKind] = {"global": GLOBAL, "local": LOCAL, "linear": LINEAR}


def _init_stds(context: Context) -> dict[str, float]:
    """Standard deviations of the initial weights.

    GPT-Neo does not divide logits by sqrt(features_per_head): that factor is in its initial query weights, and in the
    weights of released checkpoints. With any scale of the logits, they are as large at first as if divided so. With muP
    this factor is that of `mup_base_width`.
    """
    std, model = 1.0 / math.sqrt(context.model.n_embd), context.model
    folded = model.logit_scale * model.head_multiplier * math.sqrt(model.base_features_per_head)
    return {"q": std / folded, "k": std, "v": std}


def _project(context: Context, x: mtf.Tensor, layer: Layer) -> list[mtf.Tensor]:
    """[..., embd] -> queries [..., heads * features_per_head], and keys and values [..., kv_heads * features_per_head].

    Whole sequences take one product for all weights of one width, which is faster than one for each; single positions
    take three, because joining the weights would take longer.
    """
    dims, scope = context.dims, f"{layer.scope}/attn"
    widths = {"q": dims.projected_heads, "k": dims.projected_kv_heads, "v": dims.projected_kv_heads}
    parts = [
        linear(
            context,
            f"{scope}/{name}",
            (dims.embd, widths[name]),
            variables.normal(std),
            f"{layer.name}/attn/{name}",
        )
        for name, std in _init_stds(context).items()
    ]
    joint = [[part] for part in parts]
    if x.shape.ndims > 2:
        joint = [parts] if dims.heads == dims.kv_heads else [parts[:1], parts[1:]]
    return _add_biases(context, [y for joined in joint for y in products(context, x, joined)], scope)


def _add_biases(context: Context, projected: list[mtf.Tensor], scope: str) -> list[mtf.Tensor]:
    if not context.model.qkv_bias:
        return projected
    return [
        bias_add(y, context.variable(f"{scope}/{name}_bias", y.shape.dims[-1:], variables.zeros))
        for name, y in zip("qkv", projected, strict=True)
    ]


def _normed(
    context: Context, queries: mtf.Tensor, keys: mtf.Tensor, scope: str, form: str
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Normalises the last dimension of queries and keys, if the model has its `qk_norm` of this form.

    Source: Henry et al. 2020, Query-Key Normalization for Transformers, with RMS norms as in Qwen 3 and OLMo 2.
    """
    if context.model.qk_norm != form:
        return queries, keys
    return rms_norm(context, queries, f"{scope}/q_norm"), rms_norm(context, keys, f"{scope}/k_norm")


def _qkv(context: Context, x: mtf.Tensor, layer: Layer, positions: mtf.Tensor) -> QKV:
    """[..., embd] at those positions -> queries [..., heads, features_per_head], keys and values of kv_heads."""
    dims, scope = context.dims, f"{layer.scope}/attn"
    queries, keys, values = _project(context, x, layer)
    queries, keys = _normed(context, queries, keys, scope, QK_NORM_OF_PROJECTION)
    queries, keys, values = (
        mtf.reshape(y, [*x.shape.dims[:-1], heads_dim, dims.features_per_head])
        for y, heads_dim in ((queries, dims.heads), (keys, dims.kv_heads), (values, dims.kv_heads))
    )
    queries, keys = _normed(context, queries, keys, scope, QK_NORM_OF_HEAD)
    if context.model.logit_scale != 1.0:
        queries *= context.model.logit_scale
    queries, keys = (rotate_by_positions(context, y, positions) for y in (queries, keys))
    return QKV(queries, keys, values)


def _output(context: Context, attended: mtf.Tensor, layer: Layer) -> mtf.Tensor:
    """[..., heads, features_per_head] -> [..., embd]."""
    dims, scope = context.dims, f"{layer.scope}/attn"
    row_dims = attended.shape.dims[:-2]
    initializer = variables.normal(1.0 / math.sqrt(dims.projected_heads.size))
    output = linear(context, f"{scope}/o", (dims.projected_heads, dims.embd), initializer, f"{layer.name}/attn/o")
    y = product(context, mtf.reshape(attended, row_dims + [dims.projected_heads]), output)
    if context.model.attn_output_bias:
        y = bias_add(y, context.variable(f"{scope}/compute_output_bias/o_b", [dims.embd], variables.zeros))
    return context.dropout(y, context.model.res_dropout, f"{layer.name}/attn/residual")


def full_attention(context: Context, x: mtf.Tensor, layer: Layer) -> mtf.Tensor:
    """Computes the attention of every position of whole sequences, or of packed texts if the context has them.

    Args:
        context: the settings of the graph.
        x: [batch, sequence, embd], normalised.
        layer: its variables are `{scope}/attn/q` [embd, heads * features_per_head], `.../{k,v}` [embd, kv_heads *
            features_per_head], `.../o` [heads * features_per_head, embd], their adapters (see `linear`), with
            `qkv_bias` `.../{q,k,v}_bias`, with `attn_output_bias` `.../compute_output_bias/o_b` [embd], with `qk_norm`
            `.../{q,k}_norm/g`, and those of the kind of attention.

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
