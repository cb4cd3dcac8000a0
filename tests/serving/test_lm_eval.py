"""Runs lm-evaluation-harness's `local-completions` against a server: its scores equal those of the model.

It is not installed with the tests, as it needs many packages: `make lm-eval`, and LM_EVAL=.venv-lm-eval/bin/lm_eval.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.projects import Project
from tests.serving.servers import Server

LM_EVAL = shutil.which(os.path.abspath(os.environ["LM_EVAL"]) if os.environ.get("LM_EVAL") else "lm_eval")
CONTEXTS = ["the cat sat on", "one dog run", "while it", "home and the cat saw one dog far"]
CHOICES = [" a mat", " the cat", " far from home", " while"]
MAX_NEW = 6
CHOOSE = """
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(LM_EVAL is None, reason="lm_eval is not installed; set LM_EVAL to its path"),
]


def evaluate(server: Server, project: Project, folder: Path, tokenized: bool) -> dict[str, list[dict[str, Any]]]:
    """Runs both tasks; returns the logged samples by task."""
    rows = [{"context": context, "choices": CHOICES} for context in CONTEXTS]
    (folder / "data.json").write_text("\n".join(map(json.dumps, rows)))
    for name, task in (("choose", CHOOSE), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(task.replace("DATA", str(folder / "data.json")))
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(project.tokenizer().to_json())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    model = {
        "model": "tiny",
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": tokenizer,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": tokenized,
        "max_length": 64,
        "num_concurrent": 2,
    }
    arguments = ("--tasks", "choose,write", "--include_path", folder, "--output_path", folder / "out", "--log_samples")
    named = ",".join(f"{key}={value}" for key, value in model.items())
    command = [LM_EVAL, "--model", "local-completions", "--model_args", named, *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    files = {path.name.split("_")[1]: path for path in (folder / "out").rglob("samples_*.jsonl")}
    return {name: list(map(json.loads, path.read_text().splitlines())) for name, path in files.items()}


def log_likelihood(project: Project, context: str, continuation: str) -> tuple[float, bool]:
    """Returns the log-likelihood of a continuation in float64, and whether it is the greedy one."""
    tokenizer = project.tokenizer()
    n_context, tokens = len(tokenizer.encode(context)), tokenizer.encode(context + continuation)
    expected = project.log_probs(tokens)[n_context - 1 :]
    following = np.array(tokens[n_context:])
    chosen = expected[np.arange(len(following)), following]
    return float(chosen.sum()), bool((expected.argmax(-1) == following).all())


def greedy(project: Project, context: str) -> str:
    """Returns the greedy continuation up to a full stop."""
    tokenizer = project.tokenizer()
    tokens = tokenizer.encode(context)
    n_context = len(tokens)
    for _ in range(MAX_NEW):
        tokens.append(int(project.log_probs([*tokens, 0])[-1].argmax()))
    return tokenizer.decode(tokens[n_context:]).partition(".")[0]


@pytest.mark.parametrize("tokenized", [True, False], ids=["ids", "texts"])
def test_its_scores_are_those_of_the_model(
    trained_server: Server, project: Project, tmp_path: Path, tokenized: bool
) -> None:
    samples = evaluate(trained_server, project, tmp_path, tokenized)
    assert (len(samples["choose"]), len(samples["write"])) == (len(CONTEXTS), len(CONTEXTS))
    for sample in samples["choose"]:
        for (given,), choice in zip(sample["resps"], sample["doc"]["choices"], strict=True):
            score, is_greedy = log_likelihood(project, sample["doc"]["context"], choice)
            assert abs(float(given[0]) - score) < 1e-3 and given[1] in (is_greedy, str(is_greedy))
    for sample in samples["write"]:
        assert sample["resps"] == [[greedy(project, sample["doc"]["context"])]]
