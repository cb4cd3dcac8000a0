"""A small project as a user has one: texts and a config, and `main.py` run on them in its own process."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

from runtime.run.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
N_STEPS = 300
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far", "from", "home", "while", "it"]
DATASET = {"id": "words", "n_vocab": 300, "text": "texts", "eos_id": 0, "padding_id": 1, "eval_fraction": 0.2}
TINY = {
    "n_head": 2,
    "n_embd": 16,
    "n_layer": 1,
    "n_ctx": 16,
    "n_vocab": 300,
    "embed_dropout": 0.1,
    "train_batch_size": 4,
    "train_steps": N_STEPS,
    "iterations": 1,
    "lr": 0.01,
    "lr_decay": "cosine",
    "model_path": "runs/tiny",
    "datasets": [DATASET],
}
PROGRESS = re.compile(r"step \d+/\d+  loss \d+\.\d{4}  [\d,]+ tokens/s(  mfu \d+\.\d%)?(  \d\d:\d\d left)?")

# One thread, so that sums are made in the same order in every run.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
ENVIRONMENT |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


def write_project(folder: Path) -> None:
    draw = random.Random(3)
    (folder / "texts").mkdir()
    for number in range(12):
        lines = [" ".join(draw.choices(WORDS, k=8)) + ".\n" for _ in range(20)]
        (folder / "texts" / f"{number}.txt").write_text("".join(lines))
    (folder / "tiny.json").write_text(json.dumps(TINY))


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "main.py"), "--model", "tiny.json", *arguments]


def run_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["lr"]) for line in read_metrics(str(run)) if line["split"] == "train"]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
