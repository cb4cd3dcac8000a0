"""The position-wise feed-forward layer."""

from __future__ import annotations

import math
from collections.abc import Callable

from configs.schema import ModelConfig
from meshtf import mtf
from models import variables
from models.activations import activated
from models.context import Context
from models.linear import Linear, linear, product
from models.ops.activations import bias_add

DENSE_STD = 0.02


def dense_std(context: Context, fan_in: int) -> float:
    """Returns the standard deviation of the initial values of a dense kernel, which falls with the width in muP."""
    return DENSE_STD / math.sqrt(fan_in if context.model.scale_by_in else context.model.width_multiplier)


def _bias(context: Context, name: str, dim: mtf.Dimension) -> mtf.Tensor | None:
    return context.variable(name, [dim], variables.zeros) if context.model.mlp_bias else None


def _biased(x: mtf.Tensor, bias: mtf.Tensor | None) -> mtf.Tensor:
    return x if bias is None else bias_add(x, bias)


def _expansion(context: Context, name: str, noise_scope: str, n_parts: int = 1) -> tuple[Linear, mtf.Tensor | None]:
    """Returns the layer `{name}/kernel` from embd to `n_parts` times the hidden features, and its bias."""
    embd, expanded = context.dims.embd, context.dims.intermediate_expanded
    wide = mtf.Dimension(expanded.name, n_parts * expanded.size)
    initializer = variables.normal(dense_std(context, embd.size))
    layer = linear(context, f"{name}/kernel", (embd, wide), initializer, noise_scope)
    return layer, _bias(context, f"{name}/bias", wide)


def _hidden(context: Context, x: mtf.Tensor, scope: str, noise_scope: str) -> mtf.Tensor:
    """[..., embd] -> [..., intermediate_expanded]."""
    layer, bias = _expansion(context, f"{scope}/conv1d_main/c_fc", f"{noise_scope}/c_fc")
    hidden = product(context, x, layer)
    return activated(context, hidden, context.model.activation_function, scope, noise_scope, bias)


def _gated_hidden(context: Context, x: mtf.Tensor, scope: str, noise_scope: str) -> mtf.Tensor:
    """[..., embd] -> [..., intermediate_expanded]: the activation of one layer times another layer.

    Source: Shazeer 2020, GLU Variants Improve Transformer, equation 6.
    """
    gate_layer, gate_bias = _expansion(context, f"{scope}/conv1d_main/c_gate", f"{noise_scope}/c_gate")
    layer, bias = _expansion(context, f"{scope}/conv1d_main/c_fc", f"{noise_scope}/c_fc")
    gates = product(context, x, gate_layer)
    gates = activated(context, gates, context.model.activation_function, scope, noise_scope, gate_bias)
    return _biased(product(context, x, layer), bias) * gates


def _in_halves(x: mtf.Tensor, halves: mtf.Dimension) -> mtf.Tensor:
    """[..., intermediate_expanded] -> [..., glu_halves, intermediate_expanded of half the size].

    The dimension gets a name that no layout splits in between: mesh-TensorFlow cannot halve a dimension that is split.
    """
    whole = mtf.rename_dimension(x, "intermediate_expanded", "whole")
    *other_dims, long_dim = whole.shape.dims
    half_dim = mtf.Dimension("intermediate_expanded", long_dim.size // halves.size)
    return mtf.reshape(whole, [*other_dims, halves, half_dim])


def _glu_hidden(context: Context, x: mtf.Tensor, scope: str, noise_scope: str) -> mtf.Tensor:
    """[..., embd] -> [..., intermediate_expanded]: one half of a wider layer times the activation of the other.

    Source: Dauphin et al. 2017, Language Modeling with Gated Convolutional Networks, section 2; that the gate is the
    second half is GPT-Neo's, kept for its checkpoints.
    """
    halves = mtf.Dimension("glu_halves", 2)
    layer, bias = _expansion(context, f"{scope}/conv1d_main/c_fc", f"{noise_scope}/c_fc", halves.size)
    both = product(context, x, layer.with_outputs(lambda kernel: _in_halves(kernel, halves)))
    values, gates = mtf.unstack(both, halves)
    values_bias, gates_bias = (None, None) if bias is None else mtf.unstack(_in_halves(bias, halves), halves)
    gates = activated(context, gates, context.model.activation_function, scope, noise_scope, gates_bias)
    return _biased(values, values_bias) * gates


def _hidden_layer(model: ModelConfig) -> Callable[[Context, mtf.Tensor, str, str], mtf.Tensor]:
    """Returns the function from [..., embd] to the hidden features, [..., intermediate_expanded]."""
    if model.gated_mlp:
        return _gated_hidden
    return _glu_hidden if model.mlp_glu else _hidden


def feed_forward(context: Context, x: mtf.Tensor, scope: str, noise_scope: str) -> mtf.Tensor:
    """Applies two dense layers with an activation, or a gated linear unit, between them.

    Args:
        context: the settings of the graph.
        x: [..., embd], batch first.
        scope: of the variables `{scope}/conv1d_main/c_fc/{kernel,bias}` [embd, intermediate_expanded], twice as wide
            with mlp_glu, with gated_mlp `.../c_gate/{kernel,bias}` of the same shapes, `.../c_proj/{kernel,bias}`, the
            kernels' adapters (see `linear`) and those of the activation; there are no biases without mlp_bias.
        noise_scope: name of its random numbers, unique in the model even where layers share variables.

    Returns:
        [..., embd].

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.3; scaled output layer: Radford et al. 2019
    (GPT-2), section 2.3.
    """
    embd, expanded = context.dims.embd, context.dims.intermediate_expanded
    std = dense_std(context, expanded.size)
    if context.model.scale_by_depth:
        std /= math.sqrt(context.model.n_layer)
    hidden = _hidden_layer(context.model)(context, x, scope, noise_scope)
    name, noise = f"{scope}/conv1d_main/c_proj", f"{noise_scope}/c_proj"
    layer = linear(context, f"{name}/kernel", (expanded, embd), variables.normal(std), noise)
    y = _biased(product(context, hidden, layer), _bias(context, f"{name}/bias", embd))
    return context.dropout(y, context.model.res_dropout, f"{noise_scope}/residual")
