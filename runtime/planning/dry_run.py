"""Builds one processor's training step on an abstract mesh, without running it, to see what a layout costs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from configs.schema import MeshConfig, RunConfig
from meshtf import LaidOut, PlacementMeshImpl, mtf, tf
from models.kernels.compile import Kernel
from models.variables import SlicedVariable
from runtime.mesh.placement import Placement, place
from runtime.training.grad_accumulation import n_microbatches
from runtime.training.steps import build_train_step


@dataclasses.dataclass(frozen=True)
class Transfer:
    """One collective operation of a step.

    Attributes:
        kind: "allreduce", "reduce_scatter", "allconcat", "alltoall" or "receive".
        axis: the mesh axis.
        sent_bytes: sent by one processor in the whole step by a ring algorithm. For n processors and b bytes: 2 (n - 1)
            / n * b for an allreduce, (n - 1) / n * b for a reduce_scatter and an alltoall, (n - 1) * b for an allconcat
            of slices of b, and b for a receive; where some processors send nothing, the mean over all.
    """

    kind: str
    axis: str
    sent_bytes: float


@dataclasses.dataclass(frozen=True)
class DryStep:
    """A training step of one processor, built but not run.

    Attributes:
        graph: all operations of the step.
        mesh_impl: how they are laid out.
        transfers: the collectives, each with the bytes of all microbatches.
        microbatch_count: microbatches per step.
        n_graph_nodes: nodes of the processor's TensorFlow graph.
    """

    graph: mtf.Graph
    mesh_impl: AbstractMesh
    transfers: tuple[Transfer, ...]
    microbatch_count: int
    n_graph_nodes: int

    def slice_bytes(self, tensor: mtf.Tensor) -> int:
        """Returns the bytes of one processor's slice."""
        return self.mesh_impl.slice_size(tensor.shape) * tensor.dtype.size


