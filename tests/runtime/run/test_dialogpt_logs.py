"""DialoGPT's logs against figures worked out by hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from runtime.run.dialogpt_logs import eval_log, train_log, write_logs
from runtime.run.metrics import MetricsWriter
from runtime.run.token_count import TokenCount

TOKENS = TokenCount((0,), (100,))


def line(step: int, epoch: float, loss: float, tokens: int, tokens_per_second: float = 50.0) -> dict[str, Any]:
    """A training line of metrics; a step takes 2 seconds."""
    values = {"loss": loss, "epoch": epoch, "tokens": tokens, "tokens_per_second": tokens_per_second}
    return {"step": step, "split": "train", "time": 1e9, **values}


VALUES = {"loss": 2.0, "tokens": 5, "tokens_per_second": 50.0}
METRICS = [
    {"step": 1, "split": "train", "time": 1e9, "loss": 9.0},  # of a run before epochs were written
    line(2, 0.4, 3.0, 60),
    {"step": 2, "split": "eval", "time": 1e9, "loss": 1.5, "perplexity": math.exp(1.5)},
    {"step": 2, "split": "eval", "time": 1e9, "piqa/acc": 0.5},
    line(4, 0.8, 2.0, 40),
    line(5, 1.0, 1.0, 10, tokens_per_second=25.0),
    line(6, 1.2, 4.0, 30),
    {"step": 6, "split": "eval", "time": 1e9, "loss": 1.25},
]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_the_training_log_holds_means_and_sums_of_each_epoch() -> None:
    text = train_log(METRICS, TOKENS)
    assert text.startswith("epoch,global_step,step,mean_loss,mean_ppl,n_token_real,n_token_total,epoch_time\n")
    found = [[float(value) for value in row.values()] for row in rows(text)]
    expected = [
        [1, 2, 2, 3.0, math.exp(3.0), 120, 200, 4.0],
        [1, 4, 4, 2.5, math.exp(2.5), 200, 400, 8.0],  # (2 * 3 + 2 * 2) / 4 nats
        [1, 5, 5, 2.2, math.exp(2.2), 210, 500, 12.0],
        [2, 6, 6, 4.0, math.exp(4.0), 30, 100, 2.0],
    ]
    assert found == [pytest.approx(row) for row in expected]


def test_the_evaluation_log_holds_the_perplexity_where_there_is_one() -> None:
    text = eval_log(METRICS)
    assert text.startswith("epoch,global_step,step,eval_loss,eval_ppl\n")
    assert rows(text) == [
        {"epoch": "1", "global_step": "2", "step": "2", "eval_loss": "1.5", "eval_ppl": str(math.exp(1.5))},
        {"epoch": "2", "global_step": "6", "step": "6", "eval_loss": "1.25", "eval_ppl": ""},
    ]


def test_the_logs_are_those_of_the_metrics_after_a_resume(tmp_path: Path) -> None:
    for resume_step in (None, 4):
        with MetricsWriter(str(tmp_path), resume_step) as metrics:
            for step in range((resume_step or 0) + 1, 7):
                metrics.write("train", step, {**VALUES, "epoch": step / 4})
            metrics.write("eval", step, {"loss": 1.0, "perplexity": math.e})
            write_logs(str(tmp_path), TOKENS)
    assert [row["global_step"] for row in rows((tmp_path / "train_log.txt").read_text())] == list("123456")
    assert len(rows((tmp_path / "eval_log.txt").read_text())) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 7


def test_a_run_without_metrics_has_logs_of_a_head_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train", "loss": 1.0}) + "\n")
    write_logs(str(tmp_path), TOKENS)
    assert rows((tmp_path / "train_log.txt").read_text()) == []
