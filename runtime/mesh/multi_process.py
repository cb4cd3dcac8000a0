"""A mesh of processes (SPMD): each runs the same graph on its own slices, so that graphs do not grow with the mesh.

The processes communicate by TensorFlow's collectives: rings over gRPC between CPUs, and NCCL between GPUs. Two rules
prevent deadlocks. Collectives are matched by key, so all processes build the same graphs in the same order. And no two
collectives run at once, not even inside loops: otherwise one process could wait for the first of two while another
waits for the second.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from configs.schema import MeshConfig
from meshtf import LaidOut, collective_ops, mtf, tf
from runtime.mesh.placement import Placement, SingleSliceMesh, VariableStore, fit

# Smaller keys belong to collectives outside of a mesh, such as the barrier of all processes.
FIRST_GROUP_KEY = 16
# Shared by all meshes of this process, because no two collectives may use the same key.
INSTANCE_KEYS = itertools.count(1)
# TensorFlow broadcasts and gathers no bfloat16: its bits go as those of another type.
MESSAGES = {tf.bfloat16: tf.float16}
MERGE_OPERATIONS = {"SUM": "Add", "MAX": "Max", "MIN": "Min"}


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes that differ along some mesh axes only.

    Attributes:
        key: identifies the group; unique within the mesh, and a process belongs to one mesh only.
        size: how many processes it has.
    """

    key: int
    size: int


def group_of(shape: mtf.Shape, processor: int, axes: Sequence[int]) -> Group:
    """Returns the group of a processor along mesh axes."""
    kind = sum(1 << axis for axis in axes)
    size = mtf.list_product([shape.dims[axis].size for axis in axes])
    return Group(FIRST_GROUP_KEY + kind * shape.size + mtf.pnum_to_group(shape, axes, processor), size)


def pairs_in_rounds(sources: Sequence[int | None]) -> list[tuple[int, int]]:
    """Returns (source, target) for each slice that moves, such that a process has one pair at a time from the first on.

    All processes go through their own pairs in this order, so none waits for another in a circle.
    """
    rounds: list[list[tuple[int, int]]] = []
    for target, source in enumerate(sources):
        if source is None or source == target:
            continue
        free = (pairs for pairs in rounds if not {source, target} & {member for pair in pairs for member in pair})
        pairs = next(free, None)
        if pairs is None:
            pairs = []
            rounds.append(pairs)
        pairs.append((source, target))
    return [pair for pairs in rounds for pair in pairs]


def pair_of(shape: mtf.Shape, processor: int, axis: int, pair: tuple[int, int]) -> Group:
    """Returns the group of a source and a target along a mesh axis, with a processor that differs along it only."""
    sizes = shape.to_integer_list
    first_key = FIRST_GROUP_KEY + (shape.size << len(sizes)) + shape.size * sum(sizes[:axis])
    coordinates = mtf.pnum_to_processor_coordinates(shape, processor)
    coordinates[axis] = pair[0]
    source = mtf.processor_coordinates_to_pnum(shape, coordinates)
    return Group(first_key + source * sizes[axis] + pair[1], 2)


