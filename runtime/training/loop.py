"""The training loop. It knows batches, a step, and where to report; no model, no dataset, no TensorFlow."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from configs.errors import DataError, UserError
from configs.schema import TrainingConfig
from data.loading.batch import Batch
from runtime.checkpoint.position import TrainingPosition
from runtime.run.progress_bar import Progress
from runtime.training.multi_step import MultiStep, StepResult, length_of_turn, take_turn
from runtime.training.signals import StopRequest


class DivergedError(UserError):
    """The loss is no longer a number."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Of a step that failed: where its batch lies in the data, and why it failed; both may be empty."""

    where: str = ""
    why: str = ""


# What a process says instead of a signal's number when it has no more data.
NO_DATA = 128


@dataclasses.dataclass(frozen=True)
class Observers:
    """Whom the loop tells what happened.

    Attributes:
        write_metrics: takes the step and named values, every `iterations` steps.
        save: writes a checkpoint.
        after_save: what is done at a checkpoint in the middle of training, as evaluation and samples.
        progress: what a person sees.
        tell_problem: takes a line on a record that was left out.
        explain_divergence: says, of the batch that a step from a position has failed on, where it lies and where what
            is not finite arises; the variables are as before that step.
        peak_tokens_per_second: tokens a second of a machine that did nothing but the model's operations; None: not
            known.
        greatest: of the numbers that all processes of the run call it with, so that all end at the same step.
    """

    write_metrics: Callable[[int, Mapping[str, float]], None]
    save: Callable[[TrainingPosition], object]
    after_save: Callable[[TrainingPosition], object]
    progress: Progress
    tell_problem: Callable[[str], None]
    explain_divergence: Callable[[TrainingPosition, Batch], Explanation]
    peak_tokens_per_second: float | None
    all_reduce_max: Callable[[int], int] = lambda number: number


def train(
    training: TrainingConfig,
    turns: MultiStep,
    batches: Iterable[Batch],
    position: TrainingPosition,
    observers: Observers,
    steps_per_checkpoint: int,
) -> tuple[TrainingPosition, int | None]:
    """Trains up to `train_steps`, or until a signal comes; saves at the end either way.

    Args:
        training: steps, schedule, seed.
        turns: take steps from (tokens_BS, labels_BS, weights_BS, learning rate, number of the update, noise key) to at
            least `loss`.
        batches: from `position` on, without end.
        position: where to start.
        observers: whom to tell.
        steps_per_checkpoint: steps between two checkpoints.

    Returns:
        The last position, and the signal that ended training early or None.

    Raises:
        DivergedError: the loss is not finite; nothing is saved, so that the last checkpoint stays the newest.
        DataError: there is no next batch, here or in another process of the run; what was reached is saved.
    """
    keeper = _CheckpointOnExit(observers.save, position)
    supply = _BatchIterator(batches)
    speed = _ThroughputMeter(observers.peak_tokens_per_second)
    with StopRequest() as stop, keeper:
        while position.step < training.train_steps:
            wanted = length_of_turn(turns, position.step, training.train_steps, steps_per_checkpoint)
            turn = speed.waiting_for(lambda wanted=wanted: supply.next_batches(wanted))
            ending = observers.all_reduce_max(stop.signal_number or 0 if turn else NO_DATA)
            if ending == NO_DATA:
                raise supply.error
            if ending:
                return position, ending
            steps = take_turn(turns, turn, position.step, training)
            n_tokens = (turn[-1].next_example - position.examples) * turn[-1].tokens_BS.shape[1]
            pace = speed.after(n_tokens)
            for batch, taken in zip(turn, steps, strict=True):
                _check_finite(taken.outputs, position, batch, observers, keeper.saved)
                position = TrainingPosition(position.step + 1, batch.next_example, batch.examples_per_dataset)
                _tell(observers, training, position, batch, taken, pace)
            keeper.reached = position
            if position.step % steps_per_checkpoint == 0 and position.step < training.train_steps:
                keeper.save()
                observers.after_save(position)
                speed = _ThroughputMeter(observers.peak_tokens_per_second)
    return position, None


