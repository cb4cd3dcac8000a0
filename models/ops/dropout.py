"""Dropout, and the source of a step's random numbers."""

from __future__ import annotations

from typing import NamedTuple

from meshtf import mtf
from models.kernels import noise as kernels
from models.ops.mesh_operation import SliceKernel


class Noise(NamedTuple):
    """The source of one step's random numbers.

    Attributes:
        key: int32 scalar, new for each step.
        rows: int32 [batch], the index of each row in the whole batch.
    """

    key: mtf.Tensor
    rows: mtf.Tensor


def dropout(x: mtf.Tensor, rate: float, noise: Noise) -> mtf.Tensor:
    """Zeroes a fraction of the elements and divides the others by the fraction kept; the same elements on any mesh.

    Args:
        x: [batch, ...].
        rate: the fraction to zero, in [0, 1); 0 returns x.
        noise: its key must differ from that of any other use in the same step.
    """
    if not rate:
        return x

    def gradient(operation: mtf.Operation, dy: mtf.Tensor) -> list[mtf.Tensor | None]:
        return [dropout(dy, rate, Noise(*operation.inputs[1:])), None, None]

    kernel, starts = kernels.dropout(rate), x.shape.dims[1:]
    return SliceKernel("dropout", kernel, [x, *noise], [(x.shape, x.dtype)], gradient, starts).outputs[0]
