"""Dropout, and the source of a step's random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from meshtf import LaidOut, mtf
from models.kernels import noise as kernels
from models.ops.mesh_operation import MeshOperation, slice_starts


class Noise(NamedTuple):
    """The source of one step's random numbers.

    Attributes:
        key: int32 scalar, new for each step.
        rows: int32 [batch], the index of each row in the whole batch.
    """

    key: mtf.Tensor
    rows: mtf.Tensor


class Dropout(MeshOperation):
    """x [batch, ...] -> the same shape; which elements are kept depends on key, row and index only."""

    def __init__(self, x: mtf.Tensor, noise: Sequence[mtf.Tensor], rate: float):
        self._rate = rate
        super().__init__([x, *noise], [(x.shape, x.dtype)], "dropout")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, key: LaidOut, rows: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        starts = slice_starts(mesh_impl, self.inputs[0].shape.dims[1:])
        return (mesh_impl.slicewise(kernels.dropout(self._rate), x, key, rows, starts),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        return [Dropout(grad_ys[0], self.inputs[1:], self._rate).outputs[0], None, None]


def dropout(x: mtf.Tensor, rate: float, noise: Noise) -> mtf.Tensor:
    """Zeroes a fraction of the elements and divides the others by the fraction kept; the same elements on any mesh.

    Args:
        x: [batch, ...].
        rate: the fraction to zero, in [0, 1); 0 returns x.
        noise: its key must differ from that of any other use in the same step.
    """
    return Dropout(x, noise, rate).outputs[0] if rate else x
