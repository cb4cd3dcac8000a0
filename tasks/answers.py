"""The kind "dialogue": answers of a model to the contexts of a test set, measured against those of people."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.dialogue.figures import measure
from tasks.task import Exchange, Figure, LoadedTask, TaskResult


def measure_answers(loaded: LoadedTask, answers: Sequence[str]) -> TaskResult:
    """Measures one answer for each item: NIST, BLEU, Entropy, Dist and mean words, as `tasks.dialogue` does.

    These are figures of all answers together, and have no standard errors.

    Raises:
        UserError: there is no room for temporary files.
    """
    exchanges = [item for item in loaded.items if isinstance(item, Exchange)]
    rows = measure(answers, [exchange.references for exchange in exchanges]).rows()
    figures = {_key(name): Figure(value, None) for name, value in rows.items() if value is not None}
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
    return TaskResult(loaded.task.name, len(records), figures, records)


def _key(name: str) -> str:
    """Returns the name of a figure as that of a metric: nist_4, mean_words."""
    return name.lower().replace("-", "_").replace(" ", "_")