class Collectives:
    """TensorFlow's collectives with unique keys, in a fixed order."""

    def __init__(self, device: str) -> None:
        self._is_gpu = "GPU" in device
        with tf.init_scope(), tf.device(device):
            # TensorFlow keeps the order of operations on one resource, even across loops.
            self._order = tf.Variable(0.0, name="order_of_collectives", trainable=False)

    def reduce(self, x: tf.Tensor, group: Group, merge_operation: str) -> tf.Tensor:
        """Reduces over a group; the result has the same bits in each of its processes."""
        y = collective_ops.all_reduce_v2(
            x, group.size, group.key, next(INSTANCE_KEYS), merge_operation, ordering_token=self._order.handle
        )
        return tf.ensure_shape(y, x.shape)

    def gather(self, x: tf.Tensor, group: Group) -> tf.Tensor:
        """Gathers the slices of a group in the order of its members: [group, *shape of x]."""
        message = tf.bitcast(x[None], MESSAGES.get(x.dtype, x.dtype))
        y = collective_ops.all_gather_v2(
            message, group.size, group.key, next(INSTANCE_KEYS), ordering_token=self._order.handle
        )
        return tf.bitcast(tf.ensure_shape(y, [group.size, *x.shape]), x.dtype)

    def reduce_scatter(self, parts: tf.Tensor, group: Group) -> tf.Tensor:
        """Sums over a group, and returns this member's part of the sum: [group, ...] -> [...].

        Between CPUs, where TensorFlow has no such collective, each receives what the others have of its part.
        """
        if not self._is_gpu:
            return tf.reduce_sum(self.all_to_all(parts, group), 0)
        summed = tf.raw_ops.CollectiveReduceScatterV2(
            input=parts,
            group_size=group.size,
            group_key=group.key,
            instance_key=next(INSTANCE_KEYS),
            ordering_token=[self._order.handle],
            merge_op="Add",
            final_op="Id",
        )
        return tf.reshape(summed, parts.shape[1:])

    def send(self, x: tf.Tensor, group: Group, key: int) -> None:
        """Sends a tensor to the other process of a group of two, which receives it with the same key."""
        message = tf.bitcast(x, MESSAGES.get(x.dtype, x.dtype))
        self._in_order(lambda keys: collective_ops.broadcast_send_v2(message, **keys), group, key)

    def receive(self, like: tf.Tensor, group: Group, key: int) -> tf.Tensor:
        """Receives a tensor, shaped like another, from the other process of a group of two."""
        shape, dtype = like.shape.as_list(), MESSAGES.get(like.dtype, like.dtype)
        y = self._in_order(lambda keys: collective_ops.broadcast_recv_v2(shape, dtype, **keys), group, key)
        return tf.bitcast(tf.ensure_shape(y, shape), like.dtype)

    def _in_order(self, run: Callable[[Mapping[str, int]], tf.Tensor], group: Group, key: int) -> tf.Tensor:
        """Runs a collective that takes no token of the order, between two operations on the token's resource."""
        keys = {"group_size": group.size, "group_key": group.key, "instance_key": key}
        with tf.control_dependencies([self._order.assign_add(0.0, read_value=False)]):
            result = run(keys)
        with tf.control_dependencies([result]):
            self._order.assign_add(0.0, read_value=False)
        return result

    def all_to_all(self, parts: tf.Tensor, group: Group) -> tf.Tensor:
        """Sends each member of a group its part, and returns the parts received: [group, ...], both by member."""
        received = collective_ops.all_to_all_v2(
            parts, group.size, group.key, next(INSTANCE_KEYS), ordering_token=self._order.handle
        )
        return tf.ensure_shape(received, parts.shape)


