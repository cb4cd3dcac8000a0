"""What is told to the person at the screen, by the first of many processes."""

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
    """Tells the person at the screen what is going on."""
    print(text, flush=True)


@contextlib.contextmanager
def only_first_speaks(group: ProcessGroup) -> Iterator[None]:
    """Keeps what is said, but errors, from being said as many times as there are processes."""
    with open(os.devnull, "w") as nobody, contextlib.ExitStack() as stack:
        if not group.is_first:
            stack.enter_context(contextlib.redirect_stdout(nobody))
        yield


@contextlib.contextmanager
def speaking_aside() -> Iterator[TextIO]:
    """Leaves standard output, which it gives, to what a program may read; all that is said goes to standard error."""
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield output


def counted(items: Iterable[Item], n_items: int, group: ProcessGroup) -> Iterator[Item]:
    """Passes on answers, and shows on standard error how many there are: by a bar, or now and then by a line."""
    if not group.is_first or n_items == 1:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, total=n_items, unit=" answers", dynamic_ncols=True)
    else:
        yield from _counted_by_lines(items, n_items)


def _counted_by_lines(items: Iterable[Item], n_items: int) -> Iterator[Item]:
    told_seconds = math.inf  # until the first one, which also pays for set-up
    for number, item in enumerate(items, start=1):
        yield item
        now_seconds = time.monotonic()
        if now_seconds - told_seconds >= SECONDS_BETWEEN_LINES:
            print(f"answer {number}/{n_items}", file=sys.stderr, flush=True)
        if number == 1 or now_seconds - told_seconds >= SECONDS_BETWEEN_LINES:
            told_seconds = now_seconds
