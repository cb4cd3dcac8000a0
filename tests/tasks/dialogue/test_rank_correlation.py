"""Rank correlations against values by hand, and intervals that hold what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.dialogue import rank_correlation
from tasks.dialogue.rank_correlation import agree, correlate_answers, correlate_in_contexts, correlate_systems, spearman

NAN = math.nan


@pytest.mark.parametrize(
    ("first", "second", "rho"),
    [
        ([1, 2, 3], [10, 20, 90], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        # The textbook's 1 - 6 * sum of d^2 / (n (n^2 - 1)): d = 1 1 0 2 2, so 1 - 60 / 120.
        ([1, 2, 3, 4, 5], [2, 1, 3, 6, 4.5], 0.8),
        # Ranks 1.5 1.5 3 and 1 2 3: covariance 1.5 over the root of 1.5 * 2.
        ([7, 7, 9], [1, 2, 3], 1.5 / math.sqrt(3)),
    ],
)
def test_spearman_by_hand(first: list[float], second: list[float], rho: float) -> None:
    assert spearman(np.array(first), np.array(second)) == pytest.approx(rho)


def test_a_constant_side_has_no_correlation() -> None:
    assert math.isnan(spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])))


def test_systems_have_the_interval_of_bonett_and_wright() -> None:
    # rho = 0.8 of 5: atanh 1.0986 -+ 1.96 * sqrt((1 + 0.32) / 2).
    found = correlate_systems(np.arange(5.0), np.array([1.0, 0, 2, 4, 3]))
    assert (found.rho, found.n) == (pytest.approx(0.8), 5)
    half = 1.959964 * math.sqrt(0.66)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(math.atanh(0.8) - half), math.tanh(math.atanh(0.8) + half))
    )


def test_few_or_perfectly_ordered_systems_have_no_interval() -> None:
    for values in (np.arange(3.0), np.arange(9.0)):
        found = correlate_systems(values, values)
        assert found.rho == pytest.approx(1) and math.isnan(found.low) and math.isnan(found.high)


def test_the_interval_of_answers_holds_the_true_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_correlation, "RESAMPLES", 200)
    draw = np.random.default_rng(1)
    inside = 0
    for _ in range(10):
        human_CS = draw.normal(size=(100, 4))
        score_CS = human_CS + draw.normal(size=(100, 4))  # normal with r = 1 / sqrt(2): rho = 6 / pi * asin(r / 2)
        found = correlate_answers(human_CS, score_CS)
        inside += found.low < 6 / math.pi * math.asin(0.5 / math.sqrt(2)) < found.high
        assert found.low < found.rho < found.high and found.n == 400
    assert inside >= 8


def test_answers_of_one_context_stay_together() -> None:
    """Copies of the same answer add no certainty."""
    human_CS, score_CS = (np.random.default_rng(seed).normal(size=(60, 1)) for seed in (2, 3))
    alone = correlate_answers(human_CS, score_CS)
    copied = correlate_answers(np.repeat(human_CS, 5, axis=1), np.repeat(score_CS, 5, axis=1))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=1e-9)


def test_within_contexts_by_hand() -> None:
    human_CS = np.array([[1.0, 2, 3], [3.0, 2, 1], [2.0, 2, 2], [1.0, 2, NAN], [1.0, 2, 3]])
    score_CS = np.array([[5.0, 6, 7], [5.0, 6, 7], [5.0, 6, 7], [5.0, 6, 7], [5.0, 5, 5]])
    found = correlate_in_contexts(human_CS, score_CS)  # 1, -1, left out, 1, and 0 as the score says nothing
    assert (found.rho, found.n) == (pytest.approx(1 / 4), 4)
    assert -1 <= found.low < found.high <= 1


def test_missing_scores_leave_out_the_answer_everywhere() -> None:
    human_CS = np.array([[1.0, 2, 3, 4], [1.0, 2, 3, 400]])
    score_CS = np.array([[1.0, 2, 3, 4], [1.0, 2, 3, NAN]])
    found = agree(human_CS, score_CS)
    assert (found.systems.rho, found.answers.rho, found.contexts.rho) == pytest.approx((1, 1, 1))
    assert found.answers.n == 7


def test_scores_of_systems_alone() -> None:
    found = agree(np.array([[1.0, 2, 3], [1.0, 2, 4]]), None, np.array([3.0, 2, 1]))
    assert found.systems.rho == pytest.approx(-1) and found.answers is None and found.contexts is None
