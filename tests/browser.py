"""A real browser for tests: Chromium of the system, and what drives it, installed once from npm."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[1] / ".node"
WANTED = ("omniboard@2.16.1", "playwright-core@1.65.1")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = (
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
)


def installed_packages() -> Path:
    """Returns the folder of Omniboard and the browser driver, as NODE_PATH takes it."""
    PACKAGES.mkdir(exist_ok=True)
    stamp = PACKAGES / "installed"
    with (PACKAGES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != " ".join(WANTED):
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(PACKAGES), *WANTED]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-2000:]
            stamp.write_text(" ".join(WANTED))
    return PACKAGES / "node_modules"
