"""Replicates a program over the cores of a TPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from configs.schema import MeshConfig
from meshtf import enclosing_tpu_context, pack_eager_tensors, tf
from models.variables import SlicedVariable
from runtime.mesh.lowering import LoweredStep
from runtime.mesh.placement import DeviceMesh, Placement, Program, VariableStore, fit
from runtime.mesh.tpu_discovery import Tpu
from runtime.mesh.tpu_mesh import CrossReplicaOps, Replica, ReplicaPlacement
from runtime.mesh.tpu_topology import cores_in_order


class PackedStore(VariableStore):
    """Variables whose slices are a single input of a program, so that it does not grow with the TPU."""

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[str, tf.Tensor] = {}

    def packed_handle(self, variable: SlicedVariable, mesh_impl: DeviceMesh) -> tf.Tensor:
        """Returns the handles of all slices of a variable as one tensor, in which each core finds its own."""
        if variable.name not in self._packed:
            stored = self.slices_of(variable, mesh_impl)
            with tf.init_scope():
                self._packed[variable.name] = pack_eager_tensors([piece.handle for piece in stored.slices])
        return self._packed[variable.name]


@dataclasses.dataclass(frozen=True)
class TpuPlacement(Placement):
    """The placement of a run on a TPU.

    Attributes:
        store: see `PackedStore`.
        assignment: the assignment of processors, which are the replicas, to cores.
        job: TensorFlow's job name of the cores' hosts.
    """

    store: PackedStore
    assignment: tf.tpu.experimental.DeviceAssignment
    job: str

    @property
    def hosts(self) -> tuple[str, ...]:
        """The CPU of the host of each processor's core."""
        return tuple(self.assignment.host_device(processor, job=self.job) for processor in range(self.shape.size))

    @property
    def first_host(self) -> str:
        """The CPU that starts the programs."""
        return f"/job:{self.job}/replica:0/task:0/device:CPU:0"

    def within(self, processor: tf.Tensor) -> ReplicaPlacement:
        """Returns the placement as the replicated program sees it; call it while the program is built."""

        def handle_of(variable: SlicedVariable, mesh_impl: DeviceMesh) -> tf.Tensor:
            packed = self.store.packed_handle(variable, mesh_impl)
            return enclosing_tpu_context().get_replicated_var_handle(
                variable.name, handle_id=variable.name, vars_=[packed], is_packed=True
            )

        replica = Replica(processor, CrossReplicaOps(), handle_of)
        return ReplicaPlacement(self.shape, self.layout, self.devices, self.store, replica)

    def replicate(self, program: Program, inputs_of: Callable[[int], Sequence[tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Runs a program on every core and returns its outputs, which are the same in every replica.

        Args:
            program: maps the placement as a replica sees it, and its inputs, to named tensors.
            inputs_of: returns the inputs of a processor.
        """
        outputs = tf.compat.v1.tpu.replicate(
            lambda processor, *inputs: program(self.within(processor), *inputs),
            [[tf.constant(processor), *inputs_of(processor)] for processor in range(self.shape.size)],
            device_assignment=self.assignment,
        )
        return outputs[0]

    def compile(self, program: Program, *signature: tf.TensorSpec) -> LoweredStep:
        """See `Placement.compile`."""

        def in_replica(replica: ReplicaPlacement, *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            # In a function of its own: lowering leaves the TPU's context in the graph that it runs in.
            return replica.compile(program, *signature).function(*inputs)

        def run(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.replicate(in_replica, lambda processor: inputs)

        return LoweredStep(tf.function(run, autograph=False).get_concrete_function(*signature), self.first_host)

    def describe(self) -> str:
        """Describes the mesh in one line."""
        return f"{self._describe_split()} on {self.shape.size} TPU cores of {len(set(self.hosts))} hosts"


def place_on_tpu(mesh: MeshConfig, tpu: Tpu) -> TpuPlacement:
    """Lays the configured mesh over the cores of a TPU.

    Args:
        mesh: the mesh of the config; without a `mesh_shape` the batch is split over all cores.
        tpu: the TPU that was found.

    Raises:
        DeviceError: the mesh needs a different number of cores.
    """
    n_cores = tpu.topology.device_coordinates.shape[0] * tpu.topology.device_coordinates.shape[1]
    shape, layout = fit(mesh, n_cores, "TPU cores")
    cores = cores_in_order(tpu.topology, [dim.size for dim in shape.dims])
    assignment = tf.tpu.experimental.DeviceAssignment(tpu.topology, cores[:, None])
    devices = tuple(assignment.tpu_device(processor, job=tpu.job) for processor in range(n_cores))
    return TpuPlacement(shape, layout, devices, PackedStore(), assignment, tpu.job)
