"""The kind dialogue: answers of a model against those of people."""

from __future__ import annotations

import math

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
    assert result.figures["bleu_2"].value == expected.bleu[1]
    assert result.figures["nist_4"].value == expected.nist[3]
    assert result.figures["mean_words"] == Figure(4.0, pytest.approx(2.0))  # 2 and 6 words: 2 sqrt(2) / sqrt(2)
    assert result.figures["entropy_1"].stderr is None
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


def test_the_error_of_a_rate_is_that_of_a_sum_of_tosses() -> None:
    """BLEU-1 of answers of one word as long as the reference is the share of matches."""
    items = tuple(Exchange(("q",), ("yes",), line) for line in range(1, 401))
    loaded = LoadedTask(Task("talk", DIALOGUE, "talk.tsv"), "talk.tsv", items)
    figure = measure_answers(loaded, ["yes"] * 100 + ["no"] * 300).figures["bleu_1"]
    assert figure.value == pytest.approx(0.25)
    assert figure.stderr == pytest.approx(math.sqrt(0.25 * 0.75 / 400), rel=0.08)  # of 1000 resamples


def test_a_single_answer_has_no_errors() -> None:
    loaded = LoadedTask(Task("talk", DIALOGUE, "talk.tsv"), "talk.tsv", ITEMS[:1])
    assert {figure.stderr for figure in measure_answers(loaded, ["hello"]).figures.values()} == {None}
