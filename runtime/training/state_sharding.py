"""The optimiser's state and work, shared by the replicas of the batch axis (`shard` = optimizer or parameters).

One dimension of a variable that the layout leaves whole takes the name `shard`, which lies over the axis of the batch.
Slots have the new name in their shape, so each replica holds a part of them, while checkpoints hold them whole. The
gradient, a sum over the axis, is scattered as soon as the backward pass has made it. The update of a part of the
variable is computed where its slots are, and the new parts are gathered, unless the variable itself lies split.

Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, sections 5.1
and 5.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from configs.schema import NO_SHARDING, SHARD_OPTIMIZER, RunConfig
from meshtf import LaidOut, mtf, tf
from models.kernels.compile import overwrite
from models.ops.gradients import ScatteredSum
from models.ops.mesh_operation import mesh_axes, replace_inputs
from models.ops.order import After
from models.ops.precision import Widened
from models.variables import SlicedVariable
from runtime.mesh.placement import DeviceMesh, Placement
from runtime.mesh.weights import SHARD, made_by_block, sharded_dim

_Outputs = dict[mtf.Operation, Sequence[mtf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A variable as the optimiser updates it.

    Attributes:
        variable: it.
        shape: that of its slots; where replicas share its update, one dimension has the name `shard`.
    """

    variable: SlicedVariable
    shape: mtf.Shape

    @property
    def name(self) -> str:
        """The name of the variable in checkpoints."""
        return self.variable.name

    @property
    def is_shared(self) -> bool:
        """Whether each replica of the batch updates a part of the variable."""
        return self.shape != self.variable.shape

    @property
    def is_first_dimension(self) -> bool:
        """Whether the parts of a variable lie one behind the other."""
        return self._sharded == [0]

    @property
    def value(self) -> mtf.Tensor:
        """The value of the variable, in the variable's own shape."""
        return self.variable.value

    def value_before(self, lowering: mtf.Lowering, turn: LaidOut) -> LaidOut:
        """Returns the value before the update in `shape`; a part is not taken out before it is this update's turn."""
        with tf.control_dependencies(turn.all_slices if self._sharded else []):
            return self._part(lowering, lowering.tensors[self.value].to_laid_out_tensor())

    def newest_value(self, lowering: mtf.Lowering) -> LaidOut:
        """Returns the newest value in `shape`."""
        return self._part(lowering, lowering.variables[self.variable].laid_out_tensor)

    def assign(self, lowering: mtf.Lowering, value: LaidOut) -> Sequence[tf.Tensor | tf.Operation]:
        """Sets the variable on all processors from a value in `shape`; returns what is there once that is received."""
        variable, mesh_impl = lowering.variables[self.variable], lowering.mesh_impl(self.variable)
        if not self.is_shared:
            return variable.assign(value)
        for axis, dimension in self._places(mesh_impl):
            value = mesh_impl.allconcat(value, axis, dimension)
        # A variable that took over the memory of what was gathered would leave a hole in each step, which others split.
        mesh_impl.update(overwrite, [], [variable], [value])
        return value.to_laid_out_tensor().all_slices

    def _part(self, lowering: mtf.Lowering, value: LaidOut) -> LaidOut:
        mesh_impl = lowering.mesh_impl(self.variable)
        for axis, dimension in self._places(mesh_impl):
            value = mesh_impl.allsplit(value, axis, dimension)
        return value

    @property
    def _sharded(self) -> list[int]:
        """The dimension that is split besides the layout of the variable, if one is."""
        pairs = zip(self.variable.shape.dims, self.shape.dims, strict=True)
        return [index for index, (own, other) in enumerate(pairs) if own != other]

    def _places(self, mesh_impl: DeviceMesh) -> list[tuple[int, int]]:
        """Returns the mesh axis and the dimension that is split over it, if one is."""
        return [(mesh_impl.tensor_dimension_to_mesh_axis(self.shape.dims[index]), index) for index in self._sharded]


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What the replicas of the batch share while gradients are computed.

    Attributes:
        mesh_impl: how variables lie.
        is_on: whether they share anything.
    """

    mesh_impl: DeviceMesh
    is_on: bool

    def scattered(self, variables: Sequence[SlicedVariable], gradients: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradients as they are accumulated: of each its own part, unless nothing is shared."""
        if not self.is_on:
            return list(gradients)
        operations = gradients[0].graph.operations
        n_before, again = len(operations), {}
        dims = [sharded_dim(self.mesh_impl, variable.shape) for variable in variables]
        scattered = [
            gradient if dim is None else _scattered(gradient, dim, again)
            for gradient, dim in zip(gradients, dims, strict=True)
        ]
        operations[:] = _held_back(_behind_inputs(operations, set(operations[n_before:])))
        return scattered

    def arranged(self, operations: Sequence[mtf.Operation]) -> list[mtf.Operation]:
        """Returns the operations of both passes with weights made block by block, unless nothing is shared."""
        return made_by_block(operations, self.mesh_impl) if self.is_on else list(operations)


