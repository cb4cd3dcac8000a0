"""Variables in the dtype of the activations."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.ops.mesh_operation import MeshOperation


class Rounded(MeshOperation):
    """float32 x -> x in another dtype."""

    def __init__(self, x: mtf.Tensor, dtype: tf.DType):
        super().__init__([x], [(x.shape, dtype)], "rounded")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        dtype = self.outputs[0].dtype
        return (mesh_impl.slicewise(lambda x: tf.cast(x, dtype), x),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradients of the inputs."""
        return [Widened(grad_ys[0]).outputs[0]]


class Widened(MeshOperation):
    """x -> float32 x."""

    def __init__(self, x: mtf.Tensor):
        super().__init__([x], [(x.shape, tf.float32)], "widened")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(lambda x: tf.cast(x, tf.float32), x),)


def rounded(x: mtf.Tensor, dtype: tf.DType) -> mtf.Tensor:
    """Casts float32 x to another dtype, with a gradient in float32."""
    return x if dtype == tf.float32 else Rounded(x, dtype).outputs[0]
