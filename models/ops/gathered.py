"""Parts of a tensor that are put together."""

from __future__ import annotations

from meshtf import mtf


class Gathered(mtf.Operation):
    """Lays out x anew, with a dimension whole that was split under another name: [..., name, ...] -> [..., dim, ...].

    Each processor along the axis receives the parts of all others.
    """

    def __init__(self, x: mtf.Tensor, name: str, dim: mtf.Dimension) -> None:
        super().__init__([x], name="gathered")
        self._dimension = x.shape.dimension_names.index(name)
        self._outputs = [mtf.Tensor(self, x.shape.rename_dimension(name, dim.name), x.dtype)]

    @property
    def is_first_dimension(self) -> bool:
        """Whether the parts of the whole lie one behind the other."""
        return self._dimension == 0

    def lower(self, lowering: mtf.Lowering) -> None:
        """Concatenates the slices along the mesh axis that the dimension is split over."""
        (x,), mesh_impl = self.inputs, lowering.mesh_impl(self)
        axis = mesh_impl.tensor_dimension_to_mesh_axis(x.shape.dims[self._dimension])
        whole = mesh_impl.allconcat(lowering.tensors[x].to_laid_out_tensor(), axis, self._dimension)
        lowering.set_tensor_lowering(self.outputs[0], whole)
