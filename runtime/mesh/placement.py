"""Lays the configured mesh over devices, and holds the slices of the variables on it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from configs.errors import DeviceError
from configs.layout import format_pairs, resized
from configs.schema import SHARD_PARAMETERS, MeshConfig
from meshtf import LaidOut, PlacementMeshImpl, mtf, tf
from models.kernels.compile import Kernel, in_place
from models.variables import SlicedVariable
from runtime.mesh.lowering import LoweredStep, compile_step
from runtime.mesh.products import einsum
from runtime.mesh.weights import PARAMETERS, SHARD

Program = Callable[..., dict[str, tf.Tensor]]
COPIED_BYTES = 1 << 24  # of a value, at a time


@dataclasses.dataclass(frozen=True)
class VariableSlices:
    """The slices of one variable on the mesh.

    Attributes:
        begins: where each slice begins in the whole variable; equal for processors that hold the same slice.
        slices: one float32 TensorFlow variable for each processor of this process.
        are_first: whether no earlier processor of the mesh holds the same slice.
    """

    variable: SlicedVariable
    begins: tuple[tuple[int, ...], ...]
    slices: tuple[tf.Variable, ...]
    are_first: tuple[bool, ...]

    @property
    def name(self) -> str:
        """The name of the variable in checkpoints."""
        return self.variable.name

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the whole variable."""
        return tuple(self.variable.shape.to_integer_list)

    def specification(self, index: int) -> str:
        """Returns TensorFlow's notation of a slice in a checkpoint: the whole shape, then `begin,size` by dimension."""
        sizes = self.slices[index].shape.as_list()
        ranges = ":".join(f"{begin},{size}" for begin, size in zip(self.begins[index], sizes, strict=True))
        return " ".join([*map(str, self.whole_shape), ranges])

    def distinct_slices(self) -> list[int]:
        """Returns the indices of slices that no earlier processor holds: over all processes, each slice once."""
        return [index for index, is_first in enumerate(self.are_first) if is_first]

    def assign_whole(self, value: np.ndarray) -> None:
        """Sets every slice from the whole value."""
        self.assign_parts(lambda region: value[region])

    def assign_parts(self, read: Callable[[tuple[slice, ...]], np.ndarray]) -> None:
        """Sets every slice from what `read` returns for its region of the whole: each once, and one at a time."""
        for begin in dict.fromkeys(self.begins):
            equal = [piece for piece, at in zip(self.slices, self.begins, strict=True) if at == begin]
            sizes = equal[0].shape.as_list()
            value = read(tuple(slice(first, first + size) for first, size in zip(begin, sizes, strict=True)))
            for piece in equal:
                overwrite(piece, value)


