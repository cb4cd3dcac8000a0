"""Estimates the memory of a training step on one processor from the operations of its graph.

A tensor lives from the operation that computes it to the last one that reads it. Operations are assumed to run in graph
order, which is close to the order in which TensorFlow runs them. The workspace of a kernel follows from a rule for its
kind of operation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from meshtf import mtf, tf
from models.kernels.attention import n_parts_of
from models.ops.attention import SoftmaxAttention, SoftmaxAttentionGradient
from models.ops.gathered import Gathered
from models.ops.gradients import GlobalNorm, ScatteredSum
from models.ops.linear_attention import (
    CausalLinearAttention,
    CausalLinearAttentionGradient,
    LinearAttention,
    LinearAttentionGradient,
)
from models.ops.norms import LayerNorm, LayerNormGradient, RmsNorm, RmsNormGradient
from models.ops.order import After
from models.ops.output_layer import LinearCrossEntropy, shape_in_parts
from models.ops.ring_attention import ring_of
from runtime.planning.dry_run import DryStep
from runtime.training.grad_accumulation import MicrobatchLoop
from runtime.training.optimizers import AdafactorUpdate, ElementwiseUpdate, MuonUpdate

# Operations whose output shares their input's memory.
ALIASES = (mtf.ReshapeOperation, mtf.CustomGradientOperation, mtf.StopGradient, After)
# Elementwise operations, which reuse the memory of an input that is not read again.
ELEMENTWISE = (
    mtf.SlicewiseOperation,
    mtf.BinaryOpWithBroadcasting,
    mtf.ScalarMultiplyOperation,
    mtf.ScalarAddOperation,
)
MIN_BLOCK, N_BLOCKS = 64, 8  # of queries, in the kernels of attention


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one processor at the peak of a step.

    Attributes:
        parameters: those of the model, trained or frozen.
        optimizer: the optimiser's slots.
        gradients: gradients of variables that are alive at the peak.
        activations: all other tensors, mostly kept by the forward pass for the backward pass.
        workspace: temporary memory of the kernel that runs at the peak.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(dataclasses.astuple(self))


def estimate_memory(step: DryStep) -> Memory:
    """Returns the peak memory of a step on a processor that shares none with others."""
    variables = step.graph.all_variables
    parameters = sum(step.slice_bytes(variable.value) for variable in variables if variable.is_parameter)
    slots = sum(step.slice_bytes(variable.value) for variable in variables if not variable.is_parameter)
    operations = step.graph.operations
    owners = _owners(operations, step)
    walk = _Walk(step, frozenset(owners.get(x, x) for x in _gradients(operations)))
    return dataclasses.replace(walk.peak(operations, {}), parameters=parameters, optimizer=slots)


def _gradients(operations: Iterable[mtf.Operation]) -> Sequence[mtf.Tensor]:
    """Returns the gradients of all variables: the inputs of the global norm."""
    return next(operation.inputs for operation in operations if isinstance(operation, GlobalNorm))


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Walks through operations in order and adds up the tensors alive."""

    step: DryStep
    gradients: frozenset[mtf.Tensor]

    def peak(self, operations: Sequence[mtf.Operation], outside: Mapping[mtf.Tensor, int]) -> Memory:
        """Returns the peak; `outside` holds tensors that are alive throughout, and their bytes."""
        owners = _owners(operations, self.step)
        last_reads = _last_reads(operations, owners)
        alive = dict(outside)
        peak = Memory(0, 0, 0, 0, 0)
        for index, operation in enumerate(operations):
            last_read = {owners.get(x, x) for x in operation.inputs if last_reads[owners.get(x, x)] == index}
            if isinstance(operation, ELEMENTWISE):
                self._reuse_memory(operation, last_read, alive)
            if not isinstance(operation, mtf.Variable):
                alive.update({x: self.step.slice_bytes(x) for x in operation.outputs if owners.get(x, x) is x})
            peak = max(peak, self._memory_at(operation, alive), key=lambda memory: memory.total)
            unread = [x for x in operation.outputs if x not in last_reads]
            for tensor in [*last_read, *unread]:
                if tensor not in outside:
                    alive.pop(tensor, None)
        return peak

    def _reuse_memory(
        self, operation: mtf.Operation, last_read: Iterable[mtf.Tensor], alive: dict[mtf.Tensor, int]
    ) -> None:
        sizes = [self.step.slice_bytes(x) for x in operation.outputs]
        for tensor in last_read:
            if alive.get(tensor) in sizes:
                del alive[tensor]
                return

    def _memory_at(self, operation: mtf.Operation, alive: Mapping[mtf.Tensor, int]) -> Memory:
        if isinstance(operation, MicrobatchLoop):
            return self.peak(operation.operations, alive)  # each gradient is added to its sum at once
        gradients = sum(size for tensor, size in alive.items() if tensor in self.gradients)
        return Memory(0, 0, gradients, sum(alive.values()) - gradients, workspace_bytes(operation, self.step))


