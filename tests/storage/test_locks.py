"""A lock on a disk has one holder at a time, and is free when its holder ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.errors import UserError
from storage.locks import is_locked, locked
from tests.program import REPOSITORY

HOLDER = """
import sys, time
from storage.locks import locked
with locked(sys.argv[1], "taken", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_held_lock_is_refused_and_then_free(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    assert not is_locked(str(path))
    for _ in range(2):
        with locked(str(path), "taken", "wait"):
            assert is_locked(str(path))
            with pytest.raises(UserError, match="^taken; wait$"), locked(str(path), "taken", "wait"):
                pass
        assert path.exists() and not is_locked(str(path))


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as process:
        assert is_locked(str(tmp_path / "lock"))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(str(tmp_path / "lock"), "taken", "wait"):
            pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as process:
        threading.Timer(0.3, process.kill).start()
        with locked(str(tmp_path / "lock"), "taken", "wait", wait_seconds=20.0):
            assert process.wait() == -signal.SIGKILL
    started = time.monotonic()
    with (
        locked(str(tmp_path / "lock"), "taken", "wait"),
        pytest.raises(UserError),
        locked(str(tmp_path / "lock"), "taken", "wait", wait_seconds=0.3),
    ):
        pass
    assert time.monotonic() - started >= 0.3


def test_holders_may_delete_the_file(tmp_path: Path) -> None:
    path, n_inside, most = str(tmp_path / "lock"), 0, 0

    def enter() -> None:
        nonlocal n_inside, most
        with locked(path, "taken", "wait", wait_seconds=20.0):
            n_inside += 1
            most = max(most, n_inside)
            time.sleep(0.01)
            n_inside -= 1
            os.remove(path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: enter(), range(12)))
    assert (most, os.listdir(tmp_path)) == (1, [])


WITHOUT_LOCKS = """
import sys
from storage.locks import is_locked, locked
from tests.failing_calls import fail
fail("flock", sys.argv[2])
with locked(sys.argv[1], "taken", "wait"):
    print(is_locked(sys.argv[1]))
"""


@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_said(tmp_path: Path, error: str) -> None:
    command = [sys.executable, "-c", WITHOUT_LOCKS, f"{tmp_path}/lock", error]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    reason = os.strerror(getattr(errno, error))
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "False\n",
        f"{tmp_path}/lock: cannot be locked: {reason}; going on without a lock, so start no second process there\n",
    )


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal = "^.*/file/lock: cannot be written: File exists; "
    with pytest.raises(UserError, match=refusal), locked(str(tmp_path / "file" / "lock"), "taken", "wait"):
        pass