def overwrite(variable: tf.Variable, value: np.ndarray | tf.Tensor) -> None:
    """Sets a variable in its memory, a part at a time.

    `assign` would take as much memory again, and leave a hole where the old value was.
    """
    shape = tuple(variable.shape)
    assert tuple(value.shape) == shape
    is_on_tpu = tf.DeviceSpec.from_string(variable.device).device_type == "TPU"  # compiles a program for each part
    if is_on_tpu or not shape:
        variable.assign(value)
        return
    n_rows = max(1, COPIED_BYTES // max(1, variable.dtype.size * math.prod(shape[1:])))
    for start in range(0, shape[0], n_rows):
        variable[start : start + n_rows].assign(value[start : start + n_rows])
    tf.raw_ops.DisableCopyOnRead(resource=variable.handle)  # which writing to a part has turned on


class VariableStore:
    """The slices of every variable of a run, by checkpoint name.

    Graphs for training, evaluation and decoding share them.

    Attributes:
        base: what checkpoints say of the weights that frozen variables come from, in place of their values; None:
            checkpoints hold every variable.
    """

    def __init__(self) -> None:
        self.base: str | None = None
        self._by_name: dict[str, VariableSlices] = {}

    def __iter__(self) -> Iterator[VariableSlices]:
        return iter(self._by_name.values())

    def slices_of(self, variable: SlicedVariable, mesh_impl: mtf.MeshImpl) -> VariableSlices:
        """Returns the slices of a variable, which are created (as zeros) on first use."""
        if variable.name not in self._by_name:
            shape = mesh_impl.slice_shape(variable.shape)
            begins = tuple(tuple(mesh_impl.slice_begin(variable.shape, pnum)) for pnum in mesh_impl.processors)
            are_first = tuple(_is_first(mesh_impl, variable.shape, pnum) for pnum in mesh_impl.processors)
            # Graphs are built inside tf.function; the variables must outlive it.
            with tf.init_scope():
                slices = tuple(_zeros(variable.name, shape, device) for device in mesh_impl.devices)
            self._by_name[variable.name] = VariableSlices(variable, begins, slices, are_first)
        return self._by_name[variable.name]

    def initialize(self, seed: int) -> None:
        """Sets every variable to its initial value."""
        for stored in self:
            stored.assign_whole(stored.variable.initial_value(seed))

    def n_parameters(self) -> int:
        """Returns the number of parameters of the model."""
        return sum(stored.variable.shape.size for stored in self if stored.variable.is_parameter)

    def n_trainable_parameters(self) -> int:
        """Returns the number of those that are trained; fewer where others are frozen."""
        return sum(stored.variable.shape.size for stored in self if stored.variable.trainable)


def _zeros(name: str, shape: Sequence[int], device: str) -> tf.Variable:
    with tf.device(device):
        return tf.Variable(tf.zeros(shape), name=name, trainable=False)


def _is_first(mesh_impl: DeviceMesh, shape: mtf.Shape, processor: int) -> bool:
    """Whether no earlier processor holds the same slice: it comes first on all axes that do not split the tensor."""
    coordinates = mtf.pnum_to_processor_coordinates(mesh_impl.shape, processor)
    splitting = mesh_impl.tensor_layout(shape).tensor_axis_to_mesh_axis
    return not any(coordinate for axis, coordinate in enumerate(coordinates) if axis not in splitting)


class DeviceMesh(PlacementMeshImpl):
    """Mesh-TensorFlow's mesh on the devices of one process, with slices as the only variables.

    Attributes:
        processors: the numbers of the processors that are devices of this process.
    """

    def __init__(self, shape: mtf.Shape, layout: mtf.LayoutRules, devices: Sequence[str], store: VariableStore) -> None:
        super().__init__(shape, layout, list(devices))
        self.store = store
        self.processors: Sequence[int] = range(self.size)

    def einsum(self, equation: str, *slices: tf.Tensor) -> tf.Tensor:
        """Computes the product of slices."""
        return einsum(equation, *slices)

    def repeating(self, count: int) -> contextlib.AbstractContextManager[None]:
        """Surrounds the loop that is built next, which repeats its body `count` times; for meshes that count."""
        return contextlib.nullcontext()

    def update(
        self,
        kernel: Kernel,
        scalars: Sequence[LaidOut],
        states: Sequence[DeviceMesh.LaidOutVariable | LaidOut],
        others: Sequence[LaidOut],
    ) -> list[LaidOut]:
        """Sets states to kernel(*scalars, *states, *others): variables in their memory; returns the others."""
        columns = [[_slices(x) for x in group] for group in (scalars, states, others)]
        update = in_place(kernel, tuple(tuple(slices[0].shape) for slices in columns[1]))
        returned = []
        for index, device in enumerate(self.devices):
            with tf.device(device), tf.name_scope(f"parallel_{index}"):  # as `slicewise` names them
                own_scalars, own_states, own_others = ([slices[index] for slices in group] for group in columns)
                handles = [x.handle if isinstance(x, tf.Variable) else x for x in own_states]
                returned.append(update(_tensors(own_scalars), handles, _tensors(own_others)))
        return [self.LaidOutTensor(list(slices)) for slices in zip(*returned, strict=True)]

    def lay_out_rows(self, own_rows: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        """Lays out a tensor [batch, ...], given the rows of it that `Placement.own_rows` names."""
        return self.LaidOutTensor(self.make_slices(own_rows, shape))

    def reduce_scatter(self, x: LaidOut, mesh_axis: int, dimension: int) -> LaidOut:
        """Sums over the processors along an axis; each receives its own part of the sum along a dimension."""
        return self._collective_with_groups(x, [mesh_axis], functools.partial(_sums_of_parts, dimension=dimension))

    class LaidOutVariable:
        """Implements mesh-TensorFlow's laid-out variable; `laid_out_tensor` is its newest value.

        Attributes:
            slices: one for each processor of this process.
        """

        def __init__(self, variable: SlicedVariable, mesh_impl: DeviceMesh) -> None:
            self._mesh_impl = mesh_impl
            self.slices = mesh_impl.store.slices_of(variable, mesh_impl).slices
            self.laid_out_tensor = mesh_impl.LaidOutTensor(list(self.slices))

        def assign(self, laid_out_value: LaidOut) -> list[tf.Operation]:
            """Sets the slices; returns the operations that do it."""
            self.laid_out_tensor, assigned = laid_out_value.to_laid_out_tensor(), []
            for device, piece, value in zip(
                self._mesh_impl.devices, self.slices, laid_out_value.all_slices, strict=True
            ):
                with tf.device(device):
                    assigned.append(piece.assign(value, read_value=False))
            return assigned


def _slices(x: DeviceMesh.LaidOutVariable | LaidOut) -> Sequence[tf.Variable | tf.Tensor]:
    return x.slices if isinstance(x, DeviceMesh.LaidOutVariable) else x.to_laid_out_tensor().all_slices


def _tensors(values: Iterable[object]) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(value) for value in values]


def _sums_of_parts(slices: Sequence[tf.Tensor], devices: Sequence[str], dimension: int) -> list[tf.Tensor]:
    """Reduce-scatter: splits each slice along a dimension, and returns the sum of each part over all slices."""
    parts = mtf.parallel(devices, functools.partial(tf.split, num_or_size_splits=len(slices), axis=dimension), slices)
    return mtf.parallel(devices, tf.add_n, list(zip(*parts, strict=True)))


class SingleSliceMesh(DeviceMesh):
    """A mesh seen from one of its processors: a laid-out tensor has a single slice."""

    def export_to_tf_tensor(self, x: mtf.Tensor, laid_out_x: LaidOut) -> tf.Tensor:
        """Returns the whole tensor on every processor."""
        for dimension, axis in enumerate(self.tensor_layout(x.shape).tensor_axis_to_mesh_axis):
            if axis is not None:
                laid_out_x = self.allconcat(laid_out_x, axis, dimension)
        return laid_out_x.to_laid_out_tensor().all_slices[0]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh of a run, what is split over it, its devices, and the variables on them."""

    shape: mtf.Shape
    layout: tuple[tuple[str, str], ...]
    devices: tuple[str, ...]
    store: VariableStore

    def implementation(self, batch_size: int) -> DeviceMesh:
        """Returns the mesh for a batch of this size."""
        return DeviceMesh(self.shape, self.rules(batch_size), self.devices, self.store)

    def own_rows(self, batch_size: int) -> range:
        """Returns the rows of a batch that this process needs: all of them."""
        return range(batch_size)

    def compile(self, program: Program, *signature: tf.TensorSpec) -> LoweredStep:
        """Compiles a program whose inputs and outputs every processor holds whole.

        Args:
            program: maps the placement, as the processors see it, and the inputs to named tensors.
            signature: of the inputs.
        """
        return compile_step(lambda *inputs: program(self, *inputs), *signature)

    def rules(self, batch_size: int) -> mtf.LayoutRules:
        """Returns the layout rules; a batch that the mesh does not divide stays whole on every processor."""
        sizes = {dim.name: dim.size for dim in self.shape.dims}
        rules = {dim: axis for dim, axis in self.layout if dim != "batch" or batch_size % sizes.get(axis, 1) == 0}
        if "batch" in rules and rules["batch"] != rules.get("experts"):
            # The rows that experts work on. An axis that splits the experts cannot split these too: there, rows of the
            # whole batch move to the processor that has their expert.
            rules["expert_batch"] = rules["batch"]
        if "sequence" in rules:  # keys and values stay where they are computed, and attention goes round them
            rules.setdefault("memory_length", rules["sequence"])
        own_axes = dict(self.layout)
        if shared_along := own_axes.get(PARAMETERS, own_axes.get("batch")):
            rules[SHARD] = shared_along  # state lies on the mesh for batches of any size
        return mtf.LayoutRules(rules.items())

    def without(self, *dimensions: str) -> Placement:
        """Returns this placement with some tensor dimensions left whole."""
        return dataclasses.replace(self, layout=tuple(rule for rule in self.layout if rule[0] not in dimensions))

    def axis_size(self, dimension: str) -> int:
        """Returns over how many processors a tensor dimension is split."""
        sizes = {dim.name: dim.size for dim in self.shape.dims}
        return sizes.get(dict(self.layout).get(dimension, ""), 1)

    def describe(self) -> str:
        """Describes the mesh in one line."""
        return f"{self._describe_split()} on {', '.join(device.removeprefix('/device:') for device in self.devices)}"

    def _describe_split(self) -> str:
        shape = format_pairs(tuple((dim.name, dim.size) for dim in self.shape.dims)) or "one device"
        return f"{shape} ({format_pairs(self.layout) or 'nothing split'})"


def place(mesh: MeshConfig, devices: Sequence[str]) -> Placement:
    """Lays the configured mesh over the devices.

    A single device holds everything, whatever the mesh of the config, with the same results. Without a `mesh_shape`
    the batch is split over all devices.

    Raises:
        DeviceError: the mesh needs a different number of devices.
    """
    devices = tuple(devices)
    if len(devices) == 1:
        return Placement(mtf.Shape([]), (), devices, VariableStore())
    return Placement(*fit(mesh, len(devices), "devices"), devices, VariableStore())


def fit(mesh: MeshConfig, n_processors: int, kind: str) -> tuple[mtf.Shape, tuple[tuple[str, str], ...]]:
    """Returns the shape and the layout of the configured mesh on this number of processors.

    Args:
        mesh: the mesh of the config.
        n_processors: how many there are.
        kind: what messages call them, such as "devices".

    Raises:
        DeviceError: the mesh needs a different number, and is not elastic.
    """
    mesh_shape = mesh.mesh_shape or (("all", n_processors),)
    layout = mesh.layout if mesh.layout is not None else (("batch", mesh_shape[0][0]),)
    needed = int(np.prod([size for _, size in mesh_shape]))
    if mesh.elastic_mesh and needed != n_processors:
        mesh_shape, needed = resized(mesh_shape, n_processors), n_processors
    if needed != n_processors:
        raise DeviceError(
            f"mesh_shape = {format_pairs(mesh_shape)}: needs {needed} {kind}, {n_processors} are there; "
            f"give a mesh_shape whose sizes multiply to {n_processors} "
            f"(--set mesh_shape={mesh_shape[0][0]}:{n_processors}), that many {kind}, or --set elastic_mesh=true"
        )
    if mesh.shard == SHARD_PARAMETERS and "batch" in dict(layout):
        layout = (*layout, (PARAMETERS, dict(layout)["batch"]))
    return mtf.Shape([mtf.Dimension(axis, size) for axis, size in mesh_shape]), tuple(layout)
