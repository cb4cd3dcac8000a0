"""The training loop. It knows batches, a step and hooks; no model, no dataset, no TensorFlow.

What happens at a pause, besides saving checkpoints, is in `commands/checkpoint_hooks.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from configs.errors import DataError, UserError
from configs.schema import TrainingConfig
from data.loading.batch import Batch
from runtime.checkpoint.position import TrainingPosition
from runtime.run.progress_bar import Progress
from runtime.training.multi_step import LearningRate, MultiStep, StepResult, next_step_count, run_steps
from runtime.training.signals import StopRequest, stopped_during
from runtime.training.throughput import Throughput, ThroughputMeter


class DivergedError(UserError):
    """The loss or the gradient norm is not finite."""


@dataclasses.dataclass(frozen=True)
class DivergenceReport:
    """What is known about a step that diverged; either part may be empty.

    Attributes:
        records: the records of its batch.
        cause: the first tensor that is not finite.
    """

    records: str = ""
    cause: str = ""


# Takes the place of a signal's number in the processes' agreement to stop: a process has no more data.
NO_DATA = 128


class Checkpoints(Protocol):
    """Saves checkpoints, of which the newest may be written beside training."""

    def save(self, position: TrainingPosition) -> object:
        """Copies the variables once the checkpoint before is written, whose error it raises."""

    def check(self) -> None:
        """Raises the error of the newest checkpoint if it has failed."""

    def finish(self) -> None:
        """Returns once the newest checkpoint is finished in all processes, or raises its error."""

    def abandon(self) -> None:
        """Returns once this process writes nothing more; raises an error if the newest checkpoint is not finished."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """The calls that the training loop makes.

    Attributes:
        write_metrics: takes the step and values by metric name, every `iterations` steps.
        checkpoints: saves the variables.
        periods: training pauses at multiples of these steps too, besides checkpoints.
        at_pause: called at each pause but the end, such as evaluation and samples; `stop` may end it.
        progress: shows loss and speed.
        warn: takes a message, such as about a skipped record.
        diagnose: takes the position before a step that diverged, and its batch; the variables are as before that step.
        peak_tokens_per_second: throughput at full utilisation; None if unknown.
        stop: records signals, and agrees with the other processes on when to stop.
    """

    write_metrics: Callable[[int, Mapping[str, float]], None]
    checkpoints: Checkpoints
    periods: Sequence[int]
    at_pause: Callable[[TrainingPosition], None]
    progress: Progress
    warn: Callable[[str], None]
    diagnose: Callable[[TrainingPosition, Batch], DivergenceReport]
    peak_tokens_per_second: float | None
    stop: StopRequest


def train(
    training: TrainingConfig,
    learning_rate: LearningRate,
    multi_step: MultiStep,
    batches: Iterable[Batch],
    position: TrainingPosition,
    hooks: Hooks,
    steps_per_checkpoint: int,
) -> tuple[TrainingPosition, int | None]:
    """Trains up to `train_steps` or until `hooks.stop` has a signal; saves a checkpoint at the end either way.

    Args:
        training: steps, seed, and the steps between checkpoints that stay for good, which are saved too.
        learning_rate: maps the updates made before a step to its rate.
        multi_step: runs steps from (the arrays of a batch, learning rate, update number, noise key) to at least `loss`
            and `grad_norm`.
        batches: endless, starting at `position`.
        position: where to start.
        hooks: what to call.
        steps_per_checkpoint: steps between two checkpoints.

    Returns:
        The last position, and the signal that stopped training early, or None.

    Raises:
        DivergedError: the loss is not finite; nothing is saved, so the last checkpoint stays the newest.
        DataError: there is no next batch, here or in another process; the position reached is saved.
        CheckpointError: a checkpoint cannot be written; told at the next step at the latest.
    """
    checkpoint = _CheckpointOnExit(hooks.checkpoints, position, hooks.warn)
    loader = _BatchLoader(batches)
    meter = ThroughputMeter(hooks.peak_tokens_per_second, hooks.warn)
    saves = (steps_per_checkpoint, *filter(None, [training.keep_every_steps]))
    pauses = (*saves, *hooks.periods)
    ends = (training.train_steps, *(first for first, _ in training.batch_sizes))
    with checkpoint:
        while position.step < training.train_steps:
            hooks.checkpoints.check()
            n_steps = next_step_count(multi_step, position.step, ends, pauses)
            with meter.waiting_for_data():
                loaded = loader.load(n_steps)
            if signal_number := _agree_to_stop(hooks.stop, loader, bool(loaded)):
                return position, signal_number
            results = run_steps(multi_step, loaded, position.step, learning_rate, training.seed)
            throughput = meter.update((loaded[-1].next_example - position.examples) * loaded[-1].tokens_BS.shape[1])
            for batch, result in zip(loaded, results, strict=True):
                _check_finite(result.outputs, position, batch, hooks, checkpoint)
                position = TrainingPosition(position.step + 1, batch.next_example, batch.examples_per_dataset)
                _report_step(hooks, training, position, batch, result, throughput)
            checkpoint.reached = position
            if position.step < training.train_steps and _is_due(position, pauses):
                if _is_due(position, saves):
                    checkpoint.save()
                if signal_number := stopped_during(hooks.at_pause, position):
                    return position, signal_number
                meter.restart()
    return position, None


def _is_due(position: TrainingPosition, periods: Sequence[int]) -> bool:
    return any(position.step % period == 0 for period in periods)


def _agree_to_stop(stop: StopRequest, loader: _BatchLoader, has_data: bool) -> int:
    """Returns the signal that any process has received, or 0; raises if any process has no data."""
    code = stop.agree(None if has_data else NO_DATA)
    if code == NO_DATA:
        raise loader.error
    return code


def _report_step(
    hooks: Hooks,
    training: TrainingConfig,
    position: TrainingPosition,
    batch: Batch,
    result: StepResult,
    throughput: Throughput,
) -> None:
    for problem in batch.problems:
        hooks.warn(f"skipped: {problem}")
    hooks.progress.update(position.step, float(result.outputs["loss"]), throughput.tokens_per_second, throughput.mfu)
    if position.step % training.iterations == 0 or position.step == training.train_steps:
        outputs = {name: float(value) for name, value in result.outputs.items()}
        data = {"epoch": batch.epoch, "data/skipped_fraction": batch.skipped.fraction}
        hooks.write_metrics(position.step, {**outputs, "lr": result.learning_rate, **throughput.metrics(), **data})


class _BatchLoader:
    """Loads batches until the data fail.

    Attributes:
        error: why there are no more batches, here or, unless this process has failed, in another.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self.error = DataError("data: another process cannot read its data; see its message, then run again")

    def load(self, count: int) -> list[Batch]:
        """Returns `count` batches, fewer before a failure, and none after it."""
        batches: list[Batch] = []
        try:
            for batch in itertools.islice(self._batches, count):
                batches.append(batch)
        except DataError as error:
            self.error = error
        return batches


