"""What a model is trained for: from tokens and labels to the loss at each position."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import NEXT_TOKEN, RANKING
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.losses import TokenLosses, token_losses
from models.moe import MoeReport

# From a context, tokens int32 [batch, sequence] and labels int32 [batch, sequence] to the losses at each position and
# the report of each mixture of experts by its name.
Objective = Callable[[Context, mtf.Tensor, mtf.Tensor], tuple[TokenLosses, dict[str, MoeReport]]]


def _next_token(context: Context, tokens: mtf.Tensor, labels: mtf.Tensor) -> tuple[TokenLosses, dict[str, MoeReport]]:
    """Labels are tokens: the next one, or that which was masked."""
    output = gpt2.forward(context, tokens)
    return token_losses(context.model, output.logits, labels), output.mixtures


def _ranking(context: Context, tokens: mtf.Tensor, labels: mtf.Tensor) -> tuple[TokenLosses, dict[str, MoeReport]]:
    """At the end of a worse text, the label is the position at which the better one ends.

    The loss is -log of the softmax of the two scores at the better text.

    Source: Gao et al. 2020, Dialogue Response Ranking Training with Large-Scale Human Feedback Data, section 3.
    """
    output = gpt2.rank(context, tokens)
    better = _at_positions(output.scores, labels)
    return TokenLosses(mtf.softplus(output.scores - better), log_z=None), output.mixtures


def _at_positions(values: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Returns values at other positions of the same row: float32 and int32 [batch, sequence] -> [batch, sequence]."""
    whole = mtf.rename_dimension(values, "sequence", "whole")
    chosen = mtf.one_hot(positions, whole.shape.dims[1], dtype=tf.float32)
    return mtf.einsum([chosen, whole], output_shape=values.shape)


OBJECTIVES: dict[str, Objective] = {NEXT_TOKEN: _next_token, RANKING: _ranking}


def position_losses(
    context: Context, tokens: mtf.Tensor, labels: mtf.Tensor
) -> tuple[TokenLosses, dict[str, MoeReport]]:
    """Returns the losses of the model's objective; see `Objective`."""
    return OBJECTIVES[context.model.objective](context, tokens, labels)
