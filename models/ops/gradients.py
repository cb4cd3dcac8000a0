"""Gradients: their global norm, and reduce-scatter."""

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


class ScatteredSum(mtf.Operation):
    """Lays out x anew, with one dimension renamed: x [..., dim, ...] -> [..., new_name, ...].

    The layout splits the new name over a mesh axis that x is not split over. If x is a sum over this axis that has not
    been reduced yet, it is reduced by scatter: half of the bytes of an all-reduce, and no processor holds all of it.
    """

    def __init__(self, x: mtf.Tensor, dim: mtf.Dimension, new_name: str) -> None:
        super().__init__([x], name="scattered_sum")
        self._dimension = x.shape.dims.index(dim)
        self._outputs = [mtf.Tensor(self, x.shape.rename_dimension(dim.name, new_name), x.dtype)]

    @property
    def is_first_dimension(self) -> bool:
        """Whether the parts of a slice lie one behind the other."""
        return self._dimension == 0

    def lower(self, lowering: mtf.Lowering) -> None:
        """Reduces what is to be reduced over the axis; other axes may still be reduced later."""
        mesh_impl, x = lowering.mesh_impl(self), lowering.tensors[self.inputs[0]]
        axis = mesh_impl.tensor_dimension_to_mesh_axis(self.outputs[0].shape.dims[self._dimension])
        if isinstance(x, mtf.LazyAllreduceSum) and axis in x.mesh_axes:
            own = mesh_impl.reduce_scatter(x.laid_out_input, axis, self._dimension)
            others = [other for other in x.mesh_axes if other != axis]
            scattered = mtf.LazyAllreduceSum(mesh_impl, own, others) if others else own
        else:
            scattered = mesh_impl.allsplit(x.to_laid_out_tensor(), axis, self._dimension)
        lowering.set_tensor_lowering(self.outputs[0], scattered)
