"""The mesh of a TPU's cores, inside the one program that all of them run: there, the processor's number is a tensor.

Replica and processor have the same number. The assignment of replicas to cores, not the program, places a processor on
the chips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from meshtf import LaidOut, mtf, tf, xla_reduce_scatter
from models.kernels.compile import Kernel
from models.ops.mesh_operation import slice_starts
from models.variables import SlicedVariable
from runtime.mesh.placement import DeviceMesh, Placement, SingleSliceMesh

ReplicaGroups = Sequence[Sequence[int]]
REDUCTIONS = {"MAX": tf.reduce_max, "MIN": tf.reduce_min}


class CrossReplicaOps:
    """The four collectives of replicas that all others are built from. `groups` holds each replica once."""

    def cross_replica_sum(self, x: tf.Tensor, groups: ReplicaGroups) -> tf.Tensor:
        """Sums over the group."""
        return tf.raw_ops.CrossReplicaSum(input=x, group_assignment=groups)

    def reduce_scatter(self, x: tf.Tensor, groups: ReplicaGroups, dimension: int) -> tf.Tensor:
        """Sums over the group, and returns the part along a dimension that has the replica's place in the group."""
        return xla_reduce_scatter(x, groups, dimension, reduce_op="Add")

    def all_to_all(self, x: tf.Tensor, groups: ReplicaGroups, split_dimension: int, concat_dimension: int) -> tf.Tensor:
        """Splits x into one part for each member of the group, exchanges the parts, and concatenates those received."""
        return tf.raw_ops.AllToAll(
            input=x,
            group_assignment=groups,
            concat_dimension=concat_dimension,
            split_dimension=split_dimension,
            split_count=len(groups[0]),
        )

    def collective_permute(self, x: tf.Tensor, pairs: ReplicaGroups) -> tf.Tensor:
        """Sends x from the first to the second of each pair; a replica that is the second of none gets zeros."""
        return tf.raw_ops.CollectivePermute(input=x, source_target_pairs=pairs)


def groups_along(shape: mtf.Shape, axes: Sequence[int]) -> list[list[int]]:
    """Returns the groups of processors that differ along these mesh axes only, each in the order of the axes."""
    numbers = np.arange(shape.size).reshape(shape.to_integer_list)
    last_axes = range(len(shape.dims) - len(axes), len(shape.dims))
    group_size = mtf.list_product([shape.dims[axis].size for axis in axes])
    return np.moveaxis(numbers, axes, last_axes).reshape(-1, group_size).tolist()


@dataclasses.dataclass(frozen=True)
class Replica:
    """The replica that runs the program.

    Attributes:
        processor: its number, an int32 scalar.
        ops: its collectives.
        handle_of: returns the handle of its slice of a variable, which is created on first use.
    """

    processor: tf.Tensor
    ops: CrossReplicaOps
    handle_of: Callable[[SlicedVariable, DeviceMesh], tf.Tensor]


