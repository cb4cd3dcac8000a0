"""The transformer, from token ids to logits: by default pre-norm GPT-2 blocks with GPT-Neo's variables and numerics.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, section 2.3; GPT-Neo for names and
initial values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from configs.schema import BLOCKS, NOTHING, ONE_NORM, SELECTED, SEQUENTIAL
from meshtf import mtf, operation_scope, tf
from models import moe, variables
from models.attention import ATTENTION_KINDS, decode_attention, full_attention, prefill_attention
from models.attention_interface import Cache
from models.context import Context
from models.feed_forward import dense_std, feed_forward
from models.layer import Layer, layers
from models.norms import final_norm, norm_after, norm_before, residual_gain
from models.ops.activations import bias_add, soft_cap
from models.ops.decoding import gather_positions
from models.ops.embedding import embedding_lookup
from models.ops.output_layer import OutputLayer
from models.ops.recomputation import keep_products
from models.positions import position_embeddings, sequence_positions

TOKEN_STD = 0.02
HEAD = "wte_final_linear/conv1d_main/linear_out"  # the scope of the output layer
EXPERT_COUNTS = "expert_counts"  # in a layer's cache, beside what its attention keeps
Attend = Callable[[mtf.Tensor, Layer], tuple[mtf.Tensor, Cache]]
Block = Callable[[mtf.Tensor], tuple[mtf.Tensor, ...]]
Mix = Callable[[mtf.Tensor, Layer], moe.MoeOutput]


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """The result of a pass over whole sequences.

    Attributes:
        state: [batch, sequence, embd], what the output layer makes logits of.
        mixtures: report of each mixture-of-experts layer by its name, such as "h2".
    """

    state: mtf.Tensor
    mixtures: dict[str, moe.MoeReport]


@dataclasses.dataclass(frozen=True)
class RankingPass:
    """The result of a pass of a ranking model over whole sequences.

    Attributes:
        scores: float32 [batch, sequence], of the text up to each position.
        mixtures: see `ForwardPass`.
    """

    scores: mtf.Tensor
    mixtures: dict[str, moe.MoeReport]


def _token_table(context: Context) -> mtf.Tensor:
    return context.variable("wte", [context.dims.vocab, context.dims.embd], variables.normal(TOKEN_STD))


@operation_scope("embedding")
def _embedded(context: Context, tokens: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Returns the sum of token and position embeddings, [..., embd], each with its own dropout, as in GPT-Neo."""
    rate, scale = context.model.embed_dropout, context.model.embedding_scale
    x = embedding_lookup(_token_table(context), tokens)
    x = context.dropout(x if scale is None else x * scale, rate, "wte")
    embedded_positions = position_embeddings(context, positions)
    if embedded_positions is None:
        return x
    if not (rate and context.is_training):
        return x + embedded_positions
    return x + context.dropout(mtf.broadcast(embedded_positions, x.shape), rate, "wpe")


def _logits(context: Context, x: mtf.Tensor) -> mtf.Tensor:
    """[..., embd] -> [..., vocab]: final norm and output layer."""
    return logits_of(context, _final(context, x))


@operation_scope("head")
def _final(context: Context, x: mtf.Tensor) -> mtf.Tensor:
    """[..., embd] -> [..., embd]: final norm, and with muP the multiplier of what is computed from it.

    Source: Yang et al. 2022, Tensor Programs V, table 8: output weights.
    """
    x, multiplier = final_norm(context, x), context.model.width_multiplier
    return x if multiplier == 1.0 else x * (1.0 / multiplier)


@operation_scope("head")
def logits_of(context: Context, state: mtf.Tensor) -> mtf.Tensor:
    """Applies the output layer to the state after the final norm: [..., embd] -> [..., vocab]."""
    layer = output_layer(context)
    y = mtf.einsum([state, layer.table], output_shape=state.shape.dims[:-1] + [context.dims.vocab])
    if layer.bias is not None:
        y = bias_add(y, layer.bias)
    return y if layer.softcap is None else soft_cap(y, layer.softcap)


def output_layer(context: Context) -> OutputLayer:
    """Returns the layer that gives the logits: the token table or with `no_weight_tie` one of its own."""
    model, table = context.model, _head(context)
    bias = context.variable(f"{HEAD}/bias", [context.dims.vocab], variables.zeros) if model.has_head_bias else None
    return OutputLayer(table, bias, model.logit_softcap, is_trained=not model.lora_rank)


def _head(context: Context) -> mtf.Tensor:
    """Returns the kernel of the output layer, [embd, vocab] or [vocab, embd].

    In muP its initial values do not change with the width.
    """
    if not context.model.no_weight_tie:
        return _token_table(context)
    std = dense_std(context, context.dims.embd.size) * math.sqrt(context.model.width_multiplier)
    return context.variable(f"{HEAD}/kernel", [context.dims.embd, context.dims.vocab], variables.normal(std))


