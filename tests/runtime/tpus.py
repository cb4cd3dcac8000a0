"""TPUs without hardware: their topologies, and programs that are built for them but not run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from configs.schema import MeshConfig, RunConfig
from meshtf import tf
from models.variables import SlicedVariable
from runtime.mesh.placement import DeviceMesh
from runtime.mesh.tpu_discovery import Tpu
from runtime.mesh.tpu_replicate import PackedStore, TpuPlacement, place_on_tpu
from runtime.training.tpu_steps import DeviceLoop, build_device_loop

# Chips along two sides of a torus.
SLICES = {"v3-8": (2, 2), "v3-32": (4, 4), "v3-256": (8, 16)}


def tpu(rows: int, columns: int) -> Tpu:
    """Returns a TPU v3 with this grid of chips, each of two cores; a host has 2 x 2 chips."""
    hosts = [(row, column) for row in range(0, rows, 2) for column in range(0, columns, 2)]
    within = [(row, column, core) for row in range(2) for column in range(2) for core in range(2)]
    coordinates = [[(x + r, y + c, 0, core) for r, c, core in within] for x, y in hosts]
    return Tpu(tf.tpu.experimental.Topology(None, [rows, columns, 1, 2], np.array(coordinates)), "worker")


class StoreWithoutMemory(PackedStore):
    """Variables of any size that take no memory.

    Attributes:
        variables: those requested, with the shape of a slice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[str, tuple[SlicedVariable, list[int]]] = {}

    def packed_handle(self, variable: SlicedVariable, mesh_impl: DeviceMesh) -> tf.Tensor:
        """Returns a handle without a variable."""
        if variable.name not in self._packed:
            shape = mesh_impl.slice_shape(variable.shape)
            self.variables[variable.name] = variable, shape
            with tf.init_scope():
                self._packed[variable.name] = tf.raw_ops.VarHandleOp(
                    dtype=tf.float32, shape=shape, shared_name=f"nothing/{variable.name}"
                )
        return self._packed[variable.name]


def place(mesh: MeshConfig, slice_name: str) -> TpuPlacement:
    """Returns a placement on one of `SLICES`."""
    return dataclasses.replace(place_on_tpu(mesh, tpu(*SLICES[slice_name])), store=StoreWithoutMemory())


@dataclasses.dataclass(frozen=True)
class Built:
    """A training program, as it would be sent to a TPU.

    Attributes:
        graph: with the functions that it calls.
    """

    placement: TpuPlacement
    loop: DeviceLoop
    graph: tf.compat.v1.GraphDef

    @staticmethod
    def of(config: RunConfig, slice_name: str) -> Built:
        """Builds the program."""
        placement = place(config.mesh, slice_name)
        loop = build_device_loop(config, placement)
        return Built(placement, loop, loop.function.graph.as_graph_def())

    def replicated_nodes(self) -> Iterator[tf.compat.v1.NodeDef]:
        """Yields the operations that every replica runs; those of a called function once."""
        yield from (node for node in self.graph.node if "_tpu_replicate" in node.attr)
        for function in self.graph.library.function:
            yield from function.node_def

    def constants_of(self, operation: str, place: int) -> Iterator[list]:
        """Yields the values of a constant input of all operations of a kind."""
        for function in self.graph.library.function:
            nodes = {node.name: node for node in function.node_def}
            for node in function.node_def:
                if node.op == operation:
                    constant = nodes[node.input[place].split(":")[0]]
                    yield tf.make_ndarray(constant.attr["value"].tensor).tolist()
