"""Streaming the documents of source files.

A plain text file is one document, or several that a marker parts; each line of a JSON Lines file and each element of a
JSON array is one, and each member of an archive is read by its own name. The last suffix names the compression:
`a.txt.gz` and `a.gz` are one document each, `a.jsonl.gz` one a line. The archives of lm_dataformat (`.dat.zst`,
`.json.zst`) are read as well; unlike its own reader, this one takes a truncated file as an error, not as the end.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import lzma
import re
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import zstandard

from configs.errors import UserError
from data.text.archives import tar_members, zip_members
from data.text.decompression import OPENERS, Expansion, open_bzip2, open_gzip, open_xz, open_zstandard, read_to_end
from data.text.files import (
    CONVERSATION_SUFFIXES,
    SUFFIXES,
    TEXT_SUFFIXES,
    ReadingNotes,
    SourceFile,
    cannot_read,
    is_read,
    open_source,
    suffix_of,
)
from data.text.json_values import MAX_JSON_BYTES, begins_value, lines_of, values_of
from data.text.marked_stream import MarkedStream
from storage.files import decode_text

DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # a zip file with a password, or of an unknown compression
    lzma.LZMAError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    zstandard.ZstdError,
)
"""What reading a damaged file raises."""


@dataclass(frozen=True)
class Document:
    """A document, or the reason why it cannot be read.

    Attributes:
        identity: relative path of its file, and its position there; the same on every machine.
        text: its text, exactly as in the file; None if it cannot be read or is too long.
        problem: why it cannot be read; None if it can.
        long_text: its text if it is longer than the limit of `read_documents`.
    """

    identity: str
    text: str | None
    problem: str | None = None
    long_text: LongText | None = None

    def parts(self) -> Iterable[str]:
        """Returns its text in parts: one, several of a long text, or none if it cannot be read."""
        return self.long_text.parts() if self.long_text else [self.text] if self.text else []


@dataclass(frozen=True)
class LongText:
    """A text in a temporary file, which is deleted with this object.

    Attributes:
        file: the text as UTF-8.
        digest: the `fingerprint` of the text.
    """

    file: BinaryIO
    digest: bytes

    def parts(self) -> Iterator[str]:
        """Yields the text in parts of a few MB."""
        self.file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        while content := self.file.read(_PART_BYTES):
            yield decoder.decode(content)


def fingerprint(text: str) -> bytes:
    """Returns a hash of a text, 16 bytes: the chance that two of 10^12 texts collide is below 10^-14."""
    return _fingerprint_of(text.encode("utf-8", "surrogateescape")).digest()


def _fingerprint_of(content: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


_PART_BYTES = 1 << 22


@dataclass(frozen=True)
class TextFormat:
    """How documents stand in files.

    Attributes:
        text_key: the key of a JSON object that holds the text (a string, or a list of paragraphs).
        marker: what separates documents inside a text; None if a text is one document.
        convert: makes texts of a JSON value or of a line of plain text, each a document: yields the text, or None and
            why there is none; None: the text is under `text_key`, and plain text is one document.
        max_bytes: longer plain text is kept in a temporary file.
    """

    text_key: str = "text"
    marker: str | None = None
    convert: Callable[[object], Iterator[tuple[str | None, str | None]]] | None = None
    max_bytes: int = sys.maxsize


def read_all_documents(
    files: Iterable[SourceFile], text_format: TextFormat = TextFormat(), notes: ReadingNotes | None = None
) -> Iterator[Document]:
    """Yields the documents of several files, in their order.

    Raises:
        DataError: as `read_documents`.
    """
    for file in files:
        yield from read_documents(file, text_format, notes)


def read_documents(
    file: SourceFile, text_format: TextFormat = TextFormat(), notes: ReadingNotes | None = None
) -> Iterator[Document]:
    """Yields the documents of one file; one that is not UTF-8 or not JSON has a problem instead of a text.

    Args:
        file: the file to read.
        text_format: how documents stand in it.
        notes: gets what is passed over, or read as plain text.

    Raises:
        DataError: the file itself cannot be opened, or its compression or archive is damaged.
    """
    try:
        expansion = Expansion(file.state()[0])
        context = _Context(file.relative, file.relative, text_format, expansion, notes or ReadingNotes())
        with open_source(file.path) as stream:
            for document in _read_stream(stream, context):
                yield from _split_at_marker(document, context)
    except UserError:
        raise
    except DAMAGED as error:
        raise cannot_read(file.path, error) from None


def _split_at_marker(document: Document, context: _Context) -> Iterator[Document]:
    marker = context.format.marker
    if marker is None or document.text is None or marker not in document.text:
        yield document
        return
    context.notes.markers += document.text.count(marker)
    texts = (text.strip("\r\n") for text in document.text.split(marker))
    for number, text in enumerate((text for text in texts if text.strip()), start=1):
        yield Document(f"{document.identity}:{number}", text)


def explain(document: Document) -> str:
    """Returns one printable line that says why a document cannot be read."""
    # The name of a file need not be UTF-8.
    return f"{document.identity}: {document.problem}".encode("utf-8", "backslashreplace").decode("utf-8")


def text_digest(document: Document) -> bytes:
    """Returns the fingerprint of a document's text, or of its identity if it has no text."""
    if document.long_text is not None:
        return document.long_text.digest
    return fingerprint(document.identity if document.text is None else document.text)


