"""`--fetch_tasks` from the command line, from a server of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import main
from commands import fetch_tasks
from storage import download
from tasks.fetch import PUBLISHED, PublishedFile
from tests.file_server import FileServer, serving_files

CONTENT = b'{"context": "a", "continuation": "b"}\n' * 100
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    for name in list(PUBLISHED):
        monkeypatch.delitem(PUBLISHED, name)
    with serving_files() as server:
        for name in ("copa", "piqa"):
            server.files[f"/{name}.jsonl"] = CONTENT
            monkeypatch.setitem(PUBLISHED, name, PublishedFile(f"{server.url}/{name}.jsonl", CHECKSUM))
        yield server


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main.main(["--model", "benchmark_small", "--fetch_tasks", *arguments])
    return status, *capsys.readouterr()


def test_named_tasks_are_fetched(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "piqa")[:2] == (0, "datasets/tasks/piqa.jsonl: fetched\n")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == ["datasets/tasks/piqa.jsonl"]
    assert (tmp_path / "datasets/tasks/piqa.jsonl").read_bytes() == CONTENT


def test_without_names_all_are_fetched(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, errors = run(capsys, "--set", "eval_tasks_dir=mine")
    assert (status, output) == (0, "mine/copa.jsonl: fetched\nmine/piqa.jsonl: fetched\n")
    assert "no effect" not in errors


def test_what_cannot_be_fetched_is_an_error(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["/piqa.jsonl"] = b"an error page"
    status, output, errors = run(capsys, "piqa,copa")
    assert (status, output) == (2, "datasets/tasks/copa.jsonl: fetched\n")
    assert f"{server.url}/piqa.jsonl: is not the published file, whose checksum is {CHECKSUM}" in errors


def test_progress_is_shown_in_a_log(
    server: FileServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_tasks, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(fetch_tasks, "BYTES_PER_MB", 1000)
    monkeypatch.setattr(download, "CHUNK_BYTES", 2000)
    lines = run(capsys, "copa")[2].splitlines()
    assert [line for line in lines if "MB" in line] == [
        f"datasets/tasks/copa.jsonl: {done} of 3.8 MB" for done in ("2.0", "3.8")
    ]


def test_one_command_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(capsys, "piqa", "--eval")
