"""Work beside training: one piece at a time, in a thread that yields to the steps."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

# What the program `nice` adds. On CPUs the thread would otherwise take a third of two cores from a step; with the
# lowest priority, 19, it would hardly end where others have more work than there are cores.
NICENESS = 15


class BackgroundWork:
    """Runs one piece of work at a time; its error is raised in the thread that asks next."""

    def __init__(self, name: str) -> None:
        """Takes the name of the thread."""
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Starts a piece of work once the one before it is done.

        Raises:
            BaseException: what the one before it has raised; then nothing starts.
        """
        self.wait()
        # A daemon, so that Ctrl-C during `wait` ends the program.
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises the error of work that is done, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Returns when nothing is being done any more.

        Raises:
            BaseException: what the work has raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _run(self, work: Callable[[], None]) -> None:
        _lower_priority()
        try:
            work()
        except BaseException as error:
            self._error = error


def _lower_priority() -> None:
    """Lowers the priority of this thread; elsewhere than on Linux it would be that of the whole process."""
    if sys.platform == "linux":
        os.nice(NICENESS)
