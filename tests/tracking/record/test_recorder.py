"""The record of a run whose metrics are replaced, removed or emptied while it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tracking.record.recorder import _MetricsCopy
from tracking.record.store import read_lines


def append(path: Path, *steps: int, seconds: float = 0.0) -> None:
    lines = [{"step": step, "split": "train", "time": step + seconds, "loss": 1.0} for step in steps]
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


@pytest.mark.parametrize("change", ["removed", "emptied", "removed and resumed"])
@pytest.mark.parametrize("is_seen", [True, False])
def test_the_record_keeps_what_was_measured_before_the_metrics_were_removed(
    tmp_path: Path, change: str, is_seen: bool
) -> None:
    path, record = tmp_path / "run" / "metrics.jsonl", tmp_path / "record" / "metrics.jsonl"
    record.parent.mkdir()
    append(path, 1, 2, 3)
    copy = _MetricsCopy(str(path.parent))  # of a run that begins at step 3
    copy.update(record)
    append(path, 4, 5, 6)
    copy.update(record)
    os.truncate(path, 0) if change == "emptied" else path.unlink()
    if is_seen:
        copy.update(record)
    append(path, *([5, 6, 7] if change == "removed and resumed" else [7]), seconds=60.0)
    copy.update(record)
    append(path, 8)
    copy.update(record)
    measured = [(line.step, line.time_seconds) for line in read_lines(record.parent)]
    again = 60 if change == "removed and resumed" else 0
    assert measured == [(4, 4), (5, 5 + again), (6, 6 + again), (7, 67), (8, 8)]
    assert (copy.latest["train"]["step"], copy.progress.furthest_step) == (8, 8)
