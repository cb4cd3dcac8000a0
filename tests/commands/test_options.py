"""What is said of keys that other keys switch off."""

from __future__ import annotations

import dataclasses

import pytest

from commands.options import idle_by_other_keys
from configs.schema import EvaluationConfig, TaskEntry
from tests import tiny


@pytest.mark.parametrize(
    ("changes", "n_lines"),
    [({}, 1), ({"eval_steps": 1}, 0), ({"eval_tasks": (TaskEntry(name="piqa"),)}, 0), ({"eval_every_steps": None}, 0)],
)
def test_a_period_of_evaluations_needs_one(changes: dict[str, object], n_lines: int) -> None:
    evaluation = EvaluationConfig(**{"eval_batch_size": 1, "eval_every_steps": 5, **changes})
    lines = idle_by_other_keys(dataclasses.replace(tiny.run_config(), evaluation=evaluation))
    said = ["tiny: eval_every_steps: no effect, since eval_steps is 0 and eval_tasks is empty"]
    assert [line for line in lines if "eval_" in line] == said * n_lines


@pytest.mark.parametrize(
    ("lr_decay", "said"),
    [
        (None, ["tiny: lr_decay_end: no effect, since lr_decay is null"]),
        ("noam", ['tiny: lr_decay_end: no effect, since lr_decay is "noam"']),
        ("noamwd", ['tiny: lr_decay_end: no effect, since lr_decay is "noamwd"']),
        ("bert", []),
        ("linear_to_zero", []),
        ("wsd", []),
        ("cosine", []),
    ],
)
def test_the_end_of_a_decay_without_one_has_no_effect(lr_decay: str | None, said: list[str]) -> None:
    config = tiny.run_config(training={"lr_decay": lr_decay, "lr_decay_end": 5})
    assert [line for line in idle_by_other_keys(config) if "lr_decay_end" in line] == said


@pytest.mark.parametrize(("lr_decay", "n_lines"), [("linear", 1), ("wsd", 0)])
def test_the_steps_of_a_decay_belong_to_wsd(lr_decay: str, n_lines: int) -> None:
    lines = idle_by_other_keys(tiny.run_config(training={"lr_decay": lr_decay, "lr_decay_steps": 5}))
    assert [line for line in lines if "steps" in line] == [
        "tiny: lr_decay_steps: no effect, since lr_decay is not wsd"
    ] * n_lines
