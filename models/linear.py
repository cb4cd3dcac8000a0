"""The linear layers of blocks, and the adapters that fine-tuning puts beside them.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1; initial values and the place of
dropout are PEFT's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from configs.schema import ADAPTER_DOWN, ADAPTER_UP, ModelConfig, lora_target
from meshtf import mtf
from models import variables
from models.context import Context
from models.variables import Initializer


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear layer without its bias.

    Attributes:
        kernel: [in, out].
        noise_scope: name of its random numbers, unique in the model even where layers share variables.
        adapter: [in, lora_rank] and [lora_rank, out], whose product is added to the kernel; None: it has none.
    """

    kernel: mtf.Tensor
    noise_scope: str
    adapter: tuple[mtf.Tensor, mtf.Tensor] | None

    def with_outputs(self, form: Callable[[mtf.Tensor], mtf.Tensor]) -> Linear:
        """Returns the layer with its last dimension in another form."""
        adapter = self.adapter and (self.adapter[0], form(self.adapter[1]))
        return dataclasses.replace(self, kernel=form(self.kernel), adapter=adapter)


def linear(
    context: Context, name: str, dims: tuple[mtf.Dimension, mtf.Dimension], initializer: Initializer, noise_scope: str
) -> Linear:
    """Returns the layer whose kernel is the variable `name`, of the dimensions in and out.

    With `lora_rank`, one of `lora_targets` also has `{name}/lora_a` [in, lora_rank] and `{name}/lora_b` [lora_rank,
    out], which is 0 at first.
    """
    adapter = _adapter(context, name, dims) if _is_adapted(context.model, name) else None
    return Linear(context.variable(name, [*dims], initializer), noise_scope, adapter)


def _is_adapted(model: ModelConfig, name: str) -> bool:
    return model.lora_rank > 0 and lora_target(name) in model.lora_targets


def _adapter(context: Context, name: str, dims: tuple[mtf.Dimension, mtf.Dimension]) -> tuple[mtf.Tensor, mtf.Tensor]:
    in_dim, out_dim = dims
    rank_dim = mtf.Dimension("lora_rank", context.model.lora_rank)
    # Kaiming's uniform values for a slope of sqrt(5), as in PEFT.
    down = context.variable(f"{name}{ADAPTER_DOWN}", [in_dim, rank_dim], variables.uniform(1 / math.sqrt(in_dim.size)))
    return down, context.variable(f"{name}{ADAPTER_UP}", [rank_dim, out_dim], variables.zeros)


def products(context: Context, x: mtf.Tensor, layers: Sequence[Linear]) -> list[mtf.Tensor]:
    """Returns the outputs [..., out] of layers of one shape for x [..., in], computed as one product."""
    return [_adapted(context, x, y, layer) for y, layer in zip(_of_kernels(x, layers), layers, strict=True)]


def product(context: Context, x: mtf.Tensor, layer: Linear) -> mtf.Tensor:
    """Returns the output [..., out] of a layer for x [..., in]."""
    (y,) = products(context, x, [layer])
    return y


def _of_kernels(x: mtf.Tensor, layers: Sequence[Linear]) -> list[mtf.Tensor]:
    *row_dims, _ = x.shape.dims
    kernels = [layer.kernel for layer in layers]
    out_dims = kernels[0].shape.dims[1:]
    if len(kernels) == 1:
        return [mtf.einsum([x, *kernels], output_shape=[*row_dims, *out_dims])]
    layers_dim = mtf.Dimension("joined_layers", len(kernels))
    stacked = mtf.stack(kernels, layers_dim.name, axis=1)
    return mtf.unstack(mtf.einsum([x, stacked], output_shape=[*row_dims, layers_dim, *out_dims]), layers_dim)


def _adapted(context: Context, x: mtf.Tensor, y: mtf.Tensor, layer: Linear) -> mtf.Tensor:
    """Adds to y what the adapter of the layer makes of x."""
    if layer.adapter is None:
        return y
    down, up = layer.adapter
    x = context.dropout(x, context.model.lora_dropout, f"{layer.noise_scope}/adapter")
    low = mtf.einsum([x, down], output_shape=[*x.shape.dims[:-1], down.shape.dims[-1]]) * context.model.lora_scale
    return y + mtf.einsum([low, up], output_shape=y.shape)
