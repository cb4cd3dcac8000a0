"""The comparison with lm-evaluation-harness: what it finds equal, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation import compare, compare_figures, find_tasks, is_close
from benchmarks.harness import write_yaml
from tasks.task import MULTIPLE_CHOICE, Question

QUESTION = Question(("A cat",), ("sat", "sat down"), 0)


def records(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[list, list, list]:
    scores = theirs.pop("log_likelihoods")
    return [ours], [{"doc_id": 3, "log_likelihoods": scores, "figures": theirs}], [QUESTION]


def test_equal_records_are_equal() -> None:
    ours = {"log_likelihoods": [-3.0, -4.0], "acc": 1.0, "acc_norm": 0.0}
    largest, n_close, faults = compare(*records(ours, {"log_likelihoods": [-3.0005, -4.0], "acc": 1.0, "acc_norm": 0}))
    assert largest == pytest.approx(5e-4) and (n_close, faults) == (0, [])


def test_a_log_likelihood_that_is_too_far_is_a_fault() -> None:
    ours = {"log_likelihoods": [-3.0, -4.0], "acc": 1.0}
    _, _, faults = compare(*records(ours, {"log_likelihoods": [-3.0, -4.0011], "acc": 1.0}))
    assert faults == ["item 3: log-likelihood: [-3.0, -4.0], [-3.0, -4.0011]"]


@pytest.mark.parametrize(("second", "n_close"), [(-3.0015, 1), (-3.0025, 0)])
def test_a_figure_may_differ_only_where_choices_are_close(second: float, n_close: int) -> None:
    ours = {"log_likelihoods": [-3.0, second], "acc": 1.0}
    _, found, faults = compare(*records(ours, {"log_likelihoods": [-3.0, second], "acc": 0.0}))
    assert (found, len(faults)) == (n_close, 1 - n_close)


@pytest.mark.parametrize(("second", "expected"), [(-8.003, True), (-8.006, False)])
def test_closeness_is_that_of_the_sums_divided_by_lengths(second: float, expected: bool) -> None:
    """-3 / 3 and -8 / 8 are equal; errors of 1e-3 in the sums are 1/3000 and 1/8000 here."""
    assert is_close("acc_norm", [-3.0, second], QUESTION) is expected
    assert not is_close("acc", [-3.0, second], QUESTION)


@pytest.mark.parametrize(
    ("name", "their", "n_faults"),
    [
        ("acc", 0.5, 0),
        ("acc", 0.501, 1),
        ("perplexity", 0.5004, 0),
        ("perplexity", 0.5006, 1),
        ("bits_per_byte", 0.5004, 1),
    ],
)
def test_figures_are_compared(name: str, their: float, n_faults: int) -> None:
    assert len(list(compare_figures({name: (0.5, their)}, 0.0))) == n_faults


def test_a_file_becomes_a_task_on_both_sides(tmp_path: Path) -> None:
    row = {"query": "Question: a\n", "choices": ["b", "c"], "gold": 1}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(row) + "\n")
    (task,) = find_tasks(tmp_path, 5)
    assert (task.name, task.kind, task.limit, task.cue) == ("piqa", MULTIPLE_CHOICE, 5, "\nAnswer:")
    write_yaml(tmp_path, task.name, Path(task.file), task.cue)
    lines = (tmp_path / "piqa.yaml").read_text().splitlines()
    assert f"dataset_kwargs: {{data_files: {{test: {task.file}}}}}" in lines
    assert 'doc_to_text: "{{query.strip()}}\\nAnswer:"' in lines and "output_type: multiple_choice" in lines
