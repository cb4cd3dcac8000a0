"""The position-wise feed-forward layer."""

from __future__ import annotations

import math

from meshtf import mtf
from models import variables
from models.activations import ACTIVATION_FUNCTIONS
from models.context import Context
from models.ops.activations import bias_add, biased_activation

DENSE_STD = 0.02


def _dense_std(context: Context, fan_in: int) -> float:
    return DENSE_STD / math.sqrt(fan_in) if context.model.scale_by_in else DENSE_STD


def feed_forward(context: Context, x: mtf.Tensor, scope: str) -> mtf.Tensor:
    """Two dense layers with the activation between them.

    Args:
      x: [batch, sequence, embd].
      scope: of the variables `{scope}/conv1d_main/c_fc/{kernel,bias}` [embd, intermediate_expanded] and
        `.../c_proj/{kernel,bias}`.

    Returns:
      [batch, sequence, embd].

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.3; the scaled output layer is Radford et al.
    2019 (GPT-2), section 2.3.
    """
    embd, expanded = context.dims.embd, context.dims.intermediate_expanded
    projection_std = _dense_std(context, expanded.size)
    if context.model.scale_by_depth:
        projection_std /= math.sqrt(context.model.n_layer)
    main = f"{scope}/conv1d_main"
    kernel = context.variable(f"{main}/c_fc/kernel", [embd, expanded], variables.normal(_dense_std(context, embd.size)))
    bias = context.variable(f"{main}/c_fc/bias", [expanded], variables.zeros)
    hidden = mtf.einsum([x, kernel], output_shape=x.shape.dims[:-1] + [expanded])
    hidden = biased_activation(hidden, bias, ACTIVATION_FUNCTIONS[context.model.activation_function])
    kernel = context.variable(f"{main}/c_proj/kernel", [expanded, embd], variables.normal(projection_std))
    bias = context.variable(f"{main}/c_proj/bias", [embd], variables.zeros)
    y = bias_add(mtf.einsum([hidden, kernel], output_shape=x.shape), bias)
    return context.dropout(y, context.model.res_dropout, f"{scope}/residual")
