"""Records a run in Sacred's file storage while it runs.

Sacred's own run life cycle is not used: it rewrites all metrics at each heartbeat, and never writes again after its
first error. Its file storage is used, so that tools for Sacred can read the runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fnmatch
import hashlib
import json
import math
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Sacred imports pkg_resources, which warns
    from sacred.observers import FileStorageObserver

from configs.errors import UserError
from storage.files import is_local
from tracking.record.metrics_tail import Line, MetricsTail, NewLines, parse_line, parse_lines
from tracking.record.output import CapturedOutput
from tracking.record.provenance import Provenance
from tracking.record.run_files import list_files, read_from
from tracking.record.store import (
    METRICS_FILE,
    OUTPUT_FILE,
    RUN_FILE,
    SACRED_METRICS_FILE,
    Series,
    read_lines,
    series_of,
    utc_now,
)
from tracking.supervise.supervisor import Outcome, Progress

HEARTBEAT_SECONDS = 10.0
ARTIFACT_SECONDS = 3.0
BUCKET_SECONDS = 10.0  # between two reads from a bucket
MAX_RESTARTS_KEPT = 200
ARTIFACT_PATTERNS = (
    "predictions_{id}_*.txt",
    "predictions_{id}_*.jsonl",
    "eval_{id}.jsonl",
    "samples_{id}_*.jsonl",
    "*.png",
)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside and renames it, so that it is there whole or not at all; several processes may do so."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """Replaces non-finite numbers by text, as JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _SacredFiles(FileStorageObserver):
    """Sacred's file storage, with every file written whole or not at all."""

    def save_json(self, obj: Any, filename: str) -> None:
        """Writes a JSON file of the run."""
        text = json.dumps(finite(obj), sort_keys=True, indent=2, allow_nan=False)
        write_whole(Path(self.dir, filename), text.encode())

    def save_cout(self) -> None:
        """Does nothing: output is written as it comes, not at each heartbeat."""

    def note_artifact(self, name: str) -> None:
        """Lists a file of the run's folder as an artifact."""
        if name not in self.run_entry["artifacts"]:
            self.run_entry["artifacts"].append(name)
            self.save_json(self.run_entry, RUN_FILE)

    def find_or_save(self, filename: str, store_dir: Path) -> Path:
        """Stores a source file; several runs may store the same file at once."""
        content, source = Path(filename).read_bytes(), Path(filename)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        kept = Path(store_dir, f"{source.stem}_{digest}{source.suffix}")
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, content)
        return kept