def identity_digest(document: Document) -> bytes:
    """Returns the SHA-256 of a document's identity, the same on every machine."""
    return hashlib.sha256(document.identity.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class _Context:
    """How to read a stream.

    Attributes:
        identity: what the identities of its documents begin with.
        name: its suffixes say what it contains; the one that names the reader is removed.
        format: as in `read_documents`.
        expansion: counts what is unpacked.
        notes: as in `read_documents`.
    """

    identity: str
    name: str
    format: TextFormat
    expansion: Expansion
    notes: ReadingNotes

    def member(self, name: str) -> _Context:
        return replace(self, identity=f"{self.identity}/{name}", name=name)


_PEEKED_BYTES = 1 << 12  # `peek` returns what is in the buffer already: enough to see what begins there
_JSON_STARTS = (b'{"', b'[{"')

Reader = Callable[[BinaryIO, _Context], Iterator[Document]]


def _read_stream(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    for suffix, read in _READERS.items():
        if context.name.lower().endswith(suffix):
            yield from read(stream, replace(context, name=context.name[: -len(suffix)]))
            return
    if context.format.convert is None:
        _note_plain_text(stream, context)
    yield from _read_text(stream, context)


def _note_plain_text(stream: BinaryIO, context: _Context) -> None:
    suffix = suffix_of(context.name)
    if stream.peek(_PEEKED_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(_JSON_STARTS):
        context.notes.plain_text["of JSON (named .jsonl, its texts would be read)"] += 1
    elif suffix and suffix not in TEXT_SUFFIXES:
        context.notes.plain_text[suffix] += 1


def _read_text(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    marker, max_bytes = context.format.marker, context.format.max_bytes
    if context.format.convert is not None:
        yield from _read_lines(stream, context)
        return
    if marker is None:
        yield _whole_text(stream, context.identity, max_bytes)
        return
    parts, number = MarkedStream(stream, marker.encode()), 1
    while True:
        document = _whole_text(parts, f"{context.identity}:{number}", max_bytes)
        if document.text is None or document.text.strip():
            yield document
            number += 1
        if not parts.next_part():
            return
        context.notes.markers += 1


def _read_lines(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    """Converts plain text line by line."""
    for number, line in lines_of(stream):
        identity = f"{context.identity}:{number}"
        document = _too_long(identity) if line is None else _document(identity, line)
        yield from [document] if document.text is None else _converted(document.text, identity, context.format)


def _whole_text(stream: BinaryIO | MarkedStream, identity: str, max_bytes: int) -> Document:
    head = _read_up_to(stream, max_bytes + 1)
    if len(head) <= max_bytes:
        return _document(identity, head)
    file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the document is no longer needed)
    file.write(head.removeprefix(codecs.BOM_UTF8))
    shutil.copyfileobj(stream, file)
    return check_long_text(identity, file)


def check_long_text(identity: str, file: BinaryIO) -> Document:
    """Returns the document of a text in a temporary file, or the reason why it is none."""
    decoder, digest, length = codecs.getincrementaldecoder("utf-8")(), _fingerprint_of(b""), 0
    file.seek(0)
    is_end = False
    while not is_end:
        content = file.read(_PART_BYTES)
        is_end = not content
        undecoded = len(decoder.getstate()[0])  # of a character that begins in the part before
        try:
            decoder.decode(content, final=is_end)
        except UnicodeDecodeError as error:
            return Document(identity, None, f"not UTF-8 at byte {length - undecoded + error.start}")
        digest.update(content)
        length += len(content)
    return Document(identity, None, long_text=LongText(file, digest.digest()))


def _read_json(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    """Reads one array of texts, as lm_dataformat writes, or JSON Lines under this name, as C4 has them."""
    if stream.peek(_PEEKED_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _documents_of(values_of(b"", stream), context, first=0)
    else:
        yield from _read_json_lines(stream, context)


def _read_json_lines(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    lines = lines_of(stream)
    first = next(lines, None)
    if first and first[1] and begins_value(first[1]):
        yield from _documents_of(values_of(first[1], stream), context, first=1)
        return
    second = next(lines, None)
    is_array = first and first[1] and second is None and _OBJECTS.match(first[1])
    if is_array and context.format.convert is None:  # the file is an array in one line, and no list of turns
        yield from _documents_of(values_of(first[1], stream), context, first=0)
        return
    for number, line in itertools.chain(filter(None, (first, second)), lines):
        yield from _parse_line(line, f"{context.identity}:{number}", context.format)


_OBJECTS = re.compile(rb"\s*\[\s*\{")


def _documents_of(values: Iterator[object], context: _Context, first: int) -> Iterator[Document]:
    for number, value in enumerate(values, first):
        yield from _converted(value, f"{context.identity}:{number}", context.format)


def _parse_line(line: bytes | None, identity: str, text_format: TextFormat) -> Iterator[Document]:
    document = _too_long(identity) if line is None else _document(identity, line)
    if document.text is None:
        yield document
        return
    try:
        value = json.loads(document.text)
    except (ValueError, RecursionError) as error:  # the second: of lists in lists in lists
        yield Document(identity, None, f"not JSON: {error}")
        return
    yield from _converted(value, identity, text_format)


def _too_long(identity: str) -> Document:
    return Document(identity, None, f"a line of more than {MAX_JSON_BYTES:,} bytes")


def _converted(value: object, identity: str, text_format: TextFormat) -> Iterator[Document]:
    if text_format.convert is None:
        yield _document_of_value(value, identity, text_format.text_key)
        return
    converted = list(text_format.convert(value))
    for number, (text, problem) in enumerate(converted, start=1):
        yield Document(identity if len(converted) == 1 else f"{identity}:{number}", text, problem)


def _document_of_value(value: object, identity: str, text_key: str) -> Document:
    text = _text_of(value.get(text_key) if isinstance(value, dict) else value)
    if text is None:
        return Document(identity, None, f"no text under the key {text_key!r}{_other_keys(value, text_key)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        return Document(identity, None, f"half a surrogate pair at character {error.start}")
    return Document(identity, text)


def _text_of(value: object) -> str | None:
    if isinstance(value, list) and all(isinstance(paragraph, str) for paragraph in value):
        return "\n\n".join(value)  # lm_dataformat's reading of a list
    return value if isinstance(value, str) else None


def _other_keys(value: object, text_key: str) -> str:
    """Returns which other keys hold a text, or, if none does, which there are."""
    keys = [key for key in value if key != text_key] if isinstance(value, dict) else []
    named = [key for key in keys if _text_of(value[key]) is not None]
    listed = ", ".join(map(ascii, (named or keys)[:_MAX_KEYS])) + ", ..." * (len(named or keys) > _MAX_KEYS)
    return f"; text_key can name {listed}" if named else f" nor under {listed}" if keys else ""


_MAX_KEYS = 8


def _document(identity: str, content: bytes | bytearray) -> Document:
    try:
        return Document(identity, decode_text(content))
    except UnicodeDecodeError as error:
        return Document(identity, None, f"not UTF-8 at byte {error.start}{_kind_of(content)}")


def _kind_of(content: bytes | bytearray) -> str:
    """Returns what a content that is not UTF-8 is instead, if its beginning says so."""
    return next((f": it is {kind}" for start, kind in _KINDS.items() if content.startswith(start)), "")


_KINDS = {
    codecs.BOM_UTF32_LE: "UTF-32; save it as UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16; save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16; save it as UTF-8",
    b"PAR1": "a Parquet file; write its texts to a .jsonl file",
    b"ARROW1": "an Arrow file; write its texts to a .jsonl file",
    b"\x1f\x8b": "compressed by gzip; name it .gz",
    b"\xfd7zXZ": "compressed by xz; name it .xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstandard; name it .zst",
    b"BZh": "compressed by bzip2; name it .bz2",
    b"PK\3\4": "a zip archive; name it .zip, if it holds texts",
}


def _read_tar(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    yield from _read_members(tar_members(stream, context.notes), context)


def _read_zip(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    yield from _read_members(zip_members(stream, context.expansion, context.notes), context)


def _read_members(members: Iterator[tuple[str, BinaryIO]], context: _Context) -> Iterator[Document]:
    is_empty = True
    for name, content in members:
        is_empty = False
        if is_read(name, SUFFIXES if context.format.convert is None else CONVERSATION_SUFFIXES):
            yield from _read_stream(content, context.member(name))
        else:
            context.notes.pass_over(name)
    if is_empty:
        context.notes.passed_over["archive without files"] += 1


def _read_unpacked(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    # OpenWebText's `*_data.xz` are tar archives although their names do not say so.
    read = _read_tar if stream.peek(512)[257:262] == b"ustar" else _read_stream
    yield from read(stream, context)


def _decompressed(
    open_frames: Callable[[BinaryIO, Expansion], BinaryIO], read_content: Reader = _read_unpacked
) -> Reader:
    def read(stream: BinaryIO, context: _Context) -> Iterator[Document]:
        with open_frames(stream, context.expansion) as content:
            yield from read_content(content, context)
            read_to_end(content)

    return read


def _read_dat(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    """Reads lm_dataformat's `DatArchive`: each text follows its length in bytes, as 16 digits."""
    number = 0
    while head := stream.read(16):
        if not re.fullmatch(rb"[0-9]{16}", head):
            raise ValueError(f"no length before text {number}")
        if int(head) > MAX_JSON_BYTES:
            raise ValueError(f"text {number} is longer than {MAX_JSON_BYTES:,} bytes")
        content = _read_up_to(stream, int(head))
        if len(content) < int(head):
            raise EOFError("it ends in the middle of a text")
        yield _document(f"{context.identity}:{number}", content)
        number += 1


def _read_up_to(stream: BinaryIO | MarkedStream, length: int) -> bytearray:
    content = bytearray()
    # In parts: a stream may return less, and a damaged length must not reserve all memory.
    while part := stream.read(min(length - len(content), 1 << 20)):
        content += part
    return content


_READERS: dict[str, Reader] = {
    ".dat.zst": _decompressed(open_zstandard, _read_dat),
    ".tzst": _decompressed(open_zstandard, _read_tar),
    ".tgz": _decompressed(open_gzip, _read_tar),
    ".txz": _decompressed(open_xz, _read_tar),
    ".tbz2": _decompressed(open_bzip2, _read_tar),
    ".tbz": _decompressed(open_bzip2, _read_tar),
    **{suffix: _decompressed(open_frames) for suffix, open_frames in OPENERS.items()},
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".jsonlines": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".tar": _read_tar,
    ".zip": _read_zip,
}
