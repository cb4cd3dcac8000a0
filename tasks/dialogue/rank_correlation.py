"""Rank correlation of scores with human judgements, with intervals that hold 95 % of what chance could have given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
SEED = 0
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        rho: from -1 to 1; NaN where one side is constant.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        n: number of systems, answers or contexts that it is made of.
    """

    rho: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Agreement:
    """How a score agrees with human judgements.

    Attributes:
        systems: of the systems' scores with their mean judgements.
        answers: of all answers' scores with their judgements; None: the score is of systems only.
        contexts: of the scores of a context's answers with their judgements, the mean over contexts; None likewise.
    """

    systems: Correlation
    answers: Correlation | None = None
    contexts: Correlation | None = None


def agree(human_CS: np.ndarray, score_CS: np.ndarray | None, score_S: np.ndarray | None = None) -> Agreement:
    """Compares scores with judgements of the answers of systems (S) in contexts (C).

    Args:
        human_CS: judgements; NaN where there is none.
        score_CS: scores of answers; NaN where there is none; None: only systems have one.
        score_S: scores of systems; None: the mean of their answers'. Systems without any answer are left out.
    """
    if score_CS is None:
        return Agreement(correlate_systems(np.nanmean(human_CS, axis=0), score_S))
    is_missing = np.isnan(human_CS) | np.isnan(score_CS)
    human_CS, score_CS = (
        np.where(is_missing, np.nan, each)[:, ~is_missing.all(axis=0)] for each in (human_CS, score_CS)
    )
    of_systems = np.nanmean(score_CS, axis=0) if score_S is None else score_S
    return Agreement(
        correlate_systems(np.nanmean(human_CS, axis=0), of_systems),
        correlate_answers(human_CS, score_CS),
        correlate_in_contexts(human_CS, score_CS),
    )


def correlate_systems(human_S: np.ndarray, score_S: np.ndarray) -> Correlation:
    """Correlates systems; the interval is that of Bonett and Wright (2000), which takes systems as a random sample."""
    n = len(human_S)
    rho = spearman(human_S, score_S)
    if n < 4 or math.isnan(rho) or abs(rho) > 1 - 1e-12:
        return Correlation(rho, math.nan, math.nan, n)
    half = NORMAL_95 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Correlation(rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), n)


def correlate_answers(human_CS: np.ndarray, score_CS: np.ndarray) -> Correlation:
    """Correlates all answers; the interval comes from drawing contexts again, whose answers stay together."""
    contexts_A, systems_A = np.nonzero(~np.isnan(human_CS))
    human_A, score_A = (_codes(array[contexts_A, systems_A]) for array in (human_CS, score_CS))

    def of_sample(weights_C: np.ndarray) -> float:
        return _spearman_of_codes(human_A, score_A, weights_C[contexts_A])

    return _with_interval(of_sample, len(human_CS), len(human_A))


def correlate_in_contexts(human_CS: np.ndarray, score_CS: np.ndarray) -> Correlation:
    """Correlates the answers of each context and takes the mean.

    Contexts whose answers were all judged alike are left out. A score that is the same for all answers counts as 0.
    """
    pairs = [
        (human[~np.isnan(human)], score[~np.isnan(human)]) for human, score in zip(human_CS, score_CS, strict=True)
    ]
    rho_C = np.array([np.nan_to_num(spearman(human, score)) for human, score in pairs if len(set(human)) > 1])
    if not len(rho_C):
        return Correlation(math.nan, math.nan, math.nan, 0)
    return _with_interval(lambda weights_C: float(np.average(rho_C, weights=weights_C)), len(rho_C), len(rho_C))


def _with_interval(of_sample: Callable[[np.ndarray], float], n_contexts: int, n: int) -> Correlation:
    """Returns a figure with its interval by the bootstrap: drawn again with replacement, a context has a weight."""
    draw = np.random.default_rng(SEED)
    shares = np.full(n_contexts, 1 / n_contexts)
    samples = [of_sample(draw.multinomial(n_contexts, shares)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return Correlation(of_sample(np.ones(n_contexts)), float(low), float(high), n)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Returns Spearman's rank correlation, ties at their mean rank; NaN where one side is constant."""
    return _spearman_of_codes(_codes(first), _codes(second), np.ones(len(first)))


def _codes(values: np.ndarray) -> np.ndarray:
    """Returns the place of each value among the different ones."""
    return np.unique(values, return_inverse=True)[1]


def _spearman_of_codes(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float:
    ranks = [_mean_ranks(codes, weights) for codes in (first, second)]
    x, y = (each - np.average(each, weights=weights) for each in ranks)
    spread = math.sqrt((weights @ x**2) * (weights @ y**2))
    return float(weights @ (x * y) / spread) if spread > 1e-9 else math.nan


def _mean_ranks(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean rank of each value where a value counts `weights` times."""
    sizes = np.bincount(codes, weights)
    return (sizes.cumsum() - sizes / 2)[codes]
