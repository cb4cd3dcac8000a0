"""The order in which operations run where no data demands it: memory is free again before more is taken."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import mtf
from models.kernels.order import after


class After(mtf.Operation):
    """x, which nobody reads before other tensors are there: x [...] -> [...].

    A processor waits for its own slices, and of a sum that is not reduced yet for its own term.
    """

    def __init__(self, x: mtf.Tensor, others: Sequence[mtf.Tensor]) -> None:
        super().__init__([x, *others], name="after")
        self._outputs = [mtf.Tensor(self, x.shape, x.dtype)]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Makes each slice wait; a sum stays one that is reduced later."""
        own, *others = (lowering.tensors[x] for x in self.inputs)
        terms = [_terms(other) for other in others]
        late = lowering.mesh_impl(self).slicewise(after, _terms(own), *terms)
        if isinstance(own, mtf.LazyAllreduceSum):
            late = mtf.LazyAllreduceSum(own.mesh_impl, late, own.mesh_axes)
        lowering.set_tensor_lowering(self.outputs[0], late)

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor | None]:
        """Returns the gradients of the inputs."""
        return [grad_ys[0], *[None] * (len(self.inputs) - 1)]


def _terms(laid_out: object) -> object:
    return laid_out.laid_out_input if isinstance(laid_out, mtf.LazyAllreduceSum) else laid_out