class ProcessMesh(SingleSliceMesh):
    """The mesh as a process with one processor sees it."""

    def __init__(self, placement: ProcessPlacement, layout: mtf.LayoutRules) -> None:
        super().__init__(placement.shape, layout, placement.devices, placement.store)
        self.processors = (placement.processor,)
        self._processor = placement.processor
        self._coordinates = mtf.pnum_to_processor_coordinates(placement.shape, placement.processor)
        self._collectives = placement.collectives

    def laid_out_pnum(self) -> LaidOut:
        """Returns the number of this processor, a constant."""
        return self.slicewise(lambda: tf.constant(self._processor, tf.int32))

    def laid_out_pcoord(self, mesh_axis: int) -> LaidOut:
        """Returns the coordinate of this processor along an axis, a constant."""
        return self.slicewise(lambda: tf.constant(self._coordinates[mesh_axis], tf.int32))

    def allreduce(self, x: LaidOut, mesh_axes: Sequence[int], reduction_fn_string: str) -> LaidOut:
        """Reduces by SUM, MAX or MIN over the processors along these axes."""
        group = group_of(self.shape, self._processor, mesh_axes)
        if group.size == 1:
            return x.to_laid_out_tensor()
        merge_operation = MERGE_OPERATIONS[reduction_fn_string]
        return self.slicewise(lambda own: self._collectives.reduce(own, group, merge_operation), x)

    def allconcat(self, x: LaidOut, mesh_axis: int, concat_axis: int) -> LaidOut:
        """Concatenates the slices along a mesh axis on one dimension."""
        return self.slicewise(lambda parts: _concat(parts, concat_axis), self._gather(x, mesh_axis))

    def alltoall(self, x: LaidOut, mesh_axis: int, split_axis: int, concat_axis: int) -> LaidOut:
        """Splits one dimension over a mesh axis and concatenates another."""
        group = group_of(self.shape, self._processor, [mesh_axis])

        def exchanged(own: tf.Tensor) -> tf.Tensor:
            return _concat(self._collectives.all_to_all(_parts(own, split_axis, group.size), group), concat_axis)

        return self.slicewise(exchanged, x)

    def reduce_scatter(self, x: LaidOut, mesh_axis: int, dimension: int) -> LaidOut:
        """Sums over the processors along an axis; each receives its own part of the sum along a dimension."""
        group = group_of(self.shape, self._processor, [mesh_axis])

        def own_part(own: tf.Tensor) -> tf.Tensor:
            return self._collectives.reduce_scatter(_parts(own, dimension, group.size), group)

        return self.slicewise(own_part, x)

    def receive(self, x: LaidOut, mesh_axis: int, source_pcoord: Sequence[int | None]) -> LaidOut:
        """Returns the slice of another processor along a mesh axis; zeros for None."""
        return self.slicewise(lambda own: self._received(own, mesh_axis, source_pcoord), x)

    def _received(self, own: tf.Tensor, mesh_axis: int, sources: Sequence[int | None]) -> tf.Tensor:
        at, received = self._coordinates[mesh_axis], None
        for pair in pairs_in_rounds(sources):
            # Processes that have no part in a pair take its key too, so that the next keys agree.
            group, key = pair_of(self.shape, self._processor, mesh_axis, pair), next(INSTANCE_KEYS)
            if at == pair[0]:
                self._collectives.send(own, group, key)
            if at == pair[1]:
                received = self._collectives.receive(own, group, key)
        if received is None:
            return own if sources[at] == at else tf.zeros_like(own)
        return received

    def _gather(self, x: LaidOut, mesh_axis: int) -> LaidOut:
        group = group_of(self.shape, self._processor, [mesh_axis])
        return self.slicewise(lambda own: self._collectives.gather(own, group), x)

    def import_tf_tensor(self, x: mtf.Tensor, tf_x: tf.Tensor) -> LaidOut:
        """Returns this processor's slice of a whole tensor."""
        region = self.region(x.shape)
        return self.slicewise(lambda whole: whole[region], tf_x)

    def lay_out_rows(self, own_rows: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        """Returns this processor's slice of its own rows."""
        _, *rest = self.region(shape)
        return self.slicewise(lambda rows: rows[(slice(None), *rest)], own_rows)

    def region(self, shape: mtf.Shape) -> tuple[slice, ...]:
        """Returns the range of this processor's slice in the whole tensor, by dimension."""
        begins, sizes = self.slice_begin(shape, self._processor), self.slice_shape(shape)
        return tuple(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


def _concat(parts: tf.Tensor, dimension: int) -> tf.Tensor:
    """Concatenates the parts of [parts, ...] along a dimension."""
    n_parts, *shape = parts.shape.as_list()
    after = range(dimension + 1, len(shape) + 1)
    transposed = tf.transpose(parts, [*range(1, dimension + 1), 0, *after])
    return tf.reshape(transposed, [*shape[:dimension], n_parts * shape[dimension], *shape[dimension + 1 :]])


def _parts(x: tf.Tensor, dimension: int, n_parts: int) -> tf.Tensor:
    """Splits a tensor along a dimension: [parts, ...]."""
    shape = x.shape.as_list()
    split = tf.reshape(x, [*shape[:dimension], n_parts, shape[dimension] // n_parts, *shape[dimension + 1 :]])
    return tf.transpose(split, [dimension, *(axis for axis in range(len(shape) + 1) if axis != dimension)])


@dataclasses.dataclass(frozen=True)
class ProcessPlacement(Placement):
    """The placement of a run of several processes, seen from one of them.

    Attributes:
        processor: the number of this process and of its processor in the mesh.
        collectives: those of all its graphs.
    """

    processor: int
    collectives: Collectives

    def implementation(self, batch_size: int) -> ProcessMesh:
        """Returns the mesh for a batch of this size."""
        return ProcessMesh(self, self.rules(batch_size))

    def own_rows(self, batch_size: int) -> range:
        """Returns the rows of a batch in this process's slice."""
        (rows,) = self.implementation(batch_size).region(mtf.Shape([mtf.Dimension("batch", batch_size)]))
        return range(rows.start, rows.stop)

    def describe(self) -> str:
        """Describes the mesh in one line."""
        return f"{super().describe()}, process {self.processor} of {self.shape.size}"


def place_process(mesh: MeshConfig, processor: int, n_processors: int, device: str) -> ProcessPlacement:
    """Lays the configured mesh over processes with one device each.

    Graphs can be built before the other processes are connected.

    Args:
        mesh: the mesh of the config; without a `mesh_shape` the batch is split over all processes.
        processor: the number of this process.
        n_processors: how many there are.
        device: the device of this process, such as `/device:CPU:0`.

    Raises:
        DeviceError: the mesh needs a different number of processes.
    """
    shape, layout = fit(mesh, n_processors, "processes")
    return ProcessPlacement(shape, layout, (device,), VariableStore(), processor, Collectives(device))
