"""Rotation of pairs of features."""

from __future__ import annotations

from meshtf import mtf
from models.kernels import rotation as kernels
from models.ops.mesh_operation import SliceKernel


def rotate(x: mtf.Tensor, angles: mtf.Tensor) -> mtf.Tensor:
    """Turns each pair of features i and i + features_per_head / 2 by its angle.

    Args:
        x: [batch, sequence, heads, features_per_head], or without sequence.
        angles: float32 [sequence, features_per_head / 2], [batch, features_per_head / 2] or both; no gradient flows
            into them.
    """

    def gradient(operation: mtf.Operation, dy: mtf.Tensor) -> list[mtf.Tensor | None]:
        return [rotate(dy, mtf.negative(operation.inputs[1])), None]

    return SliceKernel("rotation", kernels.rotate, [x, angles], [(x.shape, x.dtype)], gradient).outputs[0]
