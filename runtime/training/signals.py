"""Signals that end training: the first stops it after the current step; a Ctrl-C after it stops at once.

A job scheduler announces the end of a job by SIGTERM, SIGUSR1 or SIGUSR2, and a terminal that is closed sends SIGHUP.
A second of these changes nothing: schedulers may send several to each process, and the checkpoint that the first one
asked for must still be written. A signal that is ignored when the program starts stays ignored, such as SIGHUP under
nohup.

Python heeds signals between its own instructions, so not while XLA compiles. A thread then says that a signal was
heard, and ends the program at a second Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

HEED_SECONDS = 2.0  # a signal that is not heeded for so long has met code that heeds none

Handler = Callable[[int, "FrameType | None"], object] | int


class Stopped(Exception):
    """A signal ends training now.

    Attributes:
        signal_number: the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Makes every signal raise KeyboardInterrupt, as Ctrl-C does, for work that may stop anywhere."""
    with handled(signal.default_int_handler):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores the signals during a short task that must not be cut off."""
    with handled(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Handles each signal that is not ignored."""
    previous = _replace(handler)
    try:
        yield
    finally:
        _restore(previous)


def _replace(handler: Handler) -> dict[int, Handler]:
    """Handles each signal that is not ignored; returns the handlers before."""
    heeded = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heeded}


def _restore(previous: dict[int, Handler]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)


def stopped_during(work: Callable[..., None], *arguments: object) -> int | None:
    """Does work that `StopRequest.check` may end; returns the signal that did, if any."""
    try:
        work(*arguments)
    except Stopped as stopped:
        return stopped.signal_number
    return None


def _write(line: str) -> None:
    """Writes a line to standard error without its lock, which the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno(), f"{line}\n".encode())


class StopRequest:
    """A context manager that records the first signal, and then restores the handler of Ctrl-C.

    Attributes:
        signal_number: the signal received; None so far.
    """

    def __init__(self, all_reduce_max: Callable[[int], int] = lambda number: number) -> None:
        """Takes the maximum over all processes, so that all stop at the same step."""
        self.signal_number: int | None = None
        self._all_reduce_max = all_reduce_max

    def __enter__(self) -> StopRequest:
        self._left = threading.Event()
        self._previous = _replace(self._receive)
        self._arrivals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        _restore(self._previous)
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakeup.close()  # which ends the thread

    def _watch(self) -> None:
        """Runs in a thread: gets the number of each signal as it arrives."""
        is_said, is_second = False, False
        with self._arrivals:
            while number := self._arrivals.recv(1)[:1]:
                if number[0] not in self._previous:
                    continue
                is_left = self._left.wait(HEED_SECONDS)
                if is_second and number[0] == signal.SIGINT and not is_left:
                    _write("ended by a second Ctrl-C; what was trained since the last checkpoint is lost")
                    os._exit(128 + signal.SIGINT)
                if self.signal_number is None and not (is_left or is_said):
                    name, is_said = signal.Signals(number[0]).name, True
                    _write(f"{name}: heard; stops once a program is compiled; a second Ctrl-C ends at once")
                is_second = True

    def agree(self, own: int | None = None) -> int:
        """Returns the largest number of all processes, which call this together.

        Args:
            own: the number of this process; None: that of the signal it has received, or 0.
        """
        return self._all_reduce_max((self.signal_number or 0) if own is None else own)

    def check(self) -> None:
        """Ends what all processes do together once one of them has received a signal.

        Raises:
            Stopped: one has.
        """
        if signal_number := self.agree():
            raise Stopped(signal_number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = self.signal_number or number
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
