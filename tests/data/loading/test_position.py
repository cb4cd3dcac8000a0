"""The datasets of numbered examples: each choice and its count."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loading.position import CHOICES_AT_ONCE, choose_datasets, count_choices


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.integers(0, 2**31 - 1), st.integers(0, 300))
def test_choices_are_counted_as_they_are_made(weights, seed, n_examples):
    weights = np.array(weights)
    one_by_one = [int(choose_datasets(weights, seed, np.array([k]))[0]) for k in range(n_examples)]
    expected = [one_by_one.count(dataset) for dataset in range(len(weights))]
    assert count_choices(weights, seed, n_examples).tolist() == expected


def test_weights_are_the_fractions_of_the_examples():
    n_examples = 3 * CHOICES_AT_ONCE // 2
    shares = count_choices(np.array([3.0, 1.0, 2.0]), 1, n_examples) / n_examples
    np.testing.assert_allclose(shares, [1 / 2, 1 / 6, 1 / 3], atol=2e-3)


def test_fractions_of_a_mixture_are_within_one_hundredth_of_the_weights():
    weights_D = np.array([5.0, 3.0, 1.5, 0.5])
    shares_D = count_choices(weights_D, 1, 10**5) / 10**5
    np.testing.assert_allclose(shares_D, weights_D / weights_D.sum(), atol=0.01)
