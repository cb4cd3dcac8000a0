"""Mixture of experts: a feed-forward layer of many experts, of which each token uses one or two."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import variables
from models.activations import activated
from models.context import Context
from models.kernels.routing import RoutingParams
from models.ops.dropout import Noise
from models.ops.routing import (
    ExpertCounts,
    Routing,
    chosen_logits,
    first_choices,
    from_experts,
    route,
    route_packed,
    to_experts,
)


class MoeReport(NamedTuple):
    """The losses and metrics of a mixture of experts.

    Attributes:
        aux_loss: float32 scalar, the mean over the batch of the auxiliary losses, each times its coefficient.
        dropped_fraction: float32 scalar, the fraction of a row's assignments that exceed an expert's capacity, averaged
            over the batch.
        expert_load: float32 [all_experts], the fraction of tokens whose first choice is each expert; sums to 1.
    """

    aux_loss: mtf.Tensor
    dropped_fraction: mtf.Tensor
    expert_load: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class MoeOutput:
    """The output of a mixture of experts.

    Attributes:
        outputs: shaped like the input.
        report: its losses and metrics.
        expert_counts: int32 [batch, all_experts], how many tokens of the last token's group each expert was sent;
            the routing of the next token continues from them.
    """

    outputs: mtf.Tensor
    report: MoeReport
    expert_counts: mtf.Tensor


def _all_experts(model: ModelConfig) -> mtf.Dimension:
    """Returns the experts as a dimension that is not split."""
    return mtf.Dimension("all_experts", model.moe_params.moe_num_experts)


def routing_params(model: ModelConfig, is_training: bool) -> RoutingParams:
    """Returns how tokens are routed.

    Group size and capacity depend on the config alone, so that a token is routed alike in a short prompt and in a whole
    sequence.
    """
    moe = model.moe_params
    group_size = min(moe.moe_group_size, model.n_ctx)
    factor = moe.moe_capacity_factor_train if is_training else moe.moe_capacity_factor_eval
    n_choices = {"top_1": 1, "top_2": 2}[moe.moe_gating]
    # The factor counts assignments, n_choices of each token. GPT-Neo's counted tokens and gave second choices what the
    # first had left; with assignment in order that would leave no room to the last tokens of a group.
    even_share = int(min(group_size, group_size * n_choices * factor / moe.moe_num_experts))
    return RoutingParams(
        n_choices=n_choices,
        second_policy=moe.moe_second_policy_train if is_training else moe.moe_second_policy_eval,
        second_threshold=moe.moe_second_threshold_train if is_training else moe.moe_second_threshold_eval,
        group_size=group_size,
        capacity=min(group_size, max(moe.moe_min_expert_capacity, even_share)),
    )


def _router_logits(context: Context, tokens: mtf.Tensor, scope: str) -> mtf.Tensor:
    """float32 [batch, tokens, all_experts], whatever the dtype of the activations.

    Source: Fedus et al. 2021, Switch Transformers, section 2.4, on why the router is float32; with muP its kernel is
    that of an output layer: Yang et al. 2022, Tensor Programs V, table 3.
    """
    *row_dims, embd_dim = tokens.shape.dims
    experts_dim = _all_experts(context.model)
    initializer = variables.normal(1.0 / math.sqrt(embd_dim.size * context.model.width_multiplier))
    kernel = context.float32_variable(f"{scope}/top_2_gating/kernel", [embd_dim, experts_dim], initializer)
    return mtf.einsum([mtf.cast(tokens, tf.float32), kernel], [*row_dims, experts_dim])


def _gates(logits: mtf.Tensor, log_z: mtf.Tensor, experts: mtf.Tensor) -> mtf.Tensor:
    """Returns the weights of the chosen experts, float32 [batch, tokens, choices].

    The probabilities of two choices are normalised to sum to 1; that of a single choice is not, as the router would get
    no gradient.
    """
    chosen, choices_dim = chosen_logits(logits, experts), experts.shape.dims[-1]
    if choices_dim.size == 1:
        return mtf.exp(chosen - mtf.reshape(log_z, [*log_z.shape.dims, choices_dim]))
    return mtf.softmax(chosen, choices_dim)


def _aux_loss(model: ModelConfig, logits: mtf.Tensor, log_z: mtf.Tensor, expert_load: mtf.Tensor) -> mtf.Tensor:
    """Returns the sum of the load-balance loss and the router z-loss, float32 scalar.

    Args:
        model: for the coefficients.
        logits: [batch, tokens, all_experts].
        log_z: [batch, tokens], of the logits' softmax.
        expert_load: [batch, all_experts], fractions of first choices.

    Source: Fedus et al. 2021, Switch Transformers, equations 4-6, for each row of the batch; Zoph et al. 2022,
    ST-MoE, equation 5.
    """
    tokens_dim, experts_dim = logits.shape.dims[1:]
    probability = mtf.reduce_mean(mtf.exp(logits - log_z), reduced_dim=tokens_dim)
    balance = mtf.reduce_mean(expert_load * probability) * (experts_dim.size * experts_dim.size)
    z_loss = mtf.reduce_mean(mtf.square(log_z))
    return balance * model.moe_params.moe_loss_coef + z_loss * model.moe_params.moe_z_loss


def _experts(context: Context, slots: mtf.Tensor, scope: str, noise_scope: str) -> mtf.Tensor:
    """Each expert's own two dense layers on its slots [experts, expert_batch, slots, embd], without biases."""
    experts, *_, embd = slots.shape.dims
    hidden = mtf.Dimension("expert_hidden", context.model.moe_params.moe_hidden_size)
    initializer = variables.normal(1.0 / math.sqrt(embd.size))
    kernel = context.variable(f"{scope}/wi/kernel", [experts, embd, hidden], initializer)
    y = mtf.einsum([slots, kernel], slots.shape.dims[:-1] + [hidden])
    y = activated(context, y, context.model.moe_activation, scope, noise_scope)
    initializer = variables.normal(1.0 / math.sqrt(hidden.size))
    kernel = context.variable(f"{scope}/wo/kernel", [experts, hidden, embd], initializer)
    return mtf.einsum([y, kernel], slots.shape)


