"""Starts all processes of a run on this machine, and ends them together."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

MAIN = Path(__file__).resolve().parents[1] / "main.py"
TETHER = MAIN.parent / "tracking" / "supervise" / "tether.py"
LOOPBACK = "127.0.0.1"
PROCESS_LOST = 3  # of a process that ends because another one has
POLL_SECONDS = 0.1
# After one has failed, the others notice it within a minute, and may write what they were writing.
SECONDS_TO_NOTICE, SECONDS_TO_END = 90.0, 300.0


def run_local_processes(count: int, words: Sequence[str]) -> int:
    """Runs the same command in `count` processes of this machine, each with its own device.

    Signals go to all of them. If this process is killed, they stop as at SIGTERM.

    Args:
        count: at least 2.
        words: of the command line of main.py.

    Returns:
        0 if all have finished, or else the exit status of the one that failed first.
    """
    hosts = ",".join(f"{LOOPBACK}:{port}" for port in free_ports(count))
    own = [sys.executable, str(TETHER), str(os.getpid()), sys.executable, str(MAIN), *words]
    processes: list[subprocess.Popen[bytes]] = []
    with _passed_on(processes):
        for index in range(count):
            flags = ["--processes", "1", "--hosts", hosts, "--host_index", str(index)]  # the last --processes counts
            stdin = None if index == 0 else subprocess.DEVNULL
            processes.append(subprocess.Popen([*own, *flags], stdin=stdin))
        return _wait(processes)


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Passes signals on. A terminal sends Ctrl-C to the processes too; they get SIGTERM, so that it counts once."""

    def send(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    taken = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, send) for number in taken}
    try:
        yield
    finally:
        for process in processes:
            process.kill()  # does nothing to those that have ended
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all have ended, and ends those that outlive a failed one by far; returns the exit status."""
    failed: list[tuple[int, int]] = []  # index and exit status, in the order of time
    left, ends = dict(enumerate(processes)), [subprocess.Popen.terminate, subprocess.Popen.kill]
    end_seconds = math.inf
    while left:
        time.sleep(POLL_SECONDS)
        for index, process in list(left.items()):
            if process.poll() is not None:
                del left[index]
                failed += [(index, process.returncode)] if process.returncode else []
        if failed and end_seconds == math.inf:
            end_seconds = time.monotonic() + SECONDS_TO_NOTICE
        if ends and time.monotonic() > end_seconds:
            end, end_seconds = ends.pop(0), time.monotonic() + SECONDS_TO_END
            for process in left.values():
                end(process)
    return _exit_status(failed)


def _exit_status(failed: Sequence[tuple[int, int]]) -> int:
    """Returns the status of the first that failed by itself, and says which one a signal has killed."""
    index, status = next((each for each in failed if each[1] != PROCESS_LOST), (failed or [(0, 0)])[0])
    if status >= 0:
        return status
    print(f"process {index}: was killed by {signal.Signals(-status).name}", file=sys.stderr, flush=True)
    return 128 - status
