"""Shows the progress of a run: a bar on a terminal, an occasional plain line in a log.

It uses no TensorFlow, and writes control characters to terminals only.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0

_BAR_FORMAT = "{percentage:3.0f}% |{bar}| step {n_fmt}/{total_fmt}{postfix} [{elapsed}, {remaining} left]"


class Progress:
    """Shows step, loss, tokens per second and remaining time of a run; a context manager."""

    def __init__(self, total_steps: int, first_step: int, stream: TextIO | None = None) -> None:
        """Starts at `first_step` of `total_steps`; `stream` is standard error unless given."""
        stream = sys.stderr if stream is None else stream
        shown = _Bar if stream.isatty() else _Lines
        self._shown = shown(total_steps, first_step, stream)

    def update(self, step: int, loss: float, tokens_per_second: float, mfu: float | None = None) -> None:
        """Shows the last step, its loss (nats), the speed, and the model flops utilisation if known."""
        share = "" if mfu is None else f"  mfu {mfu:.1%}"
        self._shown.update(step, f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s{share}")

    def note(self, text: str) -> None:
        """Writes a line of text without disturbing the bar."""
        self._shown.note(text)

    def close(self) -> None:
        """Draws the last state and ends the line."""
        self._shown.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Bar:
    def __init__(self, total_steps: int, first_step: int, stream: TextIO) -> None:
        self._stream = stream
        self._bar = tqdm(
            total=total_steps, initial=first_step, file=stream, dynamic_ncols=True, bar_format=_BAR_FORMAT, miniters=1
        )

    def update(self, step: int, values: str) -> None:
        self._bar.set_postfix_str(values, refresh=False)
        self._bar.update(step - self._bar.n)

    def note(self, text: str) -> None:
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        self._bar.refresh()
        self._bar.close()


class _Lines:
    def __init__(self, total_steps: int, first_step: int, stream: TextIO) -> None:
        self._total_steps = total_steps
        self._stream = stream
        self._first_step: int | None = None  # the clock starts after the first update, which includes set-up
        self._first_seconds = 0.0
        self._written_step = first_step
        self._written_seconds = -SECONDS_BETWEEN_LINES
        self._latest = (first_step, "")

    def update(self, step: int, values: str) -> None:
        now_seconds = time.monotonic()
        if self._first_step is None:
            self._first_step, self._first_seconds = step, now_seconds
        self._latest = (step, values)
        if now_seconds - self._written_seconds >= SECONDS_BETWEEN_LINES or step >= self._total_steps:
            self._write(now_seconds)

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._latest[0] > self._written_step:
            self._write(time.monotonic())

    def _write(self, now_seconds: float) -> None:
        step, values = self._latest
        self.note(f"step {step}/{self._total_steps}  {values}{self._time_left(step, now_seconds)}")
        self._written_step, self._written_seconds = step, now_seconds

    def _time_left(self, step: int, now_seconds: float) -> str:
        timed_steps = step - self._first_step
        if timed_steps == 0 or step >= self._total_steps:
            return ""
        seconds = (now_seconds - self._first_seconds) / timed_steps * (self._total_steps - step)
        return f"  {tqdm.format_interval(seconds)} left"
