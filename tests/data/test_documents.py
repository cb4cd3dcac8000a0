"""Tests of data/documents.py."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard
from lm_dataformat import Archive, DatArchive, JSONArchive

from configs.errors import DataError
from data.documents import Document, SourceFile, explain, find_files, read_all_documents, read_documents, share_below

TEXTS = ["one\n", "zwei äöü\r\n\tend ", "三\u2028 <|endoftext|>"]
NOT_UTF8 = b"caf\xe9"


def read(path: Path, **settings: str) -> list[Document]:
    return list(read_documents(SourceFile(str(path), path.name), **settings))


def texts(path: Path) -> list[str | None]:
    return [document.text for document in read(path)]


def gzipped(content: bytes) -> bytes:
    """Compresses without the time, which would give the cases another name in each test process."""
    return gzip.compress(content, mtime=0)


def json_lines() -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


MEMBERS = {f"{'long ' * 40}{n}.txt": text.encode() for n, text in enumerate(TEXTS)}


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.md", "a.rst", "LICENSE"])
def test_a_plain_file_is_one_document_to_the_last_byte(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(TEXTS[1].encode())
    assert read(path) == [Document(name, TEXTS[1])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json_lines()),
        ("a.jsonl.zst", zstandard.compress(json_lines())),
        ("two_frames.jsonl.zst", b"".join(zstandard.compress(line) for line in json_lines().splitlines(True))),
        ("a.jsonl.gz", gzipped(json_lines())),
        ("a.jsonl.xz", lzma.compress(json_lines())),
        ("a.tar", tar_bytes(MEMBERS)),
        ("a.tar.zst", zstandard.compress(tar_bytes(MEMBERS))),
        ("a.tar.gz", gzipped(tar_bytes(MEMBERS))),
        ("a.tar.xz", lzma.compress(tar_bytes(MEMBERS))),
        ("urlsf_subset00_data.xz", lzma.compress(tar_bytes(MEMBERS))),
        ("a.jsonl.tar.gz", gzipped(tar_bytes({"inner.jsonl.zst": zstandard.compress(json_lines())}))),
    ],
)
def test_formats_of_many_documents(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert texts(path) == TEXTS


def test_a_zip_file_gives_its_members(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder") if hasattr(archive, "mkdir") else archive.writestr("folder/", "")
        for name, content in MEMBERS.items():
            archive.writestr(f"folder/{name}", content)
    assert texts(path) == TEXTS
    assert read(path)[0].identity == f"a.zip/folder/{next(iter(MEMBERS))}"


def test_a_compressed_text_is_one_document(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(TEXTS[1].encode()))
    assert texts(path) == [TEXTS[1]]


@pytest.mark.parametrize(
    ("archive", "suffix"), [(Archive, ".jsonl.zst"), (DatArchive, ".dat.zst"), (JSONArchive, ".json.zst")]
)
def test_what_lm_dataformat_writes_is_read(tmp_path, archive, suffix):
    writer = archive(str(tmp_path))
    for text in TEXTS:
        writer.add_data(text)
    writer.commit()
    (path,) = tmp_path.glob(f"data_*{suffix}")
    assert texts(path) == TEXTS


def test_json_lines_in_their_various_shapes(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"text": "a"}',
        '"b"',
        "",
        '{"text": ["c", "d"]}',
        '{"text": 3}',
        "{",
        '{"other": "x"}',
        '"\\ud800"',
        "[1]",
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n"caf\xe9"\n')
    documents = read(path)
    assert [document.text for document in documents] == ["a", "b", "c\n\nd"] + [None] * 6
    assert [document.identity for document in documents] == [f"a.jsonl:{n}" for n in (1, 2, 4, 5, 6, 7, 8, 9, 10)]
    problems = [document.problem for document in documents[3:]]
    assert problems[0] == problems[2] == problems[4] == "no text under the key 'text'"
    assert problems[1].startswith("not JSON: ")
    assert problems[3] == "half a surrogate pair at character 0"
    assert problems[5] == "not UTF-8 at byte 4"


def test_the_text_may_stand_under_another_key(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "no", "content": "yes"}\n')
    assert [document.text for document in read(path, text_key="content")] == ["yes"]


def test_what_is_not_utf8_is_reported_and_the_rest_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(NOT_UTF8)
    (tmp_path / "b.txt").write_bytes(b"good")
    (tmp_path / "c.tar.gz").write_bytes(gzipped(tar_bytes({"x.txt": NOT_UTF8, "y.txt": b"also good"})))
    assert list(read_all_documents(find_files([str(tmp_path)]))) == [
        Document("a.txt", None, "not UTF-8 at byte 3"),
        Document("b.txt", "good"),
        Document("c.tar.gz/x.txt", None, "not UTF-8 at byte 3"),
        Document("c.tar.gz/y.txt", "also good"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", b"no zip file"),
        ("a.tar.gz", b"no gzip file"),
        ("a.tar.gz", gzipped(b"no tar file")),
        ("a.tar.gz", gzipped(tar_bytes(MEMBERS))[:-30]),
        ("a.xz", lzma.compress(json_lines())[:-9]),
        ("a.jsonl.zst", b"no zstandard file"),
        ("a.jsonl.zst", zstandard.compress(json_lines() * 1000)[:-9]),
        ("a.json.zst", zstandard.compress(b"no json")),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: cannot be read (")
    assert str(error.value).endswith(") -- replace the file, or leave it out")


def make_tree(root: Path) -> None:
    names = ["b2.txt", "b10.txt", "a/z.py", "a/test/t.py", "a/notes.xyz", ".hidden.txt", ".git/x.txt", "test/u.py"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(sources: list[str], **settings: object) -> list[str]:
    return [file.relative for file in find_files(sources, **settings)]


def test_a_directory_is_read_with_all_below_it_in_natural_order(tmp_path):
    make_tree(tmp_path)
    assert found([str(tmp_path)]) == ["a/test/t.py", "a/z.py", "b2.txt", "b10.txt", "test/u.py"]
    assert found([str(tmp_path)], suffixes=(".txt",)) == ["b2.txt", "b10.txt"]


def test_patterns_leave_files_out(tmp_path):
    make_tree(tmp_path)
    assert found([str(tmp_path)], exclude=["test/*"]) == ["a/test/t.py", "a/z.py", "b2.txt", "b10.txt"]
    assert found([str(tmp_path)], exclude=["*/test/*", "*2.txt"]) == ["a/z.py", "b10.txt", "test/u.py"]


def test_a_glob_takes_any_suffix_and_keeps_the_path_below_its_fixed_part(tmp_path):
    make_tree(tmp_path)
    assert found([f"{tmp_path}/a/*"]) == ["notes.xyz", "z.py"]
    assert found([f"{tmp_path}/**/*.py"]) == ["a/test/t.py", "a/z.py", "test/u.py"]
    assert found([f"{tmp_path}/b2.txt"]) == ["b2.txt"]


def test_a_file_named_twice_is_read_once(tmp_path):
    make_tree(tmp_path)
    assert found([f"{tmp_path}/b2.txt", f"{tmp_path}/*.txt"]) == ["b2.txt", "b10.txt"]


def test_a_source_without_files_is_named(tmp_path):
    os.mkdir(tmp_path / "empty")
    with pytest.raises(DataError) as error:
        find_files([f"{tmp_path}/empty"], suffixes=(".txt", ".py"))
    assert str(error.value) == (
        f"{tmp_path}/empty: no file ending in .txt .py found -- name a directory, a glob or a file that has text"
    )
    with pytest.raises(DataError) as error:
        find_files([f"{tmp_path}/*.txt"], exclude=["a/*"])
    assert str(error.value) == (
        f"{tmp_path}/*.txt: no file found outside a/* -- name a directory, a glob or a file that has text"
    )


def test_shares_are_fixed_and_even():
    assert share_below("a.txt") == 0x18B7CB099A9E / 2**48  # printf a.txt | sha256sum
    shares = [share_below(f"file{n}.py") for n in range(4000)]
    assert all(0 <= share < 1 for share in shares)
    assert sum(share < 0.25 for share in shares) / 4000 == pytest.approx(0.25, abs=0.03)


def test_only_regular_files_are_found(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "none")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    for source in (str(tmp_path), f"{tmp_path}/*.txt"):
        assert [file.relative for file in find_files([source])] == ["a.txt", "link.txt"]


def test_a_problem_can_be_printed_whatever_the_name_of_its_file(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(NOT_UTF8)
    (document,) = read_all_documents(find_files([str(tmp_path)]))
    assert explain(document) == "caf\\udce9.txt: not UTF-8 at byte 3"
