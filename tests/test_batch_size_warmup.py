"""Training with batches that grow: metrics, microbatches, and resuming in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from main import main
from runtime.run.metrics import read_metrics
from tests.program import TINY, write_project

SIZES = [2, 2, 3, 3, 4, 4]


def test_a_run_with_growing_batches_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    warmup = {"batch_size_warmup": [[0, 2], [2, 3], [4, 4]], "tokens_per_mb_per_replica": 16}
    Path("grows.json").write_text(json.dumps({**TINY, "lr_decay": None, **warmup}))

    def train(name: str, *n_steps: int) -> list[dict[str, float]]:
        for steps in n_steps:
            settings = ("--set", f"model_path=runs/{name}", "--set", f"train_steps={steps}")
            assert main(["--model", "grows.json", *settings]) == 0
        return [line for line in read_metrics(f"runs/{name}") if line["split"] == "train"]

    whole, resumed = train("whole", 6), train("resumed", 3, 6)
    assert [line["tokens"] for line in whole] == [16 * size for size in SIZES]
    epochs = [line["epoch"] / whole[0]["epoch"] for line in whole]
    assert epochs == pytest.approx([sum(SIZES[: step + 1]) / 2 for step in range(6)])
    for name in ("loss", "grad_norm", "epoch", "tokens"):
        assert [line[name] for line in resumed] == pytest.approx([line[name] for line in whole], rel=1e-6)
    rows = Path("runs/whole/train_log.txt").read_text().splitlines()
    assert [int(row.split(",")[6]) for row in rows[1:]] == [16 * sum(SIZES[: step + 1]) for step in range(6)]
