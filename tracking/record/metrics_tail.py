"""Reads a run's `metrics.jsonl` while the run writes it.

A run that goes on from a checkpoint replaces the file by one without the steps that it makes anew, so a reader that
only remembers how far it has read would tell those steps twice. This one also remembers the last line it has read: if
that no longer stands where it stood, the file is another one, and all of it is told again in place of what was told.
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
    """What was measured at one step; a tuple, for a long run has a million.

    Attributes:
        split: what it was measured on, as "train" or "eval".
        step: training steps made.
        time_seconds: when, since 1970.
        values: the measures by name; not all of them are finite.
    """

    split: str
    step: int
    time_seconds: float
    values: dict[str, float]


@dataclasses.dataclass(frozen=True)
class News:
    """What has come since the last look.

    Attributes:
        lines: whole lines, without their ends.
        replaces_all: whether they stand in place of all that was told before.
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
    """The measures of a line; None: it is none."""
    try:
        fields = json.loads(text)
        split, step, time_seconds = str(fields.pop("split")), int(fields.pop("step")), float(fields.pop("time", 0))
        values = {
            current_name(name): value if type(value) is float else _number(value) for name, value in fields.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    is_possible = 0 <= step < 2**63 and 0 <= time_seconds < MAX_SECONDS
    return Line(split, step, time_seconds, values) if is_possible else None


def parse_lines(lines: Iterable[bytes]) -> list[Line]:
    """The measures of all lines that hold some."""
    return [line for text in lines if (line := parse_line(text)) is not None]


def _number(value: object) -> float:
    return _NON_FINITE[value] if isinstance(value, str) else float(value)


class MetricsTail:
    """Tells the lines of a metrics file as they come; the file need not be there yet."""

    def __init__(self, path: str, passes_over_present: bool) -> None:
        """Starts at the beginning of the file, or behind what is in it now: what an earlier run has measured.

        Raises:
            OSError: the file cannot be read.
        """
        self._path = path
        self._offset = 0
        self._last_line = b""
        self._passed_over: frozenset[int] = frozenset()  # as hashes: a line holds its time, so that no two are alike
        if passes_over_present:
            self._passed_over = frozenset(map(hash, self.look().lines))

    def look(self) -> News:
        """The lines that are whole now and have not been told, or all lines if the file is no longer the same.

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
        lines = tuple(line for line in new.split(b"\n") if line and hash(line) not in self._passed_over)
        return News(lines, is_replaced)
