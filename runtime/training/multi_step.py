"""Steps of training that are taken several at once, as a TPU does without leaving the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from configs.schema import TrainingConfig
from data.loading.batch import Batch
from models.kernels.noise import noise_key
from runtime.training.lr_schedules import learning_rate

Step = Callable[..., Mapping[str, np.ndarray]]


class MultiStep(Protocol):
    """Takes several steps in one call.

    Attributes:
        n_steps: the most that one call takes.
    """

    n_steps: int

    def __call__(self, *turn: np.ndarray) -> Mapping[str, np.ndarray]:
        """From what each step takes to what each step gives: [steps, ...] all."""


@dataclasses.dataclass(frozen=True)
class SingleStep:
    """Turns of a single step."""

    step: Step
    n_steps: int = 1

    def __call__(self, *turn: np.ndarray) -> Mapping[str, np.ndarray]:
        """Takes the one step."""
        return {name: value[None] for name, value in self.step(*[values[0] for values in turn]).items()}


@dataclasses.dataclass(frozen=True)
class StepResult:
    """One step of a turn.

    Attributes:
        outputs: what it gave.
        rate: the learning rate it was taken with.
    """

    outputs: Mapping[str, np.ndarray]
    rate: float


def length_of_turn(turns: MultiStep, step: int, train_steps: int, steps_per_checkpoint: int) -> int:
    """How many steps to take next: no more than there are before the next checkpoint and the end, where the variables
    must be those of that step.

    Args:
        turns: what takes them.
        step: updates made.
        train_steps: when training ends.
        steps_per_checkpoint: steps between two checkpoints.
    """
    return min(turns.n_steps, train_steps - step, steps_per_checkpoint - step % steps_per_checkpoint)


def take_turn(turns: MultiStep, batches: Sequence[Batch], step: int, training: TrainingConfig) -> list[StepResult]:
    """Takes a step with each batch.

    Args:
        turns: what takes them.
        batches: as many as `length_of_turn` says, or fewer if the data end.
        step: updates made before.
        training: schedule and seed.
    """
    numbers = range(step, step + len(batches))
    rates = [learning_rate(number, training) for number in numbers]
    outputs = turns(
        np.stack([batch.tokens_BS for batch in batches]),
        np.stack([batch.labels_BS for batch in batches]),
        np.stack([batch.weights_BS for batch in batches]),
        np.array(rates, np.float32),
        np.array(numbers, np.int32),
        np.array([noise_key(training.seed, number) for number in numbers]),
    )
    return [
        StepResult({name: values[index] for name, values in outputs.items()}, rate) for index, rate in enumerate(rates)
    ]
