"""How much of a file the system caches."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def cached_bytes(path: Path) -> int:
    """Returns how much of a local file is in memory."""
    return int(_output("fincore", "--bytes", "--noheadings", "--output", "RES", str(path)))


def wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what conftest.py does to os.fsync: what is not on the disk cannot leave the cache."""
    monkeypatch.setattr(os, "fsync", os.fdatasync)


def _output(*arguments: str) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.strip()


def _lies_on_disk() -> bool:
    return _output("stat", "--file-system", "--format=%T", tempfile.gettempdir()) != "tmpfs"


needs_file_cache = pytest.mark.skipif(
    shutil.which("fincore") is None or not _lies_on_disk(),
    reason="fincore of util-linux is not installed, or temporary files lie in memory",
)
