"""What a model is trained for: from tokens and labels to the loss at each position."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import NEXT_TOKEN, RANKING
from meshtf import mtf, operation_scope, tf
from models import gpt2
from models.context import Context
from models.losses import BatchLoss, weighted_mean
from models.moe import MoeReport
from models.ops.entmax import entmax_loss
from models.ops.output_layer import linear_cross_entropy, token_cross_entropy

Reports = dict[str, MoeReport]
# From a context, tokens int32 [batch, sequence] and labels int32 [batch, sequence] to the losses at each position,
# float32 [batch, sequence], and the report of each mixture of experts by its name.
Objective = Callable[[Context, mtf.Tensor, mtf.Tensor], tuple[mtf.Tensor, Reports]]


def _next_token(context: Context, tokens: mtf.Tensor, labels: mtf.Tensor) -> tuple[mtf.Tensor, Reports]:
    """Labels are tokens: the next one, or that which was masked."""
    output = gpt2.forward(context, tokens)
    if context.model.entmax_loss:
        logits = gpt2.logits_of(context, output.state)
        with operation_scope("loss"):
            return entmax_loss(logits, labels), output.mixtures
    layer = gpt2.output_layer(context)
    with operation_scope("loss"):
        return token_cross_entropy(output.state, layer, labels), output.mixtures


def _ranking(context: Context, tokens: mtf.Tensor, labels: mtf.Tensor) -> tuple[mtf.Tensor, Reports]:
    """At the end of a worse text, the label is the position at which the better one ends.

    The loss is -log of the softmax of the two scores at the better text.

    Source: Gao et al. 2020, Dialogue Response Ranking Training with Large-Scale Human Feedback Data, section 3.
    """
    output = gpt2.rank(context, tokens)
    better = _at_positions(output.scores, labels)
    return mtf.softplus(output.scores - better), output.mixtures


def _at_positions(values: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Returns values at other positions of the same row: float32 and int32 [batch, sequence] -> [batch, sequence]."""
    whole = mtf.rename_dimension(values, "sequence", "whole")
    chosen = mtf.one_hot(positions, whole.shape.dims[1], dtype=tf.float32)
    return mtf.einsum([chosen, whole], output_shape=values.shape)


OBJECTIVES: dict[str, Objective] = {NEXT_TOKEN: _next_token, RANKING: _ranking}


def position_losses(context: Context, tokens: mtf.Tensor, labels: mtf.Tensor) -> tuple[mtf.Tensor, Reports]:
    """Returns the losses of the model's objective; see `Objective`."""
    return OBJECTIVES[context.model.objective](context, tokens, labels)


def batch_loss(
    context: Context, tokens: mtf.Tensor, labels: mtf.Tensor, weights: mtf.Tensor
) -> tuple[BatchLoss, Reports]:
    """Returns the loss of the model's objective, to train with, and the reports of the mixtures of experts.

    Args:
        context: the settings of the graph.
        tokens: int32 [batch, sequence].
        labels: int32 [batch, sequence].
        weights: float32 [batch, sequence]; they sum to 1 over the whole batch.
    """
    model = context.model
    if model.objective != NEXT_TOKEN or model.entmax_loss:
        losses, mixtures = position_losses(context, tokens, labels)
        return weighted_mean(losses, weights), mixtures
    output = gpt2.forward(context, tokens)
    layer = gpt2.output_layer(context)
    with operation_scope("loss"):
        return BatchLoss(*linear_cross_entropy(output.state, layer, labels, weights, model.z_loss)), output.mixtures
