"""Tests of data/text/streams.py."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.errors import DataError
from data.preprocessing.settings import Settings, check_settings
from data.text.files import ReadingNotes, find_files
from data.text.streams import as_file
from data.train_tokenizer import Settings as TokenizerSettings
from data.train_tokenizer import train_tokenizer


def pipe_with(path: Path, content: bytes) -> str:
    """Makes a named pipe that a thread writes to once it is read."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
    return str(path)


def test_a_pipe_is_read_once_and_known_again_by_its_content(tmp_path):
    states, notes = [], ReadingNotes()
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        with as_file(pipe_with(tmp_path / name, content), notes) as path:
            assert Path(path).read_bytes() == Path(path).read_bytes() == content
            states += [(file.relative, *file.state()) for file in find_files([path])]
        assert not os.path.exists(path)
    assert states[0] == states[1] != states[2]
    assert notes.lines() == ["read as plain text: 3 pipe"]


@pytest.mark.parametrize("source", ["folder", "file.txt", "none"])
def test_other_sources_stay(tmp_path, source):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").touch()
    with as_file(f"{tmp_path}/{source}", ReadingNotes()) as path:
        assert path == f"{tmp_path}/{source}"


def test_a_pipe_without_end_is_refused_before_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    source = pipe_with(tmp_path / "a", bytes(1 << 20))
    held = "a: holds more than 524,288 bytes, half of the free space"
    with pytest.raises(DataError, match=held), as_file(source, ReadingNotes()):
        pass


def test_a_tokenizer_is_trained_on_a_pipe(tmp_path):
    content = b"the cat sat on the mat\n" * 20
    (tmp_path / "text.txt").write_bytes(content)
    sources = pipe_with(tmp_path / "pipe", content), f"{tmp_path}/text.txt"
    trained = [train_tokenizer(TokenizerSettings(source, 265, f"{tmp_path}/{i}")) for i, source in enumerate(sources)]
    assert Path(trained[0]).read_bytes() == Path(trained[1]).read_bytes()


def test_beam_needs_a_file(tmp_path):
    source = pipe_with(tmp_path / "a", b"")
    with pytest.raises(DataError, match="--input_dir .*/a: other machines cannot read a pipe; write its text to a"):
        check_settings(Settings(source, runner="DirectRunner"))
