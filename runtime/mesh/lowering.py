"""Lowers mesh graphs to TensorFlow graphs, and compiles them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from meshtf import mtf, tf
from runtime.mesh.weights import gather_weights

Function = Callable[..., dict[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A compiled step.

    Attributes:
        function: maps tensors to named tensors.
        host: the device that calls start from; None: TensorFlow's default.
    """

    function: Function
    host: str | None = None

    def __call__(self, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Maps host arrays to named host arrays."""
        with tf.device(self.host):
            outputs = self.function(*arrays)
        return {name: value.numpy() for name, value in outputs.items()}

    def n_graph_nodes(self) -> int:
        """Returns the nodes of the TensorFlow graph, counting each function that it calls once."""
        graph = self.function.graph.as_graph_def()
        return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


def lowered(graph: mtf.Graph, mesh: mtf.Mesh, mesh_impl: mtf.MeshImpl) -> mtf.Lowering:
    """Lowers the graph onto a mesh."""
    gather_weights(graph, mesh_impl)
    return mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)


def lower(
    graph: mtf.Graph, mesh: mtf.Mesh, mesh_impl: mtf.MeshImpl, outputs: dict[str, mtf.Tensor]
) -> dict[str, tf.Tensor]:
    """Lowers the graph onto a mesh and returns its outputs as whole TensorFlow tensors."""
    lowering = lowered(graph, mesh, mesh_impl)
    return {name: lowering.export_to_tf_tensor(tensor) for name, tensor in outputs.items()}


def new_mesh() -> tuple[mtf.Graph, mtf.Mesh]:
    """Returns an empty graph, and the mesh for its tensors."""
    graph = mtf.Graph()
    return graph, mtf.Mesh(graph, "mesh")


def compile_step(function: Function, *signature: tf.TensorSpec, by_xla: bool = False) -> LoweredStep:
    """Traces a function for inputs of this signature; `by_xla` compiles all of it with XLA, for a single device."""
    return LoweredStep(tf.function(function, autograph=False, jit_compile=by_xla).get_concrete_function(*signature))


def id_spec(*shape: int) -> tf.TensorSpec:
    """Returns the signature of an int32 input."""
    return tf.TensorSpec(shape, tf.int32)
