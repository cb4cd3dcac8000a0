"""Finds where NaN or infinity first appears in a step that diverged, by counting it in every tensor of the step."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from meshtf import mtf, tf
from models.variables import SlicedVariable

FORWARD, GRADIENT = "forward", "gradient"
VARIABLE = "the variable "
MAX_NAMED = 6  # gradients in one message
# Operations that only move numbers make none.
MOVES = (mtf.ReshapeOperation, mtf.StackOperation, mtf.UnstackOperation, mtf.BroadcastOperation)


def _not_finite(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(~tf.math.is_finite(x), tf.float32)


def _square_not_finite(x: tf.Tensor) -> tf.Tensor:
    return _not_finite(tf.square(tf.cast(x, tf.float32)))


def _count(tensor: mtf.Tensor, marks: Callable[[tf.Tensor], tf.Tensor]) -> mtf.Tensor:
    """Returns the number of marked elements of a tensor, a float32 scalar."""
    # Recomputed blocks close their tensors to other operations, since those might be differentiated; this one is not.
    tensor.usable = True
    return mtf.reduce_sum(mtf.cwise(marks, [tensor], output_dtype=tf.float32))


def count_forward(operations: Sequence[mtf.Operation]) -> dict[str, mtf.Tensor]:
    """Counts the values that are not finite in each output of the operations, by a name that says where it is."""
    return _counts(FORWARD, _named_tensors(operations), _not_finite)


def count_gradients(variables: Sequence[SlicedVariable], gradients: Sequence[mtf.Tensor]) -> dict[str, mtf.Tensor]:
    """Counts the values of each variable's gradient that are not finite, or too large to be squared."""
    named = ((variable.name, gradient) for variable, gradient in zip(variables, gradients, strict=True))
    return _counts(GRADIENT, named, _square_not_finite)


def _counts(
    kind: str, named: Iterable[tuple[str, mtf.Tensor]], marks: Callable[[tf.Tensor], tf.Tensor]
) -> dict[str, mtf.Tensor]:
    return {f"{kind}/{number:06d} {name}": _count(tensor, marks) for number, (name, tensor) in enumerate(named)}


def _named_tensors(operations: Sequence[mtf.Operation]) -> Iterator[tuple[str, mtf.Tensor]]:
    """Yields tensors and their names: a variable's own, or else the operation and the last variable before it."""
    newest = "the tokens"
    for operation in operations:
        is_variable = isinstance(operation, SlicedVariable)
        newest = operation.name if is_variable else newest
        kind = re.sub(r"_\d+$", "", operation.name)
        name = f"{VARIABLE}{newest}" if is_variable else f"{kind} behind {newest}"
        if not isinstance(operation, MOVES):
            yield from ((name, output) for output in operation.outputs if output.dtype.is_floating)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is not finite in a step.

    Attributes:
        first: the first tensor of the forward pass that is not finite, with its count; None if there is none.
        gradients: the variables whose gradients are not finite, in the order of the backward pass.
        n_variables: how many have gradients.
    """

    first: tuple[str, int] | None
    gradients: tuple[str, ...]
    n_variables: int

    @staticmethod
    def of(counts: Mapping[str, float]) -> Diagnosis:
        """Reads the counts of `count_forward` and `count_gradients`, in any order."""
        forward = sorted(key for key in counts if key.startswith(f"{FORWARD}/"))
        back = sorted((key for key in counts if key.startswith(f"{GRADIENT}/")), reverse=True)
        first = next((key for key in forward if counts[key]), None)
        return Diagnosis(
            None if first is None else (first.partition(" ")[2], int(counts[first])),
            tuple(key.partition(" ")[2] for key in back if counts[key]),
            len(back),
        )

    def describe(self) -> str:
        """Returns the diagnosis as part of a sentence."""
        if self.first is None and not self.gradients:
            return (
                "every tensor and gradient is finite when the step runs again: either their sums overflow, or the "
                "device has failed"
            )
        return f"{self._describe_forward()}; {self._describe_gradients()}"

    def _describe_forward(self) -> str:
        if self.first is None:
            return "every tensor of the forward pass is finite"
        name, count = self.first
        numbers = "" if name.startswith(VARIABLE) else f" ({count:,} number{'s' * (count > 1)})"
        return f"the first tensor that is not finite is {name}{numbers}"

    def _describe_gradients(self) -> str:
        if len(self.gradients) in (0, self.n_variables):
            return f"{'every' if self.gradients else 'no'} variable has a gradient that is not finite or too large"
        named = list(self.gradients[:MAX_NAMED])
        if len(self.gradients) > MAX_NAMED:
            named.append(f"{len(self.gradients) - MAX_NAMED} more")
        return f"gradients that are not finite or too large, in backward order: {', '.join(named)}"
