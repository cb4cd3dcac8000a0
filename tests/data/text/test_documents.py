"""Tests of data/text/documents.py."""

from __future__ import annotations

import bz2
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

import data.text.decompression
import data.text.documents
import data.text.json_values
import data.text.marked_stream
from configs.errors import DataError
from data.text.deduplication import digest_fraction
from data.text.documents import (
    Document,
    TextFormat,
    explain,
    fingerprint,
    identity_digest,
    read_all_documents,
    read_documents,
)
from data.text.files import ReadingNotes, SourceFile, find_files

TEXTS = ["one\n", "zwei äöü\r\n\tend ", "三\u2028 <|endoftext|>"]
NOT_UTF8 = b"caf\xe9"


def read(path: Path, **settings: object) -> list[Document]:
    return list(read_documents(SourceFile(str(path), path.name), TextFormat(**settings)))


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
        ("a.tar.bz2", bz2.compress(tar_bytes(MEMBERS))),
        ("a.tbz2", bz2.compress(tar_bytes(MEMBERS))),
        ("a.tbz", bz2.compress(tar_bytes(MEMBERS))),
        ("a.tzst", zstandard.compress(tar_bytes(MEMBERS))),
        ("a.txz", lzma.compress(tar_bytes(MEMBERS))),
        ("a.jsonl.bz2", bz2.compress(json_lines())),
        ("two_streams.jsonl.bz2", b"".join(bz2.compress(line) for line in json_lines().splitlines(True))),
        ("a.jsonlines", json_lines()),
        ("data.gz", gzipped(tar_bytes(MEMBERS))),
        ("data.zst", zstandard.compress(tar_bytes(MEMBERS))),
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


