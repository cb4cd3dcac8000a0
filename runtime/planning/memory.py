"""How much memory a training step needs on one processor, from the operations of its graph.

A tensor lives from the operation that makes it to the last one that reads it; the operations are taken in the order in
which they stand in the graph, which is about that in which TensorFlow runs them. What a kernel needs for itself while
it runs is a rule for each kind of operation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from meshtf import mtf
from models.ops.attention import SoftmaxAttention, SoftmaxAttentionGradient
from models.ops.cross_entropy import SoftmaxStatistics
from models.ops.gradients import GlobalNorm
from models.ops.linear_attention import LinearAttention, SliceKernel
from models.ops.norms import LayerNorm, LayerNormGradient
from runtime.planning.dry_run import DryStep
from runtime.training.grad_accumulation import MicrobatchLoop
from runtime.training.optimizers import AdafactorUpdate, AdamUpdate

# Operations whose output is their input under another name.
RENAMES = (mtf.ReshapeOperation, mtf.CustomGradientOperation, mtf.StopGradient, mtf.Depend)
# Operations on elements, which write over an input that nobody reads after them.
ELEMENTWISE = (
    mtf.SlicewiseOperation,
    mtf.BinaryOpWithBroadcasting,
    mtf.ScalarMultiplyOperation,
    mtf.ScalarAddOperation,
)
SHORTEST_BLOCK, N_BLOCKS = 64, 8  # of queries, in the kernels of attention


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one processor at the fullest moment of a step.

    Attributes:
        optimizer: what the optimiser keeps from step to step.
        gradients: those of variables that are there at that moment.
        activations: all other tensors: mostly what the forward pass keeps for the backward pass.
        workspace: what the kernel that runs at that moment needs for itself.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def estimate_memory(step: DryStep) -> Memory:
    """The memory of a step, of which none is shared with other processors."""
    variables = step.graph.all_variables
    trainable = sum(step.slice_bytes(variable.value) for variable in variables if variable.trainable)
    slots = sum(step.slice_bytes(variable.value) for variable in variables if not variable.trainable)
    operations = step.graph.operations
    owners = _owners(operations, step)
    walk = _Walk(step, frozenset(owners.get(x, x) for x in _gradients(operations)))
    return dataclasses.replace(walk.fullest(operations, {}), parameters=trainable, optimizer=slots)


def _gradients(operations: Iterable[mtf.Operation]) -> Sequence[mtf.Tensor]:
    """Of all variables: what the norm that gradients are clipped by is taken of."""
    return next(operation.inputs for operation in operations if isinstance(operation, GlobalNorm))


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Goes through operations in their order and adds up what is alive."""

    step: DryStep
    gradients: frozenset[mtf.Tensor]

    def fullest(self, operations: Sequence[mtf.Operation], outside: Mapping[mtf.Tensor, int]) -> Memory:
        """The fullest moment; `outside` are tensors that live through all of it, and their bytes."""
        owners = _owners(operations, self.step)
        last_reads = _last_reads(operations, owners)
        alive = dict(outside)
        fullest = Memory(0, 0, 0, 0, 0)
        for index, operation in enumerate(operations):
            dying = {owners.get(x, x) for x in operation.inputs if last_reads[owners.get(x, x)] == index}
            if isinstance(operation, ELEMENTWISE):
                self._write_over(operation, dying, alive)
            if not isinstance(operation, mtf.Variable):
                alive.update({x: self.step.slice_bytes(x) for x in operation.outputs if owners.get(x, x) is x})
            fullest = max(fullest, self._moment(operation, alive), key=lambda memory: memory.total)
            unread = [x for x in operation.outputs if x not in last_reads]
            for tensor in [*dying, *unread]:
                if tensor not in outside:
                    alive.pop(tensor, None)
        return fullest

    def _write_over(self, operation: mtf.Operation, dying: Iterable[mtf.Tensor], alive: dict[mtf.Tensor, int]) -> None:
        sizes = [self.step.slice_bytes(x) for x in operation.outputs]
        for tensor in dying:
            if alive.get(tensor) in sizes:
                del alive[tensor]
                return

    def _moment(self, operation: mtf.Operation, alive: Mapping[mtf.Tensor, int]) -> Memory:
        if isinstance(operation, MicrobatchLoop):
            return self._fullest_of_loop(operation, alive)
        gradients = sum(size for tensor, size in alive.items() if tensor in self.gradients)
        return Memory(0, 0, gradients, sum(alive.values()) - gradients, workspace_bytes(operation, self.step))

    def _fullest_of_loop(self, loop: MicrobatchLoop, alive: Mapping[mtf.Tensor, int]) -> Memory:
        """Of the body, in which each gradient is added to the sum of those before it as soon as it is there."""
        return self.fullest(loop.operations, alive)


