"""What a signal ends after a checkpoint is done when the run resumes from it."""

from __future__ import annotations

import dataclasses
import functools
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands.checkpoint_hooks import CheckpointHook, CheckpointHooks, check_hook_inputs, interrupted_hooks
from commands.run_data import RunData
from commands.run_setup import Run
from configs.schema import EvaluationConfig
from runtime.checkpoint.position import TrainingPosition
from runtime.cluster.process_group import ALONE
from runtime.training.signals import Stopped
from tests import tiny

POSITION = TrainingPosition(6, 12)


@dataclasses.dataclass
class Hooks:
    """Three hooks, of which one is ended by a signal."""

    model_path: Path
    stopped: int | None = None
    every_steps: tuple[int, int, int] = (2, 3, 6)
    names: str = "abc"
    done: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def hook(self, number: int, position: TrainingPosition) -> None:
        if number == self.stopped:
            raise Stopped(signal.SIGTERM)
        self.done.append((number, position.step))

    def all(self) -> CheckpointHooks:
        config = dataclasses.replace(tiny.run_config(), model_path=str(self.model_path))
        run = Run(config, None, ALONE, None, None)
        hooks = (functools.partial(self.hook, number) for number in range(3))
        settings = zip(self.names, self.every_steps, hooks, strict=True)
        return CheckpointHooks(run, [CheckpointHook(*each) for each in settings], self.notes.append)


def test_what_a_signal_has_ended_is_done_on_resume(tmp_path: Path) -> None:
    first = Hooks(tmp_path, stopped=1)
    with pytest.raises(Stopped):
        first.all()(POSITION)
    second = Hooks(tmp_path, stopped=2)  # a signal comes again
    with pytest.raises(Stopped):
        second.all().catch_up(POSITION)
    third = Hooks(tmp_path)
    assert interrupted_hooks(third.all().run, POSITION) == ("c",)
    third.all().catch_up(TrainingPosition(7, 14))  # another checkpoint has nothing left to do
    third.all().catch_up(POSITION)
    assert (first.done, second.done, third.done) == ([(0, 6)], [(1, 6)], [(2, 6)])
    assert list(tmp_path.iterdir()) == [] and not interrupted_hooks(third.all().run, POSITION)


def test_each_hook_runs_at_its_own_steps_and_at_the_last(tmp_path: Path) -> None:
    hooks = Hooks(tmp_path, every_steps=(4, 3, 4))
    assert hooks.all().periods == (3, 4)
    for step in range(1, tiny.TRAINING.train_steps + 1):
        hooks.all()(TrainingPosition(step, 2 * step))
    assert hooks.done == [(1, 3), (0, 4), (2, 4), (1, 6), (0, 8), (2, 8), (1, 9), (0, 10), (1, 10), (2, 10)]


def test_what_is_left_and_not_due_stays_undone_on_resume(tmp_path: Path) -> None:
    first = Hooks(tmp_path, stopped=0, every_steps=(6, 4, 3))
    with pytest.raises(Stopped):
        first.all()(POSITION)
    second = Hooks(tmp_path, every_steps=(6, 4, 3))
    second.all().catch_up(POSITION)
    assert (first.done, second.done) == ([], [(0, 6), (2, 6)])


def test_settings_may_change_before_what_is_left_is_done(tmp_path: Path) -> None:
    first = Hooks(tmp_path, stopped=1)
    with pytest.raises(Stopped):
        first.all()(POSITION)
    second = Hooks(tmp_path, every_steps=(4, 4, 4), names="cxa")  # in another order, none due at step 6, b for x
    second.all().catch_up(POSITION)
    assert (first.done, second.done) == ([(0, 6)], [(0, 6)])
    assert second.notes == ["b: interrupted at step 6, and no longer in the settings; left out"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("eval_steps", [0, 1])
def test_a_held_out_loss_without_data_is_said_to_be_left_out(
    eval_steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = EvaluationConfig(eval_batch_size=1, eval_steps=eval_steps)
    config = dataclasses.replace(tiny.run_config(), evaluation=evaluation)
    data = RunData(config, [SimpleNamespace(eval_pattern=None)])
    check_hook_inputs(Run(config, None, ALONE, None, None), data, [])
    line = "held-out loss: not measured while training, since no dataset has a held-out part; give eval_path in one\n"
    assert capsys.readouterr().out == line * eval_steps


@pytest.mark.parametrize("content", ["", "[6]", "{}", '[6, "x"]', "[6, 1]", '[6, ["a", 1]]', '["6", ["a"]]', "\0\0"])
def test_a_damaged_note_is_nothing_left_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "interrupted.json").write_text(content)
    assert interrupted_hooks(Hooks(tmp_path).all().run, POSITION) == ()
