"""Dropout, and where the random numbers of a step come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from meshtf import LaidOut, mtf
from models.kernels import noise as kernels
from models.ops.mesh_operation import MeshOperation, slice_starts


@dataclasses.dataclass(frozen=True)
class Noise:
    """Where the random numbers of one step come from.

    Attributes:
        key: int32 scalar, new for each step.
        rows: int32 [batch], the place of each row in the whole batch.
    """

    key: mtf.Tensor
    rows: mtf.Tensor

    def tensors(self) -> list[mtf.Tensor]:
        return [self.key, self.rows]


class Dropout(MeshOperation):
    """x [batch, ...] -> the same shape; the elements to keep are a function of key, row and place."""

    def __init__(self, x: mtf.Tensor, noise: Sequence[mtf.Tensor], rate: float):
        self._rate = rate
        super().__init__([x, *noise], [(x.shape, x.dtype)], "dropout")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, key: LaidOut, rows: LaidOut) -> Sequence[LaidOut]:
        starts = slice_starts(mesh_impl, self.inputs[0].shape.dims[1:])
        return (mesh_impl.slicewise(kernels.dropout(self._rate), x, key, rows, starts),)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        return [Dropout(grad_ys[0], self.inputs[1:], self._rate).outputs[0], None, None]


def dropout(x: mtf.Tensor, rate: float, noise: Noise) -> mtf.Tensor:
    """Zeroes a share of the elements and divides the others by the share kept; the same elements on any mesh.

    Args:
        x: [batch, ...].
        rate: the share to zero, in [0, 1); 0 gives x.
        noise: its key must differ from that of any other use in the same step.
    """
    return Dropout(x, noise.tensors(), rate).outputs[0] if rate else x
