"""The position-wise feed-forward layer."""

from __future__ import annotations

import math
from collections.abc import Callable

from configs.schema import ModelConfig
from meshtf import mtf
from models import variables
from models.activations import activated
from models.context import Context
from models.ops.activations import bias_add

DENSE_STD = 0.02


def dense_std(context: Context, fan_in: int) -> float:
    """Returns the standard deviation of the initial values of a dense kernel."""
    return DENSE_STD / math.sqrt(fan_in) if context.model.scale_by_in else DENSE_STD


def _bias(context: Context, name: str, dim: mtf.Dimension) -> mtf.Tensor | None:
    return context.variable(name, [dim], variables.zeros) if context.model.mlp_bias else None


def _biased(x: mtf.Tensor, bias: mtf.Tensor | None) -> mtf.Tensor:
    return x if bias is None else bias_add(x, bias)


def _expansion(context: Context, name: str, n_parts: int = 1) -> tuple[mtf.Tensor, mtf.Tensor | None]:
    """Returns kernel and bias of a layer from embd to `n_parts` times the hidden features."""
    embd, expanded = context.dims.embd, context.dims.intermediate_expanded
    wide = mtf.Dimension(expanded.name, n_parts * expanded.size)
    kernel = context.variable(f"{name}/kernel", [embd, wide], variables.normal(dense_std(context, embd.size)))
    return kernel, _bias(context, f"{name}/bias", wide)


def _expanded(context: Context, x: mtf.Tensor, kernel: mtf.Tensor) -> mtf.Tensor:
    return mtf.einsum([x, kernel], output_shape=x.shape.dims[:-1] + [context.dims.intermediate_expanded])


def _hidden(context: Context, x: mtf.Tensor, scope: str, noise_scope: str) -> mtf.Tensor:
    """[..., embd] -> [..., intermediate_expanded]."""
    kernel, bias = _expansion(context, f"{scope}/conv1d_main/c_fc")
    hidden = _expanded(context, x, kernel)
    return activated(context, hidden, context.model.activation_function, scope, noise_scope, bias)


def _gated_hidden(context: Context, x: mtf.Tensor, scope: str, noise_scope: str) -> mtf.Tensor:
    """[..., embd] -> [..., intermediate_expanded]: the activation of one layer times another layer.

    Source: Shazeer 2020, GLU Variants Improve Transformer, equation 6.
    """
    gate_kernel, gate_bias = _expansion(context, f"{scope}/conv1d_main/c_gate")
    kernel, bias = _expansion(context, f"{scope}/conv1d_main/c_fc")
    gates = _expanded(context, x, gate_kernel)
    gates = activated(context, gates, context.model.activation_function, scope, noise_scope, gate_bias)
    return _biased(_expanded(context, x, kernel), bias) * gates


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
    kernel, bias = _expansion(context, f"{scope}/conv1d_main/c_fc", halves.size)
    kernel = _in_halves(kernel, halves)
    both = mtf.einsum([x, kernel], output_shape=x.shape.dims[:-1] + kernel.shape.dims[1:])
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
            with mlp_glu, with gated_mlp `.../c_gate/{kernel,bias}` of the same shapes, `.../c_proj/{kernel,bias}` and
            those of the activation; there are no biases without mlp_bias.
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
    kernel = context.variable(f"{scope}/conv1d_main/c_proj/kernel", [expanded, embd], variables.normal(std))
    bias = _bias(context, f"{scope}/conv1d_main/c_proj/bias", embd)
    y = _biased(mtf.einsum([hidden, kernel], output_shape=x.shape), bias)
    return context.dropout(y, context.model.res_dropout, f"{noise_scope}/residual")
