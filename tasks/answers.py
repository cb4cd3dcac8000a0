"""The kind "dialogue": answers of a model to the contexts of a test set, measured against those of people."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tasks.dialogue.diversity import measure_diversity
from tasks.dialogue.figures import Figures
from tasks.dialogue.mteval import MatchCounts, bleu, count_matches, nist
from tasks.task import Exchange, Figure, LoadedTask, TaskResult

RESAMPLES = 1000
SEED = 1


def measure_answers(loaded: LoadedTask, answers: Sequence[str]) -> TaskResult:
    """Measures one answer for each item: NIST, BLEU, Entropy, Dist and mean words, as `tasks.dialogue` does.

    The standard errors of NIST and BLEU are those of the bootstrap over items. Entropy and Dist have none: they are of
    all answers together, and those of a resample vary less.

    Raises:
        UserError: there is no room for temporary files.
    """
    exchanges = [item for item in loaded.items if isinstance(item, Exchange)]
    (counts,) = count_matches([answers], [exchange.references for exchange in exchanges])
    rows = Figures(measure_diversity(answers), nist(counts), bleu(counts)).rows()
    values = {_key(name): value for name, value in rows.items() if value is not None}
    errors = _standard_errors(counts, answers) if len(answers) > 1 else {}
    records = [
        {
            "task": loaded.task.name,
            "doc_id": number,
            "line": exchange.line,
            "context": list(exchange.turns),
            "answer": answer,
            "references": list(exchange.references),
        }
        for number, (exchange, answer) in enumerate(zip(exchanges, answers, strict=True))
    ]
    figures = {name: Figure(value, errors.get(name)) for name, value in values.items()}
    return TaskResult(loaded.task.name, len(records), figures, records)


def _key(name: str) -> str:
    """Returns the name of a figure as that of a metric: nist_4, mean_words."""
    return name.lower().replace("-", "_").replace(" ", "_")


def _standard_errors(counts: MatchCounts, answers: Sequence[str]) -> dict[str, float]:
    """Returns the standard errors of the figures that have one.

    Source: Koehn, "Statistical Significance Tests for Machine Translation Evaluation", 2004.
    """
    generator, n_items = np.random.default_rng(SEED), len(answers)
    resamples = [counts.take(generator.integers(0, n_items, n_items)) for _ in range(RESAMPLES)]
    errors = {"mean_words": float(np.std([len(answer.split()) for answer in answers], ddof=1)) / math.sqrt(n_items)}
    for name, measure in (("nist", nist), ("bleu", bleu)):
        deviations = np.std([measure(resample) for resample in resamples], axis=0, ddof=1)
        errors |= {f"{name}_{order}": float(each) for order, each in enumerate(deviations, start=1)}
    return errors
