"""Output to the terminal; with many processes only the first one writes."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

from runtime.cluster.process_group import ProcessGroup

SECONDS_BETWEEN_LINES = 10.0

Item = TypeVar("Item")


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


@contextlib.contextmanager
def mute_other_processes(group: ProcessGroup) -> Iterator[None]:
    """Discards the standard output of all processes but the first; errors are still shown."""
    with open(os.devnull, "w") as null, contextlib.ExitStack() as stack:
        if not group.is_first:
            stack.enter_context(contextlib.redirect_stdout(null))
        yield


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[TextIO]:
    """Redirects prints to standard error and yields standard output, which is left to the results."""
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield output


def with_progress(items: Iterable[Item], n_items: int, group: ProcessGroup) -> Iterator[Item]:
    """Yields the items and reports their number on standard error: a bar on a terminal, else a line now and then."""
    if not group.is_first or n_items == 1:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, total=n_items, unit=" answers", dynamic_ncols=True)
    else:
        yield from _with_lines(items, n_items)


@contextlib.contextmanager
def counting(what: str, total: int, group: ProcessGroup) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes how many more are done, and reports them on standard error as `with_progress` does.

    Args:
        what: is counted, for people.
        total: how many there are.
        group: of which the first process reports.
    """
    if not group.is_first:
        yield lambda count: None
    elif sys.stderr.isatty():
        with tqdm(total=total, desc=what, dynamic_ncols=True) as bar:
            yield bar.update
    else:
        yield _LineCounter(what, total).advance


class _LineCounter:
    """Writes a line now and then."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._reported_seconds = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now_seconds = time.monotonic()
        if now_seconds - self._reported_seconds >= SECONDS_BETWEEN_LINES:
            print(f"{self._what}: {self._done:,}/{self._total:,}", file=sys.stderr, flush=True)
            self._reported_seconds = now_seconds


def _with_lines(items: Iterable[Item], n_items: int) -> Iterator[Item]:
    reported_seconds = math.inf  # until the first item, whose time includes set-up
    for number, item in enumerate(items, start=1):
        yield item
        now_seconds = time.monotonic()
        is_due = now_seconds - reported_seconds >= SECONDS_BETWEEN_LINES
        if is_due:
            print(f"answer {number}/{n_items}", file=sys.stderr, flush=True)
        if number == 1 or is_due:
            reported_seconds = now_seconds
