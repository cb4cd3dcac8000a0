"""Files on a disk, and in the buckets of a real server of Google Cloud Storage's protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import buckets
from tests.storage.server import BROKEN_AFTER, BROKEN_BEFORE, Cloud, cloud
from tracking.record import run_files
from tracking.record.metrics_tail import MetricsTail, NewLines
from tracking.record.run_files import list_files, read_from

Write = Callable[[str, bytes], None]


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """With an empty bucket called trials."""
    with cloud(tmp_path) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        buckets._client_of.cache_clear()
        found.client.create_bucket("trials")
        yield found
    buckets._client_of.cache_clear()


@pytest.fixture
def bucket(google: Cloud) -> Write:
    """Writes into the bucket."""
    return lambda name, content: google.write("trials", name, content)


def test_files_on_a_disk(tmp_path: Path) -> None:
    assert (read_from(str(tmp_path / "a"), 3), list_files(str(tmp_path / "none"))) == (b"", [])
    (tmp_path / "a").write_bytes(b"01234")
    (tmp_path / "folder").mkdir()
    assert [read_from(str(tmp_path / "a"), offset) for offset in (0, 3, 5, 9)] == [b"01234", b"34", b"", b""]
    (before,) = list_files(str(tmp_path))
    (tmp_path / "a").write_bytes(b"012345")
    (after,) = list_files(str(tmp_path))
    assert (before.name, after.name) == ("a", "a") and before.version != after.version
    with pytest.raises(OSError):
        read_from(str(tmp_path), 0)


def test_files_in_a_bucket(bucket: Write) -> None:
    assert (read_from("gs://trials/run/a", 3), list_files("gs://trials/none")) == (b"", [])
    assert (read_from("gs://nowhere/a", 0), list_files("gs://nowhere/a")) == (b"", [])
    bucket("run/a", b"01234")
    bucket("run/folder/b", b"01234")
    assert [read_from("gs://trials/run/a", offset) for offset in (0, 3, 5, 9)] == [b"01234", b"34", b"", b""]
    (before,) = list_files("gs://trials/run/")
    bucket("run/a", b"56789")
    (after,) = list_files("gs://trials/run")
    assert (before.name, after.name) == ("a", "a") and before.version != after.version


def test_a_broken_connection_is_retried(google: Cloud) -> None:
    google.write("trials", "run/a", b"01234")
    broken = [BROKEN_BEFORE, BROKEN_AFTER]
    google.faults = lambda request: broken.pop() if broken else None
    assert read_from("gs://trials/run/a", 3) == b"34" and not broken
    broken = [BROKEN_BEFORE, 503]
    assert [entry.name for entry in list_files("gs://trials/run")] == ["a"] and not broken


def test_an_unreachable_bucket_fails_soon(google: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_files, "_RETRY_SECONDS", 0.2)
    google.faults = lambda request: BROKEN_BEFORE
    with pytest.raises(OSError, match="gs://trials/run/a: "):
        read_from("gs://trials/run/a", 0)
    google.faults = lambda request: 503
    with pytest.raises(OSError, match="gs://trials/run: "):
        list_files("gs://trials/run")


def test_metrics_in_a_bucket_are_read_as_they_come(bucket: Write) -> None:
    tail = MetricsTail("gs://trials/run/metrics.jsonl", skips_existing=False)
    assert not tail.read_new()
    bucket("run/metrics.jsonl", b'{"a": 1}\n{"b"')
    assert tail.read_new() == NewLines((b'{"a": 1}',), False)
    bucket("run/metrics.jsonl", b'{"a": 1}\n{"b": 2}\n')
    assert tail.read_new() == NewLines((b'{"b": 2}',), False)
    assert not tail.read_new()
    bucket("run/metrics.jsonl", b'{"a": 1}\n')
    assert tail.read_new() == NewLines((b'{"a": 1}',), True)
