"""Reads a run's `metrics.jsonl` while the run writes it.

A run that resumes from a checkpoint replaces the file by one without the steps after that checkpoint, so a reader that
remembers only its offset would return those steps twice. This one also remembers the last line it has read: if that
line is no longer at its place, the file was replaced, and all of it is read again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from tracking.record.run_files import read_from

MAX_SECONDS = 2.0**36  # since 1970, in the year 4147
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_OLD_NAMES = (
    (re.compile(r"data/skipped_share"), "data/skipped_fraction"),
    (re.compile(r"(moe/.*)/dropped"), r"\1/dropped_fraction"),
)


class Line(NamedTuple):
    """The metrics of one step; a tuple, as a long run has a million of them.

    Attributes:
        split: "train" or "eval".
        step: training steps done.
        time_seconds: when it was measured, in seconds since 1970.
        values: by metric; some may be NaN or infinite.
    """

    split: str
    step: int
    time_seconds: float
    values: dict[str, float]


@dataclasses.dataclass(frozen=True)
class NewLines:
    """The lines since the last read.

    Attributes:
        lines: complete lines, without line ends.
        replaces_all: whether they replace all lines returned before.
    """

    lines: tuple[bytes, ...]
    replaces_all: bool

    def __bool__(self) -> bool:
        return bool(self.lines) or self.replaces_all


@functools.cache
def current_name(name: str) -> str:
    """Returns the name that a metric has today; files of earlier versions hold others."""
    for old, new in _OLD_NAMES:
        if match := old.fullmatch(name):
            return match.expand(new)
    return name


def parse_line(text: bytes) -> Line | None:
    """Parses a line; returns None if it is not a line of metrics."""
    try:
        fields = json.loads(text.strip(b"\0"))  # a power cut may leave zero bytes before a line
        split, step, time_seconds = str(fields.pop("split")), int(fields.pop("step")), float(fields.pop("time", 0))
        values = {
            current_name(name): value if type(value) is float else _number(value) for name, value in fields.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    is_possible = 0 <= step < 2**63 and 0 <= time_seconds < MAX_SECONDS
    return Line(split, step, time_seconds, values) if is_possible else None


def parse_lines(lines: Iterable[bytes]) -> list[Line]:
    """Parses the lines, leaving out those that hold no metrics."""
    return [line for text in lines if (line := parse_line(text)) is not None]


def _number(value: object) -> float:
    return _NON_FINITE[value] if isinstance(value, str) else float(value)


class MetricsTail:
    """Follows a metrics file, which need not exist yet."""

    def __init__(self, path: str, skips_existing: bool) -> None:
        """Starts at the beginning of the file, or after the lines that an earlier run has left in it.

        Raises:
            OSError: the file cannot be read.
        """
        self._path = path
        self._offset = 0
        self._last_line = b""
        self._skipped: frozenset[int] = frozenset()  # hashes: no two lines are alike, as each holds its time
        if skips_existing:
            self._skipped = frozenset(map(hash, self.read_new().lines))

    def read_new(self) -> NewLines:
        """Returns the complete lines not returned before, or all lines if the file was replaced.

        Raises:
            OSError: the file cannot be read.
        """
        content = read_from(self._path, self._offset - len(self._last_line))
        is_replaced = not content.startswith(self._last_line)
        if is_replaced:
            self._offset, self._last_line = 0, b""
            content = read_from(self._path, 0)
        new = content[len(self._last_line) :]
        new = new[: new.rfind(b"\n") + 1]
        if new:
            self._offset += len(new)
            self._last_line = new[new.rfind(b"\n", 0, -1) + 1 :]
        lines = tuple(line for line in new.split(b"\n") if line and hash(line) not in self._skipped)
        return NewLines(lines, is_replaced)
