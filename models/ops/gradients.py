"""The norm of all gradients."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import gradients as kernels
from models.ops.mesh_operation import MeshOperation, mesh_axes


class GlobalNorm(MeshOperation):
    """Tensors of any shapes -> float32 scalar."""

    def __init__(self, tensors: Sequence[mtf.Tensor]) -> None:
        super().__init__(tensors, [(mtf.Shape([]), tf.float32)], "global_norm")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *laid_out: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        by_axes: dict[tuple[int, ...], list[LaidOut]] = {}
        for tensor, slices in zip(self.inputs, laid_out, strict=True):
            by_axes.setdefault(tuple(sorted(mesh_axes(mesh_impl, tensor.shape.dims))), []).append(slices)
        sums = [
            mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_squares, *group), list(axes), "SUM")
            for axes, group in by_axes.items()
        ]
        return (mesh_impl.slicewise(kernels.root_of_sum, *sums),)


def global_norm(tensors: Sequence[mtf.Tensor]) -> mtf.Tensor:
    """Returns the Euclidean norm of all tensors as one vector: float32 scalar."""
    return GlobalNorm(tensors).outputs[0]
