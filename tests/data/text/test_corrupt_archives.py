"""Damage to archives and compressed files is found, whatever it is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from configs.errors import DataError
from data.text.documents import Document, read_documents
from data.text.files import SourceFile

N_CORRUPTIONS = 200
WORDS = random.Random(3).choices(["token", "stream", "schöne", "Wörter", "1979", ".\n"], k=600)
TEXTS = [" ".join(WORDS[start : start + 120]) for start in range(0, 600, 120)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, text in enumerate(TEXTS):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, text in enumerate(TEXTS):
            archive.writestr(f"{number}.txt", text)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "a.tar": tar_bytes,
    "a.tar.gz": lambda: gzip.compress(tar_bytes(), mtime=0),
    "a.tar.bz2": lambda: bz2.compress(tar_bytes()),
    "a.tar.xz": lambda: lzma.compress(tar_bytes()),
    "a.zip": zip_bytes,
    "a.jsonl.gz": lambda: gzip.compress(LINES, mtime=0),
    "a.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(LINES).__bytes__,
}


def corrupt(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    flipped = bytes([content[at] ^ 1 << draw.randrange(8)])
    cuts = (b"", flipped + content[at + 1 :], content[at + draw.choice([1, 2, 9, 100, 512]) :])
    return content[:at] + draw.choice(cuts)


def outcome(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        documents = list(read_documents(SourceFile(str(path), path.name)))
    except DataError as error:
        assert str(error).startswith(f"{path}: cannot be read (")
        return "error"
    if [document.text for document in documents] == TEXTS:
        return "same"
    # The text of a plain tar file has no checksum; its headers, and so the number of documents, have one.
    assert path.name == "a.tar" and len(documents) == len(TEXTS)
    return "changed"


@pytest.mark.parametrize("name", FORMATS)
def test_a_corrupt_file_is_an_error_or_has_the_same_documents(tmp_path, name):
    content, draw = FORMATS[name](), random.Random(name)
    assert outcome(tmp_path / name, content) == "same"
    outcomes = Counter(outcome(tmp_path / name, corrupt(content, draw)) for _ in range(N_CORRUPTIONS))
    assert outcomes["error"] > N_CORRUPTIONS / 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_at_any_block_is_an_error(tmp_path, name):
    content = FORMATS[name]()
    step = 512 if name == "a.tar" else max(1, len(content) // 50)
    end = content.rstrip(b"\0") if name == "a.tar" else content  # the padding of a tar file may be shorter
    for length in range(0, len(end), step):
        assert outcome(tmp_path / name, content[:length]) == "error", length


def test_what_follows_the_end_is_an_error(tmp_path):
    for name, content in ((name, make()) for name, make in FORMATS.items() if name != "a.zip"):
        assert outcome(tmp_path / name, content + b"\x01" * 600) == "error", name
    for name in ("a.tar", "a.tar.gz", "a.tar.xz"):
        assert outcome(tmp_path / name, FORMATS[name]() + b"\0" * 1024) == "same", name


@pytest.mark.parametrize("name", ["a.tar.gz", "a.jsonl.gz"])
def test_a_wrong_checksum_is_an_error_though_every_document_is_whole(tmp_path, name):
    content = bytearray(FORMATS[name]())
    content[-8] ^= 1
    assert outcome(tmp_path / name, bytes(content)) == "error"


def test_a_second_frame_that_is_damaged_is_an_error(tmp_path):
    others = {"a.jsonl.xz": lzma.compress, "a.jsonl.bz2": bz2.compress}
    for name in ("a.jsonl.gz", "a.jsonl.zst", *others):
        content = others[name](LINES) if name in others else FORMATS[name]()
        path = tmp_path / name
        path.write_bytes(content * 2)
        documents = list(read_documents(SourceFile(str(path), name)))
        assert [document.text for document in documents] == TEXTS * 2
        for damaged in (content + b"\x20" + content[1:], content + content[:9]):
            assert outcome(path, damaged) == "error", name


def test_documents_of_plain_lines_are_lost_only_where_they_are_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES[:-9])
    documents = list(read_documents(SourceFile(str(path), path.name)))
    assert [document.text for document in documents[:-1]] == TEXTS[:-1]
    assert isinstance(documents[-1], Document) and documents[-1].problem.startswith("not JSON: ")
