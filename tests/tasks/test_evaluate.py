"""Records and figures of tasks, with scores that are given."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from configs.errors import DataError
from tasks.evaluate import evaluate_task
from tasks.scorer import Continuations
from tasks.task import CONTINUATION, MULTIPLE_CHOICE, ROLLING, Item, LoadedTask, Question, Task, TaskResult, Text
from tests.tasks.hash_model import START_ID, Bytes, HashScorer, Scores


@dataclass(frozen=True)
class Given:
    """Gives each choice its scores by its text."""

    sums: dict[str, float]
    greedy: frozenset[str] = frozenset()
    n_ctx: int = 64

    def score(self, asked: Sequence[Continuations], advance: Callable[[int], None]) -> list[list[Scores]]:
        found = []
        for each in asked:
            texts = [bytes(choice).decode() for choice in each.choices]
            found.append([self._scores(text) for text in texts])
            advance(1)
        return found

    def _scores(self, text: str) -> Scores:
        size = len(text.encode())
        return Scores(np.full(size, self.sums[text] / size), np.array([text in self.greedy] * (size - 1) + [True]))


def evaluate(scorer: Given | HashScorer, *items: Item, kind: str = MULTIPLE_CHOICE, **settings: object) -> TaskResult:
    loaded = LoadedTask(Task("mine", kind, "mine.jsonl", **settings), "mine.jsonl", items)
    return evaluate_task(loaded, Bytes(), START_ID, scorer, lambda n: None)


def test_accuracy_by_sum_by_characters_and_by_bytes() -> None:
    question = Question(("Q:",), ("ab", "äöü", "word"), gold=1, line=4)
    # By character 1.5, 1.6, 1.75; by byte 1.5, 0.8, 1.75.
    result = evaluate(Given({" ab": -3.0, " äöü": -4.8, " word": -7.0}), question)
    assert {name: figure.value for name, figure in result.figures.items()} == {"acc": 0, "acc_norm": 0, "acc_bytes": 1}
    assert result.items == [
        {
            "task": "mine",
            "doc_id": 0,
            "line": 4,
            "contexts": ["Q:"],
            "continuations": [" ab", " äöü", " word"],
            "gold": 1,
            "log_likelihoods": pytest.approx([-3.0, -4.8, -7.0]),
            "n_tokens": [3, 7, 5],
            "acc": 0.0,
            "acc_norm": 0.0,
            "acc_bytes": 1.0,
        }
    ]
    assert json.loads(json.dumps(result.items)) == result.items


def test_of_equal_choices_the_first_counts() -> None:
    result = evaluate(Given({" a": -2.0, " b": -2.0}), Question(("Q",), ("a", "b"), 0), Question(("R",), ("a", "b"), 1))
    assert [record["acc"] for record in result.items] == [1.0, 0.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [MULTIPLE_CHOICE, CONTINUATION, ROLLING])
def test_a_model_that_has_diverged_has_no_figures(kind: str) -> None:
    question = Question(("Q",), ("a", "b") if kind == MULTIPLE_CHOICE else ("a",))
    items = [Text("a", "a"), Text("b", "b")] if kind == ROLLING else [question, question]
    result = evaluate(Given(dict.fromkeys(("a", "b", " a", " b"), math.nan)), *items, kind=kind)
    assert all(math.isnan(figure.value) and figure.stderr is None for figure in result.figures.values())


def test_contexts_that_compete_have_one_figure() -> None:
    result = evaluate(HashScorer(64), Question(("One", "Two"), ("c",), 0))
    first, second = (result.items[0]["log_likelihoods"][number] for number in (0, 1))
    assert result.figures.keys() == {"acc"}
    assert result.figures["acc"].value == float(first > second)


def test_a_choice_that_is_empty_without_its_marks_is_never_the_best() -> None:
    result = evaluate(Given({" ": -1.0, " a": -9.0}), Question(("Q",), ("", "a"), 1))
    assert {name: figure.value for name, figure in result.figures.items()} == {"acc": 0, "acc_norm": 1, "acc_bytes": 1}


def test_a_continuation_is_right_if_each_token_is_the_greedy_one() -> None:
    scorer = Given({" yes": -2.0, " no": -4.0}, frozenset({" yes"}))
    questions = [Question(("A",), (word,), delimiter="") for word in (" yes", " no")]
    result = evaluate(scorer, *questions, kind=CONTINUATION)
    assert [record["acc"] for record in result.items] == [1.0, 0.0]
    assert result.figures["acc"].value == 0.5
    perplexity = result.figures["perplexity"]
    assert perplexity.value == pytest.approx(math.exp(3.0))
    assert perplexity.stderr == pytest.approx(math.exp(3.0) * statistics.stdev([-2.0, -4.0]) / math.sqrt(2))
    assert result.items[1] == {
        "task": "mine",
        "doc_id": 1,
        "line": 1,
        "context": "A",
        "continuation": " no",
        "log_likelihood": -4.0,
        "n_tokens": 3,
        "acc": 0.0,
    }


def test_words_and_bytes_are_those_of_the_untouched_text() -> None:
    result = evaluate(HashScorer(4), Text("0123456789", " a b\n", line=3), kind=ROLLING)
    (record,) = result.items
    assert (record["words"], record["bytes"], record["window_tokens"]) == (4, 5, [4, 4, 2])
    assert record["log_likelihood"] == sum(record["window_log_likelihoods"])
    total = -record["log_likelihood"]
    assert result.figures["word_perplexity"].value == pytest.approx(math.exp(total / 4))
    assert result.figures["byte_perplexity"].value == pytest.approx(math.exp(total / 5))
    assert result.figures["bits_per_byte"].value == pytest.approx(total / 5 / math.log(2))


def test_a_stride_is_said_in_the_names_of_figures() -> None:
    text = Text("0123456789", "0123456789")
    result = evaluate(HashScorer(4), text, kind=ROLLING, stride=1)
    assert result.figures.keys() == {
        f"{name}_stride_1" for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
    }
    assert result.items[0]["window_tokens"] == [4, 1, 1, 1, 1, 1, 1]
    other = evaluate(HashScorer(4), text, kind=ROLLING).figures["bits_per_byte"]
    assert result.figures["bits_per_byte_stride_1"].value != pytest.approx(other.value)


def test_subjects_and_their_groups_have_figures() -> None:
    scorer = Given({" a": -1.0, " b": -2.0})
    golds = {"optics": [0, 0, 1], "algebra": [0, 1, 1], "U.S. law": [1, 1, 1]}
    questions = [Question(("Q",), ("a", "b"), gold, subject=name) for name, each in golds.items() for gold in each]
    groups = {"stem": ("optics", "algebra", "anatomy"), "arts": ("music",)}
    figures = evaluate(scorer, *questions, groups=groups).figures
    assert {name: figure.value for name, figure in figures.items() if "/" in name} == pytest.approx(
        {"stem/acc": 3 / 6, "optics/acc": 2 / 3, "algebra/acc": 1 / 3, "U_S_ law/acc": 0.0}
    )
    assert figures["acc"].value == pytest.approx(3 / 9)
    # Within subjects the squares of the distances from the means sum to 2/3, 2/3 and 0.
    assert figures["acc"].stderr == pytest.approx(math.sqrt((2 / 3 + 2 / 3) / 6 / 9))
    assert figures["stem/acc"].stderr == pytest.approx(math.sqrt((2 / 3 + 2 / 3) / 4 / 6))


def test_each_entry_that_is_asked_is_told_of() -> None:
    told: list[int] = []
    items = (Question(("A",), ("x", "y")), Question(("A", "B"), ("x",)))
    loaded = LoadedTask(Task("mine", MULTIPLE_CHOICE, "mine.jsonl"), "mine.jsonl", items)
    evaluate_task(loaded, Bytes(), START_ID, HashScorer(64), told.append)
    assert sum(told) == 3


def test_an_item_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match=r"mine.jsonl: line 1: continuation 0 = 5 tokens: n_ctx is 4"):
        evaluate(HashScorer(4), Question(("A",), ("long", "no")))
