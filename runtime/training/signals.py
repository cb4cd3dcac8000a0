"""Ctrl-C and SIGTERM: the first one asks to stop after the step in progress; after it, Ctrl-C stops at once.

SIGTERM is sent by machines, which may send it more than once, to each process of a run by another way: a second one
changes nothing, so that the checkpoint that the first one asked for is written.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does, for work that has nothing to finish: it raises KeyboardInterrupt."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets neither Ctrl-C nor SIGTERM end what takes a moment and must be whole."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """A context manager that notes the first signal, and then gives Ctrl-C back to whom it was taken from.

    Attributes:
        signal_number: of the signal received; None: none so far.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = self.signal_number or number
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