def _tell(
    observers: Observers,
    training: TrainingConfig,
    position: TrainingPosition,
    batch: Batch,
    taken: StepResult,
    pace: Throughput,
) -> None:
    """Tells of one step."""
    for problem in batch.problems:
        observers.tell_problem(f"left out: {problem}")
    observers.progress.update(position.step, float(taken.outputs["loss"]), pace.tokens_per_second, pace.mfu)
    if position.step % training.iterations == 0 or position.step == training.train_steps:
        values = {name: float(value) for name, value in taken.outputs.items()}
        data = {"data/skipped_fraction": batch.skipped.fraction}
        observers.write_metrics(position.step, {**values, "lr": taken.rate, **pace.metrics(), **data})


class _BatchIterator:
    """Batches, until there are none.

    Attributes:
        error: why there are none, or what to say if only another process has none.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self.error = DataError("the data of another process cannot be read: it says why; mend them and start again")

    def next_batches(self, count: int) -> list[Batch]:
        """So many, or as many as there are still; once there are none, always none."""
        batches: list[Batch] = []
        try:
            for batch in itertools.islice(self._batches, count):
                batches.append(batch)
        except DataError as error:
            self.error = error
        return batches


class _CheckpointOnExit:
    """Saves what was reached when training ends, also when the data end it, but not twice and not a diverged model.

    Attributes:
        reached: how far training is.
        saved: how far what was saved is.
    """

    def __init__(self, save: Callable[[TrainingPosition], object], saved: TrainingPosition) -> None:
        self._save = save
        self.reached = self.saved = saved

    def save(self) -> None:
        self._save(self.reached)
        self.saved = self.reached

    def __enter__(self) -> _CheckpointOnExit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.reached != self.saved and (error is None or isinstance(error, DataError)):
            self.save()


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How fast training goes, as means that forget older steps.

    Attributes:
        tokens_per_second: of all processes together.
        data_wait: share of the time in which this process waits for its data.
        mfu: model flops utilisation, the share of the devices' peak that the model's own operations take; None: the
            peak is not known.
    """

    tokens_per_second: float
    data_wait: float
    mfu: float | None

    def metrics(self) -> dict[str, float]:
        """By name; without what is not known."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


class _ThroughputMeter:
    """Measures the pace."""

    def __init__(self, peak_tokens_per_second: float | None) -> None:
        self._peak_tokens_per_second = peak_tokens_per_second
        self._last_seconds = time.perf_counter()
        self._waited_seconds = 0.0
        self._mean: tuple[float, float] | None = None

    def waiting_for(self, supply: Callable[[], list[Batch]]) -> list[Batch]:
        """What the supply gives."""
        start_seconds = time.perf_counter()
        batches = supply()
        self._waited_seconds += time.perf_counter() - start_seconds
        return batches

    def after(self, n_tokens: int) -> Throughput:
        now_seconds = time.perf_counter()
        took_seconds = now_seconds - self._last_seconds
        latest = n_tokens / took_seconds, self._waited_seconds / took_seconds
        self._last_seconds, self._waited_seconds = now_seconds, 0.0
        before = self._mean or latest
        self._mean = 0.9 * before[0] + 0.1 * latest[0], 0.9 * before[1] + 0.1 * latest[1]
        tokens_per_second, data_wait = self._mean
        return Throughput(
            tokens_per_second,
            data_wait,
            self._peak_tokens_per_second and tokens_per_second / self._peak_tokens_per_second,
        )


def _check_finite(
    outputs: Mapping[str, np.ndarray],
    position: TrainingPosition,
    batch: Batch,
    observers: Observers,
    saved: TrainingPosition,
) -> None:
    """Checks a step from a position: if it was no update, none must follow, and nothing is saved any more."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(outputs[name]):
            raise _divergence(f"{name} = {float(outputs[name])}", position, batch, observers, saved)


def _divergence(
    what: str, position: TrainingPosition, batch: Batch, observers: Observers, saved: TrainingPosition
) -> DivergedError:
    step = f"step {position.step + 1}, examples {position.examples} to {batch.next_example - 1}"
    observers.progress.note(f"{step}: {what}; looking for the reason")
    told = observers.explain_divergence(position, batch)
    where, why = told.where and f" ({told.where})", told.why and f": {told.why}"
    kept = f"the checkpoint of step {saved.step} stays the newest" if saved.step else "there is no checkpoint yet"
    return DivergedError(
        f"{step}{where}: {what}: training has diverged{why}; {kept}; lower lr, lengthen warmup_steps or set "
        "gradient_clipping, and start again"
    )
