"""Prompts, requests and figures against lm-evaluation-harness 0.4.13, item by item, with a model of hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate import evaluate_task
from tasks.load import load_task
from tasks.scorer import Tokenizer
from tasks.table import TASKS
from tasks.task import LoadedTask, Question, TaskResult
from tests.tasks.hash_model import START_ID, Bytes, HashScorer
from tests.tasks.published_rows import ROWS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "lm_evaluation_harness.json").read_text())
N_CTX, N_EXAMPLES = 160, 2
OUR_NAMES = {"wsc273": "winograd_wsc", "mmlu_high_school_physics": "mmlu"}
CASES = [(n_shot, name) for n_shot, tasks in GOLDEN.items() for name in tasks]


def our_result(loaded: LoadedTask, tokenizer: Tokenizer, n_ctx: int) -> TaskResult:
    return evaluate_task(loaded, tokenizer, START_ID, HashScorer(n_ctx), lambda n: None)


def assert_equal(loaded: LoadedTask, ours: TaskResult, theirs: Mapping[str, Any]) -> None:
    """Compares texts, log-likelihoods and accuracies of each item, and the figures."""
    for item, record, expected in zip(loaded.items, ours.items, theirs["items"], strict=True):
        if isinstance(item, Question):
            assert [list(pair) for pair in item.pairs] == expected["requests"]
        else:
            assert [[item.text]] == expected["requests"]
        sums = record.get("log_likelihoods") or [record["log_likelihood"]]
        assert sums == pytest.approx(expected["log_likelihoods"], abs=1e-9)
        names = record.keys() & expected.keys() - {"log_likelihoods"}
        assert {name: record[name] for name in names} == {name: expected[name] for name in names}
    compared = ours.figures.keys() & theirs["figures"].keys()
    assert compared
    for name in compared:
        assert ours.figures[name].value == pytest.approx(theirs["figures"][name], rel=1e-9), name
        if name.startswith("acc") and f"{name}_stderr" in theirs["figures"]:
            assert ours.figures[name].stderr == pytest.approx(theirs["figures"][f"{name}_stderr"], rel=1e-9), name


@pytest.mark.parametrize(("n_shot", "name"), CASES, ids=lambda value: value)
def test_published_rows(n_shot: str, name: str, tmp_path: Path) -> None:
    for file, rows in {"questions.jsonl": ROWS[name][int(n_shot) :], "examples.jsonl": ROWS[name][:N_EXAMPLES]}.items():
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TASKS[OUR_NAMES.get(name, name)]
    task = replace(task, file="questions.jsonl", fewshot_file="examples.jsonl", n_shot=int(n_shot))
    loaded = load_task(task, str(tmp_path))
    assert_equal(loaded, our_result(loaded, Bytes(), N_CTX), GOLDEN[n_shot][name])
