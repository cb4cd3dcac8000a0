"""Writes recorded runs without running anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracking.record.store import Run, find_run

ENTRY: dict[str, Any] = {
    "experiment": {
        "name": "trial",
        "dependencies": ["numpy==2.4.0"],
        "sources": [["main.py", "_sources/main_1.py"]],
        "repositories": [{"url": "here", "commit": "0123456789abcdef", "dirty": True, "changed": ["main.py"]}],
    },
    "command": "train",
    "host": {"hostname": "here", "gpus": {"count": 2}},
    "meta": {"arguments": ["--model", "tiny"], "uid": "u"},
    "status": "COMPLETED",
    "start_time": "2026-01-02T03:04:05",
    "heartbeat": "2026-01-02T04:05:07",
    "artifacts": [],
}
INFO: dict[str, Any] = {
    "step": 12345,
    "reason": "finished",
    "model_path": "runs/tiny",
    "restarts": [],
    "latest": {"train": {"loss": 3.14159, "tokens_per_second": 12345.6, "step": 12345}, "eval": {"loss": "nan"}},
}


def write_run(
    store: Path,
    number: int,
    config: Mapping[str, Any],
    entry: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    metrics: Iterable[Mapping[str, Any]] = (),
) -> Run:
    folder = store / str(number)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**ENTRY, **(entry or {})}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "info.json").write_text(json.dumps({**INFO, **(info or {})}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return find_run(store, str(number))
