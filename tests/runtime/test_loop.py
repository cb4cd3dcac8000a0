"""The training loop with a step and batches that only count."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

from configs.errors import DataError, UserError
from configs.schema import TrainingConfig
from inputs import Batch
from runtime.loop import DivergedError, Observers, TrainingPosition, noise_key, train
from runtime.progress import Progress
from runtime.schedules import learning_rate

TRAINING = TrainingConfig(
    train_batch_size=2, train_steps=10, lr=1.0, lr_decay="linear", warmup_steps=4, iterations=4, seed=7
)


def batches_from(example: int) -> Iterator[Batch]:
    """Batches of 2 x 3, whose first token is the number of the batch's first example."""
    while True:
        example += 2
        tokens_BS = np.full((2, 3), example - 2, np.int32)
        yield Batch(tokens_BS, tokens_BS + 1, np.full((2, 3), example, np.float32), example)


@dataclasses.dataclass
class Recorder:
    """Stands for the model and for all who are told; `losses` overrides the loss of a call by its number."""

    losses: Mapping[int, float] = dataclasses.field(default_factory=dict)
    during_call: Callable[[int], None] = lambda number: None
    calls: list[tuple] = dataclasses.field(default_factory=list)
    told: list[tuple] = dataclasses.field(default_factory=list)

    def step(self, *arrays: np.ndarray) -> dict:
        tokens_BS, labels_BS, weights_BS, rate, number, key = arrays
        assert (rate.dtype, number.dtype, key.dtype) == (np.float32, np.int32, np.int32)
        values = (tokens_BS[0, 0], labels_BS[0, 0], weights_BS[0, 0])
        self.calls.append((*map(int, values), float(rate), int(number), int(key)))
        self.during_call(len(self.calls))
        loss = self.losses.get(len(self.calls), 2.0 + len(self.calls))
        return {"loss": np.float32(loss), "grad_norm": np.float32(0.5)}

    def observers(self) -> Observers:
        return Observers(
            write_metrics=lambda step, values: self.told.append(("metrics", step, dict(values))),
            save=lambda position: self.told.append(("save", position)),
            after_save=lambda position: self.told.append(("pause", position)),
            progress=Progress(TRAINING.train_steps, 0, io.StringIO()),
        )

    def train(self, start: TrainingPosition, steps_per_checkpoint: int, training: TrainingConfig = TRAINING) -> tuple:
        batches = batches_from(start.examples)
        return train(training, self.step, batches, start, self.observers(), steps_per_checkpoint)

    def of_kind(self, kind: str) -> list[tuple]:
        return [event[1:] for event in self.told if event[0] == kind]


BEGINNING = TrainingPosition(0, 0)


def test_each_step_gets_its_batch_rate_and_noise() -> None:
    recorder = Recorder()
    assert recorder.train(BEGINNING, steps_per_checkpoint=100) == (TrainingPosition(10, 20), None)
    assert [call[:3] for call in recorder.calls] == [(2 * step, 2 * step + 1, 2 * step + 2) for step in range(10)]
    # Linear to a tenth over the 10 steps, times the warm-up of 4.
    expected = [(1 - 0.9 * step / 10) * min(step / 4, 1) for step in range(10)]
    np.testing.assert_allclose([call[3] for call in recorder.calls], expected, rtol=1e-6)
    keys = [zlib.crc32(b"7/%d" % step) & 0x7FFFFFFF for step in range(10)]
    assert [call[4] for call in recorder.calls] == list(range(10))
    assert [call[5] for call in recorder.calls] == keys
    assert len(set(keys)) == 10


def test_metrics_come_every_iterations_steps_and_at_the_end() -> None:
    recorder = Recorder()
    recorder.train(BEGINNING, steps_per_checkpoint=100)
    lines = recorder.of_kind("metrics")
    assert [step for step, _ in lines] == [4, 8, 10]
    for step, values in lines:
        assert set(values) == {"loss", "grad_norm", "lr", "tokens_per_second"}
        assert (values["loss"], values["grad_norm"]) == (2.0 + step, 0.5)
        assert values["lr"] == learning_rate(step - 1, TRAINING)  # the one that this step was made with
        assert 0 < values["tokens_per_second"] < math.inf


