"""The figures of the coordinate check."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.mup import WIDTHS, Results, exponent


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0])
def test_the_exponent_of_a_power_of_the_width(power: float) -> None:
    assert abs(exponent([3.0 * width**power for width in WIDTHS]) - power) < 1e-9


def test_the_best_rate_of_each_width_is_that_of_the_least_finite_loss() -> None:
    observed = {width: {"logits": [1.0, float(width)]} for width in WIDTHS}
    losses = {64: [3.0, 2.5, 2.0, 2.1, 2.2, 2.3, np.nan], 128: [2.0, 2.5, 3.0, 3.1, 3.2, np.nan, np.nan]}
    results = Results.of(observed, losses)
    assert results.best_rates == {64: 0.004, 128: 0.001}
    assert abs(results.exponents["logits"] - 1.0) < 1e-9
