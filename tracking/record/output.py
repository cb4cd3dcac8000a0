"""Stores the output of a child in a file of bounded size: its beginning and its end."""

from __future__ import annotations

import os
import threading
from pathlib import Path

KEPT_BYTES = 1 << 20  # at the beginning, and as many at the end
LIMIT_BYTES = 4 * KEPT_BYTES


class CapturedOutput:
    """Appends to a file, and drops its middle when it grows too long. Thread-safe.

    Nothing here ends a run: output that does not fit on a full disk is lost and counted as left out.
    """

    def __init__(self, path: Path) -> None:
        """Creates the file, empty."""
        self.path = path
        self._lock = threading.Lock()
        self._n_left_out_bytes = 0
        self._head = b""
        path.write_bytes(b"")

    def append(self, data: bytes) -> None:
        """Appends output."""
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(data)
                    size = file.tell()
                if size > LIMIT_BYTES:
                    self._shorten()
            except OSError:
                self._n_left_out_bytes += len(data)

    def last_lines(self, n_lines: int) -> list[str]:
        """Returns the last lines of the output."""
        return tail_of(self.path, 8192).rstrip().splitlines()[-n_lines:]

    def _shorten(self) -> None:
        with self.path.open("rb") as file:
            head = self._head or file.read(KEPT_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(-KEPT_BYTES, os.SEEK_END)
            tail = file.read()
        self._n_left_out_bytes += size - len(head) - len(self._note() if self._head else b"") - len(tail)
        self._head = head
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_bytes(head + self._note() + tail)
        os.replace(beside, self.path)

    def _note(self) -> bytes:
        return b"\n[... %20d bytes are left out here ...]\n" % self._n_left_out_bytes


def tail_of(path: Path, n_bytes: int) -> str:
    """Returns the end of a text file, at most `n_bytes`; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - n_bytes))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def shortened(path: Path, n_bytes: int) -> str:
    """Returns a text file, or only its beginning and end if it is longer than `n_bytes`."""
    try:
        size = path.stat().st_size
        if size <= n_bytes:
            return path.read_bytes().decode("utf-8", "replace")
        with path.open("rb") as file:
            head = file.read(n_bytes // 2).decode("utf-8", "replace")
    except OSError:
        return ""
    return f"{head}\n[... {size - n_bytes} bytes are left out here ...]\n{tail_of(path, n_bytes // 2)}"
