"""Comparing the items of two runs, against sums over all cases."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import DataError
from tasks.compare import compare, format_comparison, mcnemar, read_records, sign_permutation


def choices(number: int, acc: float, likelihood: float, **changed: Any) -> dict[str, Any]:
    record = {"task": "piqa", "doc_id": number, "contexts": ["c"], "continuations": [" a", " b"], "gold": 1}
    return {**record, "log_likelihoods": [-9.0, likelihood], "acc": acc, **changed}


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (3, 3), (2, 9)])
def test_mcnemar_is_the_share_of_tosses_as_uneven(gained: int, lost: int) -> None:
    tosses = list(itertools.product((0, 1), repeat=gained + lost))
    uneven = [abs(2 * sum(toss) - len(toss)) >= abs(gained - lost) for toss in tosses]
    assert mcnemar(gained, lost) == pytest.approx(sum(uneven) / len(tosses))


def test_mcnemar_of_many_items() -> None:
    # The normal approximation with continuity correction.
    z = (abs(2800 - 2600) - 1) / math.sqrt(5400)
    assert mcnemar(2800, 2600) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_signs_are_all_tried_where_pairs_are_few() -> None:
    differences = np.array([1.0, 2.0, -0.5, 4.0])
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert sign_permutation(differences) == pytest.approx(sum(each >= 6.5 for each in sums) / 16)
    assert sign_permutation(np.array([3.0])) == 1.0
    assert sign_permutation(np.zeros(5)) == 1.0


def test_signs_are_drawn_where_pairs_are_many() -> None:
    differences = np.random.default_rng(1).normal(0.05, 1.0, 1000)
    z = abs(differences.mean()) / (differences.std(ddof=1) / math.sqrt(1000))
    p_value = sign_permutation(differences)
    assert p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.015)
    assert p_value == sign_permutation(differences)


def test_items_that_changed_are_named() -> None:
    before = [choices(0, 1.0, -1.0), choices(1, 0.0, -3.0), choices(2, 0.0, -5.0), choices(9, 0.0, -5.0)]
    after = [choices(2, 0.0, -4.0), choices(1, 1.0, -2.0), choices(0, 0.0, -2.0, contexts=["other"])]
    found = compare(before, after)
    assert (found.n_pairs, found.n_unpaired, found.n_other_prompts) == (3, 1, 1)
    assert (found.gained, found.lost) == ({"acc": [1]}, {"acc": [0]})
    accuracy, likelihood = found.tests
    assert (accuracy.figure, accuracy.before, accuracy.after, accuracy.p_value) == ("acc", 1 / 3, 1 / 3, 1.0)
    assert (likelihood.figure, likelihood.before, likelihood.after) == ("log_likelihood", -3.0, pytest.approx(-8 / 3))
    assert likelihood.stderr == pytest.approx(np.std([-1.0, 1.0, 1.0], ddof=1) / math.sqrt(3))
    assert likelihood.p_value == 1.0  # of eight changes of signs each sum is 1 or 3


def test_a_difference_is_said_to_be_significant_or_not() -> None:
    before = [choices(number, 0.0, -3.0) for number in range(12)]
    lines = list(format_comparison(compare(before, [choices(number, 1.0, -2.0) for number in range(12)])))
    assert lines == [
        "piqa: 12 items",
        "  acc            0.0000 -> 1.0000  +1.0000 ± 0  p = 0.00049, significant",
        "  log_likelihood -3.0000 -> -2.0000  +1.0000 ± 0  p = 0.00049, significant",
        "  acc gained: 12 items: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more",
    ]
    (_, accuracy, *_) = format_comparison(compare(before, [choices(0, 1.0, -2.0), *before[1:]]))
    assert accuracy.endswith("p = 1, may be chance")


def text(windows: list[float], tokens: list[int]) -> dict[str, Any]:
    sums = {"log_likelihood": sum(windows), "window_log_likelihoods": windows, "window_tokens": tokens}
    return {"task": "book", "doc_id": 0, "text": "t", **sums}


def test_the_windows_of_a_text_are_paired_if_they_are_the_same() -> None:
    (windows,) = compare([text([-4.0, -2.0], [8, 3])], [text([-3.0, -1.0], [8, 3])]).tests
    assert (windows.before, windows.after, windows.p_value) == (-3.0, -2.0, 0.5)
    (whole,) = compare([text([-4.0, -2.0], [8, 3])], [text([-3.0, -1.0], [9, 2])]).tests
    assert (whole.before, whole.after, whole.stderr) == (-6.0, -4.0, None)


def test_other_items_are_refused() -> None:
    with pytest.raises(DataError, match=r"piqa: item 1: continuations: differs between the runs; compare runs on one"):
        compare([choices(1, 1.0, -1.0)], [choices(1, 1.0, -1.0, continuations=[" x", " y"])])


def test_items_without_finite_figures_are_left_out_and_counted() -> None:
    before = [choices(number, 0.0, -3.0) for number in range(6)]
    after = [choices(0, math.nan, math.nan), choices(1, 0.0, -math.inf), *(choices(n, 1.0, -2.0) for n in range(2, 6))]
    found = compare(before, after)
    assert (found.n_pairs, found.n_not_finite, found.gained) == (4, 2, {"acc": [2, 3, 4, 5]})
    assert [(test.before, test.after, test.p_value) for test in found.tests] == [(0.0, 1.0, 0.125), (-3.0, -2.0, 0.125)]
    assert next(format_comparison(found)) == "piqa: 4 items; 2 without finite figures, left out"
    nothing = compare(before[:1], after[:1])
    assert (nothing.n_pairs, nothing.n_not_finite, nothing.tests) == (0, 1, [])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"acc": "yes"}, "acc: is not a number"),
        ({"acc": [1.0]}, "acc: is not a number"),
        ({"log_likelihoods": -3.0}, "log_likelihoods: is not a list of numbers"),
        ({"log_likelihoods": [[1.0], []]}, "log_likelihoods: is not a list of numbers"),
        ({"log_likelihoods": [-1.0]}, "gold: is 1, and there are 1 choices"),
    ],
)
def test_records_that_cannot_be_compared_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "records.jsonl"
    records = choices(0, 1.0, -1.0), {**choices(1, 1.0, -1.0), **changed}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match=rf"records.jsonl: line 2: {message}"):
        read_records(str(path))


def test_records_are_read_by_task(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (choices(0, 1.0, -1.0), text([-1.0], [1]))))
    assert {task: len(records) for task, records in read_records(str(path)).items()} == {"piqa": 1, "book": 1}
    diverged = choices(0, "nan", 0, log_likelihoods=["nan", "-inf"])
    path.write_text(json.dumps(diverged))
    (record,) = read_records(str(path))["piqa"]
    assert math.isnan(record["acc"]) and record["log_likelihoods"][1] == -math.inf
    path.write_text('{"task": "piqa"}\n')
    with pytest.raises(
        DataError, match=r'records.jsonl: line 1: doc_id: is missing, and the fields are \["task"\]; give an'
    ):
        read_records(str(path))