class TpuMesh(SingleSliceMesh):
    """The mesh as the program of each processor sees it."""

    def __init__(self, placement: ReplicaPlacement, layout: mtf.LayoutRules) -> None:
        super().__init__(placement.shape, layout, placement.devices, placement.store)
        self.replica = placement.replica

    class LaidOutVariable:
        """The slice of a variable, read once; `laid_out_tensor` is its newest value."""

        def __init__(self, variable: SlicedVariable, mesh_impl: TpuMesh) -> None:
            self._handle = mesh_impl.replica.handle_of(variable, mesh_impl)
            value = tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=tf.float32)
            value.set_shape(mesh_impl.slice_shape(variable.shape))
            self.laid_out_tensor = mesh_impl.LaidOutTensor([value])

        def assign(self, laid_out_value: LaidOut) -> list[tf.Operation]:
            """Sets the slice; returns the operation that does it."""
            self.laid_out_tensor = laid_out_value.to_laid_out_tensor()
            (value,) = self.laid_out_tensor.all_slices
            return [tf.raw_ops.AssignVariableOp(resource=self._handle, value=value)]

    def slicewise(self, fn: Callable[..., object], *inputs: LaidOut) -> LaidOut:
        """Calls the function once, on this processor's slices."""
        laid_out = mtf.convert_args_to_laid_out_tensors(inputs)
        result = fn(*[x.all_slices[0] if isinstance(x, self.LaidOutTensor) else x for x in laid_out])
        if isinstance(result, tuple):
            return tuple(self.LaidOutTensor([part]) for part in result)
        return self.LaidOutTensor([result])

    def update(
        self,
        kernel: Kernel,
        scalars: Sequence[LaidOut],
        states: Sequence[TpuMesh.LaidOutVariable | LaidOut],
        others: Sequence[LaidOut],
    ) -> list[LaidOut]:
        """Sets states to kernel(*scalars, *states, *others); XLA reuses their memory in the whole program."""
        values = [x.laid_out_tensor if isinstance(x, self.LaidOutVariable) else x for x in states]
        returned = []
        for state, new in zip(states, self.slicewise(kernel, *scalars, *values, *others), strict=True):
            if isinstance(state, self.LaidOutVariable):
                state.assign(new)
            else:
                returned.append(new)
        return returned

    def laid_out_pnum(self) -> LaidOut:
        """Returns the number of this processor."""
        return self.LaidOutTensor([self.replica.processor])

    def laid_out_pcoord(self, mesh_axis: int) -> LaidOut:
        """Returns the coordinate of this processor along an axis."""
        stride = mtf.list_product([dim.size for dim in self.shape.dims[mesh_axis + 1 :]])
        return self.LaidOutTensor([self.replica.processor // stride % self.shape.dims[mesh_axis].size])

    def allreduce(self, x: LaidOut, mesh_axes: Sequence[int], reduction_fn_string: str) -> LaidOut:
        """Reduces by SUM, MAX or MIN over the processors along these axes."""
        groups = groups_along(self.shape, mesh_axes)
        if len(groups[0]) == 1:
            return x.to_laid_out_tensor()
        if reduction_fn_string == "SUM":
            return self.slicewise(lambda own: self.replica.ops.cross_replica_sum(own, groups), x)
        reduction = REDUCTIONS[reduction_fn_string]
        return self.slicewise(lambda own: reduction(self._gathered(own[None], groups, 0), 0), x)

    def allconcat(self, x: LaidOut, mesh_axis: int, concat_axis: int) -> LaidOut:
        """Concatenates the slices along a mesh axis on one dimension."""
        groups = groups_along(self.shape, [mesh_axis])
        return self.slicewise(lambda own: self._gathered(own, groups, concat_axis), x)

    def _gathered(self, own: tf.Tensor, groups: ReplicaGroups, dimension: int) -> tf.Tensor:
        """Concatenates the slices of a group: an all-to-all of whole slices sends no more than necessary."""
        times = [len(groups[0]) if axis == dimension else 1 for axis in range(own.shape.rank)]
        return self.replica.ops.all_to_all(tf.tile(own, times), groups, dimension, dimension)

    def reduce_scatter(self, x: LaidOut, mesh_axis: int, dimension: int) -> LaidOut:
        """Sums over the processors along an axis; each receives its own part of the sum along a dimension."""
        groups = groups_along(self.shape, [mesh_axis])
        return self.slicewise(lambda own: self.replica.ops.reduce_scatter(own, groups, dimension), x)

    def alltoall(self, x: LaidOut, mesh_axis: int, split_axis: int, concat_axis: int) -> LaidOut:
        """Splits one dimension over a mesh axis and concatenates another."""
        groups = groups_along(self.shape, [mesh_axis])
        return self.slicewise(lambda own: self.replica.ops.all_to_all(own, groups, split_axis, concat_axis), x)

    def receive(self, x: LaidOut, mesh_axis: int, source_pcoord: Sequence[int | None]) -> LaidOut:
        """Returns the slice of another processor along a mesh axis; zeros for None. The sources must differ."""
        rows = groups_along(self.shape, [mesh_axis])
        pairs = [
            (row[source], row[target])
            for row in rows
            for target, source in enumerate(source_pcoord)
            if source is not None
        ]
        if not pairs:
            return self.slicewise(tf.zeros_like, x)
        return self.slicewise(lambda own: self.replica.ops.collective_permute(own, pairs), x)

    def import_tf_tensor(self, x: mtf.Tensor, tf_x: tf.Tensor) -> LaidOut:
        """Returns this processor's slice of a whole tensor."""
        return self._slice(tf_x, x.shape)

    def lay_out_rows(self, own_rows: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        """Returns this processor's slice of its own rows."""
        batch_dim, *rest = shape.dims
        n_rows = self.slice_shape(mtf.Shape([batch_dim]))[0]
        return self._slice(own_rows, mtf.Shape([mtf.Dimension("own_rows", n_rows), *rest]))

    def _slice(self, whole: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        if self.tensor_layout(shape).is_fully_replicated:
            return self.LaidOutTensor([whole])
        sizes = self.slice_shape(shape)
        return self.slicewise(lambda starts: tf.slice(whole, starts, sizes), slice_starts(self, shape.dims))


@dataclasses.dataclass(frozen=True)
class ReplicaPlacement(Placement):
    """The placement of a run, seen from inside its program.

    Attributes:
        replica: the replica that runs it.
    """

    replica: Replica

    def implementation(self, batch_size: int) -> TpuMesh:
        """Returns the mesh for a batch of this size."""
        return TpuMesh(self, self.rules(batch_size))

    def own_rows(self, batch_size: int) -> range:
        """Returns as many rows as a replica needs of a batch; the caller passes the right ones."""
        batch_shape = mtf.Shape([mtf.Dimension("batch", batch_size)])
        return range(self.implementation(batch_size).slice_shape(batch_shape)[0])
