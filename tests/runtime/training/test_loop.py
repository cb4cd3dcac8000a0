"""The training loop with a fake step and fake batches."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import os
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

from configs.errors import CheckpointError, DataError, UserError
from configs.schema import TrainingConfig
from data.loading.batch import Batch, SkippedRecords
from models.kernels.noise import noise_key
from runtime.checkpoint.position import TrainingPosition
from runtime.run.progress_bar import Progress
from runtime.training.loop import NO_DATA, DivergedError, DivergenceReport, Hooks, train
from runtime.training.lr_schedules import learning_rate
from runtime.training.multi_step import SingleStep, Step
from runtime.training.signals import SIGNALS, StopRequest

TRAINING = TrainingConfig(
    train_batch_size=2, train_steps=10, lr=1.0, lr_decay="linear", warmup_steps=4, iterations=4, seed=7
)


RATE = functools.partial(learning_rate, training=TRAINING, n_embd=8)


def batches_from(example: int) -> Iterator[Batch]:
    """Batches of 2 x 3, whose first token is the number of the batch's first example."""
    while True:
        example += 2
        tokens_BS = np.full((2, 3), example - 2, np.int32)
        yield Batch(tokens_BS, tokens_BS + 1, np.full((2, 3), example, np.float32), example, None)


@dataclasses.dataclass(frozen=True)
class Several:
    """Runs several steps in a call, one after the other."""

    step: Step
    max_steps: int

    def __call__(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        taken = [self.step(*arrays) for arrays in zip(*inputs, strict=True)]
        return {name: np.stack([outputs[name] for outputs in taken]) for name in taken[0]}


@dataclasses.dataclass
class RecordedCheckpoints:
    """Fake checkpoints: `error` is that of the write that the next call learns of."""

    events: list[tuple]
    ends: list[str] = dataclasses.field(default_factory=list)
    error: Exception | None = None

    def save(self, position: TrainingPosition) -> None:
        self.check()
        self.events.append(("save", position))

    def check(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    def finish(self) -> None:
        self.ends.append("finish")
        self.check()

    def abandon(self) -> None:
        self.ends.append("abandon")
        self.check()


@dataclasses.dataclass
class Recorder:
    """A fake model and fake hooks; `losses` and `norms` override those of a call by its number."""

    losses: Mapping[int, float] = dataclasses.field(default_factory=dict)
    norms: Mapping[int, float] = dataclasses.field(default_factory=dict)
    during_call: Callable[[int], None] = lambda number: None
    calls: list[tuple] = dataclasses.field(default_factory=list)
    events: list[tuple] = dataclasses.field(default_factory=list)
    all_reduce_max: Callable[[int], int] = lambda number: number
    during_hook: Callable[[StopRequest], None] = lambda stop: None
    report: DivergenceReport = DivergenceReport()
    peak_tokens_per_second: float | None = None
    periods: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.checkpoints = RecordedCheckpoints(self.events)

    def step(self, *arrays: np.ndarray) -> dict:
        tokens_BS, labels_BS, weights_BS, rate, number, key = arrays
        assert (rate.dtype, number.dtype, key.dtype) == (np.float32, np.int32, np.int32)
        values = (tokens_BS[0, 0], labels_BS[0, 0], weights_BS[0, 0])
        self.calls.append((*map(int, values), float(rate), int(number), int(key)))
        self.during_call(len(self.calls))
        loss = self.losses.get(len(self.calls), 2.0 + len(self.calls))
        return {"loss": np.float32(loss), "grad_norm": np.float32(self.norms.get(len(self.calls), 0.5))}

    def hooks(self) -> Hooks:
        stop = StopRequest(self.all_reduce_max)

        def at_pause(position: TrainingPosition) -> None:
            self.during_hook(stop)
            self.events.append(("hook", position))

        return Hooks(
            write_metrics=lambda step, values: self.events.append(("metrics", step, dict(values))),
            checkpoints=self.checkpoints,
            periods=self.periods,
            at_pause=at_pause,
            progress=Progress(TRAINING.train_steps, 0, io.StringIO()),
            warn=lambda problem: self.events.append(("problem", problem)),
            diagnose=self.diagnose,
            peak_tokens_per_second=self.peak_tokens_per_second,
            stop=stop,
        )

    def diagnose(self, position: TrainingPosition, batch: Batch) -> DivergenceReport:
        self.events.append(("diagnose", position, int(batch.tokens_BS[0, 0])))
        return self.report

    def train(self, start: TrainingPosition, steps_per_checkpoint: int, training: TrainingConfig = TRAINING) -> tuple:
        batches, hooks = batches_from(start.examples), self.hooks()
        with hooks.stop:
            return train(training, RATE, SingleStep(self.step), batches, start, hooks, steps_per_checkpoint)

    def of_kind(self, kind: str) -> list[tuple]:
        return [event[1:] for event in self.events if event[0] == kind]


START = TrainingPosition(0, 0)


def test_each_step_gets_its_batch_rate_and_noise() -> None:
    recorder = Recorder()
    assert recorder.train(START, steps_per_checkpoint=100) == (TrainingPosition(10, 20), None)
    assert [call[:3] for call in recorder.calls] == [(2 * step, 2 * step + 1, 2 * step + 2) for step in range(10)]
    # Linear to a tenth over the 10 steps, times the warm-up of 4.
    expected = [(1 - 0.9 * step / 10) * min(step / 4, 1) for step in range(10)]
    np.testing.assert_allclose([call[3] for call in recorder.calls], expected, rtol=1e-6)
    keys = [zlib.crc32(b"7/%d" % step) & 0x7FFFFFFF for step in range(10)]
    assert [call[4] for call in recorder.calls] == list(range(10))
    assert [call[5] for call in recorder.calls] == keys
    assert len(set(keys)) == 10


def test_metrics_are_written_every_iterations_steps_and_at_the_end() -> None:
    recorder = Recorder()
    recorder.train(START, steps_per_checkpoint=100)
    lines = recorder.of_kind("metrics")
    assert [step for step, _ in lines] == [4, 8, 10]
    for step, values in lines:
        assert set(values) == {
            "loss",
            "grad_norm",
            "lr",
            "tokens_per_second",
            "data_wait",
            "epoch",
            "data/skipped_fraction",
        }
        assert 0 <= values["data_wait"] <= 1
        assert (values["loss"], values["grad_norm"]) == (2.0 + step, 0.5)
        assert values["lr"] == RATE(step - 1)  # the one that this step was made with
        assert 0 < values["tokens_per_second"] < math.inf


def test_mfu_is_the_speed_over_the_peak() -> None:
    recorder = Recorder(peak_tokens_per_second=5e9)
    recorder.train(START, steps_per_checkpoint=3)
    lines = recorder.of_kind("metrics")
    assert all(values["mfu"] == values["tokens_per_second"] / 5e9 for _, values in lines) and len(lines) == 3


def test_a_resumed_run_repeats_the_uninterrupted_one() -> None:
    uninterrupted, resumed = Recorder(), Recorder()
    uninterrupted.train(START, steps_per_checkpoint=100)
    assert resumed.train(TrainingPosition(6, 12), steps_per_checkpoint=100)[0] == TrainingPosition(10, 20)
    assert resumed.calls == uninterrupted.calls[6:]
    assert [step for step, _ in resumed.of_kind("metrics")] == [8, 10]


@pytest.mark.parametrize(
    ("steps_per_checkpoint", "saved", "hooked"),
    [(3, [3, 6, 9, 10], [3, 6, 9]), (5, [5, 10], [5]), (10, [10], []), (100, [10], [])],
)
def test_checkpoints_are_saved_at_intervals_and_at_the_end(
    steps_per_checkpoint: int, saved: list[int], hooked: list[int]
) -> None:
    recorder = Recorder()
    recorder.train(START, steps_per_checkpoint)
    assert recorder.of_kind("save") == [(TrainingPosition(step, 2 * step),) for step in saved]
    assert recorder.of_kind("hook") == [(TrainingPosition(step, 2 * step),) for step in hooked]
    kinds = [kind for kind, *_ in recorder.events]
    assert all(kinds[index - 1] == "save" for index, kind in enumerate(kinds) if kind == "hook")


def test_checkpoints_that_stay_for_good_are_saved_too() -> None:
    recorder = Recorder()
    recorder.train(START, 6, dataclasses.replace(TRAINING, keep_every_steps=4))
    assert recorder.of_kind("save") == [(TrainingPosition(step, 2 * step),) for step in (4, 6, 8, 10)]


@pytest.mark.parametrize(("fails_at", "n_calls"), [(4, 4), (6, 6), (10, 10)], ids=["step", "checkpoint", "end"])
def test_a_failed_write_ends_training_at_the_next_step_checkpoint_or_end(fails_at: int, n_calls: int) -> None:
    failure = CheckpointError("the disk is full")

    def fail(call: int) -> None:
        if call == fails_at:
            recorder.checkpoints.error = failure

    recorder = Recorder(during_call=fail)
    with pytest.raises(CheckpointError) as error:
        recorder.train(START, steps_per_checkpoint=6)
    assert error.value is failure
    assert len(recorder.calls) == n_calls
    assert [position.step for (position,) in recorder.of_kind("save")] == ([6] if fails_at == 10 else [])
    assert recorder.of_kind("problem") == []


def test_training_ends_once_the_newest_checkpoint_is_written() -> None:
    recorder = Recorder()
    recorder.train(START, steps_per_checkpoint=10)
    assert recorder.checkpoints.ends == ["finish"]


def test_an_error_that_ends_training_waits_for_no_other_process_and_tells_of_a_failed_write() -> None:
    def fail(call: int) -> None:
        if call == 4:
            recorder.checkpoints.error = CheckpointError("the disk is full")
            raise ValueError("a bug")

    recorder = Recorder(during_call=fail)
    with pytest.raises(ValueError, match="^a bug$"):
        recorder.train(START, steps_per_checkpoint=3)
    assert recorder.checkpoints.ends == ["abandon"]
    assert recorder.of_kind("problem") == [("the disk is full",)]


def test_hooks_run_between_checkpoints_too() -> None:
    recorder = Recorder(periods=(3, 4))
    recorder.train(START, steps_per_checkpoint=6)
    assert recorder.of_kind("save") == [(TrainingPosition(step, 2 * step),) for step in (6, 10)]
    assert recorder.of_kind("hook") == [(TrainingPosition(step, 2 * step),) for step in (3, 4, 6, 8, 9)]


def test_a_signal_in_a_hook_between_checkpoints_leaves_a_checkpoint_there() -> None:
    def evaluate(stop: StopRequest) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()

    recorder = Recorder(during_hook=evaluate, periods=(4,))
    assert recorder.train(START, steps_per_checkpoint=6) == (TrainingPosition(4, 8), signal.SIGTERM)
    assert recorder.of_kind("save") == [(TrainingPosition(4, 8),)]


def test_several_steps_in_a_call_are_reported_like_single_ones() -> None:
    alone, together = Recorder(), Recorder()
    alone.train(START, steps_per_checkpoint=5)
    multi_step = Several(together.step, 3)
    train(TRAINING, RATE, multi_step, batches_from(0), START, together.hooks(), steps_per_checkpoint=5)
    for _, values in [*alone.of_kind("metrics"), *together.of_kind("metrics")]:
        del values["tokens_per_second"], values["data_wait"]
    assert (together.calls, together.events) == (alone.calls, alone.events)


def test_a_finished_run_trains_and_saves_nothing() -> None:
    recorder = Recorder()
    assert recorder.train(TrainingPosition(10, 20), steps_per_checkpoint=5) == (TrainingPosition(10, 20), None)
    assert (recorder.calls, recorder.events) == ([], [])


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(("at", "saved"), [(5, [5]), (6, [6])], ids=["between", "at a checkpoint"])
def test_a_signal_ends_training_after_its_step_with_one_checkpoint(number: int, at: int, saved: list[int]) -> None:
    recorder = Recorder(during_call=lambda call: os.kill(os.getpid(), number) if call == at else None)
    assert recorder.train(START, steps_per_checkpoint=6) == (TrainingPosition(at, 2 * at), number)
    assert recorder.of_kind("save") == [(TrainingPosition(step, 2 * step),) for step in saved]
    assert len(recorder.calls) == at


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_follows_a_checkpoint(number: int) -> None:
    def evaluate(stop: StopRequest) -> None:
        os.kill(os.getpid(), number)
        stop.check()

    recorder = Recorder(during_hook=evaluate)
    assert recorder.train(START, steps_per_checkpoint=6) == (TrainingPosition(6, 12), number)
    assert recorder.of_kind("save") == [(TrainingPosition(6, 12),)]
    assert (len(recorder.calls), recorder.of_kind("hook")) == (6, [])


@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_nan_and_infinity_stop_training_and_save_nothing(name: str, value: float, shown: str) -> None:
    report = DivergenceReport("records 3 to 4 of a.tfrecords", "the first of all is h0/q")
    recorder = Recorder(**{"losses" if name == "loss" else "norms": {8: value}}, report=report)
    with pytest.raises(DivergedError) as error:
        recorder.train(START, steps_per_checkpoint=3)
    assert str(error.value) == (
        f"step 8, examples 14 to 15 (records 3 to 4 of a.tfrecords): {name} = {shown}: training has diverged: the "
        "first of all is h0/q; the newest checkpoint is that of step 6; lower lr, raise warmup_steps or set "
        "gradient_clipping, and run again"
    )
    assert recorder.of_kind("diagnose") == [(TrainingPosition(7, 14), 14)]
    assert isinstance(error.value, UserError)
    assert [position.step for (position,) in recorder.of_kind("save")] == [3, 6]
    assert [step for step, _ in recorder.of_kind("metrics")] == [4]
    assert recorder.checkpoints.ends == ["finish", "abandon"]  # before the message names the newest


def test_a_divergence_without_a_diagnosis_is_reported() -> None:
    with pytest.raises(DivergedError) as error:
        Recorder(losses={1: math.nan}).train(START, steps_per_checkpoint=3)
    start, value, _ = str(error.value).split(": ")
    assert (start, value) == ("step 1, examples 0 to 1", "loss = nan")
    assert ": training has diverged; there is no checkpoint yet; " in str(error.value)


def test_bad_data_stop_training_and_save_the_position_reached() -> None:
    recorder = Recorder()

    def broken() -> Iterator[Batch]:
        yield next(batches_from(0))
        raise DataError("file: record 1 is cut off")

    with pytest.raises(DataError, match="^file: record 1 is cut off$"):
        train(TRAINING, RATE, SingleStep(recorder.step), broken(), START, recorder.hooks(), 5)
    assert len(recorder.calls) == 1
    assert recorder.of_kind("save") == [(TrainingPosition(1, 2),)]


def test_noise_keys_differ_by_seed_and_step_and_fit_int32() -> None:
    keys = {int(noise_key(seed, step)) for seed in range(20) for step in range(50)}
    assert len(keys) == 1000 and min(keys) >= 0 and max(keys) < 2**31
    assert noise_key(1, 23) != noise_key(12, 3)


class Others:
    """The other processes of a run: in call number `at` their maximum is `number`, before that 0."""

    def __init__(self, at: int, number: int) -> None:
        self.heard: list[int] = []
        self._at = at
        self._number = number

    def all_reduce_max(self, number: int) -> int:
        self.heard.append(number)
        return max(number, self._number if len(self.heard) == self._at else 0)


def test_a_signal_to_another_process_stops_this_one_at_the_same_step() -> None:
    others = Others(at=4, number=signal.SIGTERM)
    recorder = Recorder(all_reduce_max=others.all_reduce_max)
    reached = TrainingPosition(3, 6)
    assert recorder.train(START, steps_per_checkpoint=100) == (reached, signal.SIGTERM)
    assert recorder.of_kind("save") == [(reached,)]


def test_another_process_without_data_stops_this_one_and_saves_the_position() -> None:
    recorder = Recorder(all_reduce_max=Others(at=3, number=NO_DATA).all_reduce_max)
    with pytest.raises(DataError, match="another process cannot read its data"):
        recorder.train(START, steps_per_checkpoint=100)
    assert recorder.of_kind("save") == [(TrainingPosition(2, 4),)]


def test_a_process_without_data_stops_the_others_before_it_ends() -> None:
    def two_batches() -> Iterator[Batch]:
        yield from itertools.islice(batches_from(0), 2)
        raise DataError("record 7 is damaged")

    others = Others(at=100, number=0)
    recorder = Recorder(all_reduce_max=others.all_reduce_max)
    with pytest.raises(DataError, match="record 7 is damaged"):
        train(TRAINING, RATE, SingleStep(recorder.step), two_batches(), START, recorder.hooks(), 100)
    assert others.heard == [0, 0, NO_DATA]
    assert recorder.of_kind("save") == [(TrainingPosition(2, 4),)]


def test_skipped_records_are_reported() -> None:
    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(batches_from(0)):
            problems = ("record 7 is damaged",) if number == 2 else ()
            yield dataclasses.replace(batch, problems=problems, skipped=SkippedRecords(2 * number + 2, number >= 2))

    recorder = Recorder()
    train(TRAINING, RATE, SingleStep(recorder.step), batches(), START, recorder.hooks(), 100)
    assert recorder.of_kind("problem") == [("skipped: record 7 is damaged",)]
    shares = [values["data/skipped_fraction"] for _, values in recorder.of_kind("metrics")]
    assert shares == [1 / 8, 1 / 16, 1 / 20]