@dataclasses.dataclass(frozen=True)
class Start:
    """How the user has started a run; shown in its report.

    Attributes:
        words: the command line of run_experiment.py, without passwords.
        directory: where it was given.
        keys: the config keys that it or the config file sets.
        prompt: the text that samples run on from; empty: it is in their file.
    """

    words: tuple[str, ...] = ()
    directory: str = ""
    keys: tuple[str, ...] = ()
    prompt: str = ""


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What is known about a run before it starts.

    Attributes:
        command: of main.py, such as train.
        arguments: its command line.
        config: the resolved config.
        model_path: the folder of the run's checkpoints and metrics.
        start: how the user has started it.
    """

    command: str
    arguments: tuple[str, ...]
    config: Mapping[str, Any]
    model_path: str
    start: Start = Start()


class Recorder:
    """Records one run; the journal of its supervisor.

    A failed write is reported once and retried: a full disk is no reason to end a run.

    Attributes:
        folder: of the record; its name is the run's number.
        id: the run's number.
    """

    def __init__(self, store: Path, spec: RunSpec, provenance: Provenance, say: Callable[[str], None]) -> None:
        """Creates the record, under the next free number.

        Raises:
            UserError: the folder cannot be written, or the run's folder cannot be read.
        """
        self._spec = spec
        self._say = say
        self._files = _SacredFiles(store)
        self._metrics = _MetricsCopy(spec.model_path)
        self._artifacts = _ArtifactCopies(spec.model_path)
        try:
            self._begin(provenance)
            self.folder = Path(self._files.dir)
            self._output = CapturedOutput(self.folder / OUTPUT_FILE)
        except OSError as error:
            if self._files.dir is not None:
                shutil.rmtree(self._files.dir, ignore_errors=True)
            raise UserError(
                f"--store {store}: cannot be written: {error.strerror or error}; make room there, or give another "
                "folder"
            ) from error
        self._restarts: list[dict[str, object]] = []
        self._reason = ""
        self._last_error = ""
        self._timers = [
            _IntervalTimer(self._copy_metrics, 0.0 if is_local(spec.model_path) else BUCKET_SECONDS),
            _IntervalTimer(self._copy_artifacts, ARTIFACT_SECONDS if is_local(spec.model_path) else 3 * BUCKET_SECONDS),
            _IntervalTimer(self._write_heartbeat, HEARTBEAT_SECONDS),
        ]

    def _begin(self, provenance: Provenance) -> None:
        self._files.started_event(
            ex_info=provenance.experiment,
            command=self._spec.command,
            host_info=provenance.host,
            start_time=utc_now(),
            config=dict(self._spec.config),
            meta_info={
                "arguments": list(self._spec.arguments),
                "uid": secrets.token_hex(12),
                **{key: value for key, value in dataclasses.asdict(self._spec.start).items() if value},
            },
            _id=None,
        )

    @property
    def id(self) -> str:
        """Returns the run's number."""
        return self.folder.name

    def update(self) -> None:
        """Copies what the child has written since the last call."""
        for timer in self._timers:
            if timer.is_due():
                self._try(timer.do)

    def progress(self) -> Progress:
        """Returns the progress according to what the child has written."""
        return self._metrics.progress

    def keep_output(self, data: bytes) -> None:
        """Stores output of the child."""
        self._output.append(data)

    def last_lines(self, n_lines: int) -> list[str]:
        """Returns its last lines of output."""
        return self._output.last_lines(n_lines)

    def note_restart(self, event: dict[str, object]) -> None:
        """Records why and when the child is restarted."""
        self._restarts = [*self._restarts, event][-MAX_RESTARTS_KEPT:]
        self._try(self._write_heartbeat)

    def finish(self, outcome: Outcome) -> bool:
        """Records how the run ended; returns whether the record is complete."""
        self._reason = outcome.reason
        steps = (self._copy_metrics, self._copy_artifacts, self._write_heartbeat, self._write_sacred_metrics)
        done = [self._try(step) for step in (*steps, lambda: self._close(outcome))]
        return all(done)

    def _close(self, outcome: Outcome) -> None:
        if outcome.status == "COMPLETED":
            self._files.completed_event(utc_now(), self._metrics.latest)
        elif outcome.status == "FAILED":
            self._files.failed_event(utc_now(), [outcome.reason, *self.last_lines(50)])
        else:
            self._files.interrupted_event(utc_now(), outcome.status)

    def _copy_metrics(self) -> None:
        self._metrics.update(self.folder / METRICS_FILE)

    def _copy_artifacts(self) -> None:
        for name, content in self._artifacts.read_changed(self.id):
            write_whole(self.folder / name, content)
            self._files.note_artifact(name)
            self._artifacts.note_copied(name)

    def _write_heartbeat(self) -> None:
        info = {
            "model_path": self._spec.model_path,
            "step": max(0, self._metrics.progress.furthest_step),
            "latest": self._metrics.latest,
            "restarts": self._restarts,
            "reason": self._reason,
        }
        self._files.heartbeat_event(info, "", utc_now(), self._metrics.latest)

    def _write_sacred_metrics(self) -> None:
        parts = (
            f"{json.dumps(name)}: {json.dumps(_as_sacred(series))}"
            for name, series in series_of(read_lines(self.folder)).items()
        )
        write_whole(self.folder / SACRED_METRICS_FILE, f"{{{', '.join(parts)}}}".encode())

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            step()
            return True
        except OSError as error:
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._say(f"run {self.id}: {error}: cannot be recorded now; the run continues, and this is retried")
            return False


