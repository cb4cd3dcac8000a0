"""Normalisation layers."""

from __future__ import annotations

from meshtf import mtf
from models import variables
from models.context import Context
from models.ops import norms as norm_ops

LAYER_NORM_EPSILON = 1e-5


def layer_norm(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Layer normalisation over embd.

    Args:
      x: [batch, sequence, embd].
      scope: of the variables `{scope}/g` [embd] and `{scope}/b` [embd].

    Source: Ba et al. 2016, Layer Normalization.
    """
    gain = context.variable(f"{scope}/g", [context.dims.embd], variables.ones)
    bias = context.variable(f"{scope}/b", [context.dims.embd], variables.zeros)
    return norm_ops.layer_norm(x, gain, bias, LAYER_NORM_EPSILON)
