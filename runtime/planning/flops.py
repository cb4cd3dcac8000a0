"""Floating-point operations of training: 2 for each multiply-add of a matrix product; others are not counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from configs.schema import BLOCKS, ModelConfig
from meshtf import mtf
from models.attention import ATTENTION_KINDS
from models.layer import Layer, layers
from models.moe import routing_params
from models.ops.mesh_operation import MeshOperation, slice_size
from runtime.planning.dry_run import DryStep
from runtime.training.grad_accumulation import MicrobatchLoop
from runtime.training.optimizers import MuonUpdate


@dataclasses.dataclass(frozen=True)
class TokenFlops:
    """Operations for one token, on all processors together.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
        recomputed: of the forward pass, repeated in the backward pass.
    """

    forward: float
    backward: float
    recomputed: float

    @property
    def total(self) -> float:
        """All operations."""
        return self.forward + self.backward + self.recomputed


def flops_of_token(model: ModelConfig) -> TokenFlops:
    """Counts the model's own operations: attention to visible positions only, and the experts that a token uses.

    Source: Kaplan et al. 2020, Scaling Laws for Neural Language Models, section 2.1, which also says that a backward
    pass costs two forward passes. Kernels that `lora_rank` freezes have no gradients, which are half of that.
    """
    kernels = sum(_kernel_flops(model, layer) for layer in layers(model))
    attention = sum(ATTENTION_KINDS[layer.attention].flops(model) for layer in layers(model) if layer.has_attention)
    head = 2.0 * model.n_embd * (1 if model.ranks else model.n_vocab)
    blocks = kernels + attention + sum(_adapter_flops(model, layer) for layer in layers(model))
    forward, frozen = blocks + head, kernels + head if model.lora_rank else 0.0
    return TokenFlops(forward, 2.0 * forward - frozen, blocks if model.recomputation == BLOCKS else 0.0)


def _kernel_flops(model: ModelConfig, layer: Layer) -> float:
    feed_forward = _mixture_flops(model) if layer.is_mixture else _feed_forward_flops(model)
    if model.macaron:
        feed_forward += _feed_forward_flops(model)
    projected = 2 * model.features_per_head * (model.n_head + model.kv_heads)  # queries and output, keys and values
    return feed_forward + (2.0 * model.n_embd * projected if layer.has_attention else 0.0)


def _adapter_flops(model: ModelConfig, layer: Layer) -> float:
    if not model.lora_rank:
        return 0.0
    embd, hidden, head = model.n_embd, model.feed_forward_width, model.features_per_head
    widths = {"q": model.n_head * head, "k": model.kv_heads * head, "v": model.kv_heads * head}
    attention = {name: embd + width for name, width in widths.items()} | {"o": model.n_head * head + embd}
    first = embd + (2 * hidden if model.mlp_glu else hidden)
    feed_forward = {"c_fc": first, "c_gate": embd + hidden, "c_proj": hidden + embd}
    n_feed_forward = (not layer.is_mixture) + model.macaron
    counted = [attention.get(target, 0) * layer.has_attention for target in model.lora_targets]
    counted += [feed_forward.get(target, 0) * n_feed_forward for target in model.lora_targets]
    return 2.0 * model.lora_rank * sum(counted)


def _feed_forward_flops(model: ModelConfig) -> float:
    return 2.0 * (3 if model.is_gated else 2) * model.n_embd * model.feed_forward_width


def _mixture_flops(model: ModelConfig) -> float:
    moe = model.moe_params
    n_choices = routing_params(model, is_training=True).n_choices
    return 2.0 * model.n_embd * moe.moe_num_experts + n_choices * 4.0 * model.n_embd * moe.moe_hidden_size


def flops_of_processor(step: DryStep) -> float:
    """Counts what one processor computes in a step, including work that others repeat and unused expert capacity."""
    return _flops(step.graph.operations, step)


def _flops(operations: Iterable[mtf.Operation], step: DryStep) -> float:
    return sum(_operation_flops(operation, step) for operation in operations)


def _operation_flops(operation: mtf.Operation, step: DryStep) -> float:
    if isinstance(operation, MeshOperation):
        return operation.flops(step.mesh_impl)
    flops = _FLOPS.get(type(operation))
    return flops(operation, step) if flops else 0.0


def _product(operation: mtf.Operation, step: DryStep) -> float:
    dims = {dim for x in operation.inputs for dim in x.shape.dims}
    is_product = len(operation.inputs) > 1 and dims != set(operation.outputs[0].shape.dims)
    return 2.0 * slice_size(step.mesh_impl, dims) if is_product else 0.0


def _loop(operation: MicrobatchLoop, step: DryStep) -> float:
    return operation.microbatch_count * _flops(operation.operations, step)


def _orthogonalization(operation: MuonUpdate, step: DryStep) -> float:
    arrangement, n_matrices = operation.arrangement(step.mesh_impl)
    return n_matrices * arrangement.flops


_FLOPS: dict[type, Callable[[mtf.Operation, DryStep], float]] = {
    mtf.EinsumOperation: _product,
    MicrobatchLoop: _loop,
    MuonUpdate: _orthogonalization,
}
