"""Files in a bucket that grow or are rewritten."""

from __future__ import annotations

import time

import pytest

from storage import buckets, files
from storage.buckets import BucketError, ConflictError
from storage.files import GrowingObject, OwnFile, open_growing, write_bytes
from tests.storage.server import BROKEN_AFTER, BROKEN_BEFORE, Cloud

A = "gs://trials/run/a"


@pytest.fixture(autouse=True)
def soon(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SECONDS_BETWEEN_APPENDS", 0.1)


def wait_for(trials: Cloud, content: bytes) -> None:
    deadline = time.monotonic() + 20
    while buckets.read(A) != content and time.monotonic() < deadline:
        time.sleep(0.02)
    assert buckets.read(A) == content


def test_content_arrives_periodically_and_at_the_end(trials: Cloud) -> None:
    growing = open_growing(A)
    assert isinstance(growing, GrowingObject)
    for number in range(3):
        growing.write(b"%d\n" % number)
    wait_for(trials, b"0\n1\n2\n")
    growing.write(b"")  # nothing to wait for
    growing.flush()
    growing.write(b"3\n")
    growing.close()
    assert trials.read("trials", "run/a") == b"0\n1\n2\n3\n"
    again = open_growing(A)
    again.write(b"4\n")
    again.flush()
    assert trials.read("trials", "run/a") == b"0\n1\n2\n3\n4\n"
    again.close()
    assert trials.names("trials") == ["run/a"]


def test_empty_content_makes_no_object(trials: Cloud) -> None:
    growing = open_growing(A)
    growing.write(b"")
    growing.close()
    assert trials.names("trials") == []


def test_an_unavailable_bucket_blocks_nobody_and_loses_nothing(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.1)
    growing = open_growing(A)
    growing.write(b"0\n")
    wait_for(trials, b"0\n")
    for fault in (BROKEN_BEFORE, BROKEN_AFTER):
        trials.faults = lambda request, fault=fault: fault
        started = time.monotonic()
        growing.write(b"1\n")
        assert time.monotonic() - started < 0.1
        time.sleep(0.5)
        with pytest.raises(BucketError, match="does not answer"):
            growing.flush()
        growing.write(b"2\n")
        trials.faults = lambda request: None
        growing.flush()
    growing.close()
    assert trials.read("trials", "run/a") == b"0\n1\n2\n1\n2\n"


def test_a_second_writer_is_detected(trials: Cloud) -> None:
    mine = OwnFile(A)
    mine.write("1")
    yours = OwnFile(A)
    mine.write("2")
    with pytest.raises(ConflictError):
        yours.write("3")
    mine.write("4")
    assert trials.read("trials", "run/a") == b"4"


def test_a_file_is_there_whole_or_not_at_all(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.1)
    write_bytes(A, b"before")
    trials.faults = lambda request: BROKEN_BEFORE
    with pytest.raises(BucketError, match=f"{A}: does not answer"):
        write_bytes(A, b"after")
    trials.faults = lambda request: None
    assert (trials.read("trials", "run/a"), trials.names("trials")) == (b"before", ["run/a"])
