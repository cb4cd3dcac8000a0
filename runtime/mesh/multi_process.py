"""A mesh of processes: each runs the same graph on its own slices, so that no graph grows with the mesh.

The processes speak by TensorFlow's collectives, which run as a ring over gRPC between CPUs and by NCCL between GPUs.
Two rules hold them together. A collective carries a key, and the processes of a group meet where the keys are equal: so
all build the same graphs in the same order. And no two collectives run at once, also not those inside loops: or else
one process could wait for the first of two while another waits for the second.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from configs.schema import MeshConfig
from meshtf import LaidOut, collective_ops, mtf, tf
from runtime.mesh.placement import DeviceMesh, Placement, VariableStore, fit

# Keys below are of what is not part of a mesh, as the barrier of all processes.
FIRST_GROUP_KEY = 16
# Of all meshes of this process: a key that has met once is not met by another collective.
INSTANCE_KEYS = itertools.count(1)
MERGE_OPERATIONS = {"SUM": "Add", "MAX": "Max", "MIN": "Min"}


@dataclasses.dataclass(frozen=True)
class Group:
    """Processes that differ along some mesh axes only.

    Attributes:
        key: the same in each of them, and in no other group of that mesh; a process is part of one mesh as long as it
            runs.
        size: how many they are.
    """

    key: int
    size: int


def group_of(shape: mtf.Shape, processor: int, axes: Sequence[int]) -> Group:
    """The group along these mesh axes that a processor belongs to."""
    kind = sum(1 << axis for axis in axes)
    size = mtf.list_product([shape.dims[axis].size for axis in axes])
    return Group(FIRST_GROUP_KEY + kind * shape.size + mtf.pnum_to_group(shape, axes, processor), size)


def _line(shape: mtf.Shape, processor: int, axis: int) -> list[int]:
    """The processors that differ from this one along one mesh axis only, itself among them."""
    stride = mtf.list_product([dimension.size for dimension in shape.dims[axis + 1 :]])
    first = processor - mtf.pnum_to_processor_coordinates(shape, processor)[axis] * stride
    return [first + stride * place for place in range(shape.dims[axis].size)]


class Collectives:
    """TensorFlow's collectives, keyed and put into one order."""

    def __init__(self, device: str) -> None:
        with tf.init_scope(), tf.device(device):
            # TensorFlow keeps the order of operations on one resource, also into and out of loops.
            self._order = tf.Variable(0.0, name="order_of_collectives", trainable=False)

    def reduce(self, x: tf.Tensor, group: Group, merge_operation: str) -> tf.Tensor:
        """The sum, or what else, over a group: the same bits in each of its processes."""
        y = collective_ops.all_reduce_v2(
            x, group.size, group.key, next(INSTANCE_KEYS), merge_operation, ordering_token=self._order.handle
        )
        return tf.ensure_shape(y, x.shape)

    def gather(self, x: tf.Tensor, group: Group, members: Sequence[int]) -> tf.Tensor:
        """The slices of a group, in the order of its members, which are numbers of processes: [group, *shape of x]."""
        y = collective_ops.all_gather_v2(
            x[None], group.size, group.key, next(INSTANCE_KEYS), ordering_token=self._order.handle
        )
        y = tf.ensure_shape(y, [group.size, *x.shape])
        # TensorFlow orders processes by their names as text: task:10 comes before task:2.
        as_gathered = sorted(members, key=str)
        return y if as_gathered == list(members) else tf.gather(y, [as_gathered.index(member) for member in members])


