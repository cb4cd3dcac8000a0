"""Rotation of pairs of features."""

from __future__ import annotations

from meshtf import mtf
from models.kernels import rotation as kernels
from models.ops.mesh_operation import SliceKernel


def rotate(x: mtf.Tensor, angles: mtf.Tensor, style: str = "half", gain: float = 1.0) -> mtf.Tensor:
    """Turns each pair of the first features by its angle.

    Args:
        x: [batch, sequence, heads, features_per_head], or without sequence.
        angles: float32 [sequence, pairs], [batch, pairs] or both; no gradient flows into them.
        style: which features of the first 2 * pairs are a pair: half (i and i + pairs) or interleaved (2 i and
            2 i + 1).
        gain: multiplies the features that are turned; others stay as they are.
    """

    def gradient(operation: mtf.Operation, dy: mtf.Tensor) -> list[mtf.Tensor | None]:
        return [rotate(dy, mtf.negative(operation.inputs[1]), style, gain), None]

    kernel = kernels.rotate(style, gain)
    return SliceKernel("rotation", kernel, [x, angles], [(x.shape, x.dtype)], gradient).outputs[0]