def sharing_of(config: RunConfig, mesh_impl: DeviceMesh) -> Sharing:
    """Returns what the replicas of the batch share."""
    return Sharing(mesh_impl, config.mesh.shard != NO_SHARDING)


def _scattered(gradient: mtf.Tensor, dim: mtf.Dimension, again: _Outputs) -> mtf.Tensor:
    """Scatters a sum, where it is still one over the axis, and repeats on its parts what comes after that.

    Args:
        gradient: of a variable.
        dim: the dimension that is split over the processors.
        again: the outputs of the operations that have been repeated, to which this adds its own.
    """
    operation = gradient.operation
    if not _comes_after_sum(operation):
        return ScatteredSum(gradient, dim, SHARD).outputs[0]
    if operation not in again:
        again[operation] = _repeated(operation, [_scattered(x, dim, again) for x in operation.inputs])
    return again[operation][operation.outputs.index(gradient)]


def _comes_after_sum(operation: mtf.Operation) -> bool:
    """Whether an operation reduces its input over the mesh before it makes a gradient of it.

    Parts of bfloat16 are also half as large before they are widened, and may be freed before they are added.
    """
    if isinstance(operation, mtf.AddOperation):
        return any(_comes_after_sum(x.operation) for x in operation.inputs)
    return isinstance(operation, (Widened, mtf.UnstackOperation))


def _repeated(operation: mtf.Operation, inputs: Sequence[mtf.Tensor]) -> Sequence[mtf.Tensor]:
    if isinstance(operation, mtf.UnstackOperation):
        (dim,) = set(operation.inputs[0].shape.dims) - set(operation.outputs[0].shape.dims)
        return mtf.unstack(*inputs, dim)
    return Widened(*inputs).outputs if isinstance(operation, Widened) else [mtf.add(*inputs)]


def _behind_inputs(operations: Sequence[mtf.Operation], moved: Collection[mtf.Operation]) -> list[mtf.Operation]:
    """Returns the operations with those to be moved directly behind what they read.

    Mesh-TensorFlow lowers them in this order, which is also that of the collectives.
    """
    place: dict[mtf.Operation, int] = {}
    for index, operation in enumerate(operations):
        place[operation] = max(place[x.operation] for x in operation.inputs) if operation in moved else index
    return sorted(operations, key=place.__getitem__)


def _held_back(operations: Sequence[mtf.Operation]) -> list[mtf.Operation]:
    """Returns the operations with a backward pass that waits for its gradients to be scattered, all but the last one.

    Otherwise it would run ahead of a slow network, and whole gradients would pile up.
    """
    place = {operation: index for index, operation in enumerate(operations)}
    sums = [operation for operation in operations if isinstance(operation, ScatteredSum)]
    late: dict[mtf.Tensor, After] = {}
    for before, current in zip(sums, sums[2:], strict=False):
        for x in current.inputs[0].operation.inputs:
            if place[x.operation] > place[before]:
                late[x] = late.get(x) or After(x, before.outputs)
    for operation in operations:
        replace_inputs(operation, {x: late[x].outputs[0] for x in operation.inputs if x in late})
    return [
        each for operation in operations for each in (operation, *(late[y] for y in operation.outputs if y in late))
    ]


def describe_sharding(config: RunConfig, placement: Placement) -> str | None:
    """Returns a line that says what is split and which variables stay whole, once the step is built; None: no `shard`.

    Vectors, which always stay whole, are counted only.
    """
    if config.mesh.shard == NO_SHARDING:
        return None
    count = placement.axis_size("batch")
    if count == 1:
        return f"shard = {config.mesh.shard}: has no effect, since the batch is not split"
    mesh_impl = placement.implementation(config.training.train_batch_size)
    trainable = [stored.variable for stored in placement.store if stored.variable.trainable]
    whole = [variable for variable in trainable if _stays_whole(mesh_impl, variable.shape)]
    named = [variable.name for variable in whole if len(variable.shape) > 1]
    n_vectors = len(whole) - len(named)
    kept = ", ".join([*named, *([f"{n_vectors} vectors"] if n_vectors else [])])
    split = "optimizer state is" if config.mesh.shard == SHARD_OPTIMIZER else "parameters and optimizer state are"
    return f"shard = {config.mesh.shard}: {split} split over {count} replicas; whole: {kept or 'nothing'}"


def _stays_whole(mesh_impl: DeviceMesh, shape: mtf.Shape) -> bool:
    """Whether each replica of the batch holds all of a variable's state."""
    axis = mesh_impl.tensor_dimension_to_mesh_axis(mtf.Dimension(SHARD, 1))
    return axis not in mesh_axes(mesh_impl, shape.dims) and sharded_dim(mesh_impl, shape) is None
