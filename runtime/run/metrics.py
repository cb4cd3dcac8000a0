"""The metrics of a run on disk: JSON lines for programs, and TensorBoard event files.

All other code reads `metrics.jsonl`. Each line is written whole and flushed, so that a killed run leaves at most one
torn line at the end, which the next writer removes and readers ignore. Other damage costs the damaged lines alone: the
next writer keeps the file as it was beside the one without them.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from configs.errors import DataError, line_numbers
from meshtf import tf
from storage.files import OwnFile, is_local, open_growing, write_new, writing_to

METRICS_FILE = "metrics.jsonl"
DAMAGED_START, DAMAGED_ENDING = "metrics.damaged", ".jsonl"  # what a damaged file is kept as
HISTOGRAM_BINS = 60
EVENT_FOLDERS = {"train": "", "eval": "eval"}  # GPT-Neo's places, by split

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and to TensorBoard event files under a model path.

    Attributes:
        path: the metrics file.
    """

    def __init__(self, model_path: str, resume_step: int | None = None, note: Callable[[str], None] = print) -> None:
        """Opens the metrics of a run for appending.

        Args:
            model_path: folder of the run, local or `gs://`; created if missing.
            resume_step: the step that training resumes from. Lines after it are dropped, and TensorBoard hides
                their points, because these steps are measured again. None keeps every line.
            note: is called with a line if lines are damaged and left out.

        Raises:
            DataError: the existing file cannot be read.
            UserError: there is no room, or no permission to write there.
        """
        self.path = metrics_path(model_path)
        self._model_path = model_path
        self._resume_step = resume_step
        self._events: dict[str, _EventFile] = {}
        with writing_to(self.path, tf.errors.OpError):
            tf.io.gfile.makedirs(model_path)
            _repair(self.path, math.inf if resume_step is None else resume_step, note)
        self._file = open_growing(self.path)

    def write(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one line, and the same values as TensorBoard scalars.

        Args:
            split: "train" or "eval".
            step: training steps done when the values were measured.
            values: named scalars (Python or NumPy); non-finite ones become the strings "nan", "inf" and "-inf",
                because JSON has no such numbers.

        Raises:
            UserError: there is no room, or no permission to write there.
        """
        reserved = {"step", "split", "time"} & set(values)
        assert not reserved, f"metrics may not be called {sorted(reserved)}"
        line = {"step": int(step), "split": split, "time": round(time.time(), 3)}
        line |= {name: to_json(value) for name, value in values.items()}
        self._file.write((json.dumps(line, allow_nan=False) + "\n").encode())
        with writing_to(self._event_folder(split), tf.errors.OpError):
            self._write_events(split, step, values)

    def write_histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Appends a histogram, for TensorBoard only.

        Args:
            step: as in `write`.
            name: the name of the histogram.
            values: numbers of any shape; non-finite ones are skipped.

        Raises:
            UserError: there is no room, or no permission to write there.
        """
        with writing_to(self._model_path, tf.errors.OpError):
            value = tf.compat.v1.Summary.Value(tag=name, histo=_histogram(values))
            self._event_file("train").add(step=step, summary=tf.compat.v1.Summary(value=[value]))

    def flush(self) -> None:
        """Waits until all lines are written, even to a bucket, where they otherwise go every few seconds.

        Raises:
            UserError: the bucket refuses them.
        """
        self._file.flush()

    def close(self) -> None:
        """Closes all files."""
        self._file.close()
        for split, writer in self._events.items():
            with writing_to(self._event_folder(split), tf.errors.OpError):
                writer.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_events(self, split: str, step: int, values: Mapping[str, float]) -> None:
        scalars = [tf.compat.v1.Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._event_file(split).add(step=int(step), summary=tf.compat.v1.Summary(value=scalars))

    def _event_file(self, split: str) -> _EventFile:
        """Returns the event file of a split, created on first use so that none stays empty, and anew once removed."""
        if split not in self._events:
            self._events[split] = _EventFile(self._event_folder(split), self._resume_step)
        elif self._events[split].is_removed():
            self._events[split] = _EventFile(self._event_folder(split), None)
        return self._events[split]

    def _event_folder(self, split: str) -> str:
        return posixpath.join(self._model_path, EVENT_FOLDERS[split])


def _histogram(values: np.ndarray) -> tf.compat.v1.HistogramProto:
    finite = np.asarray(values, np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    counts, edges = np.histogram(finite, HISTOGRAM_BINS)
    return tf.compat.v1.HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=len(finite),
        sum=finite.sum(),
        sum_squares=np.square(finite).sum(),
        bucket_limit=edges[1:],
        bucket=counts,
    )


class _EventFile:
    """Appends to a new TensorBoard event file; TensorFlow's writer would lose errors in its thread."""

    def __init__(self, folder: str, resume_step: int | None) -> None:
        tf.io.gfile.makedirs(folder)
        self._path = path = posixpath.join(folder, f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self._records = tf.io.TFRecordWriter(path) if is_local(path) else _RecordsInBucket(path)
        self.add(file_version="brain.Event:2")
        if resume_step is not None:
            start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
            self.add(step=resume_step + 1, session_log=start)

    def add(self, **content: Any) -> None:
        event = tf.compat.v1.Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
        self._records.flush()

    def is_removed(self) -> bool:
        return is_local(self._path) and not os.path.exists(self._path)

    def close(self) -> None:
        self._records.close()


class _RecordsInBucket:
    """Writes records to a bucket by way of a local file, which TensorFlow's writer can append to."""

    def __init__(self, path: str) -> None:
        with tempfile.TemporaryDirectory() as folder:  # an open file outlives its name
            here = posixpath.join(folder, "records")
            self._writer, self._written = tf.io.TFRecordWriter(here), open(here, "rb")  # noqa: SIM115 (closed below)
        self._object = open_growing(path)

    def write(self, record: bytes) -> None:
        self._writer.write(record)

    def flush(self) -> None:
        self._writer.flush()
        self._object.write(self._written.read())

    def close(self) -> None:
        self.flush()
        self._object.close()
        self._writer.close()
        self._written.close()


def metrics_path(model_path: str) -> str:
    """Returns the path of the metrics file of a run."""
    return posixpath.join(model_path, METRICS_FILE)


def read_metrics(model_path: str) -> list[dict[str, Any]]:
    """Reads the metrics of a run, which may still be running.

    Args:
        model_path: folder of the run.

    Returns:
        One dict per line, in file order, with non-finite values as floats. Empty if nothing was measured. Damaged
        lines are skipped, as the writer has said.

    Raises:
        DataError: the file cannot be read.
    """
    path = metrics_path(model_path)
    lines = _parse_lines(_read_bytes(path)) if tf.io.gfile.exists(path) else []
    return [_from_json(line) for line in lines if line is not None]


def _parse_lines(content: bytes) -> list[dict[str, Any] | None]:
    """Returns the lines of a metrics file as written, without a torn last one; None for a damaged one."""
    *complete, _torn = content.split(b"\n")
    parsed = [_parse_line(text.strip(b"\0")) for text in complete]  # a power cut may leave zero bytes before a line
    if parsed and parsed[-1] is None and not complete[-1].strip(b"\0"):
        parsed.pop()
    return parsed


def _read_bytes(path: str) -> bytes:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise DataError(f"{path}: cannot be read: {error.message}; move it away, or give another model_path") from error


def _parse_line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(line, dict) and {"step", "split"} <= set(line)):
        return None
    measures = (value for name, value in line.items() if name != "split")
    return line if isinstance(line["step"], int) and all(map(_is_measure, measures)) else None


def _is_measure(value: Any) -> bool:
    if isinstance(value, str):
        return value in _NON_FINITE
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _repair(path: str, last_step: float, note: Callable[[str], None]) -> None:
    """Drops torn and damaged lines and the lines after a step; rewrites the file only if something is dropped."""
    if not tf.io.gfile.exists(path):
        return
    file, found = OwnFile(path), _read_bytes(path)
    parsed = _parse_lines(found)
    damaged = [number for number, line in enumerate(parsed, start=1) if line is None]
    if damaged:
        aside = write_new(posixpath.join(posixpath.dirname(path), DAMAGED_START), DAMAGED_ENDING, found)
        note(f"{path}: {line_numbers(damaged)}: damaged, and left out; the file as it was is kept as {aside}")
    kept = [line for line in parsed if line is not None and line["step"] <= last_step]
    content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept)
    if content.encode() != found:
        file.write(content)


def to_json(value: float | str) -> float | str:
    """Returns a measure, Python's or NumPy's, as JSON has it: non-finite numbers become "nan", "inf" and "-inf"."""
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, str) or math.isfinite(number) else str(float(number))


def _from_json(line: dict[str, Any]) -> dict[str, Any]:
    return {name: _NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in line.items()}