def _through_experts(
    context: Context, tokens: mtf.Tensor, gates: mtf.Tensor, routing: Routing, scope: str, noise_scope: str
) -> mtf.Tensor:
    """Returns the gated sum of each token's experts, [batch, tokens, embd]."""
    experts_dim = mtf.Dimension("experts", context.model.moe_params.moe_num_experts)
    routes = routing.routes
    y = _experts(context, to_experts(tokens, routes, experts_dim), scope, noise_scope)
    # The gates are sent to the slots, so that only the sum of gated rows is sent back, and the gradient of the gates is
    # computed where the rows are.
    copies = routes.of_copies()
    gates = mtf.cast(mtf.reshape(gates, copies.destinations.shape), tokens.dtype)
    gates = to_experts(gates, copies, experts_dim)
    return from_experts(y * mtf.reshape(gates, y.shape.dims[:-1]), routes)


def no_expert_counts(context: Context) -> mtf.Tensor:
    """Returns the expert counts before any token: int32 [batch, all_experts], zeros."""
    return mtf.zeros(context.mesh, [context.dims.batch, _all_experts(context.model)], tf.int32)


def counts_before_sequences(context: Context, lengths: mtf.Tensor) -> ExpertCounts:
    """Returns the counts with which to route whole sequences of `lengths` tokens, int32 [batch]."""
    return ExpertCounts(no_expert_counts(context), mtf.zeros_like(lengths), lengths)


def counts_before_tokens(expert_counts: mtf.Tensor, positions: mtf.Tensor) -> ExpertCounts:
    """Returns the counts with which to route one token of each row, at its position, int32 [batch]."""
    return ExpertCounts(expert_counts, positions, mtf.ones_like(positions))


def _routing(context: Context, logits: mtf.Tensor, counts: ExpertCounts | None, noise: Noise) -> Routing:
    """Routes the tokens of `mixture_of_experts`."""
    params = routing_params(context.model, context.is_training)
    if context.packing is not None:
        return route_packed(logits, context.packing, params, noise)
    if counts is None:
        batch_dim, tokens_dim, _ = logits.shape.dims
        counts = counts_before_sequences(context, mtf.constant(context.mesh, tokens_dim.size, [batch_dim], tf.int32))
    return route(logits, counts, params, noise)


def mixture_of_experts(
    context: Context, x: mtf.Tensor, scope: str, noise_scope: str, counts: ExpertCounts | None = None
) -> MoeOutput:
    """Applies a feed-forward layer of many experts, of which a router chooses one or two for each token.

    Each expert takes at most `capacity` tokens of a group (consecutive positions of a row). A token beyond that gets
    nothing from the expert, and the router's weight for it is lost. Tokens are assigned in order, each with its first
    and second choice before the next token, so that no token depends on a later one. GPT-Neo assigns all first choices
    of a group before any second one: there the first choice of a later token can displace the second choice of an
    earlier one, and generation differs from training.

    Args:
        context: training has its own capacity and policy, and dropout.
        x: [batch, sequence, embd], whole sequences from position 0; or [batch, embd], one token of each.
        scope: of the variables `{scope}/top_2_gating/kernel` [embd, all_experts], `{scope}/wi/kernel` [experts, embd,
            expert_hidden] and `{scope}/wo/kernel` [experts, expert_hidden, embd].
        noise_scope: name of its random numbers, unique in the model.
        counts: with one token, how many earlier tokens each expert was sent; with padded sequences, their lengths;
            None: the sequences are not padded, or the context has packed texts.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks; Lepikhin et al. 2020, GShard, section 2.2, for
    two experts, capacity and the random second one; Fedus et al. 2021, Switch Transformers, for one.
    """
    batch_dim, *sequence_dims, embd_dim = x.shape.dims
    tokens_dim = mtf.Dimension("tokens", mtf.Shape(sequence_dims).size)
    tokens = mtf.reshape(x, [batch_dim, tokens_dim, embd_dim])
    logits = _router_logits(context, tokens, scope)
    experts_dim = logits.shape.dims[-1]
    log_z = mtf.reduce_logsumexp(logits, experts_dim)
    routing = _routing(context, logits, counts, context.noise_of(f"{noise_scope}/second"))
    gates = _gates(logits, log_z, routing.experts)
    y = mtf.reshape(_through_experts(context, tokens, gates, routing, scope, noise_scope), x.shape)
    expert_load = first_choices(routing.experts, experts_dim)
    report = MoeReport(
        aux_loss=_aux_loss(context.model, logits, log_z, expert_load),
        dropped_fraction=mtf.reduce_mean(routing.dropped_fraction),
        expert_load=mtf.reduce_mean(expert_load, reduced_dim=batch_dim),
    )
    y = context.dropout(y, context.model.moe_params.moe_dropout_rate, f"{noise_scope}/residual")
    outputs = context.dropout(y, context.model.res_dropout, f"{noise_scope}/mlp/residual")
    return MoeOutput(outputs, report, routing.expert_counts)
