"""Reads recorded runs from a folder. The only module that knows their layout.

A run is a folder `ID` in Sacred's file storage:

| file | what |
|---|---|
| `run.json` | Sacred's: experiment (sources, packages, git), host, start, heartbeat, stop, status, result, artifacts |
| `config.json` | the resolved config |
| `info.json` | `reason`, `restarts`, `step`, `model_path`, and `latest`: the last value of each metric by split |
| `metrics.jsonl` | the lines that main.py wrote during this run; repeated steps appear once |
| `metrics.json` | the same in Sacred's form, once the run is over |
| `cout.txt` | the output; if it is long, its beginning and end |
| other files | artifacts: samples and plots |

Every file is written beside and renamed, so that a reader never sees half a file.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import datetime
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError, line_numbers, looked_from
from configs.schema import SAMPLES
from tracking.record.metrics_tail import Line, parse_line, parse_lines
from tracking.record.output import shortened
from tracking.record.validation import find_problem, without_none

DEFAULT_FOLDER = "experiments"
RUN_FILE, CONFIG_FILE, INFO_FILE = "run.json", "config.json", "info.json"
METRICS_FILE, SACRED_METRICS_FILE, OUTPUT_FILE = "metrics.jsonl", "metrics.json", "cout.txt"
TASK_PREFIX, STDERR = "fs.", "_stderr"
# A RUNNING run without a heartbeat for this long has died together with its supervisor.
STALE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, without its metrics.

    Attributes:
        folder: of the record; its name is the run's number.
        entry: the content of run.json.
        config: the resolved config.
        info: the content of info.json.
    """

    folder: Path
    entry: Mapping[str, Any]
    config: Mapping[str, Any]
    info: Mapping[str, Any]

    @property
    def id(self) -> int:
        """Returns the run's number."""
        return int(self.folder.name)

    @property
    def name(self) -> str:
        """Returns the experiment's name."""
        return str(self.entry["experiment"]["name"])

    @property
    def status(self) -> str:
        """Returns Sacred's status (RUNNING, COMPLETED, INTERRUPTED, FAILED, TIMEOUT), or DEAD for a stale RUNNING."""
        status = str(self.entry["status"])
        heard = self.time("heartbeat") or self.time("start_time")
        if status != "RUNNING" or heard is None:
            return status
        silent_seconds = (utc_now() - heard).total_seconds()
        return "DEAD" if silent_seconds > STALE_SECONDS else status

    @property
    def uid(self) -> str:
        """Returns an id that is unique among the runs of all stores.

        Raises:
            DataError: another program has recorded it.
        """
        uid = self.entry.get("meta", {}).get("uid")
        if not isinstance(uid, str):
            raise DataError(f"run {self.id}: was not recorded by run_experiment.py; only such runs can be copied")
        return uid

    def started_with(self, key: str) -> Any:
        """Returns a part of how the run was started, by a key of `recorder.Start`; None if it was not recorded."""
        return self.entry.get("meta", {}).get(key)

    def time(self, key: str) -> datetime.datetime | None:
        """Returns start_time, heartbeat or stop_time of run.json, in UTC but without a time zone, as in Sacred."""
        text = self.entry.get(key)
        return datetime.datetime.fromisoformat(text) if text else None

    @property
    def artifacts(self) -> list[Path]:
        """Returns the samples and plots of the run, in natural order of their names."""
        return [self.folder / name for name in sorted(self.entry.get("artifacts", []), key=_natural_key)]

    def lines(self) -> list[Line]:
        """Returns the metrics, line by line; none if they cannot be read, as `describe_damage` says."""
        with contextlib.suppress(OSError):
            return read_lines(self.folder)
        return []

    def output(self, n_bytes: int) -> str:
        """Returns the output, shortened to `n_bytes`."""
        return shortened(self.folder / OUTPUT_FILE, n_bytes)


class Series:
    """One metric over a run, in the order of measurement."""

    def __init__(self) -> None:
        self.steps, self.values, self.times_seconds = array.array("q"), array.array("d"), array.array("d")

    def append(self, step: int, value: float, time_seconds: float) -> None:
        """Adds the next point."""
        self.steps.append(step)
        self.values.append(value)
        self.times_seconds.append(time_seconds)


