"""Training losses."""

from __future__ import annotations

import math
from typing import NamedTuple

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models.kernels.entmax import ENTMAX_ALPHA


class BatchLoss(NamedTuple):
    """The loss of a batch, float32 scalars in nats.

    Attributes:
        training: the scalar to minimise.
        mean: the weighted mean of the losses, to report.
    """

    training: mtf.Tensor
    mean: mtf.Tensor


def weighted_mean(losses: mtf.Tensor, weights: mtf.Tensor) -> BatchLoss:
    """Returns the weighted mean of the losses, which is minimised itself.

    Args:
        losses: float32 [batch, sequence].
        weights: float32 [batch, sequence]; they sum to 1 over the whole batch.
    """
    mean = mtf.reduce_sum(weights * losses)
    return BatchLoss(mean, mean)


def as_shares(weights: mtf.Tensor) -> mtf.Tensor:
    """Normalises the weights of the labels to sum to 1; returns zeros if all are 0.

    Args:
        weights: float32 [batch, sequence], >= 0.
    """
    total = mtf.broadcast(mtf.reduce_sum(weights), weights.shape)
    return mtf.cwise(tf.math.divide_no_nan, [weights, total])


def uniform_loss(model: ModelConfig) -> float:
    """Returns the loss of a model for which all tokens, or both texts of a pair, are equally likely, in nats."""
    if model.ranks:
        return math.log(2.0)
    if not model.entmax_loss:
        return math.log(model.n_vocab)
    return (1.0 - model.n_vocab ** (1.0 - ENTMAX_ALPHA)) / (ENTMAX_ALPHA * (ENTMAX_ALPHA - 1.0))
