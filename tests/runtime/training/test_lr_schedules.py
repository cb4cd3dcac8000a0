"""The learning rate against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
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
    assert learning_rate(step, training(**keys), 768) == pytest.approx(rate, rel=1e-12, abs=0)


W, END = 100, 1000


@pytest.mark.parametrize(
    ("lr_decay", "keys", "fractions"),
    [
        # min(step / W, 1) (1 - step / END)
        ("linear_to_zero", {}, [0, 0.01 * 0.999, 0.99 * 0.901, 0.9, 0.899, 0.001, 0, 0]),
        ("linear_to_zero", {"lr_decay_end": 500}, [0, 0.01 * 0.998, 0.99 * 0.802, 0.8, 0.798, 0, 0, 0]),
        ("wsd", {}, [0, 0.01, 0.99, 1, 1, 1 / 200, 0, 0]),
        ("wsd", {"lr_decay_steps": 50}, [0, 0.01, 0.99, 1, 1, 1 / 50, 0, 0]),
        ("wsd", {"lr_decay_end": 101, "lr_decay_steps": 1}, [0, 0.01, 0.99, 1, 0, 0, 0, 0]),
        # The decay over a fifth, from step 81 on, cuts the warm-up short.
        ("wsd", {"lr_decay_end": 101}, [0, 0.01, 2 / 20, 1 / 20, 0, 0, 0, 0]),
        ("bert", {}, [0, 0.01, 0.99, 1, 899 / 900, 1 / 900, 0, 0]),
    ],
)
def test_decays_to_zero_around_the_warmup_and_at_the_end(
    lr_decay: str, keys: dict[str, object], fractions: list[float]
) -> None:
    schedule = training(lr_decay=lr_decay, warmup_steps=W, train_steps=END, **keys)
    steps = (0, 1, W - 1, W, W + 1, END - 1, END, END + 7)
    rates = [learning_rate(step, schedule, 768) for step in steps]
    np.testing.assert_allclose(rates, 0.5 * np.array(fractions), rtol=1e-12)


def test_wsd_at_steps_of_its_decay() -> None:
    schedule = training(lr_decay="wsd", train_steps=1000)
    rates = [learning_rate(step, schedule, 768) for step in (0, 799, 800, 801, 900)]
    assert rates == pytest.approx([0.5, 0.5, 0.5, 0.5 * 199 / 200, 0.25])
    assert learning_rate(0, training(lr_decay="wsd", train_steps=1), 768) == 0.5


LR, WARMUP, LAST = 1e-5, 16_000, 1_000_000  # DialoGPT's defaults


@pytest.mark.parametrize("n_embd", [768, 1024, 1280])
@pytest.mark.parametrize("s", [1, WARMUP - 1, WARMUP, WARMUP + 1, 499, 500, 1499, 1500, LAST])
def test_dialogpts_schedules_equal_their_formulas(s: int, n_embd: int) -> None:
    """Compares with DialoGPT's set_lr, which counts the first update as s = 1 and takes x as (s - 1) / total."""
    noam = LR * 1e4 / math.sqrt(n_embd) * min(1 / math.sqrt(s), s / math.sqrt(WARMUP**3))
    x, w = np.float64(s - 1) / LAST, np.float64(WARMUP) / LAST
    expected = {
        "noam": noam,
        "noamwd": noam * 0.5 ** math.floor(max(s + 500, 0) / 1000),
        "bert": LR * (x / w if x < w else (1 - x) / (1 - w)),
    }
    for decay, rate in expected.items():
        keys = training(lr=LR, lr_decay=decay, warmup_steps=WARMUP, train_steps=LAST)
        assert learning_rate(s - 1, keys, n_embd) == pytest.approx(rate, rel=1e-9, abs=0), decay


def test_dialogpts_schedules_at_values_worked_out_by_hand() -> None:
    def rate(decay: str, step: int, warmup_steps: int = 100) -> float:
        return learning_rate(step, training(lr=0.01, lr_decay=decay, warmup_steps=warmup_steps), 10_000)

    assert rate("noam", 99) == pytest.approx(0.1)  # 0.01 * 10^4 * (10^4 * 100)^-0.5
    assert rate("noam", 49) == pytest.approx(0.05)
    assert rate("noam", 399) == pytest.approx(0.05)
    assert rate("noam", 0, warmup_steps=0) == pytest.approx(1.0)
    assert [rate("noamwd", step) / rate("noam", step) for step in (498, 499, 1498, 1499)] == [1, 0.5, 0.5, 0.25]
    assert [rate("bert", step) for step in (0, 50, 100, 550, 1000, 1200)] == pytest.approx([0, 5e-3, 0.01, 5e-3, 0, 0])
    assert rate("bert", 999, warmup_steps=1000) == pytest.approx(0.00999)
    assert rate("bert", 1000, warmup_steps=1000) == 0


FLOORED = (None, "linear", "cosine")  # never below a tenth of lr
schedules = st.builds(
    training,
    lr=st.floats(1e-6, 10),
    lr_decay=st.sampled_from([*FLOORED, "linear_to_zero", "wsd", "bert"]),
    lr_decay_end=st.none() | st.integers(1, 5000),
    warmup_steps=st.integers(0, 500),
)


@settings(deadline=None)
@given(schedules, st.integers(0, 10_000))
def test_rate_stays_between_zero_and_lr(schedule: TrainingConfig, step: int) -> None:
    assert 0 <= learning_rate(step, schedule, 768) <= schedule.lr
    if step >= schedule.warmup_steps and schedule.lr_decay in FLOORED:
        assert learning_rate(step, schedule, 768) >= schedule.lr * 0.1 * (1 - 1e-12)


@settings(deadline=None)
@given(schedules, st.integers(0, 10_000))
def test_rate_never_rises_after_the_warmup(schedule: TrainingConfig, step: int) -> None:
    step += schedule.warmup_steps
    assert learning_rate(step + 1, schedule, 768) <= learning_rate(step, schedule, 768)


@settings(deadline=None)
@given(schedules, st.integers(5000, 10_000), st.integers(1, 10_000))
def test_rate_stays_after_the_decay(schedule: TrainingConfig, step: int, more_steps: int) -> None:
    assert learning_rate(step + more_steps, schedule, 768) == learning_rate(step, schedule, 768)
