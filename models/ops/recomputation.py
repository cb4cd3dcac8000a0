"""Selective recomputation: the backward pass computes again what is cheap, and keeps the results of matrix products.

Source: Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, section 5: recompute
what takes much memory and few operations. They mean the weights of attention, which the kernels here never keep; what
is left of that sort are the results of norms and element-wise operations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from meshtf import mtf
from models.ops.grouping import RepeatHeads
from models.ops.mesh_operation import SliceKernel
from models.ops.norms import LayerNorm, RmsNorm
from models.ops.order import After

# Computed again: each takes a few operations for each number, and those of norms on a split dimension send two numbers
# a token. Reshapes are not among them, because some move data between processors.
CHEAP = (
    SliceKernel,
    LayerNorm,
    RmsNorm,
    RepeatHeads,
    mtf.BinaryOpWithBroadcasting,
    mtf.BroadcastOperation,
    mtf.ScalarAddOperation,
    mtf.ScalarMultiplyOperation,
    mtf.SlicewiseOperation,
    mtf.StackOperation,
)


def keep_products(function: Callable[[mtf.Tensor], tuple[mtf.Tensor, ...]], x: mtf.Tensor) -> tuple[mtf.Tensor, ...]:
    """Returns function(x); its gradient computes again what `CHEAP` names.

    Args:
        function: adds operations to the graph, and passes nothing to the outside except what it returns.
        x: a tensor.
    """
    return mtf.custom_gradient(function, _gradients, [x])


def _gradients(
    explicit_inputs: Sequence[mtf.Tensor],
    all_inputs: Sequence[mtf.Tensor],
    forward_operations: Sequence[mtf.Operation],
    outputs: Sequence[mtf.Tensor],
    output_grads: Sequence[mtf.Tensor | None],
) -> list[mtf.Tensor | None]:
    """The gradient of `keep_products`, by the protocol of `mtf.custom_gradient`."""
    renewal = _Renewal(next(grad for grad in output_grads if grad is not None))
    for operation in forward_operations:
        if not isinstance(operation, mtf.Variable):
            renewal.add(operation)
    renewed = [renewal.tensors.get(y, y) for y in outputs]
    return mtf.gradients(renewed, all_inputs, output_grads, renewal.operations)


class _Renewal:
    """The operations of a forward pass for a backward pass: the cheap ones anew, the others with renewed inputs.

    Attributes:
        operations: those to differentiate.
        tensors: from the outputs of cheap operations to those computed again.
    """

    def __init__(self, moment: mtf.Tensor) -> None:
        self.operations: list[mtf.Operation] = []
        self.tensors: dict[mtf.Tensor, mtf.Tensor] = {}
        self._moment = moment  # the tensor to wait for
        self._delayed: dict[mtf.Tensor, mtf.Tensor] = {}

    def add(self, operation: mtf.Operation) -> None:
        """Adds the next operation of the forward pass."""
        is_cheap, renewed = isinstance(operation, CHEAP), copy.copy(operation)
        renewed._inputs = [self._input(x, is_cheap) for x in operation.inputs]
        self.operations.append(renewed)
        if not is_cheap:
            for y in operation.outputs:
                y.usable = True  # by its gradient, which reads what the forward pass has kept
            return
        operation.outputs[0].graph.operations.append(renewed)
        renewed._outputs = [mtf.Tensor(renewed, y.shape, y.dtype, y.name, i) for i, y in enumerate(operation.outputs)]
        self.tensors.update(zip(operation.outputs, renewed.outputs, strict=True))

    def _input(self, x: mtf.Tensor, is_cheap: bool) -> mtf.Tensor:
        """Returns x computed again; or the x that was kept, for an operation that is to wait if it is cheap."""
        if x in self.tensors:
            return self.tensors[x]
        return self._later(x) if is_cheap and x.dtype.is_floating else x

    def _later(self, x: mtf.Tensor) -> mtf.Tensor:
        if x not in self._delayed:
            after = After(x, [self._moment])
            self.operations.append(after)
            self._delayed[x] = after.outputs[0]
        return self._delayed[x]
