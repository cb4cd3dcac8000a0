from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import pytest

from configs.errors import DataError
from tracking.record.metrics_tail import Line
from tracking.record.store import STALE_SECONDS, find_run, list_runs, series_of, utc_now


def write_run(folder: Path, number: int, status: str = "COMPLETED", heard_seconds_ago: float = 0.0) -> Path:
    path = folder / str(number)
    path.mkdir(parents=True)
    heard = utc_now() - datetime.timedelta(seconds=heard_seconds_ago)
    entry = {
        "experiment": {"name": f"trial {number}"},
        "status": status,
        "start_time": "2026-01-02T03:04:05.678900",
        "heartbeat": heard.isoformat(),
        "artifacts": ["loss.png"],
    }
    (path / "run.json").write_text(json.dumps(entry))
    (path / "config.json").write_text('{"lr": 0.1}')
    return path


def test_runs_are_listed_by_number_and_other_files_skipped(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none") == []
    for number in (10, 9, 100):
        write_run(tmp_path, number)
    (tmp_path / "_sources").mkdir()
    (tmp_path / "101").mkdir()  # one that is just beginning
    (tmp_path / "102").mkdir()
    (tmp_path / "102" / "run.json").write_text('{"torn')
    (tmp_path / "103").write_text("a file")
    assert [run.id for run in list_runs(tmp_path)] == [9, 10, 100]


def test_one_run_is_read_back(tmp_path: Path) -> None:
    path = write_run(tmp_path, 7)
    (path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "time": 2, "loss": "inf"}\n{"step": 2, "spl')
    (path / "cout.txt").write_text("said")
    run = find_run(tmp_path, "7")
    assert (run.name, run.status, run.config, run.info) == ("trial 7", "COMPLETED", {"lr": 0.1}, {})
    assert run.time("start_time") == datetime.datetime(2026, 1, 2, 3, 4, 5, 678900) and run.time("stop_time") is None
    assert (run.lines(), run.artifacts) == ([Line("train", 1, 2.0, {"loss": math.inf})], [path / "loss.png"])
    assert run.output(100) == "said"


def test_a_run_without_heartbeat_is_dead(tmp_path: Path) -> None:
    write_run(tmp_path, 1, "RUNNING", heard_seconds_ago=STALE_SECONDS / 2)
    write_run(tmp_path, 2, "RUNNING", heard_seconds_ago=STALE_SECONDS * 2)
    write_run(tmp_path, 3, "FAILED", heard_seconds_ago=STALE_SECONDS * 2)
    assert [run.status for run in list_runs(tmp_path)] == ["RUNNING", "DEAD", "FAILED"]


@pytest.mark.parametrize("run_id", ["3", "latest", "../7", ""])
def test_a_run_that_is_not_there(tmp_path: Path, run_id: str) -> None:
    write_run(tmp_path, 7)
    with pytest.raises(DataError, match=f"run {run_id}: is not in .*; the nearest is 7; give another folder with"):
        find_run(tmp_path, run_id)


def test_lines_by_metric() -> None:
    lines = [Line("train", 1, 5.0, {"loss": 2.0, "lr": 0.1}), Line("eval", 1, 6.0, {"loss": 3.0})]
    found = series_of([*lines, Line("train", 2, 7.0, {"loss": math.nan})])
    assert set(found) == {"train.loss", "train.lr", "eval.loss"}
    assert (found["train.loss"].steps.tolist(), found["train.loss"].times_seconds.tolist()) == ([1, 2], [5.0, 7.0])
    assert found["train.loss"].values[0] == 2.0 and math.isnan(found["train.loss"].values[1])
    assert found["eval.loss"].values.tolist() == [3.0]


def test_artifacts_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["predictions_3_1000.txt", "loss.png", "predictions_3_9.txt", "eval_3.jsonl", "predictions_3_90.txt"]
    path = write_run(tmp_path, 3) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "artifacts": names}))
    assert [artifact.name for artifact in find_run(tmp_path, "3").artifacts] == [
        "eval_3.jsonl",
        "loss.png",
        "predictions_3_9.txt",
        "predictions_3_90.txt",
        "predictions_3_1000.txt",
    ]
