"""Weights as blocks read them: made of the variables when a block begins, and dropped when the next one does.

With `shard` = parameters one dimension of each variable has the name `shard`, which lies over the axis of the batch,
and the parts are gathered for every block: in the forward pass, and again in the backward pass. What a block makes of
its variables before it multiplies by them, in another type or joined into one product, is made anew as well, so that
nothing of the size of the model stays from the forward to the backward pass.

Source: Rajbhandari et al. 2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, section 5.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meshtf import mtf, tf
from models.ops.gathered import Gathered
from models.ops.mesh_operation import mesh_axes, replace_inputs
from models.ops.order import After
from models.ops.precision import Rounded
from models.variables import SlicedVariable

# The name that a dimension takes where it is split over the axis of the batch.
SHARD = "shard"
# Where a layout has a rule for this, variables lie split along that axis; no tensor has a dimension of the name.
PARAMETERS = "parameters"
# Operations that only bring variables into the form of a product.
FORMS = (Rounded, mtf.ReshapeOperation, mtf.StackOperation, mtf.UnstackOperation)


def _axis(mesh_impl: mtf.MeshImpl, name: str) -> int | None:
    return mesh_impl.tensor_dimension_to_mesh_axis(mtf.Dimension(name, 1))


def sharded_dim(mesh_impl: mtf.MeshImpl, shape: mtf.Shape) -> mtf.Dimension | None:
    """Returns the dimension of a variable that the replicas of the batch split among them.

    It is the first that the layout leaves whole and that the number of replicas divides. None: there is none, or there
    are no replicas of the variable, or it is a vector: a collective would cost more than its memory is worth.
    """
    axis = _axis(mesh_impl, SHARD)
    if axis is None or len(shape) < 2 or axis in mesh_axes(mesh_impl, shape.dims):
        return None
    count = mesh_impl.shape[axis].size
    whole = (dim for dim in shape.dims if mesh_impl.tensor_dimension_to_mesh_axis(dim) is None)
    return next((dim for dim in whole if dim.size % count == 0), None) if count > 1 else None


def made_by_block(operations: Iterable[mtf.Operation], mesh_impl: mtf.MeshImpl) -> list[mtf.Operation]:
    """Returns operations with those that make weights before the first of each block that reads them.

    Where the layout says so, this splits the variables among the operations that are not split yet.
    """
    return _Blocks(mesh_impl).arranged(list(operations))


def gather_weights(graph: mtf.Graph, mesh_impl: mtf.MeshImpl) -> None:
    """Splits a graph's variables if the layout says so, and gathers them in blocks; a training step's are split."""
    are_split = any(SHARD in variable.shape.dimension_names for variable in graph.all_variables)
    if _axis(mesh_impl, PARAMETERS) is not None and not are_split:
        graph.operations[:] = made_by_block(graph.operations, mesh_impl)


class _Blocks:
    """The weights of the block that is being read.

    A block is the variables of a layer, such as `gpt2/h3/...`, or one variable outside of layers. A weight of it is
    made when it is first read, and not before what else its reader needs is there.
    """

    def __init__(self, mesh_impl: mtf.MeshImpl) -> None:
        self._mesh_impl = mesh_impl
        self._block_of: dict[mtf.Tensor, str] = {}
        self._split_dims: dict[SlicedVariable, mtf.Dimension] = {}
        self._current = ""
        self._made: dict[mtf.Tensor, mtf.Tensor] = {}
        self._ready: list[mtf.Tensor] = []

    def arranged(self, operations: Sequence[mtf.Operation]) -> list[mtf.Operation]:
        """Returns the operations in their order, with those that make weights."""
        return [each for operation in operations for each in self._arranged(operation)]

    def _arranged(self, operation: mtf.Operation) -> Sequence[mtf.Operation]:
        if isinstance(operation, SlicedVariable):
            self._add(operation)
        elif isinstance(operation, mtf.WhileLoopOperation):
            self._arrange_loop(operation)
        elif isinstance(operation, mtf.CustomGradientOperation):
            replace_inputs(operation, {x: x.operation.outputs[0] for x in operation.inputs if x in self._block_of})
        elif isinstance(operation, FORMS) and all(x in self._block_of for x in operation.inputs):
            self._block_of.update(dict.fromkeys(operation.outputs, self._block_of[operation.inputs[0]]))
            return ()
        elif read := [x for x in operation.inputs if x in self._block_of]:
            return self._with_weights(operation, read)
        return (operation,)

    def _add(self, variable: SlicedVariable) -> None:
        if not variable.is_parameter or len(variable.shape) < 2:
            return
        dim = sharded_dim(self._mesh_impl, variable.shape)
        self._block_of[variable.value] = "/".join(variable.name.split("/")[:2])
        if dim is not None and _axis(self._mesh_impl, PARAMETERS) is not None:
            self._split_dims[variable] = dim
            variable.rename_dimension(dim.name, SHARD)

    def _arrange_loop(self, loop: mtf.WhileLoopOperation) -> None:
        """Arranges the operations inside, which may read nothing that was made outside: it would be kept."""
        for name in ("_cond_ops", "_body_ops"):
            self._made, self._ready = {}, []
            setattr(loop, name, self.arranged(getattr(loop, name)))
        self._made, self._ready = {}, []

    def _with_weights(self, operation: mtf.Operation, read: Sequence[mtf.Tensor]) -> Sequence[mtf.Operation]:
        operations = operation.graph.operations
        n_before = len(operations)
        block = self._block_of[read[0]]
        if block != self._current:
            self._current, self._made = block, {}
        self._ready = [x for x in operation.inputs if x not in self._block_of] or self._ready
        for x in self._ready:
            x.usable = True  # recomputed blocks close their tensors, since what reads them might be differentiated
        replace_inputs(operation, {x: self._weight(x) for x in read})
        return *operations[n_before:], operation

    def _weight(self, x: mtf.Tensor) -> mtf.Tensor:
        if x not in self._made:
            self._made[x] = self._make(x)
        return self._made[x]

    def _make(self, x: mtf.Tensor) -> mtf.Tensor:
        operation = x.operation
        if isinstance(operation, SlicedVariable):
            return self._gathered(operation, tf.float32)
        if isinstance(operation, Rounded) and isinstance(operation.inputs[0].operation, SlicedVariable):
            return self._gathered(operation.inputs[0].operation, x.dtype)  # rounded before it is sent
        inputs = {y: self._weight(y) for y in operation.inputs}
        return operation.graph.clone_operations([operation], inputs)[1][x]

    def _gathered(self, variable: SlicedVariable, dtype: tf.DType) -> mtf.Tensor:
        own = After(variable.value, self._ready).outputs[0]
        if dtype != tf.float32:
            own = Rounded(own, dtype).outputs[0]
        dim = self._split_dims.get(variable)
        return own if dim is None else Gathered(own, SHARD, dim).outputs[0]
