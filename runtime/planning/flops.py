"""Floating-point operations of training, 2 for each multiplication with its addition; what is not a matrix product is
left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from configs.schema import ModelConfig
from meshtf import mtf
from models.kernels.linear_attention import CHUNK
from models.layer import Layer, layers
from models.moe import routing_rule
from models.ops.attention import SoftmaxAttention, SoftmaxAttentionGradient
from models.ops.linear_attention import LinearAttention, SliceKernel
from runtime.planning.dry_run import DryStep
from runtime.training.grad_accumulation import MicrobatchLoop


@dataclasses.dataclass(frozen=True)
class TokenFlops:
    """Of one token, on all processors together.

    Attributes:
        recomputed: of the forward pass, done again in the backward pass.
    """

    forward: float
    backward: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputed


def flops_of_token(model: ModelConfig) -> TokenFlops:
    """What the model asks for: attention over the positions that are seen, and the experts that a token uses.

    Source: Kaplan et al. 2020, Scaling Laws for Neural Language Models, section 2.1; that the backward pass costs two
    forward passes is from there too.
    """
    blocks = sum(_layer_flops(model, layer) for layer in layers(model))
    forward = blocks + 2.0 * model.n_embd * model.n_vocab
    return TokenFlops(forward, 2.0 * forward, blocks if model.recompute_grad else 0.0)


def _layer_flops(model: ModelConfig, layer: Layer) -> float:
    halves = _mixture_flops(model) if layer.is_mixture else _feed_forward_flops(model)
    if model.macaron:
        halves += _feed_forward_flops(model)
    return halves + _ATTENTION_FLOPS[layer.attention](model)


def _feed_forward_flops(model: ModelConfig) -> float:
    return (24.0 if model.mlp_glu else 16.0) * model.n_embd**2


def _mixture_flops(model: ModelConfig) -> float:
    moe = model.moe_params
    n_choices = routing_rule(model, is_training=True).n_choices
    return 2.0 * model.n_embd * moe.moe_num_experts + n_choices * 4.0 * model.n_embd * moe.moe_hidden_size


def _softmax_flops(model: ModelConfig, n_seen: float) -> float:
    return 8.0 * model.n_embd**2 + 4.0 * model.n_embd * n_seen


def _global_flops(model: ModelConfig) -> float:
    return _softmax_flops(model, mean_seen(model.n_ctx, model.n_ctx, model.is_causal) + model.num_mem_kv)


def _local_flops(model: ModelConfig) -> float:
    return _softmax_flops(model, mean_seen(model.n_ctx, model.local_attention_radius, model.is_causal))


def _linear_flops(model: ModelConfig) -> float:
    return 8.0 * model.n_embd**2 + 4.0 * model.n_embd * model.features_per_head


_ATTENTION_FLOPS: dict[str, Callable[[ModelConfig], float]] = {
    "global": _global_flops,
    "local": _local_flops,
    "linear": _linear_flops,
    "none": lambda model: 0.0,
}


def mean_seen(n_positions: int, radius: int, is_causal: bool) -> float:
    """How many positions one sees in the mean, itself included, of those less than `radius` away."""
    reach = min(n_positions, radius)
    seen_before = reach * (reach + 1) / 2 + (n_positions - reach) * reach
    return (seen_before if is_causal else 2 * seen_before - n_positions) / n_positions


def flops_of_processor(step: DryStep) -> float:
    """What one processor does in a step as it is laid out: also what others do as well, and experts' empty places."""
    return _flops(step.graph.operations, step)


def _flops(operations: Iterable[mtf.Operation], step: DryStep) -> float:
    return sum(_FLOPS[type(operation)](operation, step) for operation in operations if type(operation) in _FLOPS)


def _slice_size(dims: Iterable[mtf.Dimension], step: DryStep) -> int:
    return math.prod(step.mesh_impl.slice_size(mtf.Shape([dim])) for dim in dims)


def _product(operation: mtf.Operation, step: DryStep) -> float:
    dims = {dim for x in operation.inputs for dim in x.shape.dims}
    is_product = len(operation.inputs) > 1 and dims != set(operation.outputs[0].shape.dims)
    return 2.0 * _slice_size(dims, step) if is_product else 0.0


def _loop(operation: MicrobatchLoop, step: DryStep) -> float:
    return operation.n_parts * _flops(operation.operations, step)


def _softmax_products(count: int) -> Callable[[mtf.Operation, DryStep], float]:
    def flops(operation: mtf.Operation, step: DryStep) -> float:
        queries, keys = operation.inputs[:2]
        return 2.0 * count * _slice_size([*queries.shape.dims, keys.shape.dims[1]], step)

    return flops


def _linear_products(count: int) -> Callable[[mtf.Operation, DryStep], float]:
    def flops(operation: mtf.Operation, step: DryStep) -> float:
        dims = operation.inputs[0].shape.dims
        return 2.0 * count * _slice_size(dims, step) * (dims[-1].size + CHUNK)

    return flops


# The gradient of softmax attention computes the weights again, and has four products of its own.
_FLOPS: dict[type, Callable[[mtf.Operation, DryStep], float]] = {
    mtf.EinsumOperation: _product,
    MicrobatchLoop: _loop,
    SoftmaxAttention: _softmax_products(2),
    SoftmaxAttentionGradient: _softmax_products(5),
    LinearAttention: _linear_products(2),
    SliceKernel: _linear_products(6),
}
