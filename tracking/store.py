"""Runs as they lie in a folder: who they are, what they measured, what they left. The one place that reads them.

A run is a folder `ID` in Sacred's file storage:

| file | what |
|---|---|
| `run.json` | Sacred's: experiment (sources, packages, git), host, start, heartbeat, stop, status, result, artifacts |
| `config.json` | the resolved config |
| `info.json` | `reason`, `restarts`, `step`, `model_path`, and `latest`: the last value of each metric by split |
| `metrics.jsonl` | the lines that main.py wrote during this run, those of steps made anew once only |
| `metrics.json` | the same in Sacred's form, once the run is over |
| `cout.txt` | what was said; of very much the beginning and the end |
| other files | artifacts: samples and plots |

All is written whole and then renamed into place, so that a reader never meets half a file.
"""

from __future__ import annotations

import array
import dataclasses
import datetime
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError
from tracking.metrics_tail import Line, parse_line
from tracking.output import shortened

DEFAULT_FOLDER = "experiments"
RUN_FILE, CONFIG_FILE, INFO_FILE = "run.json", "config.json", "info.json"
METRICS_FILE, SACRED_METRICS_FILE, OUTPUT_FILE = "metrics.jsonl", "metrics.json", "cout.txt"
# A run that says RUNNING and has not been heard of for so long was ended with its supervisor.
SILENT_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, without what it measured.

    Attributes:
      folder: where it lies; its name is the run's number.
      entry: what run.json holds.
      config: the resolved config.
      info: what info.json holds.
    """

    folder: Path
    entry: Mapping[str, Any]
    config: Mapping[str, Any]
    info: Mapping[str, Any]

    @property
    def id(self) -> int:
        return int(self.folder.name)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.entry["experiment"]["name"])

    @property
    def status(self) -> str:
        """Sacred's word (RUNNING, COMPLETED, INTERRUPTED, FAILED, TIMEOUT); or DEAD: RUNNING, but silent for long."""
        said = str(self.entry["status"])
        heard = self.time("heartbeat") or self.time("start_time")
        if said != "RUNNING" or heard is None:
            return said
        silent_seconds = (utc_now() - heard).total_seconds()
        return "DEAD" if silent_seconds > SILENT_SECONDS else said

    def time(self, key: str) -> datetime.datetime | None:
        """A moment of run.json (start_time, heartbeat, stop_time), in UTC without saying so, as Sacred keeps it."""
        text = self.entry.get(key)
        return datetime.datetime.fromisoformat(text) if text else None

    @property
    def artifacts(self) -> list[Path]:
        """The files that the run left: samples and plots."""
        return [self.folder / name for name in self.entry.get("artifacts", [])]

    def lines(self) -> list[Line]:
        """What was measured, line by line."""
        return read_lines(self.folder)

    def output(self, n_bytes: int) -> str:
        """What was said, of very much the beginning and the end."""
        return shortened(self.folder / OUTPUT_FILE, n_bytes)


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric over a run, in the order of measuring."""

    steps: array.array[int] = dataclasses.field(default_factory=lambda: array.array("q"))
    values: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))
    times_seconds: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))


def utc_now() -> datetime.datetime:
    """Now, in UTC without saying so, as Sacred keeps times."""
    return datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)


def list_runs(folder: Path) -> list[Run]:
    """All runs of a folder by number; without what they measured, so that many are listed at once."""
    if not folder.is_dir():
        return []
    numbered = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    return [run for path in numbered if (run := _read_run(path)) is not None]


def find_run(folder: Path, run_id: str) -> Run:
    """One run by its number.

    Raises:
      DataError: there is none of this number.
    """
    path = folder / run_id
    run = _read_run(path) if run_id.isdecimal() else None
    if run is None:
        known = [str(run.id) for run in list_runs(folder)]
        near = difflib.get_close_matches(run_id, known, n=1) or known[-1:]
        remedy = f"the nearest is {near[0]}" if near else f"no run is in {folder}"
        raise DataError(f"run {run_id} -- is not in {folder} -- {remedy}; another folder is given by --store")
    return run


def _read_run(path: Path) -> Run | None:
    """None: what lies there is no run, or one that is just beginning."""
    entry, config = _read_json(path / RUN_FILE), _read_json(path / CONFIG_FILE)
    return None if entry is None or config is None else Run(path, entry, config, _read_json(path / INFO_FILE) or {})


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(folder: Path) -> list[Line]:
    """What the run in a folder has measured, line by line; a torn last line is left out."""
    try:
        *whole, _torn = (folder / METRICS_FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [line for text in whole if (line := parse_line(text)) is not None]


def series_of(lines: Iterable[Line]) -> dict[str, Series]:
    """Lines by metric; a metric is called by its split and its name, as `train.loss`."""
    by_split: dict[str, dict[str, Series]] = {}
    for split, step, time_seconds, values in lines:
        of_split = by_split.setdefault(split, {})
        for name, value in values.items():
            series = of_split.get(name) or of_split.setdefault(name, Series())
            series.steps.append(step)
            series.values.append(value)
            series.times_seconds.append(time_seconds)
    return {f"{split}.{name}": series for split, of_split in by_split.items() for name, series in of_split.items()}
