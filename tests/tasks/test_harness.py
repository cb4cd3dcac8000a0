"""Prompts, requests and figures against lm-evaluation-harness 0.4.13, item by item, with a model of hashes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.tokenization.tokenizer import load_tokenizer
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

EVALUATION = Path(os.environ.get("NEOMESH_TEST_DATA", "")) / "evaluation"
LM_EVAL = os.environ.get("LM_EVAL_PYTHON", "")
# By the name of a task: how the harness is told to read a file of llm-foundry's form.
YAML = {
    "piqa": (r'"{{query.strip()}}\nAnswer:"', "gold", "choices"),
    "arc_easy": (r'"{{query.strip()}}\nAnswer:"', "gold", "choices"),
    "openbookqa": ("query", "gold", "choices"),
    "copa": ("query", "gold", "choices"),
    "winogrande": ("gold", "continuation", "context_options"),
    "winograd_wsc": ("gold", "continuation", "context_options"),
}


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


def write_yaml(folder: Path, name: str) -> None:
    text, target, choices = YAML[name]
    metrics = "".join(f"\n  - metric: {metric}" for metric in ("acc", "acc_norm", "acc_bytes"))
    (folder / f"{name}.yaml").write_text(
        f"task: mesh_{name}\ndataset_path: {name}\noutput_type: multiple_choice\ntest_split: test\n"
        f"doc_to_text: {text}\ndoc_to_target: {target}\ndoc_to_choice: {choices}\nmetric_list:{metrics}\n"
    )


def write_published(folder: Path) -> dict[str, list[str]]:
    """Writes LAMBADA and a text of it in their published forms, and returns the files of all data sets."""
    rows = [json.loads(line) for line in (EVALUATION / "lambada_openai.jsonl").read_text().splitlines()]
    texts = [f"{row['context']} {row['continuation']}" for row in rows]
    (folder / "lambada.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "wikitext.jsonl").write_text(json.dumps({"page": "\n".join(texts[:40])}) + "\n")
    files = {name: EVALUATION / TASKS[name].file for name in YAML}
    files["EleutherAI/lambada_openai/default"] = folder / "lambada.jsonl"
    files["EleutherAI/wikitext_document_level/wikitext-2-raw-v1"] = folder / "wikitext.jsonl"
    return {name: [str(file)] * 2 for name, file in files.items()}


@pytest.mark.slow
@pytest.mark.skipif(
    not (EVALUATION.is_dir() and LM_EVAL),
    reason="needs NEOMESH_TEST_DATA, and as LM_EVAL_PYTHON that of `make lm-eval`",
)
def test_every_item_of_whole_files(tmp_path: Path) -> None:
    gpt2 = EVALUATION.parent / "gpt2_tokenizer"
    for name in YAML:
        write_yaml(tmp_path, name)
    spec = {
        "tasks": [*(f"mesh_{name}" for name in YAML), "lambada_openai", "wikitext"],
        "rows": write_published(tmp_path),
    }
    spec |= {"yamls": str(tmp_path), "n_ctx": 256, "tokenizer": str(gpt2)}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    program = Path(__file__).with_name("run_harness.py")
    run = [LM_EVAL, str(program), str(tmp_path / "theirs.json"), str(tmp_path / "spec.json")]
    subprocess.run(run, check=True, capture_output=True)
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    tokenizer = load_tokenizer(str(gpt2))
    for name in (*YAML, "lambada_openai", "wikitext"):
        loaded = load_task(TASKS[name], str(tmp_path if name == "wikitext" else EVALUATION))
        assert_equal(loaded, our_result(loaded, tokenizer, 256), theirs.get(f"mesh_{name}") or theirs[name])
