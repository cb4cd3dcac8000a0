"""The tokens that a run has seen, with batches of several sizes."""

from __future__ import annotations

import dataclasses

import numpy as np

from runtime.run.token_count import TokenCount
from tests import tiny


def test_tokens_of_one_size() -> None:
    count = TokenCount.of(tiny.run_config())
    assert count.before(np.array([0, 1, 7, 2.5])).tolist() == [0, 128, 896, 320]
    assert count.step_of(np.array([0, 128, 320])).tolist() == [0, 1, 2.5]


def test_tokens_of_batches_that_grow() -> None:
    config = tiny.run_config(training={"batch_size_warmup": ((0, 2), (3, 5), (4, 8))})
    count, steps = TokenCount.of(config), np.arange(10)
    tokens_of_steps = 16 * np.array([2, 2, 2, 5, 8, 8, 8, 8, 8])
    assert count.before(steps).tolist() == [0, *np.cumsum(tokens_of_steps)]
    np.testing.assert_allclose(count.step_of(count.before(steps + 0.25)), steps + 0.25)
    one_size = dataclasses.replace(count, firsts=(0,), tokens_per_step=(32,))
    assert one_size.before(np.array([-2.0])).tolist() == count.before(np.array([-2.0])).tolist() == [-64]
