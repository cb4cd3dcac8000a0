"""The kind dialogue: answers of a model against those of people."""

from __future__ import annotations

import pytest

from tasks.answers import measure_answers
from tasks.dialogue.figures import measure
from tasks.task import DIALOGUE, Exchange, Figure, LoadedTask, Task

ITEMS = (
    Exchange(("hi",), ("hello there", "hi you"), line=1),
    Exchange(("a", "b"), ("the cat sat on the mat",), line=2),
)
LOADED = LoadedTask(Task("talk", DIALOGUE, "talk.tsv"), "talk.tsv", ITEMS)


def test_answers_are_measured_as_tasks_dialogue_does() -> None:
    answers = ["hello you", "the cat sat by the mat"]
    result = measure_answers(LOADED, answers)
    expected = measure(answers, [item.references for item in ITEMS])
    assert result.figures["bleu_2"] == Figure(expected.bleu[1], None)
    assert result.figures["nist_4"] == Figure(expected.nist[3], None)
    assert result.figures["mean_words"] == Figure(4.0, None)
    assert result.figures["dist_1"].value == pytest.approx(7 / 8)
    assert "meteor" not in result.figures
    assert (result.name, result.n_items) == ("talk", 2)
    assert result.items[1] == {
        "task": "talk",
        "doc_id": 1,
        "line": 2,
        "context": ["a", "b"],
        "answer": "the cat sat by the mat",
        "references": ["the cat sat on the mat"],
    }
