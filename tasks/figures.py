"""Figures and their standard errors.

Standard errors have closed forms, so that they are the same in every run: of a mean, as in lm-evaluation-harness; of a
perplexity by the delta method, where the harness draws bootstrap samples (perplexity) or gives none (by words and
bytes); of a task with subjects by the variance within subjects, as the harness pools them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tasks.task import Figure

_LARGEST = math.log(np.finfo(np.float64).max)


def mean_figure(values: Sequence[float], subjects: Sequence[str] = ()) -> Figure:
    """Returns a mean.

    Args:
        values: one for each item.
        subjects: of each item; empty: there are none.
    """
    array = np.asarray(values, np.float64)
    names, inverse = np.unique(subjects, return_inverse=True) if len(subjects) else ([""], np.zeros(len(array), int))
    means = np.bincount(inverse, array) / np.bincount(inverse)
    freedom = len(array) - len(names)
    if freedom <= 0:
        return Figure(float(array.mean()), None)
    with np.errstate(invalid="ignore"):  # one value may be infinite
        variance = float(((array - means[inverse]) ** 2).sum()) / freedom
    return _figure(float(array.mean()), math.sqrt(variance / len(array)))


def perplexity_figure(log_likelihoods: Sequence[float]) -> Figure:
    """Returns exp of minus the mean of log-likelihoods in nats; LAMBADA's are of words."""
    mean = mean_figure(log_likelihoods)
    return _exponential(Figure(-mean.value, mean.stderr))


def ratio_figure(log_likelihoods: Sequence[float], units: Sequence[float]) -> Figure:
    """Returns minus the log-likelihood of all texts by unit, in nats.

    Its standard error is that of a ratio estimator: Cochran, "Sampling Techniques", 1977, section 6.4.

    Args:
        log_likelihoods: of each text, in nats.
        units: words, bytes or tokens of each text.
    """
    sums, weights = np.asarray(log_likelihoods, np.float64), np.asarray(units, np.float64)
    ratio = float(-sums.sum() / weights.sum())
    if len(sums) < 2:
        return Figure(ratio, None)
    with np.errstate(invalid="ignore"):
        variance = float(((sums + ratio * weights) ** 2).sum()) * len(sums) / (len(sums) - 1)
    return _figure(ratio, math.sqrt(variance) / float(weights.sum()))


def rolling_figures(
    windows: Sequence[Sequence[tuple[float, int]]], words: Sequence[int], n_bytes: Sequence[int]
) -> dict[str, Figure]:
    """Returns the perplexities of texts by word and by byte, and their bits by byte.

    The standard error takes texts as the sample; of a single text, its windows.

    Args:
        windows: for each text the log-likelihood in nats and the number of tokens of each window.
        words: of each text.
        n_bytes: of each text.
    """
    by_word, by_byte = (_by_unit(windows, units) for units in (words, n_bytes))
    bits = Figure(by_byte.value / math.log(2), None if by_byte.stderr is None else by_byte.stderr / math.log(2))
    return {
        "word_perplexity": _exponential(by_word),
        "byte_perplexity": _exponential(by_byte),
        "bits_per_byte": bits,
    }


def _by_unit(windows: Sequence[Sequence[tuple[float, int]]], units: Sequence[int]) -> Figure:
    if len(windows) > 1:
        return ratio_figure([sum(each for each, _ in text) for text in windows], units)
    by_token = ratio_figure(*zip(*windows[0], strict=True))
    tokens_per_unit = sum(n_tokens for _, n_tokens in windows[0]) / units[0]
    stderr = None if by_token.stderr is None else by_token.stderr * tokens_per_unit
    return Figure(by_token.value * tokens_per_unit, stderr)


def _exponential(figure: Figure) -> Figure:
    """Returns exp of a figure, its standard error by the delta method; infinity where a float holds no more."""
    value = math.inf if figure.value > _LARGEST else math.exp(figure.value)
    return _figure(value, None if figure.stderr is None else value * figure.stderr)


def _figure(value: float, stderr: float | None) -> Figure:
    """Returns a figure, without an error where the value or the error is beyond numbers."""
    return Figure(value, stderr if stderr is not None and math.isfinite(value) and math.isfinite(stderr) else None)