class AbstractMesh(PlacementMeshImpl):
    """Lowers the program of processor 0 alone; collectives are recorded, and return slices of the right shape."""

    def __init__(self, shape: mtf.Shape, layout_rules: mtf.LayoutRules) -> None:
        mtf.MeshImpl.__init__(self, shape, layout_rules)
        self._devices = [""]
        self._times = 1
        self.graph: mtf.Graph | None = None
        self.transfers: list[Transfer] = []

    class LaidOutVariable:
        """A placeholder for a slice; assignments are dropped."""

        def __init__(self, variable: SlicedVariable, mesh_impl: AbstractMesh) -> None:
            mesh_impl.graph = variable.graph
            piece = tf.compat.v1.placeholder(variable.value.dtype, mesh_impl.slice_shape(variable.shape))
            self.laid_out_tensor = mesh_impl.LaidOutTensor([piece])

        def assign(self, laid_out_value: LaidOut) -> list[tf.Operation]:
            """Drops the value, once its allreduce is recorded; no operation does it."""
            laid_out_value.to_laid_out_tensor()
            return []

    def import_tf_tensor(self, x: mtf.Tensor, tf_x: tf.Tensor) -> LaidOut:
        """Returns processor 0's slice."""
        return self.LaidOutTensor([tf_x[tuple(map(slice, self.slice_shape(x.shape)))]])

    def lay_out_rows(self, own_rows: tf.Tensor, shape: mtf.Shape) -> LaidOut:
        """Returns processor 0's slice of the batch."""
        return self.LaidOutTensor([own_rows[tuple(map(slice, self.slice_shape(shape)))]])

    def export_to_tf_tensor(self, x: mtf.Tensor, laid_out_x: LaidOut) -> tf.Tensor:
        """Returns processor 0's slice instead of the whole tensor."""
        return laid_out_x.all_slices[0]

    def laid_out_pnum(self) -> LaidOut:
        """Returns the processor's number, 0."""
        return self.LaidOutTensor([0])

    def update(
        self,
        kernel: Kernel,
        scalars: Sequence[LaidOut],
        states: Sequence[AbstractMesh.LaidOutVariable | LaidOut],
        others: Sequence[LaidOut],
    ) -> list[LaidOut]:
        """Runs the kernel, and drops the new values of variables."""
        values = [x.laid_out_tensor if isinstance(x, self.LaidOutVariable) else x for x in states]
        new = self.slicewise(kernel, *scalars, *values, *others)
        return [own for x, own in zip(states, new, strict=True) if not isinstance(x, self.LaidOutVariable)]

    @contextlib.contextmanager
    def repeating(self, count: int) -> Iterator[None]:
        """Counts what is recorded inside as often as a loop repeats it."""
        self._times *= count
        yield
        self._times //= count

    def allreduce(self, x: LaidOut, mesh_axes: Sequence[int], reduction_fn_string: str) -> LaidOut:
        """Records an allreduce along each axis."""
        for axis in mesh_axes:
            self._record("allreduce", axis, x, lambda n: 2 * (n - 1) / n)
        return x.to_laid_out_tensor()

    def allconcat(self, x: LaidOut, mesh_axis: int, concat_axis: int) -> LaidOut:
        """Records an allconcat."""
        self._record("allconcat", mesh_axis, x, lambda n: n - 1)
        return self._repeated(x, concat_axis, self.shape[mesh_axis].size)

    def alltoall(self, x: LaidOut, mesh_axis: int, split_axis: int, concat_axis: int) -> LaidOut:
        """Records an alltoall."""
        self._record("alltoall", mesh_axis, x, lambda n: (n - 1) / n)
        return self._repeated(self._first_part(x, mesh_axis, split_axis), concat_axis, self.shape[mesh_axis].size)

    def reduce_scatter(self, x: LaidOut, mesh_axis: int, dimension: int) -> LaidOut:
        """Records a reduce_scatter."""
        self._record("reduce_scatter", mesh_axis, x, lambda n: (n - 1) / n)
        return self._first_part(x, mesh_axis, dimension)

    def _first_part(self, x: LaidOut, mesh_axis: int, dimension: int) -> LaidOut:
        return self.slicewise(lambda part: tf.split(part, self.shape[mesh_axis].size, dimension)[0], x)

    def receive(self, x: LaidOut, mesh_axis: int, source_pcoord: Sequence[int | None]) -> LaidOut:
        """Records a receive."""
        n_sent = sum(source is not None and source != target for target, source in enumerate(source_pcoord))
        if n_sent:
            self._record("receive", mesh_axis, x, lambda n: n_sent / n)
        return x.to_laid_out_tensor()

    def _repeated(self, x: LaidOut, axis: int, count: int) -> LaidOut:
        def repeat(part: tf.Tensor) -> tf.Tensor:
            return tf.tile(part, [count if index == axis else 1 for index in range(part.shape.rank)])

        return self.slicewise(repeat, x)

    def _record(self, kind: str, axis: int, x: LaidOut, share: Callable[[int], float]) -> None:
        piece = x.to_laid_out_tensor().all_slices[0]
        dim = self.shape[axis]
        sent = self._times * share(dim.size) * piece.shape.num_elements() * piece.dtype.size
        self.transfers.append(Transfer(kind, dim.name, sent))


@dataclasses.dataclass(frozen=True)
class _DryPlacement(Placement):
    """A placement that always returns the same mesh."""

    mesh_impl: AbstractMesh

    def implementation(self, batch_size: int) -> AbstractMesh:
        return self.mesh_impl


def dry_placement(mesh: MeshConfig, n_devices: int) -> Placement:
    """Returns the placement of a mesh over devices that need not exist."""
    return place(mesh, [f"/device:{index}" for index in range(n_devices)])


def build_dry_step(config: RunConfig, placement: Placement) -> DryStep:
    """Builds one processor's part of `build_train_step` for a placement, without running it.

    Raises:
        ConfigError: the devices do not divide the batch.
    """
    batch_size = config.training.train_batch_size
    microbatch_count = n_microbatches(config, placement.axis_size("batch"))
    mesh_impl = AbstractMesh(placement.shape, placement.rules(batch_size))
    dry = _DryPlacement(placement.shape, placement.layout, placement.devices, placement.store, mesh_impl)
    step = build_train_step(config, dry)
    return DryStep(mesh_impl.graph, mesh_impl, tuple(mesh_impl.transfers), microbatch_count, step.n_graph_nodes())
