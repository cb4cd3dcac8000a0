"""Files of tasks from a server of this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from configs.errors import UserError
from storage.locks import locked
from tasks import fetch
from tasks.fetch import PUBLISHED, PublishedFile, fetch_tasks
from tasks.files import ROW_SUFFIXES
from tasks.table import TASKS
from tasks.task import CONTINUATION, Task
from tests.file_server import FileServer, serving_files

NAMES = ("one", "two")
FILES = {"one": "one.jsonl", "two": "sub/two.parquet"}
CONTENTS = {"one": b'{"context": "a", "continuation": "b"}\n' * 90, "two": b"{}\n" * 7}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving_files() as server:
        server.files.update({f"/{FILES[name]}": content for name, content in CONTENTS.items()})
        monkeypatch.setattr(fetch, "PUBLISHED", published(server.url))
        tasks = {
            name: Task(name, CONTINUATION, file) for name, file in (("one", "one.jsonl"), ("two", "sub/two.jsonl"))
        }
        monkeypatch.setattr(fetch, "TASKS", tasks)
        yield server


def published(url: str) -> dict[str, PublishedFile]:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    return {name: PublishedFile(f"{url}/{FILES[name]}", f"sha256:{digest}") for name, digest in digests.items()}


def run(folder: Path, names: Sequence[str] = NAMES) -> list[str]:
    return list(fetch_tasks(names, str(folder), lambda *progress: None))


def there(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_fetched_once(server: FileServer, tmp_path: Path) -> None:
    assert run(tmp_path) == [f"{tmp_path}/{file}: fetched" for file in FILES.values()]
    assert there(tmp_path) == {file: CONTENTS[name] for name, file in FILES.items()}
    assert run(tmp_path) == [f"{tmp_path}/{file}: is there already" for file in FILES.values()]
    assert server.ranges == ["", ""]


def test_progress_names_the_file(server: FileServer, tmp_path: Path) -> None:
    shown = []
    list(fetch_tasks(NAMES, str(tmp_path), lambda *progress: shown.append(progress)))
    assert (f"{tmp_path}/one.jsonl", len(CONTENTS["one"]), len(CONTENTS["one"])) in shown


def test_a_file_of_ones_own_is_not_replaced_and_the_others_are_fetched(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text("my own")
    with pytest.raises(UserError, match=r"one\.jsonl: is not the published file, and was left as it is; move it away"):
        run(tmp_path)
    assert there(tmp_path) == {"one.jsonl": b"my own", "sub/two.parquet": CONTENTS["two"]}


def test_without_a_network_one_line_says_where_to_put_which_file(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.jsonl").write_bytes(CONTENTS["one"])
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(fetch, "PUBLISHED", published(nowhere))
    with pytest.raises(UserError) as error:
        run(tmp_path)
    line = str(error.value)
    assert line.startswith(f"{nowhere}/sub/two.parquet: cannot be reached: ") and "\n" not in line
    assert line.endswith(
        f"; get the files where there is a network, and put {nowhere}/sub/two.parquet at {tmp_path}/sub/two.parquet"
    )
    assert list(there(tmp_path)) == ["one.jsonl"]


def test_a_task_without_a_published_file(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--fetch_tasks onee: no file of this task can be fetched; did you mean one\?"):
        run(tmp_path, ("one", "onee"))
    assert there(tmp_path) == {}


def test_two_processes_do_not_fetch_at_once(server: FileServer, tmp_path: Path) -> None:
    with (
        locked(f"{tmp_path}/.fetching", "", ""),
        pytest.raises(UserError, match="another process is fetching tasks into it; wait for it"),
    ):
        run(tmp_path)


def test_a_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval_tasks_dir = gs://a/tasks: is in a bucket; fetch into a local folder"):
        list(fetch_tasks(NAMES, "gs://a/tasks", lambda *progress: None))


def test_every_checksum_is_one() -> None:
    lengths = {"sha256": 64, "git": 40}
    for file in PUBLISHED.values():
        kind, _, digits = file.checksum.partition(":")
        assert len(digits) == lengths[kind] and set(digits) <= set("0123456789abcdef")
        assert file.url.startswith("https://") and os.path.splitext(file.url)[1] in ROW_SUFFIXES


def test_what_is_published_is_in_the_table() -> None:
    assert set(PUBLISHED) <= set(TASKS)