def _natural_key(name: str) -> list[tuple[str, int]]:
    """Sorts 9 before 10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def utc_now() -> datetime.datetime:
    """Returns the time in UTC but without a time zone, as in Sacred."""
    return datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)


def list_runs(folder: Path) -> list[Run]:
    """Lists the runs of a folder by number."""
    return [run for path in _numbered(folder) if isinstance(run := _read_run(path), Run)]


def describe_unreadable(folder: Path) -> list[str]:
    """Returns a line for each folder of a store that should hold a run but cannot be read."""
    return [
        f"{path}: {problem}; is left out; fix or remove it"
        for path in _numbered(folder)
        if isinstance(problem := _read_run(path), str)
    ]


def _numbered(folder: Path) -> list[Path]:
    """Lists the folders of runs, except those that are just being created."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.isdecimal() and _has_begun(path))
    return sorted(found, key=lambda path: int(path.name))


def _has_begun(path: Path) -> bool:
    return all((path / name).exists() for name in (RUN_FILE, CONFIG_FILE))


def find_run(folder: Path, run_id: str) -> Run:
    """Returns a run by its number.

    Raises:
        DataError: there is no such run, or it cannot be read.
    """
    path = folder / run_id
    if not (run_id.isdecimal() and _has_begun(path)):
        raise DataError(
            f"run {run_id}: is not in {folder}; {_nearest(folder, run_id)}; give another folder with --store"
            f"{looked_from(str(folder))}"
        )
    run = _read_run(path)
    if isinstance(run, str):
        raise DataError(f"run {run_id} in {folder}: {run}; fix it, or remove the folder")
    return run


def _nearest(folder: Path, run_id: str) -> str:
    known = [path.name for path in _numbered(folder)]
    near = difflib.get_close_matches(run_id, known, n=1) or known[-1:]
    return f"the nearest is {near[0]}" if near else f"no run is in {folder}"


def _read_run(path: Path) -> Run | str:
    """Returns the run of a folder, or why it cannot be read."""
    entry, config, info = (_read_json(path / name) for name in (RUN_FILE, CONFIG_FILE, INFO_FILE))
    for name, content in ((RUN_FILE, entry), (CONFIG_FILE, config)):
        if content is None:
            return f"{name} is not a JSON object"
    entry, info = without_none(entry), without_none(info or {})
    return find_problem(entry, info) or Run(path, entry, config, info)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(folder: Path) -> list[Line]:
    """Returns the metrics of the run in a folder, line by line, without an incomplete last line and damaged ones.

    Raises:
        OSError: they cannot be read.
    """
    try:
        *whole, _torn = (folder / METRICS_FILE).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return parse_lines(whole)


def damaged_info(run: Run) -> list[str]:
    """Returns a line if info.json is damaged: the run is shown without it."""
    path = run.folder / INFO_FILE
    is_damaged = path.exists() and _read_json(path) is None
    return [f"{path}: is not a JSON object; the run is shown without step, reason and last values"] * is_damaged


def describe_damage(run: Run) -> list[str]:
    """Returns a line for each file of a run that its report cannot show, or only in part."""
    return [*damaged_info(run), *_damaged_metrics(run), *filter(None, map(_unreadable, run.artifacts))]


def _damaged_metrics(run: Run) -> list[str]:
    path = run.folder / METRICS_FILE
    if not path.exists():
        return []
    if run.info.get("step", 0) > 0 and (problem := _unreadable(path)):
        return [problem]
    *whole, torn = path.read_bytes().split(b"\n")
    lines = [*whole, torn] if torn and run.status != "RUNNING" else whole
    damaged = [number for number, text in enumerate(lines, start=1) if parse_line(text) is None]
    return [f"{path}: {line_numbers(damaged)}: damaged, and left out"] if damaged else []


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return None if file.read(1) else f"{path}: is empty"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}; is left out"


def series_of(lines: Iterable[Line]) -> dict[str, Series]:
    """Groups lines by metric, under the names of `series_name`."""
    by_split: dict[str, dict[str, Series]] = {}
    for split, step, time_seconds, values in lines:
        of_split = by_split.setdefault(split, {})
        for name, value in values.items():
            series = of_split.get(name) or of_split.setdefault(name, Series())
            series.append(step, value, time_seconds)
    return {
        series_name(split, name): series for split, of_split in by_split.items() for name, series in of_split.items()
    }


def series_name(split: str, name: str) -> str:
    """Returns the name of a metric over a run: `train.loss`, or GPT-Neo's `fs.piqa.acc` for a figure of a task."""
    return TASK_PREFIX + name.replace("/", ".", 1) if split == "eval" and is_figure(name) else f"{split}.{name}"


def is_figure(name: str) -> bool:
    """Returns whether an evaluation metric is a figure of a task, such as piqa/acc, or its standard error."""
    return "/" in name and not name.startswith(f"{SAMPLES}/")
