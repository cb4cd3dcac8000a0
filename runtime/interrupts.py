"""Ctrl-C and SIGTERM: the first one asks to stop after the step in progress, the second one stops at once."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context manager that notes the first signal, and then gives the signals back to whom they were taken from.

    Attributes:
      signal_number: of the signal received; None: none so far.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __enter__(self) -> StopRequest:
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
