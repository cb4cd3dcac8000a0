"""Normalisation layers, and the gain that replaces them with rezero."""

from __future__ import annotations

from meshtf import mtf
from models import variables
from models.context import Context
from models.ops import norms as norm_ops

LAYER_NORM_EPSILON = 1e-5


def layer_norm(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Applies layer normalisation over embd.

    Args:
        context: the settings of the graph.
        x: [..., embd].
        scope: of the variables `{scope}/g` [embd] and `{scope}/b` [embd].

    Source: Ba et al. 2016, Layer Normalization.
    """
    gain = context.variable(f"{scope}/g", [context.dims.embd], variables.ones)
    bias = context.variable(f"{scope}/b", [context.dims.embd], variables.zeros)
    return norm_ops.layer_norm(x, gain, bias, LAYER_NORM_EPSILON)


def scale_norm(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Normalises over embd with one gain for all features and no bias.

    The mean is subtracted, unlike in ScaleNorm (Nguyen and Salazar 2019, Transformers without Tears).

    Args:
        context: the settings of the graph.
        x: [..., embd].
        scope: of the variable `{scope}/g`, a scalar.

    Source: GPT-Neo, kept for its checkpoints.
    """
    shape = mtf.Shape([context.dims.embd])
    gain = mtf.broadcast(context.variable(f"{scope}/g", [], variables.ones), shape)
    return norm_ops.layer_norm(x, gain, mtf.zeros(x.mesh, shape, x.dtype), LAYER_NORM_EPSILON)


def block_norm(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Applies the norm before a half of a block; returns x itself with rezero."""
    if context.model.rezero:
        return x
    return (scale_norm if context.model.scalenorm else layer_norm)(context, x, scope)


def residual_gain(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Scales the output of a half of a block: with rezero by the variable `{scope}/g`, a scalar that starts at 0.

    Source: Bachlechner et al. 2020, ReZero is All You Need, equation 1.
    """
    return x * context.variable(f"{scope}/g", [], variables.zeros) if context.model.rezero else x
