"""The peak memory of a command and of the processes that it starts, read from /proc while they run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Peaks:
    """Peaks of resident memory (VmHWM), in bytes.

    Attributes:
        main_process: of the command itself.
        largest_other_process: of the largest process that it started; 0 without any.
        together: the largest sum over processes that ran at the same time.
        seconds: how long the command took.
    """

    main_process: int
    largest_other_process: int
    together: int
    seconds: float


def run_and_measure(command: Sequence[str]) -> Peaks:
    """Runs a command without its output.

    Raises:
        CalledProcessError: it fails.
    """
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peaks, together = {}, 0
    while process.poll() is None:
        alive = {pid: peak_bytes(pid) for pid in processes_of(process.pid)}
        peaks |= {pid: peak for pid, peak in alive.items() if peak}
        together = max(together, sum(alive.values()))
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    main_process = peaks.pop(process.pid)
    return Peaks(main_process, max(peaks.values(), default=0), together, seconds)


def peak_bytes(pid: int) -> int:
    """Returns the peak resident memory of a process so far; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines.get("VmHWM", "0").split()[0]) * 1024


def processes_of(pid: int) -> list[int]:
    """Returns a process and those that it has started, directly or not."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in processes_of(int(child)))]
