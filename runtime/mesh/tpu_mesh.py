"""The mesh of a TPU's cores. One program is built for all of them: in it, the number of the processor is a tensor.

Replica and processor have the same number: the assignment of replicas to cores, and not the program, knows where on the
chips a processor lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from meshtf import LaidOut, mtf, tf
from models.ops.mesh_operation import slice_starts
from models.variables import SlicedVariable
from runtime.mesh.placement import DeviceMesh, Placement

Numbers = Sequence[Sequence[int]]
REDUCTIONS = {"MAX": tf.reduce_max, "MIN": tf.reduce_min}


class Exchange(Protocol):
    """All that replicas do together; everything else is made of these three. `groups` holds each replica once."""

    def cross_replica_sum(self, x: tf.Tensor, groups: Numbers) -> tf.Tensor:
        """The sum over the group."""

    def all_to_all(self, x: tf.Tensor, groups: Numbers, split_dimension: int, concat_dimension: int) -> tf.Tensor:
        """Cuts x into as many parts as the group has members, gives each member its part, and joins what comes."""

    def collective_permute(self, x: tf.Tensor, pairs: Numbers) -> tf.Tensor:
        """Of each pair the second gets the first's x; who is in no pair's second place gets zeros."""


class TpuExchange:
    """The three as operations of a TPU."""

    def cross_replica_sum(self, x: tf.Tensor, groups: Numbers) -> tf.Tensor:
        """See `Exchange`."""
        return tf.raw_ops.CrossReplicaSum(input=x, group_assignment=groups)

    def all_to_all(self, x: tf.Tensor, groups: Numbers, split_dimension: int, concat_dimension: int) -> tf.Tensor:
        """See `Exchange`."""
        return tf.raw_ops.AllToAll(
            input=x,
            group_assignment=groups,
            concat_dimension=concat_dimension,
            split_dimension=split_dimension,
            split_count=len(groups[0]),
        )

    def collective_permute(self, x: tf.Tensor, pairs: Numbers) -> tf.Tensor:
        """See `Exchange`."""
        return tf.raw_ops.CollectivePermute(input=x, source_target_pairs=pairs)


def groups_along(shape: mtf.Shape, axes: Sequence[int]) -> list[list[int]]:
    """The processors that differ along these mesh axes only: a row for each group, in the order of the axes."""
    numbers = np.arange(shape.size).reshape(shape.to_integer_list)
    behind = range(len(shape.dims) - len(axes), len(shape.dims))
    group_size = mtf.list_product([shape.dims[axis].size for axis in axes])
    return np.moveaxis(numbers, axes, behind).reshape(-1, group_size).tolist()


@dataclasses.dataclass(frozen=True)
class Replica:
    """What the program knows of the replica that runs it.

    Attributes:
        processor: its number, an int32 scalar.
        exchange: what it does with others.
        handle_of: the handle of its own slice of a variable, which is made on first use.
    """

    processor: tf.Tensor
    exchange: Exchange
    handle_of: Callable[[SlicedVariable, DeviceMesh], tf.Tensor]


class TpuMesh(DeviceMesh):
    """What mesh-TensorFlow asks of a mesh, for one program that every processor runs: a list of slices has one."""

    def __init__(self, placement: ReplicaPlacement, layout: mtf.LayoutRules) -> None:
        super().__init__(placement.shape, layout, placement.devices, placement.store)
        self.replica = placement.replica

    class LaidOutVariable:
        """The slice of a variable, read once."""

        def __init__(self, variable: SlicedVariable, mesh_impl: TpuMesh):
            self._handle = mesh_impl.replica.handle_of(variable, mesh_impl)
            value = tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=tf.float32)
            value.set_shape(mesh_impl.slice_shape(variable.shape))
            self.laid_out_tensor = mesh_impl.LaidOutTensor([value])

        def assign(self, laid_out_value: LaidOut) -> None:
            """Sets the slice."""
            (value,) = laid_out_value.to_laid_out_tensor().all_slices
            tf.raw_ops.AssignVariableOp(resource=self._handle, value=value)

    def slicewise(self, fn: Callable[..., object], *inputs: LaidOut) -> LaidOut:
        """Calls the function once, on this processor's slices."""
        laid_out = mtf.convert_args_to_laid_out_tensors(inputs)
        result = fn(*[x.all_slices[0] if isinstance(x, self.LaidOutTensor) else x for x in laid_out])
        if isinstance(result, tuple):
            return tuple(self.LaidOutTensor([part]) for part in result)
        return self.LaidOutTensor([result])

    def laid_out_pnum(self) -> LaidOut:
        """The number of this processor."""
        return self.LaidOutTensor([self.replica.processor])

    def laid_out_pcoord(self, mesh_axis: int) -> LaidOut:
        """Where this processor is along an axis."""
        stride = mtf.list_product([dim.size for dim in self.shape.dims[mesh_axis + 1 :]])
        return self.LaidOutTensor([self.replica.processor // stride % self.shape.dims[mesh_axis].size])

    def allreduce(self, x: LaidOut, mesh_axes: Sequence[int], reduction_fn_string: str) -> LaidOut:
        """SUM, MAX or MIN over the processors along these axes."""
        groups = groups_along(self.shape, mesh_axes)
        if len(groups[0]) == 1:
            return x.to_laid_out_tensor()
        if reduction_fn_string == "SUM":
            return self.slicewise(lambda own: self.replica.exchange.cross_replica_sum(own, groups), x)
        reduction = REDUCTIONS[reduction_fn_string]
        return self.slicewise(lambda own: reduction(self._gathered(own[None], groups, 0), 0), x)

    def allconcat(self, x: LaidOut, mesh_axis: int, concat_axis: int) -> LaidOut:
        """The slices along a mesh axis, joined along a dimension."""
        groups = groups_along(self.shape, [mesh_axis])
        return self.slicewise(lambda own: self._gathered(own, groups, concat_axis), x)

    def _gathered(self, own: tf.Tensor, groups: Numbers, dimension: int) -> tf.Tensor:
        """The slices of a group, joined: each gives the whole of its slice to all, which sends no more than must be."""
        times = [len(groups[0]) if axis == dimension else 1 for axis in range(own.shape.rank)]
        return self.replica.exchange.all_to_all(tf.tile(own, times), groups, dimension, dimension)

    def alltoall(self, x: LaidOut, mesh_axis: int, split_axis: int, concat_axis: int) -> LaidOut:
        """Splits one dimension over a mesh axis and joins another."""
        groups = groups_along(self.shape, [mesh_axis])
        return self.slicewise(lambda own: self.replica.exchange.all_to_all(own, groups, split_axis, concat_axis), x)

    def receive(self, x: LaidOut, mesh_axis: int, source_pcoord: Sequence[int | None]) -> LaidOut:
        """The slice of another processor along a mesh axis; of None zeros. No two may ask for the same."""
        rows = groups_along(self.shape, [mesh_axis])
        pairs = [
            (row[source], row[target])
            for row in rows
            for target, source in enumerate(source_pcoord)
            if source is not None
        ]
        if not pairs:
            return self.slicewise(tf.zeros_like, x)
        return self.slicewise(lambda own: self.replica.exchange.collective_permute(own, pairs), x)

    def import_tf_tensor(self, x: mtf.Tensor, tf_x: tf.Tensor) -> LaidOut:
        """This processor's slice of a whole tensor."""
        return self._cut(tf_x, x.shape)

    def lay_out_rows(self, own_rows: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        """This processor's slice of its own rows."""
        batch_dim, *rest = shape.dims
        n_rows = self.slice_shape(mtf.Shape([batch_dim]))[0]
        return self._cut(own_rows, mtf.Shape([mtf.Dimension("own_rows", n_rows), *rest]))

    def _cut(self, whole: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        if self.tensor_layout(shape).is_fully_replicated:
            return self.LaidOutTensor([whole])
        sizes = self.slice_shape(shape)
        return self.slicewise(lambda starts: tf.slice(whole, starts, sizes), slice_starts(self, shape.dims))

    def export_to_tf_tensor(self, x: mtf.Tensor, laid_out_x: LaidOut) -> tf.Tensor:
        """The whole tensor, in every replica."""
        for dimension, axis in enumerate(self.tensor_layout(x.shape).tensor_axis_to_mesh_axis):
            if axis is not None:
                laid_out_x = self.allconcat(laid_out_x, axis, dimension)
        return laid_out_x.to_laid_out_tensor().all_slices[0]


@dataclasses.dataclass(frozen=True)
class ReplicaPlacement(Placement):
    """Where a run lies, seen from within its program.

    Attributes:
        replica: the one that runs it.
    """

    replica: Replica

    def implementation(self, batch_size: int) -> TpuMesh:
        """The mesh for a batch of that size."""
        return TpuMesh(self, self.rules(batch_size))

    def own_rows(self, batch_size: int) -> range:
        """As many rows as a replica needs of a batch; which ones they are, only whoever gives them knows."""
        batch_shape = mtf.Shape([mtf.Dimension("batch", batch_size)])
        return range(self.implementation(batch_size).slice_shape(batch_shape)[0])