def _owners(operations: Sequence[mtf.Operation], step: DryStep) -> dict[mtf.Tensor, mtf.Tensor]:
    """Of each tensor that takes no memory of its own, the one whose memory it is; variables are counted elsewhere."""
    owners: dict[mtf.Tensor, mtf.Tensor] = {}
    for operation in operations:
        if isinstance(operation, mtf.CustomGradientOperation):
            sources = operation.inputs[-len(operation.outputs) :]
        elif isinstance(operation, RENAMES):
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
    """One block of float32 attention weights, for slices [batch, sequence, heads, features] of queries and keys."""
    n_batch, n_queries, n_heads, _ = queries
    return 4 * n_batch * n_heads * min(n_queries, max(SHORTEST_BLOCK, math.ceil(n_queries / N_BLOCKS))) * keys[1]


def _attention(operation: mtf.Operation, step: DryStep) -> int:
    """Queries, keys and values with heads first, and two blocks of weights."""
    queries, keys = (step.mesh_impl.slice_shape(x.shape) for x in operation.inputs[:2])
    return sum(map(step.slice_bytes, operation.inputs[:3])) + 2 * _block_bytes(queries, keys)


def _attention_gradient(operation: mtf.Operation, step: DryStep) -> int:
    """As forward, with the gradient of the outputs, three blocks, and the parts of all blocks before they are added."""
    queries, keys = (step.mesh_impl.slice_shape(x.shape) for x in operation.inputs[:2])
    n_blocks = min(N_BLOCKS, math.ceil(queries[1] / SHORTEST_BLOCK))
    parts = (n_blocks + 1) / 2 * sum(map(step.slice_bytes, operation.inputs[1:3]))
    return int(4 * step.slice_bytes(operation.inputs[0]) + 3 * _block_bytes(queries, keys) + parts)


def _of_outputs(times: float) -> Callable[[mtf.Operation, DryStep], int]:
    return lambda operation, step: int(times * sum(map(step.slice_bytes, operation.outputs)))


def _of_first_input(times: float) -> Callable[[mtf.Operation, DryStep], int]:
    return lambda operation, step: int(times * step.slice_bytes(operation.inputs[0]))


def _exponentials(operation: mtf.Operation, step: DryStep) -> int:
    """All logits as float32, to pick the labels' from, and their exponentials."""
    return 2 * 4 * step.mesh_impl.slice_size(operation.inputs[0].shape)


def _updated(operation: mtf.Operation, step: DryStep) -> int:
    """New values of the variables and slots, beside the old ones."""
    return sum(step.slice_bytes(x) for x in operation.inputs if isinstance(x.operation, mtf.Variable))


WORKSPACES: dict[type, Callable[[mtf.Operation, DryStep], int]] = {
    SoftmaxAttention: _attention,
    SoftmaxAttentionGradient: _attention_gradient,
    SoftmaxStatistics: _exponentials,
    LinearAttention: _of_outputs(6),
    SliceKernel: _of_outputs(6),
    LayerNorm: _of_first_input(1),
    LayerNormGradient: _of_first_input(2),
    AdamUpdate: _updated,
    AdafactorUpdate: _updated,
}


def workspace_bytes(operation: mtf.Operation, step: DryStep) -> int:
    """What an operation's kernels need on one processor besides their inputs and outputs."""
    rule = WORKSPACES.get(type(operation))
    return rule(operation, step) if rule else 0