class ProcessMesh(DeviceMesh):
    """What mesh-TensorFlow asks of a mesh, for the one processor that this process is: a list of slices has one."""

    def __init__(self, placement: ProcessPlacement, layout: mtf.LayoutRules) -> None:
        super().__init__(placement.shape, layout, placement.devices, placement.store)
        self.processors = (placement.processor,)
        self._processor = placement.processor
        self._coordinates = mtf.pnum_to_processor_coordinates(placement.shape, placement.processor)
        self._collectives = placement.collectives

    def laid_out_pnum(self) -> LaidOut:
        """The number of this processor, a constant."""
        return self.slicewise(lambda: tf.constant(self._processor, tf.int32))

    def laid_out_pcoord(self, mesh_axis: int) -> LaidOut:
        """Where this processor is along an axis, a constant."""
        return self.slicewise(lambda: tf.constant(self._coordinates[mesh_axis], tf.int32))

    def allreduce(self, x: LaidOut, mesh_axes: Sequence[int], reduction_fn_string: str) -> LaidOut:
        """SUM, MAX or MIN over the processors along these axes."""
        group = group_of(self.shape, self._processor, mesh_axes)
        if group.size == 1:
            return x.to_laid_out_tensor()
        merge_operation = MERGE_OPERATIONS[reduction_fn_string]
        return self.slicewise(lambda own: self._collectives.reduce(own, group, merge_operation), x)

    def allconcat(self, x: LaidOut, mesh_axis: int, concat_axis: int) -> LaidOut:
        """The slices along a mesh axis, joined along a dimension."""
        return self.slicewise(lambda parts: _join(parts, concat_axis), self._gather(x, mesh_axis))

    def alltoall(self, x: LaidOut, mesh_axis: int, split_axis: int, concat_axis: int) -> LaidOut:
        """Splits one dimension over a mesh axis and joins another.

        Each process is sent all parts of all slices: between CPUs TensorFlow has nothing that sends only what is kept.
        """
        size = self.shape.dims[mesh_axis].size

        def own_parts(parts: tf.Tensor) -> tf.Tensor:
            return _join(_part(parts, split_axis + 1, size, self._coordinates[mesh_axis]), concat_axis)

        return self.slicewise(own_parts, self._gather(x, mesh_axis))

    def receive(self, x: LaidOut, mesh_axis: int, source_pcoord: Sequence[int | None]) -> LaidOut:
        """The slice of another processor along a mesh axis; of None zeros."""
        source = source_pcoord[self._coordinates[mesh_axis]]
        parts = self._gather(x, mesh_axis)  # by all, for all take part
        return self.slicewise(lambda parts: tf.zeros_like(parts[0]) if source is None else parts[source], parts)

    def _gather(self, x: LaidOut, mesh_axis: int) -> LaidOut:
        group = group_of(self.shape, self._processor, [mesh_axis])
        members = _line(self.shape, self._processor, mesh_axis)
        return self.slicewise(lambda own: self._collectives.gather(own, group, members), x)

    def import_tf_tensor(self, x: mtf.Tensor, tf_x: tf.Tensor) -> LaidOut:
        """This processor's slice of a whole tensor."""
        region = self.region(x.shape)
        return self.slicewise(lambda whole: whole[region], tf_x)

    def lay_out_rows(self, own_rows: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        """This processor's slice of its own rows."""
        _, *rest = self.region(shape)
        return self.slicewise(lambda rows: rows[(slice(None), *rest)], own_rows)

    def region(self, shape: mtf.Shape) -> tuple[slice, ...]:
        """Where this processor's slice of a tensor lies in the whole, dimension by dimension."""
        begins, sizes = self.slice_begin(shape, self._processor), self.slice_shape(shape)
        return tuple(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))

    def export_to_tf_tensor(self, x: mtf.Tensor, laid_out_x: LaidOut) -> tf.Tensor:
        """The whole tensor, in every process."""
        for dimension, axis in enumerate(self.tensor_layout(x.shape).tensor_axis_to_mesh_axis):
            if axis is not None:
                laid_out_x = self.allconcat(laid_out_x, axis, dimension)
        return laid_out_x.to_laid_out_tensor().all_slices[0]


def _join(parts: tf.Tensor, dimension: int) -> tf.Tensor:
    """[parts, ...] -> the parts one after the other along a dimension."""
    n_parts, *shape = parts.shape.as_list()
    behind = range(dimension + 1, len(shape) + 1)
    together = tf.transpose(parts, [*range(1, dimension + 1), 0, *behind])
    return tf.reshape(together, [*shape[:dimension], n_parts * shape[dimension], *shape[dimension + 1 :]])


def _part(x: tf.Tensor, dimension: int, n_parts: int, index: int) -> tf.Tensor:
    """One of the parts of a tensor that is cut along a dimension."""
    size = x.shape[dimension] // n_parts
    return x[(*[slice(None)] * dimension, slice(index * size, (index + 1) * size))]


@dataclasses.dataclass(frozen=True)
class ProcessPlacement(Placement):
    """Where a run of many processes lies, seen from one of them.

    Attributes:
        processor: the number of this process, which is that of its processor in the mesh.
        collectives: of all its graphs.
    """

    processor: int
    collectives: Collectives

    def implementation(self, batch_size: int) -> ProcessMesh:
        """The mesh for a batch of that size."""
        return ProcessMesh(self, self.rules(batch_size))

    def own_rows(self, batch_size: int) -> range:
        """The rows of a batch that this process needs: those of its slice."""
        (rows,) = self.implementation(batch_size).region(mtf.Shape([mtf.Dimension("batch", batch_size)]))
        return range(rows.start, rows.stop)

    def describe(self) -> str:
        return f"{super().describe()}, process {self.processor} of {self.shape.size}"


def place_process(mesh: MeshConfig, processor: int, n_processors: int, device: str) -> ProcessPlacement:
    """Lays the configured mesh over processes of one device each; a graph can be built before there are others.

    Args:
        mesh: of the config; without a `mesh_shape` the batch is split over all processes.
        processor: the number of this process.
        n_processors: how many there are.
        device: its device, as `/device:CPU:0`.

    Raises:
        DeviceError: the mesh needs another number of processes than there are.
    """
    shape, layout = fit(mesh, n_processors, "processes")
    return ProcessPlacement(shape, layout, (device,), VariableStore(), processor, Collectives(device))
