"""Several steps in one call equal the same steps one after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.loading.batch import Batch
from models.kernels.noise import noise_key
from runtime.training.lr_schedules import learning_rate
from runtime.training.multi_step import MultiStepBySize, SingleStep, next_step_count, run_steps
from tests import tiny

TRAINING = dataclasses.replace(tiny.TRAINING, train_steps=20, warmup_steps=8, lr_decay="linear", seed=3)
RATE = functools.partial(learning_rate, training=TRAINING, n_embd=8)


def batches(count: int) -> list[Batch]:
    values = [np.full((2, 3), number, np.int32) for number in range(count)]
    return [Batch(value, value + 1, value.astype(np.float32), 0) for value in values]


def step(*inputs: np.ndarray) -> Mapping[str, np.ndarray]:
    """Returns values computed from its inputs."""
    tokens, labels, weights, rate, number, key = inputs
    assert (tokens.shape, labels.shape, weights.dtype) == ((2, 3), (2, 3), np.float32)
    assert (rate.dtype, number.dtype, key.dtype) == (np.float32, np.int32, np.int32)
    return {"loss": tokens.mean() + 10 * number + weights.sum(), "rate": rate, "key": key, "label": labels.max()}


@dataclasses.dataclass(frozen=True)
class Several:
    """Runs several steps in a call, one after the other."""

    max_steps: int

    def __call__(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        taken = [step(*arrays) for arrays in zip(*inputs, strict=True)]
        return {name: np.stack([outputs[name] for outputs in taken]) for name in taken[0]}


def test_each_step_of_a_call_equals_a_single_step() -> None:
    many = batches(5)
    together = run_steps(Several(5), many, 7, RATE, 3)
    alone = [run_steps(SingleStep(step), [batch], 7 + index, RATE, 3)[0] for index, batch in enumerate(many)]
    assert [taken.outputs for taken in together] == [taken.outputs for taken in alone]
    assert [taken.learning_rate for taken in together] == [RATE(number) for number in range(7, 12)]
    assert [taken.outputs["key"] for taken in together] == [noise_key(3, number) for number in range(7, 12)]


@given(
    st.integers(1, 40),
    st.integers(1, 200),
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
    st.lists(st.integers(0, 200), max_size=2),
)
def test_calls_end_at_every_pause_and_change_of_size_and_at_the_end(
    n_steps: int, train_steps: int, periods: list[int], changes: list[int]
) -> None:
    ends, position = [0], 0
    while position < train_steps:
        position += next_step_count(Several(n_steps), position, [train_steps, *changes], periods)
        ends.append(position)
    assert position == train_steps
    assert all({*range(0, train_steps, period)} <= {*ends} for period in periods)
    assert {change for change in changes if change <= train_steps} <= {*ends}
    assert all(0 < end - begin <= n_steps for begin, end in zip(ends, ends[1:], strict=False))


def test_a_single_step_runs_one_step_per_call() -> None:
    assert next_step_count(SingleStep(step), 3, [20], [5]) == 1


def test_steps_of_each_size_are_built_once_when_a_batch_of_it_comes() -> None:
    built = []

    def build(size: int) -> SingleStep:
        built.append(size)
        return SingleStep(lambda tokens: {"loss": np.float32(size + tokens.sum())})

    multi_step = MultiStepBySize(build, {1: 10, 2: 20, 4: 40}, build(40))
    losses = [float(multi_step(np.ones((1, rows, 3)))["loss"][0]) for rows in (1, 1, 4, 1)]
    assert losses == [13.0, 13.0, 52.0, 13.0] and built == [40, 10] and multi_step.max_steps == 1
