"""The figures of the answers to the contexts of a dialogue task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.dialogue.diversity import measure_diversity
from tasks.dialogue.mteval import MatchCounts, bleu, count_matches, nist
from tasks.task import Figure, LoadedTask, TaskResult

RESAMPLES = 1000
SEED = 1234


def measure_answers(loaded: LoadedTask, answers: Sequence[str]) -> TaskResult:
    """Measures one answer to each context: NIST and BLEU against the references, Entropy, Dist and the mean length.

    The standard errors of NIST and BLEU are those of the bootstrap over contexts. Entropy and Dist have none: they
    are of all answers together, and the answers of a resample are less varied.

    Raises:
        UserError: there is no room for temporary files.
    """
    (counts,) = count_matches([answers], [item.references for item in loaded.items])
    diversity = measure_diversity(answers)
    n_words = np.array([len(answer.split()) for answer in answers])
    figures = {**_corpus_figures("nist", nist, counts), **_corpus_figures("bleu", bleu, counts)}
    figures |= {f"entropy_{order}": Figure(value, None) for order, value in enumerate(diversity.entropy, start=1)}
    dist = {f"dist_{order}": value for order, value in enumerate(diversity.dist, start=1) if value is not None}
    figures |= {name: Figure(value, None) for name, value in dist.items()}
    figures["mean_words"] = Figure(diversity.mean_words, _stderr_of_mean(n_words))
    records = [
        {"turns": list(item.turns), "answer": answer, "references": list(item.references)}
        for item, answer in zip(loaded.items, answers, strict=True)
    ]
    return TaskResult(loaded.task.name, len(answers), figures, records)


def _corpus_figures(name: str, measure: Callable[[MatchCounts], list[float]], counts: MatchCounts) -> dict[str, Figure]:
    """Returns a figure of all answers for each order."""
    draw, n_items = np.random.default_rng(SEED), len(counts.matches_IN)
    drawn = np.array([measure(counts.take(draw.integers(0, n_items, n_items))) for _ in range(RESAMPLES)])
    errors = drawn.std(0, ddof=1) if n_items > 1 else [None] * drawn.shape[1]
    return {
        f"{name}_{order}": Figure(value, None if error is None else float(error))
        for order, (value, error) in enumerate(zip(measure(counts), errors, strict=True), start=1)
    }


def _stderr_of_mean(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