def _owners(operations: Sequence[mtf.Operation], step: DryStep) -> dict[mtf.Tensor, mtf.Tensor]:
    """Maps each tensor without memory of its own to the one whose memory it shares; variables are counted elsewhere."""
    owners: dict[mtf.Tensor, mtf.Tensor] = {}
    for operation in operations:
        if isinstance(operation, mtf.CustomGradientOperation):
            sources = operation.inputs[-len(operation.outputs) :]
        elif isinstance(operation, ALIASES):
            sources = operation.inputs[:1]
        else:
            continue
        for source, output in zip(sources, operation.outputs, strict=True):
            if step.slice_bytes(source) == step.slice_bytes(output):
                owners[output] = owners.get(source, source)
    return owners


def _last_reads(operations: Sequence[mtf.Operation], owners: Mapping[mtf.Tensor, mtf.Tensor]) -> dict[mtf.Tensor, int]:
    return {
        owners.get(tensor, tensor): index for index, operation in enumerate(operations) for tensor in operation.inputs
    }


def _block_bytes(queries: Sequence[int], keys: Sequence[int]) -> int:
    """Returns the bytes of one part of a block of weights, for [batch, sequence, heads, features]."""
    n_batch, n_queries, n_heads, _ = queries
    n_rows, size = n_batch * n_heads, min(n_queries, max(MIN_BLOCK, math.ceil(n_queries / N_BLOCKS)))
    return 4 * n_rows * size * keys[1] // n_parts_of(n_rows, size, keys[1])


def _attention(operation: SoftmaxAttention, step: DryStep) -> int:
    """Counts queries, keys and values with heads first, and two blocks of weights."""
    queries, keys = _attention_slices(operation, step)
    first = step.slice_bytes(operation.inputs[0]) + _wide_bytes(operation, step)
    return first + 2 * _block_bytes(queries, keys) + _exchanged(operation, step, n_sums=1)


def _attention_gradient(operation: SoftmaxAttentionGradient, step: DryStep) -> int:
    """As forward, plus the gradient of the outputs, a third block, and each block's terms before they are added."""
    queries, keys = _attention_slices(operation, step)
    n_blocks = min(N_BLOCKS, math.ceil(queries[1] / MIN_BLOCK))
    parts = (n_blocks + 1) / 2 * _wide_bytes(operation, step)
    first = 4 * step.slice_bytes(operation.inputs[0]) + 3 * _block_bytes(queries, keys)
    return int(first + parts + _exchanged(operation, step, n_sums=3))


def _wide_bytes(operation: SoftmaxAttention | SoftmaxAttentionGradient, step: DryStep) -> int:
    """Returns the bytes of keys and values, each head of them repeated for the heads of queries that share it."""
    queries, keys, _ = operation.inputs[:3]
    batch_dim, memory_dim, _, features_dim = keys.shape.dims
    wide = mtf.Shape([batch_dim, memory_dim, queries.shape.dims[2], features_dim])
    n_copies = 1 if queries.shape.dims[2] == keys.shape.dims[2] else 2
    return n_copies * 2 * step.mesh_impl.slice_size(wide) * keys.dtype.size


def _attention_slices(
    operation: SoftmaxAttention | SoftmaxAttentionGradient, step: DryStep
) -> tuple[list[int], list[int]]:
    """Returns the shapes of the queries and keys of one kernel, which has the keys around a slice if it is local."""
    queries, keys = (step.mesh_impl.slice_shape(x.shape) for x in operation.inputs[:2])
    ring = ring_of(step.mesh_impl, operation.params, *operation.inputs[:2])
    if ring is not None and ring.params.radius is not None:
        keys[1] += sum(ring.reach)
    return queries, keys


