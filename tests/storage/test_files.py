"""Files are written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.errors import UserError
from storage.files import decode_text, drop_from_cache, flush_to_disk, is_stream, read_bytes, write_new, write_text
from tests.file_cache import cached_bytes, needs_file_cache, wait_for_the_disk
from tests.program import REPOSITORY


def test_a_file_is_written_whole_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "run" / "deeper" / "file.txt"
    write_text(str(path), "first, longer\n")
    write_text(str(path), "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_bare_name_lands_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text("file.txt", "text")
    assert (tmp_path / "file.txt").read_text() == "text"


def test_leftovers_of_a_crash_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "file.txt.part").write_text("torn")
    write_text(str(tmp_path / "file.txt"), "whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file.txt": "whole"}


def test_a_folder_in_the_way_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file.txt" / "inner").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        write_text(str(tmp_path / "file.txt"), "text")
    assert str(error.value).startswith(f"{tmp_path}/file.txt: cannot be written: ")
    assert str(error.value).endswith("; make room there, or give another path")
    assert (tmp_path / "file.txt" / "inner").is_dir()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError) as error:
        write_text(str(tmp_path / "run" / "file.txt"), "text")
    assert str(error.value) == (
        f"{tmp_path}/run/file.txt: cannot be written: File exists; make room there, or give another path"
    )
    assert (tmp_path / "run").read_text() == "mine"


@needs_file_cache
def test_a_file_is_dropped_from_the_cache_and_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_the_disk(monkeypatch)
    content = bytes(range(256)) * 4096
    path = tmp_path / "file"
    path.write_bytes(content)
    flush_to_disk(str(path))
    assert cached_bytes(path) == len(content)
    drop_from_cache(str(path))
    assert cached_bytes(path) == 0
    assert path.read_bytes() == content


def test_text_is_decoded_without_a_byte_order_mark() -> None:
    assert decode_text(b"\xef\xbb\xbfschon \xef\xbb\xbf") == "schon \ufeff"
    assert decode_text(b"\xef\xbb\xbf") == decode_text(b"") == ""
    with pytest.raises(UnicodeDecodeError) as error:
        decode_text(b"\xef\xbb\xbfcaf\xe9")
    assert error.value.start == 6


FAILING = """
import sys
from configs.errors import UserError
from storage import files
from tests.failing_calls import fail
fail("fsync", sys.argv[2])
try:
    files.write_text(sys.argv[1], "new")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("error", "reason"), [("EIO", "Input/output error"), ("ENOSPC", "No space left on device"), ("EINVAL", None)]
)
def test_a_disk_that_fails_is_said_and_one_that_cannot_flush_is_not(
    tmp_path: Path, error: str, reason: str | None
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    command = [sys.executable, "-c", FAILING, str(path), error]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    message = f"{path}: cannot be written: {reason}; make room there, or give another path\n" if reason else ""
    assert (done.returncode, done.stdout, done.stderr) == (0, message, "")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "old" if reason else "new")]


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    """Several writers at once get names of their own."""
    (tmp_path / "text_1.txt").write_text("of yesterday")
    (tmp_path / "text_1.2.txt.part").write_text("torn")  # by a crash, or by a writer that is not yet done
    texts = [f"text {number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda text: write_new(f"{tmp_path}/text_1", ".txt", text.encode()), texts))
    assert sorted(paths) == sorted(f"{tmp_path}/text_1.{number}.txt" for number in range(3, 23))
    assert [Path(path).read_text() for path in paths] == texts
    assert (tmp_path / "text_1.txt").read_text() == "of yesterday"
    assert write_new(f"{tmp_path}/run/text_2", ".txt", b"first") == f"{tmp_path}/run/text_2.txt"


def test_a_pipe_is_read_whatever_its_size_is_said_to_be(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"text" * 50_000))
    writer.start()
    assert read_bytes(str(pipe)) == b"text" * 50_000
    writer.join()
    assert b"python" in read_bytes("/proc/self/cmdline") and os.stat("/proc/self/cmdline").st_size == 0
    assert [is_stream(str(path)) for path in (pipe, tmp_path, tmp_path / "no", "/dev/null", __file__)] == [
        True,
        False,
        False,
        True,
        False,
    ]
