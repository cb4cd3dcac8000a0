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
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError
from tracking.record.metrics_tail import Line, parse_line
from tracking.record.output import shortened
from tracking.record.validation import find_problem, without_nothing

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

    @property
    def uid(self) -> str:
        """What tells it from every other run, also of other stores.

        Raises:
            DataError: another program has recorded it.
        """
        uid = self.entry.get("meta", {}).get("uid")
        if not isinstance(uid, str):
            raise DataError(f"run {self.id}: was not recorded by run_experiment.py; only such runs can be copied")
        return uid

    def time(self, key: str) -> datetime.datetime | None:
        """A moment of run.json (start_time, heartbeat, stop_time), in UTC without saying so, as Sacred keeps it."""
        text = self.entry.get(key)
        return datetime.datetime.fromisoformat(text) if text else None

    @property
    def artifacts(self) -> list[Path]:
        """The files that the run left, samples and plots, in the order of their names and of the numbers in them."""
        return [self.folder / name for name in sorted(self.entry.get("artifacts", []), key=_as_read)]

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


def _as_read(name: str) -> list[tuple[str, int]]:
    """Sorts names as a person does, 9 before 10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def utc_now() -> datetime.datetime:
    """Now, in UTC without saying so, as Sacred keeps times."""
    return datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)


def list_runs(folder: Path) -> list[Run]:
    """All runs of a folder by number; without what they measured, so that many are listed at once."""
    return [run for path in _numbered(folder) if isinstance(run := _read_run(path), Run)]


def describe_broken(folder: Path) -> list[str]:
    """What is wrong with each folder of a store that holds no run, though it should; a line each."""
    return [
        f"{path}: {problem}; is left out: mend or remove it"
        for path in _numbered(folder)
        if isinstance(problem := _read_run(path), str)
    ]


def _numbered(folder: Path) -> list[Path]:
    """What may be runs: one that is just beginning has not both of its files yet."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.isdecimal() and _has_begun(path))
    return sorted(found, key=lambda path: int(path.name))


def _has_begun(path: Path) -> bool:
    return all((path / name).exists() for name in (RUN_FILE, CONFIG_FILE))


def find_run(folder: Path, run_id: str) -> Run:
    """One run by its number.

    Raises:
        DataError: there is none of this number, or it cannot be read.
    """
    path = folder / run_id
    if not (run_id.isdecimal() and _has_begun(path)):
        raise DataError(
            f"run {run_id}: is not in {folder}; {_nearest(folder, run_id)}; another folder is given by --store"
        )
    run = _read_run(path)
    if isinstance(run, str):
        raise DataError(f"run {run_id} in {folder}: {run}; mend it, or remove the folder")
    return run


def _nearest(folder: Path, run_id: str) -> str:
    known = [path.name for path in _numbered(folder)]
    near = difflib.get_close_matches(run_id, known, n=1) or known[-1:]
    return f"the nearest is {near[0]}" if near else f"no run is in {folder}"


def _read_run(path: Path) -> Run | str:
    """The run of a folder, or why it cannot be read."""
    entry, config, info = (_read_json(path / name) for name in (RUN_FILE, CONFIG_FILE, INFO_FILE))
    for name, content in ((RUN_FILE, entry), (CONFIG_FILE, config)):
        if content is None:
            return f"{name} is no JSON object"
    entry, info = without_nothing(entry), without_nothing(info or {})
    return find_problem(entry, info) or Run(path, entry, config, info)


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
