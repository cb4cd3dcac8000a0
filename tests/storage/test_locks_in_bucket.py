"""A lock in a bucket has one holder at a time, however holders end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from configs.errors import UserError
from runtime.run import directory as run_directory
from runtime.run import lock
from storage import buckets, locks
from tests.program import REPOSITORY
from tests.storage.server import BROKEN_BEFORE, Cloud

FOLDER = "gs://trials/run"
LOCK = f"{FOLDER}/lock"
LOCK_ARGUMENTS = LOCK, f"{FOLDER}: another process is here", "wait for it"
HOLDER = """
import sys, time
from storage import locks
locks.RENEWAL_SECONDS = 0.1
with locks.locked(*sys.argv[1:]):
    print("held", flush=True)
    time.sleep(60)
"""
ELSEWHERE = json.dumps({"host": "far", "machine": "another", "process": 7, "started": "1", "lock": "x"}).encode()


@pytest.fixture(autouse=True)
def short_times(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(locks, "RECHECK_SECONDS", 0.05)


@contextlib.contextmanager
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *LOCK_ARGUMENTS],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_lock_is_held_and_free_again(trials: Cloud) -> None:
    for _ in range(2):
        with lock.locked(FOLDER):
            with pytest.raises(UserError) as raised, lock.locked(FOLDER):
                pass
            assert str(raised.value).startswith(
                f"model_path = {FOLDER}: another process trains here, process {os.getpid()} of "
            )
            assert trials.names("trials") == ["run/lock"]
        assert trials.names("trials") == []


def test_a_run_is_deleted_but_for_the_lock(trials: Cloud) -> None:
    for name in ("run/checkpoint", "run/eval/events", "runs/other"):
        trials.write("trials", name, b"x")
    with lock.locked(FOLDER):
        run_directory.delete_contents(f"{FOLDER}/")
        assert trials.names("trials") == ["run/lock", "runs/other"]


def test_a_run_needs_a_bucket_that_is_there(trials: Cloud) -> None:
    run_directory.check_access(FOLDER)
    with pytest.raises(UserError, match="gs://nowhere/run: there is no bucket nowhere; create it"):
        run_directory.check_access("gs://nowhere/run")


def test_processes_of_this_machine_need_no_waiting(trials: Cloud) -> None:
    with holder() as process:
        with pytest.raises(UserError, match=f"another process is here, process {process.pid} of "):
            locks._take(*LOCK_ARGUMENTS)
        process.kill()
        process.wait()
        locks._take(*LOCK_ARGUMENTS)


def test_a_remote_holder_that_no_longer_renews_loses_the_lock(
    trials: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = buckets.replace(LOCK, ELSEWHERE, 0)
    started = time.monotonic()
    assert locks._take(*LOCK_ARGUMENTS) != generation
    assert time.monotonic() - started > 1.0
    assert "held by process 7 of far; waiting up to 1 s" in capsys.readouterr().err


def test_a_remote_holder_that_renews_keeps_the_lock(trials: Cloud) -> None:
    generation = buckets.replace(LOCK, ELSEWHERE, 0)
    stop = threading.Event()
    renewing = threading.Thread(target=locks._renew, args=(LOCK, generation, stop))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "RENEWAL_SECONDS", 0.3)
        renewing.start()
        try:
            with pytest.raises(UserError, match="another process is here, process 7 of far"):
                locks._take(*LOCK_ARGUMENTS)
        finally:
            stop.set()
            renewing.join()
    assert trials.read("trials", "run/lock") == ELSEWHERE


def test_a_stale_lock_is_free_at_once(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STALE_SECONDS", -60.0)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1000.0)
    buckets.replace(LOCK, ELSEWHERE, 0)
    locks._take(*LOCK_ARGUMENTS)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_a_lock_without_a_holder_is_waited_for(trials: Cloud, content: bytes) -> None:
    buckets.replace(LOCK, content, 0)
    locks._take(*LOCK_ARGUMENTS)


def test_one_of_many_gets_the_lock(trials: Cloud) -> None:
    buckets.replace(LOCK, ELSEWHERE, 0)

    def won() -> bool:
        try:
            locks._take(*LOCK_ARGUMENTS)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: won(), range(4))) == 1


def test_a_holder_that_lost_the_lock_is_stopped_and_writes_no_more(trials: Cloud) -> None:
    token = lock.FencingToken(FOLDER)
    token.check()
    with holder() as process:
        buckets.write(LOCK, ELSEWHERE)
        _, printed = process.communicate(timeout=20)
        assert process.returncode == -signal.SIGTERM
    assert printed == f"{LOCK}: another process has taken the lock; this one stops\n"
    with pytest.raises(UserError, match=f"model_path = {FOLDER}: another process has taken over the run"):
        token.check()
    assert trials.read("trials", "run/lock") == ELSEWHERE


def test_a_network_that_fails_does_not_lose_the_lock(trials: Cloud) -> None:
    with holder() as process:
        trials.faults = lambda request: BROKEN_BEFORE
        time.sleep(1.0)
        trials.faults = lambda request: None
        before = buckets.stat(LOCK)
        deadline = time.monotonic() + 20
        while buckets.stat(LOCK).metadata == before.metadata and time.monotonic() < deadline:
            time.sleep(0.05)
        assert buckets.stat(LOCK).metadata != before.metadata and process.poll() is None
