"""Normalisation layers, where blocks have them, and the gain that replaces them with rezero."""

from __future__ import annotations

from configs.schema import NORM_AFTER, NORM_BEFORE, RMS_NORM
from meshtf import mtf
from models import variables
from models.context import Context
from models.ops import norms as norm_ops


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
    return norm_ops.layer_norm(x, gain, bias, context.model.norm_epsilon)


def rms_norm(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Divides by the root mean square over the last dimension, and multiplies by a gain; there is no bias.

    Args:
        context: with `norm_unit_offset` the gain is 1 + its variable.
        x: [..., embd], or any other last dimension.
        scope: of the variable `{scope}/g`, which has that dimension.

    Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization; the offset is Gemma's.
    """
    has_offset = context.model.norm_unit_offset
    gain = context.variable(f"{scope}/g", x.shape.dims[-1:], variables.zeros if has_offset else variables.ones)
    return norm_ops.rms_norm(x, gain, context.model.norm_epsilon, gain_offset=1.0 if has_offset else 0.0)


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
    return norm_ops.layer_norm(x, gain, mtf.zeros(x.mesh, shape, x.dtype), context.model.norm_epsilon)


def final_norm(context: Context, x: mtf.Tensor) -> mtf.Tensor:
    """Applies the norm `ln_f` before the output layer; returns x itself if the model has none."""
    if not context.model.has_final_norm:
        return x
    return (rms_norm if context.model.norm == RMS_NORM else layer_norm)(context, x, "ln_f")


def _block_norm(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    if context.model.scalenorm:
        return scale_norm(context, x, scope)
    return (rms_norm if context.model.norm == RMS_NORM else layer_norm)(context, x, scope)


def norm_before(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Applies the norm `{scope}` before a half of a block; returns x itself if the block has none there."""
    has_none = context.model.rezero or context.model.norm_placement == NORM_AFTER
    return x if has_none else _block_norm(context, x, scope)


def norm_after(context: Context, y: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Applies the norm `{scope}_post` to the output of a half of a block; returns y itself if the block has none there.

    Source: Team OLMo 2025, 2 OLMo 2 Furious, section 3.2; with norms before too: Gemma Team 2024, Gemma 2, section 2.
    """
    has_none = context.model.rezero or context.model.norm_placement == NORM_BEFORE
    return y if has_none else _block_norm(context, y, f"{scope}_post")


def residual_gain(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Scales the output of a half of a block: with rezero by the variable `{scope}/g`, a scalar that starts at 0.

    Source: Bachlechner et al. 2020, ReZero is All You Need, equation 1.
    """
    return x * context.variable(f"{scope}/g", [], variables.zeros) if context.model.rezero else x
