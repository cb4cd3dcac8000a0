"""Training steps, one or several in a call: a TPU runs many without returning to the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from data.loading.batch import Batch
from models.kernels.noise import noise_key

Step = Callable[..., Mapping[str, np.ndarray]]
LearningRate = Callable[[int], float]


class MultiStep(Protocol):
    """Runs several training steps in one call.

    Attributes:
        max_steps: the most steps of one call.
    """

    max_steps: int

    def __call__(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Maps the inputs of the steps to their outputs, all stacked: [steps, ...]."""


@dataclasses.dataclass(frozen=True)
class SingleStep:
    """A training step as a `MultiStep` of one."""

    step: Step
    max_steps: int = 1

    def __call__(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Runs one step on inputs [1, ...]."""
        return {name: value[None] for name, value in self.step(*[values[0] for values in inputs]).items()}


class MultiStepBySize:
    """Training steps on batches of several sizes, of which each is built when its first batch comes.

    Attributes:
        max_steps: the most steps of one call, which are those of the largest batches.
    """

    def __init__(self, build: Callable[[int], MultiStep], by_rows: Mapping[int, int], largest: MultiStep) -> None:
        """Takes what builds the steps of a size, the size by the rows of a batch that this process has, and one."""
        self.max_steps = largest.max_steps
        self._build, self._by_rows = build, by_rows
        self._built = {max(by_rows): largest}

    def __call__(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Maps the inputs of steps of one batch size to their outputs, all stacked: [steps, ...]."""
        n_rows = inputs[0].shape[1]
        if n_rows not in self._built:
            self._built[n_rows] = self._build(self._by_rows[n_rows])
        return self._built[n_rows](*inputs)


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of one training step.

    Attributes:
        outputs: by name, see `build_train_step`.
        learning_rate: used in the step.
    """

    outputs: Mapping[str, np.ndarray]
    learning_rate: float


def next_step_count(multi_step: MultiStep, step: int, ends: Sequence[int], periods: Sequence[int]) -> int:
    """Returns how many steps to run in the next call: it ends at the next pause or at one of the `ends`.

    Args:
        multi_step: runs them.
        step: updates made so far.
        ends: the steps at which training ends or its batches change their size; one of them is to come.
        periods: of pauses, such as the steps between two checkpoints.
    """
    next_end = min(end for end in ends if end > step)
    return min(multi_step.max_steps, next_end - step, *(period - step % period for period in periods))


def run_steps(
    multi_step: MultiStep, batches: Sequence[Batch], step: int, learning_rate: LearningRate, seed: int
) -> list[StepResult]:
    """Trains on each batch in turn, in one call.

    Args:
        multi_step: runs the steps.
        batches: at most `max_steps`, of one size.
        step: updates made so far.
        learning_rate: maps the updates made before a step to its rate.
        seed: of the noise of the steps.
    """
    numbers = range(step, step + len(batches))
    rates = [learning_rate(number) for number in numbers]
    outputs = multi_step(
        *[np.stack(arrays) for arrays in zip(*[batch.training_inputs for batch in batches], strict=True)],
        np.array(rates, np.float32),
        np.array(numbers, np.int32),
        np.array([noise_key(seed, number) for number in numbers]),
    )
    return [
        StepResult({name: values[index] for name, values in outputs.items()}, rate) for index, rate in enumerate(rates)
    ]