def test_a_resumed_run_does_what_the_unbroken_one_did() -> None:
    unbroken, resumed = Recorder(), Recorder()
    unbroken.train(BEGINNING, steps_per_checkpoint=100)
    assert resumed.train(TrainingPosition(6, 12), steps_per_checkpoint=100)[0] == TrainingPosition(10, 20)
    assert resumed.calls == unbroken.calls[6:]
    assert [step for step, _ in resumed.of_kind("metrics")] == [8, 10]


@pytest.mark.parametrize(
    ("steps_per_checkpoint", "saved", "paused"),
    [(3, [3, 6, 9, 10], [3, 6, 9]), (5, [5, 10], [5]), (10, [10], []), (100, [10], [])],
)
def test_a_checkpoint_every_so_many_steps_and_one_at_the_end(
    steps_per_checkpoint: int, saved: list[int], paused: list[int]
) -> None:
    recorder = Recorder()
    recorder.train(BEGINNING, steps_per_checkpoint)
    assert recorder.of_kind("save") == [(TrainingPosition(step, 2 * step),) for step in saved]
    assert recorder.of_kind("pause") == [(TrainingPosition(step, 2 * step),) for step in paused]
    kinds = [kind for kind, *_ in recorder.told]
    assert all(kinds[index - 1] == "save" for index, kind in enumerate(kinds) if kind == "pause")


def test_a_finished_run_trains_and_saves_nothing() -> None:
    recorder = Recorder()
    assert recorder.train(TrainingPosition(10, 20), steps_per_checkpoint=5) == (TrainingPosition(10, 20), None)
    assert (recorder.calls, recorder.told) == ([], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("at", "saved"), [(5, [5]), (6, [6])], ids=["between", "at a checkpoint"])
def test_a_signal_ends_training_after_its_step_with_one_checkpoint(number: int, at: int, saved: list[int]) -> None:
    recorder = Recorder(during_call=lambda call: os.kill(os.getpid(), number) if call == at else None)
    assert recorder.train(BEGINNING, steps_per_checkpoint=6) == (TrainingPosition(at, 2 * at), number)
    assert recorder.of_kind("save") == [(TrainingPosition(step, 2 * step),) for step in saved]
    assert len(recorder.calls) == at


@pytest.mark.parametrize(("loss", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_loss_that_is_no_number_ends_training_and_saves_nothing(loss: float, shown: str) -> None:
    recorder = Recorder(losses={8: loss})
    with pytest.raises(DivergedError) as error:
        recorder.train(BEGINNING, steps_per_checkpoint=3)
    assert str(error.value) == (
        f"step 8: loss = {shown} -- training has diverged; checkpoints of before stay -- lower lr, lengthen "
        "warmup_steps or set gradient_clipping, and start again"
    )
    assert isinstance(error.value, UserError)
    assert [position.step for (position,) in recorder.of_kind("save")] == [3, 6]
    assert [step for step, _ in recorder.of_kind("metrics")] == [4]


def test_wrong_data_end_training_with_what_was_reached_saved() -> None:
    recorder = Recorder()

    def broken() -> Iterator[Batch]:
        yield next(batches_from(0))
        raise DataError("file: record 1 is cut off")

    with pytest.raises(DataError, match="^file: record 1 is cut off$"):
        train(TRAINING, recorder.step, broken(), BEGINNING, recorder.observers(), 5)
    assert len(recorder.calls) == 1
    assert recorder.of_kind("save") == [(TrainingPosition(1, 2),)]


def test_noise_keys_differ_by_seed_and_step_and_fit_int32() -> None:
    keys = {int(noise_key(seed, step)) for seed in range(20) for step in range(50)}
    assert len(keys) == 1000 and min(keys) >= 0 and max(keys) < 2**31
    assert noise_key(1, 23) != noise_key(12, 3)
