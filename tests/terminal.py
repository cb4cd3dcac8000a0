"""A person at a terminal, for tests of what is typed there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from tests.program import ENVIRONMENT, command


class Terminal:
    """A process with a terminal and a home directory of its own, killed with the context."""

    def __init__(self, arguments: Sequence[str], home: Path, folder: Path | None = None) -> None:
        self.screen = ""
        self.ours, theirs = pty.openpty()
        environment = {**ENVIRONMENT, "HOME": str(home), "TERM": "dumb"}
        self.process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def more(self, seconds: float = 60.0) -> str:
        """Returns what appears next."""
        if not self.screen:
            assert select.select([self.ours], [], [], seconds)[0]
            self.screen = os.read(self.ours, 1 << 16).decode("utf-8", "replace")
        text, self.screen = self.screen, ""
        return text

    def until(self, text: str, seconds: float = 60.0) -> str:
        """Returns what appears up to a text."""
        end_seconds = time.monotonic() + seconds
        while text not in self.screen:
            assert select.select([self.ours], [], [], max(0.0, end_seconds - time.monotonic()))[0], self.screen
            self.screen += os.read(self.ours, 1 << 16).decode("utf-8", "replace")
        before, _, self.screen = self.screen.partition(text)
        return before