class _OnePass(io.RawIOBase):
    """A file that cannot seek, so that sizes and checksums of a zip file follow its members."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:
        self.content += bytes(content)
        return len(content)


def zip_bytes(method: int = zipfile.ZIP_DEFLATED, force_zip64: bool = False, one_pass: bool = False) -> bytes:
    file = _OnePass() if one_pass else io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in MEMBERS.items():
            info = zipfile.ZipInfo(name)  # without the time, as above
            info.compress_type = method
            with archive.open(info, "w", force_zip64=force_zip64) as member:
                member.write(content)
        archive.comment = b"a comment"
    return file.content if one_pass else file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("descriptors.zip", zip_bytes(one_pass=True)),
        ("zip64.zip", zip_bytes(force_zip64=True)),
        ("zip64_descriptors.zip", zip_bytes(force_zip64=True, one_pass=True)),
        ("bzip2.zip", zip_bytes(zipfile.ZIP_BZIP2)),
        ("lzma.zip", zip_bytes(zipfile.ZIP_LZMA)),
        ("stored.zip", zip_bytes(zipfile.ZIP_STORED)),
        ("unpacks_itself.zip", b"#!/bin/sh\n" + zip_bytes()),
        ("in.tar.gz", gzipped(tar_bytes({"a.zip": zip_bytes(one_pass=True)}))),
        ("in.tar", tar_bytes({"a.tgz": gzipped(tar_bytes({"b.tar.bz2": bz2.compress(tar_bytes(MEMBERS))}))})),
    ],
)
def test_zip_files_and_nested_archives_of_every_kind(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name) == TEXTS


def test_a_member_with_a_password_is_named(tmp_path):
    content = bytearray(zip_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rfind(mark) + at] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(
        DataError, match=r"a.zip: cannot be read \(.*2.txt in it is encrypted; unpack it with its passw"
    ):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize("raw", [b"caf\x82.txt", "naïve.txt".encode(), "漢字.txt".encode()])
def test_names_of_members_may_be_of_any_encoding(tmp_path, raw):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x" * len(raw), "one")
    written = content.getvalue().replace(b"x" * len(raw), raw)
    (tmp_path / "a.zip").write_bytes(written)
    (tmp_path / "a.tar").write_bytes(tar_bytes({raw.decode("utf-8", "surrogateescape"): b"one"}))
    assert texts(tmp_path / "a.zip") == texts(tmp_path / "a.tar") == ["one"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("one".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (b"\xfe\xff" + "one".encode("utf-16-be"), "UTF-16; save it as UTF-8"),
        ("one".encode("utf-32"), "UTF-32; save it as UTF-8"),
        (b"PAR1\x15\xff", "a Parquet file; write its texts to a .jsonl file"),
        (gzipped(b"one"), "compressed by gzip; name it .gz"),
        (bz2.compress(b"one"), "compressed by bzip2; name it .bz2"),
        (lzma.compress(b"one"), "compressed by xz; name it .xz"),
        (zstandard.compress(b"one"), "compressed by zstandard; name it .zst"),
        (zip_bytes(), "a zip archive; name it .zip, if it holds texts"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, content, kind):
    (tmp_path / "a.txt").write_bytes(content)
    (document,) = read(tmp_path / "a.txt")
    assert document.text is None and document.problem.endswith(f": it is {kind}")


@pytest.mark.parametrize("name", ["dump.zst", "a.txt", "a.jl"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_json_whose_name_does_not_say_so_is_said(tmp_path, name, start):
    content = start + json_lines()
    (tmp_path / name).write_bytes(zstandard.compress(content) if name.endswith("zst") else content)
    notes = ReadingNotes()
    (document,) = read_documents(SourceFile(f"{tmp_path}/{name}", name), notes=notes)
    assert document.text == json_lines().decode()
    assert notes.lines() == ["read as plain text: 1 of JSON (named .jsonl, its texts would be read)"]


@pytest.mark.parametrize(("name", "content"), [("a.tar", tar_bytes({})), ("a.zip", b"PK\5\6" + bytes(18))])
def test_an_empty_archive_is_said(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    notes = ReadingNotes()
    assert list(read_documents(SourceFile(f"{tmp_path}/{name}", name), notes=notes)) == []
    assert notes.lines()[0].startswith("passed over: 1 archive without files")


def test_a_compressed_text_is_one_document(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(TEXTS[1].encode()))
    assert texts(path) == [TEXTS[1]]


@pytest.mark.parametrize(
    ("archive", "suffix"), [(Archive, ".jsonl.zst"), (DatArchive, ".dat.zst"), (JSONArchive, ".json.zst")]
)
def test_files_written_by_lm_dataformat_are_read(tmp_path, archive, suffix):
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
    assert problems[0] == problems[4] == "no text under the key 'text'"
    assert problems[2] == "no text under the key 'text'; text_key can name 'other'"
    assert problems[1].startswith("not JSON: ")
    assert problems[3] == "half a surrogate pair at character 0"
    assert problems[5] == "not UTF-8 at byte 4"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"id": 1, "body": "x", "tags": ["a"], "n": None}, "; text_key can name 'body', 'tags'"),
        ({"data": [{"text": "a"}], "n": 1}, " nor under 'data', 'n'"),
        ({str(n): "x" for n in range(9)}, "; text_key can name " + ", ".join(f"'{n}'" for n in range(8)) + ", ..."),
        ({"text": None}, ""),
        ([{"body": "x"}, "a"], "; text_key can name 'body'"),
        ([[1]], ""),
    ],
)
def test_keys_that_hold_a_text_are_named(tmp_path, value, told):
    (tmp_path / "a.jsonl").write_text(json.dumps(value))
    assert read(tmp_path / "a.jsonl")[0].problem == f"no text under the key 'text'{told}"


def test_lines_of_arrays_of_objects_are_no_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('[{"text": "a"}]\n["b", "c"]\n')
    assert texts(tmp_path / "a.jsonl") == [None, "b\n\nc"]


def test_the_text_may_stand_under_another_key(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "no", "content": "yes"}\n')
    assert [document.text for document in read(path, text_key="content")] == ["yes"]


def test_documents_that_are_not_utf8_are_reported_and_the_rest_is_read(tmp_path):
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
        ("a.json.zst", zstandard.compress(b'["one", "tw')),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: cannot be read (")
    assert str(error.value).endswith("); replace the file, or leave it out")


def test_fractions_are_fixed_and_even():
    assert digest_fraction(identity_digest(Document("a.txt", ""))) == 0x18B7CB099A9E / 2**48  # printf a.txt | sha256sum
    shares = [digest_fraction(identity_digest(Document(f"file{n}.py", ""))) for n in range(4000)]
    assert all(0 <= share < 1 for share in shares)
    assert sum(share < 0.25 for share in shares) / 4000 == pytest.approx(0.25, abs=0.03)


def test_a_problem_can_be_printed_whatever_the_name_of_its_file(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(NOT_UTF8)
    (document,) = read_all_documents(find_files([str(tmp_path)]))
    assert explain(document) == "caf\\udce9.txt: not UTF-8 at byte 3"


def test_a_fingerprint_is_blake2b_of_the_utf8():
    assert fingerprint("a.txt").hex() == "8c54ec7283e9a5145f2a4047f40504e9"  # printf a.txt | b2sum -l 128


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.txt.zst"])
def test_a_text_that_is_too_long_for_memory_is_read_in_parts(tmp_path, monkeypatch, name):
    monkeypatch.setattr(data.text.documents, "_PART_BYTES", 5)
    text = "zwei äöü ➀ Wörter\r\n" * 20
    compress = {"gz": gzipped, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
    path = tmp_path / name
    path.write_bytes(compress.get(name.split(".")[-1], bytes)(text.encode()))
    length = len(text.encode())
    assert read(path, max_bytes=length) == [Document(name, text)]
    (document,) = read(path, max_bytes=length - 1)
    assert (document.identity, document.text, document.problem) == (name, None, None)
    assert document.long_text.digest == fingerprint(text)
    for _ in range(2):
        parts = list(document.long_text.parts())
        assert "".join(parts) == text
        assert len(parts) > 50


@pytest.mark.parametrize(("end", "at"), [(b"\xe9x", 40), (b"x\xc3", 41), (b"\xf0\x9f\x98", 40)])
def test_a_long_text_that_is_not_utf8_is_reported(tmp_path, monkeypatch, end, at):
    monkeypatch.setattr(data.text.documents, "_PART_BYTES", 7)
    path = tmp_path / "a.txt"
    path.write_bytes("ä".encode() * 20 + end)
    assert read(path, max_bytes=9) == [Document("a.txt", None, f"not UTF-8 at byte {at}")]
    assert read(path) == [Document("a.txt", None, f"not UTF-8 at byte {at}")]


@pytest.mark.parametrize("suffix", [".json.zst", ".json.gz"])
def test_an_array_of_texts_is_read_element_by_element(tmp_path, suffix):
    compress = zstandard.compress if suffix == ".json.zst" else gzipped
    path = tmp_path / f"a{suffix}"
    values = [*TEXTS, "x" * 200_000, {"text": "under a key"}, 3, {"text": ["a", "b"]}]
    path.write_bytes(compress(b" \n" + json.dumps(values, indent=1).encode()))
    assert texts(path) == [*TEXTS, "x" * 200_000, "under a key", None, "a\n\nb"]
    assert read(path)[5] == Document(f"a{suffix}:5", None, "no text under the key 'text'")


def test_json_gz_may_be_json_lines_as_c4_has_them(tmp_path):
    path = tmp_path / "c4-train.00000-of-01024.json.gz"
    path.write_bytes(gzipped(json_lines()))
    assert texts(path) == TEXTS


@pytest.mark.parametrize("content", [b'["a", "b', b'["a", nothing]', b'["a"', b"[" + b" " * 100])
def test_a_damaged_array_is_named(tmp_path, content):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzipped(content))
    with pytest.raises(DataError, match="a.json.gz: cannot be read "):
        read(path)


@pytest.mark.parametrize("content", [b"0000000000000005abc", b"00000", b"9999999999999999abc", b"-000000000000001a"])
def test_a_damaged_dat_archive_is_named(tmp_path, content):
    path = tmp_path / "a.dat.zst"
    path.write_bytes(zstandard.compress(b"0000000000000001x" + content))
    with pytest.raises(DataError, match="a.dat.zst: cannot be read "):
        read(path)


def lm_archive(folder: Path) -> Path:
    """Writes a `.jsonl.zst` as lm_dataformat does."""
    writer = Archive(str(folder))
    for text in TEXTS:
        writer.add_data(text)
    writer.commit()
    (path,) = folder.glob("*.jsonl.zst")
    return path


def test_files_that_lm_dataformat_cannot_read_are_read(tmp_path):
    archive = lm_archive(tmp_path / "lm")
    members = {"one.jsonl.zst": archive.read_bytes(), "two.jsonl.zst": archive.read_bytes()}
    (tmp_path / "a.jsonl.zst.tar").write_bytes(tar_bytes(members))
    assert texts(tmp_path / "a.jsonl.zst.tar") == TEXTS * 2  # its own reader: NameError
    (tmp_path / "b.tar.gz").write_bytes(gzipped(tar_bytes(MEMBERS)))
    assert texts(tmp_path / "b.tar.gz") == TEXTS  # long names in pax headers; its own reader: KeyError
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(TEXTS[1].encode()))
    assert texts(tmp_path / "c.txt.zst") == [TEXTS[1]]  # its own reader leaves such files out
    (tmp_path / "d.gz").write_bytes(gzipped(TEXTS[1].encode()))
    assert texts(tmp_path / "d.gz") == [TEXTS[1]]  # its own reader makes a document of every line
    (tmp_path / "openwebtext.tar.xz").write_bytes(
        lzma.compress(tar_bytes({"owt/urlsf_subset00-1_data.xz": lzma.compress(tar_bytes(MEMBERS))}))
    )
    assert texts(tmp_path / "openwebtext.tar.xz") == TEXTS
    assert texts(archive) == TEXTS
    archive.write_bytes(archive.read_bytes()[:-3])
    with pytest.raises(DataError, match="ends in the middle of a zstandard frame"):  # its own reader: the end
        texts(archive)


def test_a_directory_is_searched_for_every_format_and_for_no_unfinished_archive(tmp_path):
    lm_archive(tmp_path).rename(tmp_path / "data.jsonl.zst")  # beside it lies current_chunk_incomplete
    names = ["a.txt", "a.gz", "a.zst", "a.jsonl", "a.jsonl.gz", "a.json.gz", "a.json.zst", "a.dat.zst", "a.txt.zst"]
    names += ["a.xz", "a.tar", "a.tar.gz", "a.tgz", "a.zip", "a.jsonl.zst.tar", "openwebtext.tar.xz"]
    for name in names:
        (tmp_path / name).touch()
    assert sorted(file.relative for file in find_files([str(tmp_path)])) == sorted([*names, "data.jsonl.zst"])


def test_a_zip_file_in_a_tar_file_is_read(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", TEXTS[0])
    (tmp_path / "a.tar.gz").write_bytes(gzipped(tar_bytes({"b.zip": content.getvalue()})))
    assert texts(tmp_path / "a.tar.gz") == [TEXTS[0]]


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", MARK + b"one"),
        ("a.txt.gz", gzipped(MARK + b"one")),
        ("a.tar", tar_bytes({"a.txt": MARK + b"one"})),
        ("a.jsonl", MARK + b'{"text": "one"}\n'),
        ("a.jsonl", MARK + b'\n{"text": "one"}\n'),
        ("a.jsonl.xz", lzma.compress(MARK + b'{"text":\n"one"}')),
        ("a.json", MARK + b'["one"]'),
        ("a.json.zst", zstandard.compress(MARK + b' [\n{"text": "one"}]\n')),
        ("a.json", MARK + b'{\n"text": "one"}'),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert texts(path) == ["one"]
    assert texts_in_zip(tmp_path, name, content) == ["one"]


def texts_in_zip(folder: Path, name: str, content: bytes) -> list[str | None]:
    with zipfile.ZipFile(folder / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return texts(folder / "whole.zip")


def test_a_long_text_begins_after_its_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(MARK + "zwölf".encode() * 9)
    (document,) = read(tmp_path / "a.txt", max_bytes=9)
    assert "".join(document.parts()) == "zwölf" * 9
    assert document.long_text.digest == fingerprint("zwölf" * 9)


VALUES = [{"text": "one"}, {"text": "two", "id": 7}, {"text": ["three", "four"]}]
READ = ["one", "two", "three\n\nfour"]


@pytest.mark.parametrize("name", ["a.json", "a.JSON", "a.json.gz", "a.JSON.XZ", "a.jsonl", "a.ndjson", "A.JSONL.GZ"])
@pytest.mark.parametrize(
    "written",
    [
        json.dumps(VALUES, indent=2),
        json.dumps(VALUES, indent="\t") + "\n\n",
        json.dumps(VALUES),
        "\n" * 5000 + json.dumps(VALUES) + "\n",
        "\n".join(map(json.dumps, VALUES)),
        "\r\n\r\n".join(map(json.dumps, VALUES)) + "\r\n",
        "\n".join(json.dumps(value, indent=2) for value in VALUES),
        ",\n".join(json.dumps(value, indent=2) for value in VALUES) + "\n",
    ],
)
def test_json_is_read_by_what_it_is(tmp_path, name, written):
    compress = {"gz": gzipped, "bz2": bz2.compress, "xz": lzma.compress}.get(name.lower().split(".")[-1], bytes)
    (tmp_path / name).write_bytes(compress(written.encode()))
    assert texts(tmp_path / name) == READ
    assert texts_in_zip(tmp_path, name, compress(written.encode())) == READ


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'["one"] "two"'),
        ("a.json", b'["one"]]'),
        ("a.json", b'{\n "text": "one"\n}\n{ "text": '),
        ("a.jsonl", b'[\n"one", "two"'),
        ("a.json", b'["one", ' + b"[" * 100_000),
    ],
)
def test_damaged_json_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path}/{name}: cannot be read "):
        read(tmp_path / name)


def test_a_damaged_first_line_costs_no_other(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one\n{"text": "two"}\n')
    assert texts(tmp_path / "a.jsonl") == [None, "two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_line_that_is_too_long_for_memory_is_named_and_the_rest_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(data.text.json_values, "MAX_JSON_BYTES", 30)
    monkeypatch.setattr(data.text.documents, "MAX_JSON_BYTES", 30)
    content = json.dumps({"text": "x" * 10}) + "\n" + json.dumps({"text": "y" * 90}) + "\n" + json.dumps("z")
    (tmp_path / name).write_bytes((gzipped if name.endswith("gz") else bytes)(content.encode()))
    assert texts(tmp_path / name) == ["x" * 10, None, "z"]
    assert read(tmp_path / name)[1] == Document(f"{name}:2", None, "a line of more than 30 bytes")


def test_an_element_that_is_too_long_for_memory_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(data.text.json_values, "MAX_JSON_BYTES", 100_000)
    (tmp_path / "a.json").write_text(json.dumps(["one", "x" * 300_000]))
    with pytest.raises(DataError, match="a.json: cannot be read .*longer than 100,000 characters"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.xz", "a.txt.zst", "a.zip", "a.tar.gz", "zip_in.tar"])
def test_a_decompression_bomb_ends_early(tmp_path, monkeypatch, name):
    monkeypatch.setattr(data.text.decompression, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    bomb, packed = b" " * (8 << 20), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bomb)
    contents = {"gz": gzipped, "xz": lzma.compress, "zst": zstandard.compress, "zip": lambda _: packed.getvalue()}
    contents["tar"] = lambda _: tar_bytes({"b.zip": packed.getvalue()})
    content = tar_bytes({"a.txt": bomb}) if name == "a.tar.gz" else bomb
    (tmp_path / name).write_bytes(contents[name.split(".")[-1]](content))
    with pytest.raises(DataError, match=f"{name}: cannot be read .it unpacks to more than .* as a decompression bomb"):
        read(tmp_path / name)


def test_members_of_archives_are_read_by_the_rules_of_folders(tmp_path):
    members = {
        **{"./a.txt": b"one", "B.TXT": b"two", "folder/c.jsonl": b'"three"\n', "d.txt.gz": gzipped(b"four")},
        **{"__MACOSX/._a.txt": b"\0", ".DS_Store": b"\0", ".git/x.txt": b"no", "x.png": b"\x89", "README": b"no"},
    }
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    for path in (tmp_path / "a.tar", tmp_path / "a.zip"):
        notes = ReadingNotes()
        documents = read_documents(SourceFile(str(path), path.name), notes=notes)
        assert [document.text for document in documents] == ["one", "two", "three", "four"]
        assert notes.lines() == [
            "passed over: 3 hidden, 1 .png, 1 without suffix; a glob reads files of any suffix",
        ]


def test_links_in_archives_are_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("a.txt", tarfile.SYMTYPE), ("b.txt", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "none"
            archive.addfile(link)
    notes = ReadingNotes()
    assert list(read_documents(SourceFile(f"{tmp_path}/a.tar", "a.tar"), notes=notes)) == []
    assert notes.lines()[0].startswith("passed over: 2 link or device")


def test_files_of_unknown_suffixes_that_are_read_are_counted(tmp_path):
    notes = ReadingNotes()
    for name in ("a.rst", "b.csv", "c.CSV", "d.en.gz", "e.gz", "LICENSE", "f.txt"):
        (tmp_path / name).write_bytes(gzipped(b"x") if name.endswith("gz") else b"x")
    documents = read_all_documents(find_files([f"{tmp_path}/*"]), notes=notes)
    assert [document.text for document in documents] == ["x"] * 7
    assert notes.lines() == ["read as plain text: 2 .csv, 1 .rst, 1 .en"]


@pytest.mark.parametrize(
    "written",
    ["one<|e|>two<|e|>", "<|e|>one\r\n<|e|>\n\ntwo", "\none\n<|e|>\n<|e|>two\n<|e|>\n \n", "one<|e|><|e|>two"],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
def test_a_marker_parts_documents(tmp_path, monkeypatch, written, size):
    monkeypatch.setattr(data.text.marked_stream, "_READ_BYTES", size)
    (tmp_path / "a.txt").write_bytes(written.encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": written}))
    documents = read(tmp_path / "a.txt", marker="<|e|>")
    assert documents == [Document("a.txt:1", "one"), Document("a.txt:2", "two")]
    documents = read(tmp_path / "a.jsonl", marker="<|e|>")
    assert documents == [Document("a.jsonl:1:1", "one"), Document("a.jsonl:1:2", "two")]


def test_a_parted_text_may_be_too_long_for_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(data.text.marked_stream, "_READ_BYTES", 50)
    long = "zwölf\n\nBoxkämpfer <| jagen\n" * 30 + "Viktor"
    (tmp_path / "a.txt").write_text(f"{long}\n<|e|>\nshort<|e|>\n{long}\n")
    first, second, third = read(tmp_path / "a.txt", marker="<|e|>", max_bytes=100)
    assert "".join(first.parts()) == "".join(third.parts()) == long
    assert (first.text, second.text) == (None, "short")


@pytest.mark.parametrize("text", ["x", "no marker at all\n"])
def test_without_a_marker_a_text_stays_whole(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert [document.text for document in read(tmp_path / "a.txt", marker="<|e|>")] == [text.strip("\n")]
