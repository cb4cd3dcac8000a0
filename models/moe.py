"""The mixture of experts: a feed-forward layer of which each token uses one or two of many."""

from __future__ import annotations

import dataclasses
import math

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import variables
from models.activations import activated
from models.context import Context
from models.kernels.routing import RoutingRule
from models.ops.routing import ExpertCounts, Routing, chosen_logits, first_choices, from_experts, route, to_experts


@dataclasses.dataclass(frozen=True)
class MoeOutput:
    """What a mixture gives.

    Attributes:
        outputs: like its input.
        aux_loss: float32 scalar to add to the loss to minimise; a mean over the batch, with its coefficients in it.
        dropped: float32 scalar, the share of a row's claims on experts that found no room, in the mean over the batch.
        load: float32 [all_experts], the share of tokens whose first choice is each expert; adds up to 1.
        expert_counts: int32 [batch, all_experts], how many tokens of the last token's group each expert was sent;
            the routing of the next token continues from them.
    """

    outputs: mtf.Tensor
    aux_loss: mtf.Tensor
    dropped: mtf.Tensor
    load: mtf.Tensor
    expert_counts: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class _Dims:
    """The dimensions of the mixture; `all_experts` and `tokens` are whole on every processor."""

    batch: mtf.Dimension
    tokens: mtf.Dimension
    embd: mtf.Dimension
    experts: mtf.Dimension
    all_experts: mtf.Dimension
    expert_hidden: mtf.Dimension

    @staticmethod
    def of(model: ModelConfig, shape: mtf.Shape) -> _Dims:
        """For x [batch, embd] or [batch, sequence, embd]."""
        batch_dim, *sequence, embd_dim = shape.dims
        n_experts = model.moe_params.moe_num_experts
        return _Dims(
            batch=batch_dim,
            tokens=mtf.Dimension("tokens", mtf.Shape(sequence).size),
            embd=embd_dim,
            experts=mtf.Dimension("experts", n_experts),
            all_experts=mtf.Dimension("all_experts", n_experts),
            expert_hidden=mtf.Dimension("expert_hidden", model.moe_params.moe_hidden_size),
        )


def routing_rule(model: ModelConfig, is_training: bool) -> RoutingRule:
    """How tokens choose experts. Groups and capacity are functions of the config alone, whatever the length at hand:
    a token is routed alike in a short prompt and in a whole sequence.
    """
    moe = model.moe_params
    group_size = min(moe.moe_group_size, model.n_ctx)
    factor = moe.moe_capacity_factor_train if is_training else moe.moe_capacity_factor_eval
    n_choices = {"top_1": 1, "top_2": 2}[moe.moe_gating]
    # The factor counts claims. GPT-Neo's counted tokens, and gave second choices what first ones had left; tokens that
    # take places in order would leave none to the last of a group.
    even_share = int(min(group_size, group_size * n_choices * factor / moe.moe_num_experts))
    return RoutingRule(
        n_choices=n_choices,
        second_policy=moe.moe_second_policy_train if is_training else moe.moe_second_policy_eval,
        second_threshold=moe.moe_second_threshold_train if is_training else moe.moe_second_threshold_eval,
        group_size=group_size,
        capacity=min(group_size, max(moe.moe_min_expert_capacity, even_share)),
    )


def _router_logits(context: Context, tokens: mtf.Tensor, dims: _Dims, scope: str) -> mtf.Tensor:
    """float32 [batch, tokens, all_experts], whatever the dtype of the activations.

    Source: Fedus et al. 2021, Switch Transformers, section 2.4, on why the router is float32.
    """
    name = f"gpt2/{scope}/top_2_gating/kernel"
    initializer = variables.normal(1.0 / math.sqrt(dims.embd.size))
    # Not `context.variable`, which would round it to the activations' dtype.
    kernel = variables.get_variable(context.mesh, name, mtf.Shape([dims.embd, dims.all_experts]), initializer)
    return mtf.einsum([mtf.cast(tokens, tf.float32), kernel], [dims.batch, dims.tokens, dims.all_experts])


def _gates(logits: mtf.Tensor, log_z: mtf.Tensor, experts: mtf.Tensor) -> mtf.Tensor:
    """Weights of the chosen experts, float32 [batch, tokens, choices]: of two, their probabilities divided by their
    sum; of one, its probability, without which the router would get no gradient.
    """
    chosen, choices_dim = chosen_logits(logits, experts), experts.shape.dims[-1]
    if choices_dim.size == 1:
        return mtf.exp(chosen - mtf.reshape(log_z, [*log_z.shape.dims, choices_dim]))
    return mtf.softmax(chosen, choices_dim)


def _aux_loss(model: ModelConfig, logits: mtf.Tensor, log_z: mtf.Tensor, load: mtf.Tensor) -> mtf.Tensor:
    """Load-balance loss and router z-loss, float32 scalar.

    Args:
        model: for the coefficients.
        logits: [batch, tokens, all_experts].
        log_z: [batch, tokens], of the logits' softmax.
        load: [batch, all_experts], shares of first choices.

    Source: Fedus et al. 2021, Switch Transformers, equations 4-6, for each row of the batch; Zoph et al. 2022,
    ST-MoE, equation 5.
    """
    tokens_dim, experts_dim = logits.shape.dims[1:]
    probability = mtf.reduce_mean(mtf.exp(logits - log_z), reduced_dim=tokens_dim)
    balance = mtf.reduce_mean(load * probability) * (experts_dim.size * experts_dim.size)
    z_loss = mtf.reduce_mean(mtf.square(log_z))
    return balance * model.moe_params.moe_loss_coef + z_loss * model.moe_params.moe_z_loss


