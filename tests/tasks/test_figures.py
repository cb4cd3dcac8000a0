"""Figures and standard errors, against the standard library, sums by hand and simulation."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from tasks.figures import mean_figure, perplexity_figure, ratio_figure, rolling_figures
from tasks.task import Figure

VALUES = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_mean_has_the_standard_error_of_a_sample() -> None:
    stderr = statistics.stdev(VALUES) / math.sqrt(len(VALUES))
    assert mean_figure(VALUES) == Figure(pytest.approx(3 / 7), pytest.approx(stderr))


def test_a_single_item_has_no_standard_error() -> None:
    assert mean_figure([1.0]) == Figure(1.0, None)
    assert perplexity_figure([-2.0]) == Figure(pytest.approx(math.exp(2)), None)
    assert ratio_figure([-6.0], [3]) == Figure(2.0, None)


def test_subjects_are_pooled_as_the_harness_pools_its_subtasks() -> None:
    subjects = ["a", "b", "a", "b", "b", "a", "b"]
    parts = [[value for value, subject in zip(VALUES, subjects, strict=True) if subject == name] for name in "ab"]
    # lm_eval.api.metrics.pooled_sample_stderr, of the standard errors of the parts and their sizes
    pooled = sum((len(part) - 1) * statistics.variance(part) for part in parts) / (7 - 2)
    figure = mean_figure(VALUES, subjects)
    assert figure == Figure(pytest.approx(3 / 7), pytest.approx(math.sqrt(pooled / 7)))
    assert figure.stderr != pytest.approx(mean_figure(VALUES).stderr)


def test_the_perplexity_of_words() -> None:
    sums = [-1.0, -2.0, -4.5, -0.5]
    value = math.exp(2.0)
    assert perplexity_figure(sums) == Figure(pytest.approx(value), pytest.approx(value * statistics.stdev(sums) / 2))


def test_standard_errors_are_those_of_many_samples() -> None:
    generator = np.random.default_rng(3)
    words = generator.integers(50, 400, (4000, 60))
    sums = -words * generator.normal(3.0, 0.4, words.shape)
    figures = [ratio_figure(each, weights) for each, weights in zip(sums, words, strict=True)]
    spread = statistics.stdev(figure.value for figure in figures)
    assert statistics.mean(figure.stderr for figure in figures) == pytest.approx(spread, rel=0.03)
    figures = [perplexity_figure(each / 200) for each in sums]
    spread = statistics.stdev(figure.value for figure in figures)
    assert statistics.mean(figure.stderr for figure in figures) == pytest.approx(spread, rel=0.05)


def test_perplexities_of_texts() -> None:
    windows = [[(-10.0, 4), (-2.0, 1)], [(-6.0, 3)]]
    figures = rolling_figures(windows, words=[4, 2], n_bytes=[20, 16])
    assert figures["word_perplexity"].value == pytest.approx(math.exp(18 / 6))
    assert figures["byte_perplexity"].value == pytest.approx(math.exp(18 / 36))
    assert figures["bits_per_byte"].value == pytest.approx(18 / 36 / math.log(2))
    by_word = ratio_figure([-12.0, -6.0], [4, 2])
    assert figures["word_perplexity"].stderr == pytest.approx(math.exp(3) * by_word.stderr)
    by_byte = ratio_figure([-12.0, -6.0], [20, 16])
    assert figures["bits_per_byte"].stderr == pytest.approx(by_byte.stderr / math.log(2))
    assert by_byte.stderr == pytest.approx(math.sqrt(2 * ((-12 + 10) ** 2 + (-6 + 8) ** 2)) / 36)


def test_the_windows_of_a_single_text_give_its_standard_error() -> None:
    figures = rolling_figures([[(-10.0, 4), (-2.0, 1), (-5.0, 4)]], words=[3], n_bytes=[34])
    assert figures["byte_perplexity"].value == pytest.approx(math.exp(0.5))
    by_token = ratio_figure([-10.0, -2.0, -5.0], [4, 1, 4])
    assert figures["byte_perplexity"].stderr == pytest.approx(math.exp(0.5) * by_token.stderr * 9 / 34)
    assert rolling_figures([[(-10.0, 4)]], [3], [34])["bits_per_byte"].stderr is None


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    assert perplexity_figure([-800.0]) == Figure(math.inf, None)
    assert perplexity_figure([-800.0, -800.0]) == Figure(math.inf, None)


@pytest.mark.filterwarnings("error")
def test_an_infinite_log_likelihood_has_no_standard_error() -> None:
    assert perplexity_figure([-math.inf, -1.0]) == Figure(math.inf, None)
    assert ratio_figure([-math.inf, -1.0], [2, 1]) == Figure(math.inf, None)
    figures = rolling_figures([[(-math.inf, 4)], [(-1.0, 1)]], words=[1, 1], n_bytes=[5, 5])
    assert set(figures.values()) == {Figure(math.inf, None)}
