"""Downloads from a server of this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import DataError, UserError
from storage import download as downloads
from storage.download import UnreachableError, checksum_of, download
from tests.file_server import FileServer, serving_files

CONTENT = bytes(range(256)) * 400
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving_files() as server:
        server.files["/a.jsonl"] = CONTENT
        yield server


def fetch(server: FileServer, folder: Path, checksum: str = CHECKSUM) -> list[tuple[int, int]]:
    """Downloads into `folder/new/a.jsonl`; returns the progress that was shown."""
    shown: list[tuple[int, int]] = []
    download(f"{server.url}/a.jsonl", f"{folder}/new/a.jsonl", checksum, lambda *numbers: shown.append(numbers))
    return shown


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "new").iterdir()}


def test_a_file_is_there_whole_and_nothing_beside_it(server: FileServer, tmp_path: Path) -> None:
    shown = fetch(server, tmp_path)
    assert content_of(tmp_path) == {"a.jsonl": CONTENT}
    assert shown[-1] == (len(CONTENT), len(CONTENT)) and server.ranges == [""]


def test_a_broken_connection_is_taken_up_where_it_broke(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 1000)
    server.bytes_per_answer = 45_000
    fetch(server, tmp_path)
    assert server.ranges == ["", "bytes=45000-", "bytes=90000-"]
    assert content_of(tmp_path) == {"a.jsonl": CONTENT}


def test_the_next_call_goes_on(server: FileServer, tmp_path: Path) -> None:
    server.bytes_per_answer = 30_000
    with pytest.raises(UserError, match=r"ended after 90,000 of 102,400 bytes; run the same command again to go on"):
        fetch(server, tmp_path)
    assert content_of(tmp_path) == {"a.jsonl.part": CONTENT[:90_000]}
    fetch(server, tmp_path)
    assert server.ranges[-1] == "bytes=90000-" and content_of(tmp_path) == {"a.jsonl": CONTENT}


@pytest.mark.parametrize("begun", [b"of another file", CONTENT + b"more"], ids=["other", "longer"])
def test_what_was_begun_with_another_file_is_dropped(server: FileServer, tmp_path: Path, begun: bytes) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.jsonl.part").write_bytes(begun)
    fetch(server, tmp_path)
    assert content_of(tmp_path) == {"a.jsonl": CONTENT}


def test_a_server_without_ranges_sends_the_file_again(server: FileServer, tmp_path: Path) -> None:
    server.has_ranges = False
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.jsonl.part").write_bytes(CONTENT[:50_000])
    fetch(server, tmp_path)
    assert server.ranges == ["bytes=50000-"] and content_of(tmp_path) == {"a.jsonl": CONTENT}


def test_a_server_need_not_tell_the_length(server: FileServer, tmp_path: Path) -> None:
    server.says_length = False
    assert fetch(server, tmp_path)[-1] == (len(CONTENT), 0)
    assert content_of(tmp_path) == {"a.jsonl": CONTENT}


@pytest.mark.parametrize("length", ["many", "-5", "²", ""])
def test_a_length_that_is_none_is_not_told(server: FileServer, tmp_path: Path, length: str) -> None:
    server.headers = {"Content-Length": length.encode().decode("latin-1")}
    assert fetch(server, tmp_path)[-1] == (len(CONTENT), 0)
    assert content_of(tmp_path) == {"a.jsonl": CONTENT}


def test_what_came_before_a_connection_stalls_is_kept(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.2)
    server.bytes_per_answer, server.stall_seconds = 30_000, 0.6
    with pytest.raises(UserError, match=r"ended after 90,000 of 102,400 bytes; run the same command again to go on"):
        fetch(server, tmp_path)
    assert content_of(tmp_path) == {"a.jsonl.part": CONTENT[:90_000]}


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (206, {"Content-Range": "bytes 999999999999-1000000000000/1000000000001"}, "another part than was asked for"),
        (302, {"Location": "/a.jsonl"}, r"answers 302 .*; try later$"),
        (302, {"Location": "file:///etc/hostname"}, r"answers 302 .*not allowed; try later$"),
    ],
    ids=["another part", "a loop", "a local file"],
)
def test_wrong_answers_are_one_line_and_nothing_is_written(
    server: FileServer, tmp_path: Path, status: int, headers: dict[str, str], message: str
) -> None:
    server.status, server.headers = status, headers
    with pytest.raises(DataError, match=message) as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value) and content_of(tmp_path) in ({}, {"a.jsonl.part": b""})


def test_another_file_than_the_published_one_is_not_kept(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: is not the published file, whose checksum is sha256:0; get it"):
        fetch(server, tmp_path, checksum="sha256:0")
    assert content_of(tmp_path) == {}


def test_a_file_that_the_server_does_not_have(server: FileServer, tmp_path: Path) -> None:
    del server.files["/a.jsonl"]
    with pytest.raises(DataError, match=r"a\.jsonl: the server answers 404 Not Found"):
        fetch(server, tmp_path)


def test_a_server_that_is_not_there(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="cannot be reached: .*refused"):
        fetch(FileServer(url="http://127.0.0.1:9"), tmp_path)


def test_a_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(server, tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_gits_checksum_is_gits(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    found = subprocess.run(["git", "hash-object", tmp_path / "a"], capture_output=True, text=True, check=True).stdout
    assert checksum_of(os.fspath(tmp_path / "a"), "git") == f"git:{found.strip()}"
