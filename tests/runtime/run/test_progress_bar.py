"""The progress of a run on a terminal and in a log."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios

from runtime.run.progress_bar import Progress


def test_a_log_gets_plain_lines_first_and_last() -> None:
    log = io.StringIO()
    with Progress(total_steps=300, first_step=100, stream=log) as progress:
        for step in range(101, 301):
            progress.update(step, loss=step / 100, tokens_per_second=12_345.6)
        progress.note("saved")
    lines = log.getvalue().splitlines()
    assert lines[0] == "step 101/300  loss 1.0100  12,346 tokens/s"
    assert len(lines) < 20  # of 200 steps, all within moments
    assert lines[-2:] == ["step 300/300  loss 3.0000  12,346 tokens/s", "saved"]
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()


def test_a_run_that_stops_early_leaves_its_last_step_in_the_log() -> None:
    log = io.StringIO()
    with Progress(total_steps=300, first_step=0, stream=log) as progress:
        for step in (1, 2):
            progress.update(step, loss=2.0, tokens_per_second=10)
    assert log.getvalue().splitlines()[1].startswith("step 2/300  loss 2.0000  10 tokens/s  ")
    assert log.getvalue().endswith(" left\n")


def test_the_share_of_the_peak_is_shown_if_it_is_known() -> None:
    log = io.StringIO()
    with Progress(total_steps=1, first_step=0, stream=log) as progress:
        progress.update(1, loss=2.0, tokens_per_second=1000, mfu=0.4567)
    assert log.getvalue() == "step 1/1  loss 2.0000  1,000 tokens/s  mfu 45.7%\n"


def test_nothing_done_writes_nothing() -> None:
    log = io.StringIO()
    Progress(total_steps=300, first_step=300, stream=log).close()
    assert log.getvalue() == ""


def _read_to_the_end(terminal: int) -> bytes:
    """Reads what was written, piece by piece: Linux reports the other side's end as an error."""
    pieces = []
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
    return b"".join(pieces)


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal, Progress(200, 50, terminal) as progress:
        progress.note("resumed at step 50")
        progress.update(200, loss=1.25, tokens_per_second=4096)
    shown = _read_to_the_end(ours).decode()
    os.close(ours)
    assert "resumed at step 50" in shown
    last = shown.rstrip().split("\r")[-1]
    assert last.startswith("100% |") and "step 200/200, loss 1.2500  4,096 tokens/s [" in last