@operation_scope("head")
def _scores(context: Context, x: mtf.Tensor) -> mtf.Tensor:
    """[batch, sequence, embd] -> float32 [batch, sequence]: final norm and a linear layer without bias.

    Source: Gao et al. 2020, Dialogue Response Ranking Training with Large-Scale Human Feedback Data, section 3.
    """
    score_dim = mtf.Dimension("score", 1)
    kernel = context.variable("score", [score_dim, context.dims.embd], variables.normal(TOKEN_STD))
    scores = mtf.einsum([_final(context, x), kernel], output_shape=[*x.shape.dims[:-1], score_dim])
    return mtf.cast(mtf.reduce_sum(scores, reduced_dim=score_dim), tf.float32)


@dataclasses.dataclass(frozen=True)
class _BlockOutput:
    """The output of a block.

    Attributes:
        x: [..., embd].
        cache: that of its attention and, with experts, how many tokens each has been sent.
        report: of its mixture of experts, if it has one.
    """

    x: mtf.Tensor
    cache: Cache
    report: moe.MoeReport | None


def _block(context: Context, x: mtf.Tensor, layer: Layer, attend: Attend, mix: Mix) -> _BlockOutput:
    """Applies one block; a layer without attention is its feed-forward half alone.

    Source: Radford et al. 2019 (GPT-2), section 2.3; macaron: Lu et al. 2019, Understanding and Improving Transformer
    From a Multi-Particle Dynamic System Point of View, section 4, with no norm before its first half, as in GPT-Neo;
    halves in parallel: Wang and Komatsuzaki 2021, GPT-J-6B, with one norm; Black et al. 2022, GPT-NeoX-20B,
    section 2.1.1, with two.
    """
    parallel = context.model.parallel_residual
    if context.model.macaron:
        x = x + feed_forward(context, x, f"{layer.scope}/mlp_macaron", f"{layer.name}/mlp_macaron") * 0.5
    with operation_scope(f"{layer.name}/attn"):
        normed = norm_before(context, x, f"{layer.scope}/norm_1") if layer.has_attention or parallel == ONE_NORM else x
        after_attention, cache = _attention_half(context, x, normed, layer, attend)
    with operation_scope(f"{layer.name}/mlp"):
        if parallel != ONE_NORM:
            normed = norm_before(context, after_attention if parallel == SEQUENTIAL else x, f"{layer.scope}/norm_2")
        fed, counts, report = _feed_forward_half(context, normed, layer, mix)
    return _BlockOutput(after_attention + fed, cache | counts, report)


def _attention_half(
    context: Context, x: mtf.Tensor, normed: mtf.Tensor, layer: Layer, attend: Attend
) -> tuple[mtf.Tensor, Cache]:
    """Adds the attention of the normalised x to x.

    With `none_doubles_residual`, kept for GPT-Neo's checkpoints, a layer without attention adds x to itself.
    """
    scope = f"{layer.scope}/norm_rezero_1"
    if layer.has_attention:
        attended, cache = attend(normed, layer)
        return x + residual_gain(context, norm_after(context, attended, f"{layer.scope}/norm_1"), scope), cache
    return (x + residual_gain(context, x, scope) if context.model.none_doubles_residual else x), {}


def _feed_forward_half(
    context: Context, normed: mtf.Tensor, layer: Layer, mix: Mix
) -> tuple[mtf.Tensor, Cache, moe.MoeReport | None]:
    """Returns what the feed-forward layer or the experts add to the residual stream, their cache and their report."""
    if layer.is_mixture:
        mixture = mix(normed, layer)
        fed, counts, report = mixture.outputs, {EXPERT_COUNTS: mixture.expert_counts}, mixture.report
    else:
        fed, counts, report = feed_forward(context, normed, f"{layer.scope}/mlp", f"{layer.name}/mlp"), {}, None
    if context.model.macaron:
        fed *= 0.5
    fed = norm_after(context, fed, f"{layer.scope}/norm_2")
    return residual_gain(context, fed, f"{layer.scope}/norm_rezero_2"), counts, report


# Training and evaluation.


_RECOMPUTATIONS: dict[str, Callable[[Block, mtf.Tensor], Sequence[mtf.Tensor]]] = {
    NOTHING: lambda block, x: block(x),
    SELECTED: keep_products,
    BLOCKS: lambda block, x: mtf.recompute_grad(block, [x]),
}


def _training_block(context: Context, x: mtf.Tensor, layer: Layer) -> tuple[mtf.Tensor, moe.MoeReport | None]:
    def attend(h: mtf.Tensor, layer: Layer) -> tuple[mtf.Tensor, Cache]:
        return full_attention(context, h, layer), {}

    def mix(h: mtf.Tensor, layer: Layer) -> moe.MoeOutput:
        return moe.mixture_of_experts(context, h, layer.scope, layer.name)

    def block(x: mtf.Tensor) -> tuple[mtf.Tensor, ...]:
        output = _block(context, x, layer, attend, mix)
        return output.x, *(output.report or ())

    # A recomputed block may pass nothing to the outside except what it returns.
    x, *reported = _RECOMPUTATIONS[context.model.recomputation if context.is_training else NOTHING](block, x)
    return x, moe.MoeReport(*reported) if reported else None


