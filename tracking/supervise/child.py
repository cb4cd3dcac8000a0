"""The process that trains: started, shown, and ended with all that it has started."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

TETHER = Path(__file__).with_name("tether.py")
PUMP_SECONDS = 5.0  # for what a process leaves in its pipes when it ends
MAX_LINE_BYTES = 1 << 16
MAX_WORDS = 500  # characters of the last words
_SHOWN_STEP = re.compile(rb"^step (\d+)/\d+ ", re.MULTILINE)


@dataclasses.dataclass
class LastWords:
    """The last line that a process said on its standard output, and the last on its standard error."""

    output: str = ""
    error: str = ""


class Child:
    """A process in a group of its own, so that Ctrl-C reaches it through its parent only.

    Attributes:
        shown_step: the last step in what it says of its progress; None: none so far.
        last_words: what it said last.
    """

    def __init__(self, command: Sequence[str], keep: Callable[[bytes], None]) -> None:
        """Starts it. What it says is passed on to this process's own output as it comes, and to `keep` by whole lines.

        Raises:
            OSError: it cannot be started.
        """
        self.shown_step: int | None = None
        self.last_words = LastWords()
        self._keep = keep
        self._is_cleared_away = False
        tethered = [sys.executable, str(TETHER), str(os.getpid()), *command]
        self._process = subprocess.Popen(
            tethered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        ends = (("output", self._process.stdout, sys.stdout), ("error", self._process.stderr, sys.stderr))
        self._pumps = [threading.Thread(target=self._pump, args=end, daemon=True) for end in ends]
        for pump in self._pumps:
            pump.start()

    @property
    def id(self) -> int:
        """Its process number."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit status, or the signal that killed it as a negative number; None: it runs."""
        status = self._process.poll()
        if status is not None:
            self._clear_away()
        return status

    def wait(self, limit_seconds: float) -> int | None:
        """As `ended`, after waiting for it for at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_seconds)
        return self.ended()

    def send(self, number: int) -> None:
        """Sends a signal to it alone."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """Ends it and all that it has started, at once; its exit status."""
        self._kill_group()
        self._process.wait()
        self._clear_away()
        return self._process.returncode

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _clear_away(self) -> None:
        """Ends what it has left behind, which may hold the run's files, and shows what it said last."""
        if self._is_cleared_away:  # by now its number may be that of another group
            return
        self._is_cleared_away = True
        self._kill_group()
        for pump in self._pumps:
            pump.join(PUMP_SECONDS)

    def _pump(self, name: str, source: BinaryIO, target: TextIO) -> None:
        shown: BinaryIO | None = target.buffer
        unfinished = b""
        while data := source.read1(1 << 16):
            shown = _show(shown, data)
            lines, end, unfinished = (unfinished + data).rpartition(b"\n")
            if len(unfinished) > MAX_LINE_BYTES:
                lines, end, unfinished = lines + end + unfinished, b"\n", b""
            self._take_in(name, lines + end)
        self._take_in(name, unfinished)
        source.close()

    def _take_in(self, name: str, lines: bytes) -> None:
        """Keeps whole lines, so that those of both streams stand one after the other."""
        if lines:
            self._keep(lines)
        words = [line for line in lines.split(b"\n") if line.strip() and not _SHOWN_STEP.match(line)]
        if words:
            setattr(self.last_words, name, words[-1].decode("utf-8", "replace").strip()[:MAX_WORDS])
        steps = _SHOWN_STEP.findall(lines)
        if steps:
            self.shown_step = int(steps[-1])


def _show(target: BinaryIO | None, data: bytes) -> BinaryIO | None:
    """Passes data on; None once nobody reads it, which must not end the run."""
    try:
        if target is not None:
            target.write(data)
            target.flush()
    except (OSError, ValueError):
        return None
    return target