def _experts(context: Context, slots: mtf.Tensor, dims: _Dims, scope: str, place: str) -> mtf.Tensor:
    """Each expert's own two dense layers on its slots [experts, expert_batch, slots, embd], without biases."""
    experts, embd, hidden = dims.experts, dims.embd, dims.expert_hidden
    initializer = variables.normal(1.0 / math.sqrt(embd.size))
    kernel = context.variable(f"{scope}/wi/kernel", [experts, embd, hidden], initializer)
    y = mtf.einsum([slots, kernel], slots.shape.dims[:-1] + [hidden])
    y = activated(context, y, context.model.moe_activation, scope, place)
    initializer = variables.normal(1.0 / math.sqrt(hidden.size))
    kernel = context.variable(f"{scope}/wo/kernel", [experts, hidden, embd], initializer)
    return mtf.einsum([y, kernel], slots.shape)


def _moved_through_experts(
    context: Context, tokens: mtf.Tensor, gates: mtf.Tensor, routing: Routing, scope: str, place: str
) -> mtf.Tensor:
    """The gated sum of each token's experts: [batch, tokens, embd]."""
    dims = _Dims.of(context.model, tokens.shape)
    routes = routing.routes
    y = _experts(context, to_experts(tokens, routes, dims.experts), dims, scope, place)
    # The gates travel to the slots, so that nothing but the sum of gated rows travels back, and the gradient of the
    # gates is taken where the rows are.
    copies = routes.of_copies()
    gates = mtf.cast(mtf.reshape(gates, copies.destinations.shape), tokens.dtype)
    gates = to_experts(gates, copies, dims.experts)
    return from_experts(y * mtf.reshape(gates, y.shape.dims[:-1]), routes)


def no_expert_counts(context: Context) -> mtf.Tensor:
    """Those made before any token: int32 [batch, all_experts]."""
    n_experts = context.model.moe_params.moe_num_experts
    return mtf.zeros(context.mesh, [context.dims.batch, mtf.Dimension("all_experts", n_experts)], tf.int32)


def counts_before_sequences(context: Context, lengths: mtf.Tensor) -> ExpertCounts:
    """What sequences find that begin at position 0, of which each row's first `lengths` tokens are there."""
    return ExpertCounts(no_expert_counts(context), mtf.zeros_like(lengths), lengths)


def counts_before_tokens(expert_counts: mtf.Tensor, positions: mtf.Tensor) -> ExpertCounts:
    """What one token of each row finds, at its position."""
    return ExpertCounts(expert_counts, positions, mtf.ones_like(positions))


def mixture_of_experts(
    context: Context,
    x: mtf.Tensor,
    scope: str,
    place: str,
    counts: ExpertCounts | None = None,
) -> MoeOutput:
    """A feed-forward layer of many experts, of which each token uses the one or two that a router chooses.

    An expert takes so many tokens of a group (positions of one row) as its capacity says; a token beyond it gets
    nothing from that expert, and the weight that the router gave to it is lost. Tokens take their places in order,
    each its first and second choice before the next token, so that no token depends on a later one. GPT-Neo gives
    places to all first choices of a group before any second one: there a later token's first choice can put out an
    earlier one's second, and generation differs from training.

    Args:
        context: training has a capacity and a policy of its own, and dropout.
        x: [batch, sequence, embd], whole sequences from position 0; or [batch, embd], one token of each.
        scope: of the variables `{scope}/top_2_gating/kernel` [embd, all_experts], `{scope}/wi/kernel` [experts, embd,
            expert_hidden] and `{scope}/wo/kernel` [experts, expert_hidden, embd].
        place: of the random numbers; no two places of a model are the same.
        counts: with one token, how many earlier tokens each expert was sent; with padded sequences, their lengths;
            None: the sequences are not padded.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks; Lepikhin et al. 2020, GShard, section 2.2, for
    two experts, capacity and the random second one; Fedus et al. 2021, Switch Transformers, for one.
    """
    dims = _Dims.of(context.model, x.shape)
    if counts is None:
        assert x.shape.ndims == 3, "single tokens come with expert counts"
        lengths = mtf.constant(context.mesh, dims.tokens.size, [dims.batch], tf.int32)
        counts = counts_before_sequences(context, lengths)
    tokens = mtf.reshape(x, [dims.batch, dims.tokens, dims.embd])
    logits = _router_logits(context, tokens, dims, scope)
    log_z = mtf.reduce_logsumexp(logits, dims.all_experts)
    rule = routing_rule(context.model, context.is_training)
    routing = route(logits, counts, rule, context.noise_of(f"{place}/second"))
    gates = _gates(logits, log_z, routing.experts)
    y = mtf.reshape(_moved_through_experts(context, tokens, gates, routing, scope, place), x.shape)
    load = first_choices(routing.experts, dims.all_experts)
    return MoeOutput(
        outputs=context.dropout(y, context.model.moe_params.moe_dropout_rate, f"{place}/residual"),
        aux_loss=_aux_loss(context.model, logits, log_z, load),
        dropped=mtf.reduce_mean(routing.dropped),
        load=mtf.reduce_mean(load, reduced_dim=dims.batch),
        expert_counts=routing.expert_counts,
    )