def forward(context: Context, tokens: mtf.Tensor) -> ForwardPass:
    """Computes the state at every position of whole sequences.

    Args:
        context: the settings of the graph.
        tokens: int32 [batch, sequence].

    Returns:
        The state after the final norm, of which position t depends on tokens 0 ... t only, unless the model is
        bidirectional; and the reports of the mixtures of experts.
    """
    x, mixtures = _trunk(context, tokens)
    return ForwardPass(_final(context, x), mixtures)


def _trunk(context: Context, tokens: mtf.Tensor) -> tuple[mtf.Tensor, dict[str, moe.MoeReport]]:
    """Returns the state at every position, [batch, sequence, embd], and the reports of the mixtures of experts."""
    x, mixtures = _embedded(context, tokens, sequence_positions(context)), {}
    for layer in layers(context.model):
        x, report = _training_block(context, x, layer)
        if report:
            mixtures[layer.name] = report
    return x, mixtures


def rank(context: Context, tokens: mtf.Tensor) -> RankingPass:
    """Computes the score of the text up to each position: int32 [batch, sequence] -> float32 [batch, sequence]."""
    x, mixtures = _trunk(context, tokens)
    return RankingPass(_scores(context, x), mixtures)


def logits(context: Context, tokens: mtf.Tensor) -> mtf.Tensor:
    """Computes the logits at every position of whole sequences: int32 [batch, sequence] -> [batch, sequence, vocab]."""
    return _logits(context, _trunk(context, tokens)[0])


def logits_at(context: Context, tokens: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Computes the logits at some positions of each row only: the output layer is most of a small model's work.

    Args:
        context: the settings of the graph.
        tokens: int32 [batch, sequence].
        positions: int32 [batch, asked], indices in the row.

    Returns:
        [batch, asked, vocab].
    """
    return _logits(context, gather_positions(_trunk(context, tokens)[0], positions))


# Decoding.


def _attention_cache(layer_cache: Cache) -> Cache:
    """The part of a layer's cache that belongs to its attention."""
    return {name: tensor for name, tensor in layer_cache.items() if name != EXPERT_COUNTS}


def empty_caches(context: Context) -> list[Cache]:
    """Returns the cache of each layer before any position, as `next_logits` takes it."""
    return [_empty_cache(context, layer) for layer in layers(context.model)]


def _empty_cache(context: Context, layer: Layer) -> Cache:
    cache = ATTENTION_KINDS[layer.attention].empty_cache(context, layer) if layer.has_attention else {}
    return cache | {EXPERT_COUNTS: moe.no_expert_counts(context)} if layer.is_mixture else cache


def prompt_logits(context: Context, tokens: mtf.Tensor, lengths: mtf.Tensor) -> tuple[mtf.Tensor, list[Cache]]:
    """Computes the logits after the prompts (prefill).

    Args:
        context: its memory_length is that of the caches.
        tokens: int32 [batch, sequence].
        lengths: int32 [batch], the tokens of each prompt, at least 1; any ids may follow them.

    Returns:
        [batch, vocab], and the cache of each layer.
    """

    def attend(h: mtf.Tensor, layer: Layer) -> tuple[mtf.Tensor, Cache]:
        return prefill_attention(context, h, layer, lengths)

    def mix(h: mtf.Tensor, layer: Layer) -> moe.MoeOutput:
        counts = moe.counts_before_sequences(context, lengths)
        return moe.mixture_of_experts(context, h, layer.scope, layer.name, counts)

    x, caches = _embedded(context, tokens, sequence_positions(context)), []
    for layer in layers(context.model):
        output = _block(context, x, layer, attend, mix)
        x = output.x
        caches.append(output.cache)
    return _logits(context, gather_positions(x, lengths - 1)), caches


def next_logits(
    context: Context, tokens: mtf.Tensor, positions: mtf.Tensor, caches: Sequence[Cache]
) -> tuple[mtf.Tensor, list[Cache]]:
    """Computes the logits after one more token of each row (decode).

    Args:
        context: its memory_length is that of the caches.
        tokens: int32 [batch].
        positions: int32 [batch], of those tokens.
        caches: of each layer, valid before these positions.

    Returns:
        [batch, vocab], and the caches with these positions added.
    """
    x, new_caches = _embedded(context, tokens, positions), []
    for layer, cache in zip(layers(context.model), caches, strict=True):
        output = _block(
            context,
            x,
            layer,
            lambda h, layer, cache=cache: decode_attention(context, h, layer, _attention_cache(cache), positions),
            lambda h, layer, cache=cache: moe.mixture_of_experts(
                context, h, layer.scope, layer.name, moe.counts_before_tokens(cache[EXPERT_COUNTS], positions)
            ),
        )
        x = output.x
        new_caches.append(output.cache)
    return _logits(context, x), new_caches
