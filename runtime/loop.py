"""The training loop. It knows batches, a step, and where to report; no model, no dataset, no TensorFlow."""

from __future__ import annotations

import dataclasses
import math
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from configs.errors import DataError, UserError
from configs.schema import TrainingConfig
from runtime.interrupts import StopRequest
from runtime.progress import Progress
from runtime.schedules import learning_rate

Step = Callable[..., Mapping[str, np.ndarray]]


class TrainingBatch(Protocol):
    """Examples, and the number of the example that follows them."""

    tokens_BS: np.ndarray
    labels_BS: np.ndarray
    weights_BS: np.ndarray
    next_example: int


@dataclasses.dataclass(frozen=True)
class TrainingPosition:
    """How far training is.

    Attributes:
      step: updates made.
      examples: training examples read.
    """

    step: int
    examples: int


class DivergedError(UserError):
    """The loss is no longer a number."""


@dataclasses.dataclass(frozen=True)
class Observers:
    """Whom the loop tells what happened.

    Attributes:
      write_metrics: takes the step and named values, every `iterations` steps.
      save: writes a checkpoint.
      after_save: what is done at a checkpoint in the middle of training, as evaluation and samples.
      progress: what a person sees.
    """

    write_metrics: Callable[[int, Mapping[str, float]], None]
    save: Callable[[TrainingPosition], object]
    after_save: Callable[[TrainingPosition], object]
    progress: Progress


def noise_key(seed: int, step: int) -> np.int32:
    """The key of the random numbers of one step: a function of seed and step, so that a resumed run draws the same."""
    return np.int32(zlib.crc32(f"{seed}/{step}".encode()) & 0x7FFFFFFF)


def train(
    training: TrainingConfig,
    step: Step,
    batches: Iterable[TrainingBatch],
    position: TrainingPosition,
    observers: Observers,
    steps_per_checkpoint: int,
) -> tuple[TrainingPosition, int | None]:
    """Trains up to `train_steps`, or until a signal comes; saves at the end either way.

    Args:
      training: steps, schedule, seed.
      step: from (tokens_BS, labels_BS, weights_BS, learning rate, number of the update, noise key) to at least `loss`.
      batches: from `position` on, without end.
      position: where to start.
      observers: whom to tell.
      steps_per_checkpoint: steps between two checkpoints.

    Returns:
      The last position, and the signal that ended training early or None.

    Raises:
      DivergedError: the loss is not finite; nothing is saved, so that the last checkpoint stays the newest.
    """
    keeper = _Keeper(observers.save, position)
    speed = _Speed()
    with StopRequest() as stop, keeper:
        for batch in batches:
            if position.step >= training.train_steps or stop.signal_number:
                break
            rate = learning_rate(position.step, training)
            scalars = np.float32(rate), np.int32(position.step), noise_key(training.seed, position.step)
            outputs = step(batch.tokens_BS, batch.labels_BS, batch.weights_BS, *scalars)
            position = TrainingPosition(position.step + 1, batch.next_example)
            _check_finite(position.step, float(outputs["loss"]))
            keeper.reached = position
            tokens_per_second = speed.after(batch.tokens_BS.size)
            observers.progress.update(position.step, float(outputs["loss"]), tokens_per_second)
            if position.step % training.iterations == 0 or position.step == training.train_steps:
                values = {name: float(value) for name, value in outputs.items()}
                observers.write_metrics(position.step, {**values, "lr": rate, "tokens_per_second": tokens_per_second})
            if position.step % steps_per_checkpoint == 0 and position.step < training.train_steps:
                keeper.save()
                observers.after_save(position)
                speed = _Speed()
    return position, stop.signal_number


class _Keeper:
    """Saves what was reached when training ends, also when the data end it, but not twice and not a diverged model."""

    def __init__(self, save: Callable[[TrainingPosition], object], saved: TrainingPosition) -> None:
        self._save = save
        self._saved = saved
        self.reached = saved

    def save(self) -> None:
        self._save(self.reached)
        self._saved = self.reached

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.reached != self._saved and (error is None or isinstance(error, DataError)):
            self.save()


class _Speed:
    """Tokens a second, as a mean that forgets older steps."""

    def __init__(self) -> None:
        self._last_seconds = time.perf_counter()
        self._mean: float | None = None

    def after(self, n_tokens: int) -> float:
        now_seconds = time.perf_counter()
        speed = n_tokens / (now_seconds - self._last_seconds)
        self._last_seconds = now_seconds
        self._mean = speed if self._mean is None else 0.9 * self._mean + 0.1 * speed
        return self._mean


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"step {step}: loss = {loss} -- training has diverged; checkpoints of before stay -- lower lr, lengthen "
            "warmup_steps or set gradient_clipping, and start again"
        )
