"""The learning rate against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import TrainingConfig
from runtime.training.lr_schedules import learning_rate


def training(**keys: object) -> TrainingConfig:
    return TrainingConfig(**{"train_batch_size": 8, "train_steps": 1000, "lr": 0.5, **keys})


@pytest.mark.parametrize(
    ("keys", "step", "rate"),
    [
        ({}, 0, 0.5),
        ({}, 123_456, 0.5),
        ({"warmup_steps": 10}, 0, 0.0),
        ({"warmup_steps": 10}, 4, 0.2),
        ({"warmup_steps": 10}, 9, 0.45),
        ({"warmup_steps": 10}, 10, 0.5),
        ({"warmup_steps": 10}, 11, 0.5),
        ({"lr_decay": "linear"}, 0, 0.5),
        ({"lr_decay": "linear"}, 500, 0.275),  # half-way between 0.5 and 0.05
        ({"lr_decay": "linear"}, 1000, 0.05),
        ({"lr_decay": "linear"}, 5000, 0.05),
        ({"lr_decay": "cosine"}, 0, 0.5),
        ({"lr_decay": "cosine"}, 250, 0.4340990257669732),  # 0.05 + 0.45 * (1 + sqrt(1/2)) / 2
        ({"lr_decay": "cosine"}, 500, 0.275),
        ({"lr_decay": "cosine"}, 1000, 0.05),
        ({"lr_decay": "cosine"}, 5000, 0.05),
        ({"lr_decay": "linear", "lr_decay_end": 200}, 100, 0.275),
        ({"lr_decay": "linear", "lr_decay_end": 200}, 900, 0.05),
        ({"lr_decay": "linear", "lr_decay_end": 4000}, 1000, 0.3875),
        ({"lr_decay": "linear", "warmup_steps": 200}, 100, 0.2275),  # (0.5 - 0.045) * 100 / 200
        ({"lr_decay": "cosine", "warmup_steps": 1000}, 500, 0.1375),  # 0.275 * 1 / 2
    ],
)
def test_hand_computed_rates(keys: dict[str, object], step: int, rate: float) -> None:
    assert learning_rate(step, training(**keys)) == pytest.approx(rate, rel=1e-12, abs=0)


schedules = st.builds(
    training,
    lr=st.floats(1e-6, 10),
    lr_decay=st.sampled_from([None, "linear", "cosine"]),
    lr_decay_end=st.none() | st.integers(1, 5000),
    warmup_steps=st.integers(0, 500),
)


@settings(deadline=None)
@given(schedules, st.integers(0, 10_000))
def test_rate_stays_between_zero_and_lr(schedule: TrainingConfig, step: int) -> None:
    assert 0 <= learning_rate(step, schedule) <= schedule.lr
    if step >= schedule.warmup_steps:
        assert learning_rate(step, schedule) >= schedule.lr * 0.1 * (1 - 1e-12)


@settings(deadline=None)
@given(schedules, st.integers(0, 10_000))
def test_rate_never_rises_after_the_warmup(schedule: TrainingConfig, step: int) -> None:
    step += schedule.warmup_steps
    assert learning_rate(step + 1, schedule) <= learning_rate(step, schedule)


@settings(deadline=None)
@given(schedules, st.integers(5000, 10_000), st.integers(1, 10_000))
def test_rate_stays_after_the_decay(schedule: TrainingConfig, step: int, more_steps: int) -> None:
    assert learning_rate(step + more_steps, schedule) == learning_rate(step, schedule)
