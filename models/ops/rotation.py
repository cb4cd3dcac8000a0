"""Rotation of pairs of features."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf
from models.kernels import rotation as kernels
from models.ops.mesh_operation import MeshOperation


class Rotation(MeshOperation):
    """x [..., heads, features_per_head], angles [..., half] -> like x."""

    def __init__(self, x: mtf.Tensor, angles: mtf.Tensor):
        super().__init__([x, angles], [(x.shape, x.dtype)], "rotation")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, angles: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(kernels.rotate, x, angles),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        return [Rotation(grad_ys[0], mtf.negative(self.inputs[1])).outputs[0], None]


def rotate(x: mtf.Tensor, angles: mtf.Tensor) -> mtf.Tensor:
    """Turns each pair of features i and i + features_per_head / 2 by its angle.

    Args:
        x: [batch, sequence, heads, features_per_head], or without sequence.
        angles: float32 [sequence, features_per_head / 2], or [batch, features_per_head / 2]; no gradient flows into
            them.
    """
    return Rotation(x, angles).outputs[0]
