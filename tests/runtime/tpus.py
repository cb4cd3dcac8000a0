"""TPUs that are not there: their topologies, and programs for them, built and not run."""

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
    """A TPU v3 with so many chips of two cores; a host has 2 x 2 chips."""
    hosts = [(row, column) for row in range(0, rows, 2) for column in range(0, columns, 2)]
    within = [(row, column, core) for row in range(2) for column in range(2) for core in range(2)]
    coordinates = [[(x + r, y + c, 0, core) for r, c, core in within] for x, y in hosts]
    return Tpu(tf.tpu.experimental.Topology(None, [rows, columns, 1, 2], np.array(coordinates)), "worker")


class UnheldStore(PackedStore):
    """Names of variables that hold nothing, however large they are.

    Attributes:
        variables: all that were asked for, with the shape of a slice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[str, tuple[SlicedVariable, list[int]]] = {}

    def packed_handle(self, variable: SlicedVariable, mesh_impl: DeviceMesh) -> tf.Tensor:
        """A handle that leads to nothing."""
        if variable.name not in self._packed:
            shape = mesh_impl.slice_shape(variable.shape)
            self.variables[variable.name] = variable, shape
            with tf.init_scope():
                self._packed[variable.name] = tf.raw_ops.VarHandleOp(
                    dtype=tf.float32, shape=shape, shared_name=f"nothing/{variable.name}"
                )
        return self._packed[variable.name]


def place(mesh: MeshConfig, slice_name: str) -> TpuPlacement:
    """A placement on one of `SLICES`."""
    return dataclasses.replace(place_on_tpu(mesh, tpu(*SLICES[slice_name])), store=UnheldStore())


@dataclasses.dataclass(frozen=True)
class Built:
    """A program of training, as it would be sent to a TPU.

    Attributes:
        graph: with all that it calls.
    """

    placement: TpuPlacement
    turn: DeviceLoop
    graph: tf.compat.v1.GraphDef

    @staticmethod
    def of(config: RunConfig, slice_name: str) -> Built:
        """Builds it."""
        placement = place(config.mesh, slice_name)
        turn = build_device_loop(config, placement)
        return Built(placement, turn, turn.function.graph.as_graph_def())

    def replicated_nodes(self) -> Iterator[tf.compat.v1.NodeDef]:
        """What every replica runs; the functions that it calls once each."""
        yield from (node for node in self.graph.node if "_tpu_replicate" in node.attr)
        for function in self.graph.library.function:
            yield from function.node_def

    def constants_of(self, operation: str, place: int) -> Iterator[list]:
        """The values of a constant input of all operations of a kind."""
        for function in self.graph.library.function:
            nodes = {node.name: node for node in function.node_def}
            for node in function.node_def:
                if node.op == operation:
                    constant = nodes[node.input[place].split(":")[0]]
                    yield tf.make_ndarray(constant.attr["value"].tensor).tolist()