class _CheckpointOnExit:
    """Saves a checkpoint when training ends, even by a data error; never twice, and no model that diverged.

    However training ends, nothing is written afterwards.

    Attributes:
        reached: the position of the variables.
        saved: the position of the newest checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, saved: TrainingPosition, warn: Callable[[str], None]) -> None:
        self._checkpoints = checkpoints
        self._warn = warn
        self.reached = self.saved = saved

    def save(self) -> None:
        self._checkpoints.save(self.reached)
        self.saved = self.reached

    def finish(self) -> None:
        self._checkpoints.finish()

    def __enter__(self) -> _CheckpointOnExit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, DataError):  # in all processes
            if self.reached != self.saved:
                self.save()
            self.finish()
            return
        try:
            self._checkpoints.abandon()
        except UserError as problem:
            self._warn(str(problem))


def _check_finite(
    outputs: Mapping[str, np.ndarray],
    position: TrainingPosition,
    batch: Batch,
    hooks: Hooks,
    checkpoint: _CheckpointOnExit,
) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(outputs[name]):
            raise _divergence(f"{name} = {float(outputs[name])}", position, batch, hooks, checkpoint)


def _divergence(
    what: str, position: TrainingPosition, batch: Batch, hooks: Hooks, checkpoint: _CheckpointOnExit
) -> DivergedError:
    step = f"step {position.step + 1}, examples {position.examples} to {batch.next_example - 1}"
    hooks.progress.note(f"{step}: {what}; tracing it to its first tensor")
    checkpoint.finish()  # which the message names
    saved = checkpoint.saved
    report = hooks.diagnose(position, batch)
    records, cause = report.records and f" ({report.records})", report.cause and f": {report.cause}"
    newest = f"the newest checkpoint is that of step {saved.step}" if saved.step else "there is no checkpoint yet"
    return DivergedError(
        f"{step}{records}: {what}: training has diverged{cause}; {newest}; lower lr, raise warmup_steps or set "
        "gradient_clipping, and run again"
    )
