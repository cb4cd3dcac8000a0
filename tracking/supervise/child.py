"""The child process that trains: starts it, shows its output, and ends it with all its own children."""

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
PUMP_SECONDS = 5.0  # to drain the pipes after a process has ended
MAX_LINE_BYTES = 1 << 16
MAX_LINE_CHARACTERS = 500
_PROGRESS_LINE = re.compile(rb"^step (\d+)/\d+ ", re.MULTILINE)


@dataclasses.dataclass
class LastLines:
    """The last lines that a process wrote to its standard output and its standard error."""

    output: str = ""
    error: str = ""


class Child:
    """A process in its own process group, so that Ctrl-C reaches it only through its parent.

    Attributes:
        id: its process id.
        printed_step: the last step in its progress output; None: none so far.
        last_lines: its last lines of output.
    """

    def __init__(self, command: Sequence[str], keep: Callable[[bytes], None]) -> None:
        """Starts the process.

        Args:
            command: the program and its arguments.
            keep: is called with whole lines of output, which is also copied to this process's own output.

        Raises:
            OSError: it cannot be started.
        """
        self.printed_step: int | None = None
        self.last_lines = LastLines()
        self._keep = keep
        self._is_cleaned_up = False
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
        """Returns the process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Returns the exit status, or the negative number of the signal that killed it; None while it runs."""
        status = self._process.poll()
        if status is not None:
            self._clean_up()
        return status

    def wait(self, limit_seconds: float) -> int | None:
        """Waits for the process, at most `limit_seconds`; returns the same as `poll`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_seconds)
        return self.poll()

    def send(self, number: int) -> None:
        """Sends a signal to this process alone."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """Kills the process group; returns the exit status."""
        self._kill_group()
        self._process.wait()
        self._clean_up()
        return self._process.returncode

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _clean_up(self) -> None:
        """Kills what the process has left running, which may hold the run's files open, and drains its output."""
        if self._is_cleaned_up:  # the id may belong to another group by now
            return
        self._is_cleaned_up = True
        self._kill_group()
        for pump in self._pumps:
            pump.join(PUMP_SECONDS)

    def _pump(self, name: str, source: BinaryIO, target: TextIO) -> None:
        sink: BinaryIO | None = target.buffer
        unfinished = b""
        while data := source.read1(1 << 16):
            sink = _show(sink, data)
            lines, end, unfinished = (unfinished + data).rpartition(b"\n")
            if len(unfinished) > MAX_LINE_BYTES:
                lines, end, unfinished = lines + end + unfinished, b"\n", b""
            self._take(name, lines + end)
        self._take(name, unfinished)
        source.close()

    def _take(self, name: str, lines: bytes) -> None:
        """Keeps whole lines, so that lines of the two streams do not mix."""
        if lines:
            self._keep(lines)
        messages = [line for line in lines.split(b"\n") if line.strip() and not _PROGRESS_LINE.match(line)]
        if messages:
            setattr(self.last_lines, name, messages[-1].decode("utf-8", "replace").strip()[:MAX_LINE_CHARACTERS])
        steps = _PROGRESS_LINE.findall(lines)
        if steps:
            self.printed_step = int(steps[-1])


def _show(target: BinaryIO | None, data: bytes) -> BinaryIO | None:
    """Copies data to a stream; returns None once its reader is gone, which must not end the run."""
    try:
        if target is not None:
            target.write(data)
            target.flush()
    except (OSError, ValueError):
        return None
    return target