class _IntervalTimer:
    """An action that is due at intervals."""

    def __init__(self, do: Callable[[], None], every_seconds: float) -> None:
        self.do = do
        self._every_seconds = every_seconds
        self._next_seconds = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether the interval is over, and starts the next one."""
        now_seconds = time.monotonic()
        if now_seconds < self._next_seconds:
            return False
        self._next_seconds = now_seconds + self._every_seconds
        return True


class _MetricsCopy:
    """Copies the metrics of this run into its record.

    Attributes:
        progress: how far the run has come.
        latest: by split, the last value of each metric and its step.
    """

    def __init__(self, model_path: str) -> None:
        path = f"{model_path.rstrip('/')}/{METRICS_FILE}"
        with _reading(path):
            self._tail = MetricsTail(path, skips_existing=True)
        self.progress = Progress()
        self.latest: dict[str, dict[str, float]] = {}
        self._unwritten: list[bytes] = []
        self._replaces_all = True
        self._was_replaced = False
        self._n_bytes = 0

    def update(self, target: Path) -> None:
        """Copies new lines."""
        self._take(self._tail.read_new(), target)
        if self._unwritten or self._replaces_all:
            self._write(target)

    def _take(self, new: NewLines, target: Path) -> None:
        """Keeps new lines until they are written: a full disk may take them later.

        Those of a file that was replaced take the place of the recorded ones from their first step on.
        """
        self._was_replaced |= new.replaces_all
        if self._was_replaced and new.lines:
            earlier = _before(new.lines, [*self._recorded(target), *self._unwritten])
            new = NewLines((*earlier, *new.lines), True)
            self._unwritten, self._replaces_all, self._was_replaced, self.latest = [], True, False, {}
        self._unwritten += new.lines
        for line in parse_lines(new.lines):
            self._note(line)

    def _recorded(self, target: Path) -> list[bytes]:
        return target.read_bytes()[: self._n_bytes].split(b"\n")[:-1] if self._n_bytes else []

    def _note(self, line: Line) -> None:
        self.latest[line.split] = {**self.latest.get(line.split, {}), **line.values, "step": line.step}
        before = self.progress
        self.progress = Progress(
            max(before.furthest_step, line.step), max(before.newest_seconds, line.time_seconds), line.step
        )

    def _write(self, target: Path) -> None:
        content = b"".join(line + b"\n" for line in self._unwritten)
        if self._replaces_all:
            write_whole(target, content)
            self._n_bytes = 0
        else:
            with target.open("r+b") as file:
                file.truncate(self._n_bytes)  # what a full disk took only in part
                file.seek(self._n_bytes)
                file.write(content)
        self._n_bytes += len(content)
        self._unwritten, self._replaces_all = [], False


def _before(new: Sequence[bytes], recorded: Sequence[bytes]) -> list[bytes]:
    """Returns the recorded lines of steps before the first of the new ones."""
    first = min((line.step for line in parse_lines(new)), default=0)
    return [text for text in recorded if (line := parse_line(text)) and line.step < first]


class _ArtifactCopies:
    """Copies samples and plots into the record, except those of earlier runs in the same folder."""

    def __init__(self, model_path: str) -> None:
        self._model_path = model_path.rstrip("/")
        with _reading(model_path):
            self._copied = {entry.name: entry.version for entry in list_files(self._model_path)}
        self._found: dict[str, tuple[int, int]] = {}

    def read_changed(self, run_id: str) -> Iterator[tuple[str, bytes]]:
        """Yields the name and content of each new or changed file."""
        patterns = [pattern.format(id=run_id) for pattern in ARTIFACT_PATTERNS]
        for entry in list_files(self._model_path):
            is_wanted = any(fnmatch.fnmatch(entry.name, pattern) for pattern in patterns)
            if is_wanted and self._copied.get(entry.name) != entry.version:
                self._found[entry.name] = entry.version
                yield entry.name, read_from(f"{self._model_path}/{entry.name}", 0)

    def note_copied(self, name: str) -> None:
        """Marks a yielded file as copied."""
        self._copied[name] = self._found[name]


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}; check its permissions, or give another model_path"
        ) from error


def _as_sacred(series: Series) -> dict[str, list[Any]]:
    times = [
        datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).replace(tzinfo=None).isoformat()
        for seconds in series.times_seconds
    ]
    return {"steps": series.steps.tolist(), "values": series.values.tolist(), "timestamps": times}