def _exchanged(operation: SoftmaxAttention | SoftmaxAttentionGradient, step: DryStep, n_sums: int) -> int:
    """Counts what goes round: keys and values as a message and apart, those that come next, and the float32 sums."""
    if ring_of(step.mesh_impl, operation.params, *operation.inputs[:2]) is None:
        return 0
    queries, keys, values = operation.inputs[:3]
    sums = n_sums * 4 * step.mesh_impl.slice_size(queries.shape)
    return 3 * (step.slice_bytes(keys) + step.slice_bytes(values)) + sums


def _of_outputs(times: float) -> Callable[[mtf.Operation, DryStep], int]:
    return lambda operation, step: int(times * sum(map(step.slice_bytes, operation.outputs)))


def _of_first_input(times: float) -> Callable[[mtf.Operation, DryStep], int]:
    return lambda operation, step: int(times * step.slice_bytes(operation.inputs[0]))


def _output_layer(operation: LinearCrossEntropy, step: DryStep) -> int:
    """Counts a block's logits, or their gradient, and float32 exponentials; or a part of the table's gradient."""
    sizes, width = operation.sizes(step.mesh_impl), operation.inputs[0].dtype.size
    n_logits = sizes.block_size * step.mesh_impl.slice_size(mtf.Shape([sizes.vocab]))
    is_added = len(operation.outputs) > 3 and sizes.n_blocks > 1
    part = 4 * math.prod(shape_in_parts(sizes.table)[1:]) if is_added else 0
    return max(n_logits * (width + 4), n_logits * width + part)


def _updated(operation: mtf.Operation, step: DryStep) -> int:
    """Counts the new values of variables and slots, which exist beside the old ones."""
    return sum(step.slice_bytes(x) for x in operation.inputs if isinstance(x.operation, mtf.Variable))


def _shared_update(operation: ElementwiseUpdate, step: DryStep) -> int:
    """Counts the parts that are updated, before and after, and the wholes as they are gathered and in order."""
    parts = sum(step.mesh_impl.slice_size(parameter.shape) for parameter in operation.shared)
    wholes = sum(
        (1 if parameter.is_first_dimension else 2) * step.mesh_impl.slice_size(parameter.variable.shape)
        for parameter in operation.shared
    )
    return tf.float32.size * (2 * parts + wholes)


def _scattered(operation: ScatteredSum, step: DryStep) -> int:
    """Counts the terms that a processor receives of its part, and the parts that it sends if they must be copied.

    The next gradient is computed meanwhile.
    """
    copies = 2 if operation.is_first_dimension else 3
    return copies * step.slice_bytes(operation.inputs[0])


def _gathered(operation: Gathered, step: DryStep) -> int:
    """Counts the parts that are received if they must be copied to lie one behind the other."""
    return 0 if operation.is_first_dimension else step.slice_bytes(operation.outputs[0])


def _muon(operation: MuonUpdate, step: DryStep) -> int:
    """Counts the new momenta, and of an iteration the matrices before and after, a product and three Gram matrices."""
    arrangement, n_matrices = operation.arrangement(step.mesh_impl)
    own, side = math.prod(arrangement.own_slice), arrangement.own_slice[arrangement.side]
    return 4 * n_matrices * (math.prod(arrangement.layout_slice) + 3 * own + 3 * side**2)


WORKSPACES: dict[type, Callable[[mtf.Operation, DryStep], int]] = {
    SoftmaxAttention: _attention,
    SoftmaxAttentionGradient: _attention_gradient,
    LinearCrossEntropy: _output_layer,
    CausalLinearAttention: _of_outputs(6),
    CausalLinearAttentionGradient: _of_outputs(6),
    LinearAttention: _of_outputs(6),
    LinearAttentionGradient: _of_outputs(6),
    LayerNorm: _of_first_input(1),
    LayerNormGradient: _of_first_input(2),
    RmsNorm: _of_first_input(1),
    RmsNormGradient: _of_first_input(2),
    ScatteredSum: _scattered,
    Gathered: _gathered,
    ElementwiseUpdate: _shared_update,
    MuonUpdate: _muon,
    AdafactorUpdate: _updated,
}


def workspace_bytes(operation: mtf.Operation, step: DryStep) -> int:
    """Returns the memory of an operation's kernels on one processor besides inputs and outputs."""
    rule = WORKSPACES.get(type(operation))
    return rule(operation, step) if rule else 0
