"""Output to the terminal; with many processes only the first one writes."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
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
