"""Streaming the documents of source files.

A plain text file is one document, each line of a JSON Lines file is one, and each member of an archive is read by its
own name. The last suffix names the compression: `a.txt.gz` and `a.gz` are one document each, `a.jsonl.gz` one a line.
The archives of lm_dataformat (`.dat.zst`, `.json.zst`) are read as well; unlike its own reader, this one takes a
truncated file as an error, not as the end.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import BinaryIO, TextIO

import zstandard

from data.text.files import SourceFile, cannot_read, open_source

_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # a zip file with a password, or of an unknown compression
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    zstandard.ZstdError,
)


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


def read_all_documents(files: Iterable[SourceFile], text_key: str = "text") -> Iterator[Document]:
    """Yields the documents of several files, in their order.

    Raises:
        DataError: as `read_documents`.
    """
    for file in files:
        yield from read_documents(file, text_key)


def read_documents(file: SourceFile, text_key: str = "text", max_bytes: int = sys.maxsize) -> Iterator[Document]:
    """Yields the documents of one file; one that is not UTF-8 or not JSON has a problem instead of a text.

    Args:
        file: the file to read.
        text_key: the key of a JSON Lines object that holds the text (a string, or a list of paragraphs).
        max_bytes: longer plain text is kept in a temporary file.

    Raises:
        DataError: the file itself cannot be opened, or its compression or archive is damaged.
    """
    try:
        with open_source(file.path) as stream:
            yield from _read_stream(stream, _Context(file.relative, file.relative, text_key, max_bytes))
    except _DAMAGED as error:
        raise cannot_read(file.path, error) from None


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
        text_key: as in `read_documents`.
        max_bytes: as in `read_documents`.
    """

    identity: str
    name: str
    text_key: str
    max_bytes: int

    def member(self, name: str) -> _Context:
        return replace(self, identity=f"{self.identity}/{name}", name=name)


Reader = Callable[[BinaryIO, _Context], Iterator[Document]]


def _read_stream(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    for suffix, read in _READERS.items():
        if context.name.endswith(suffix):
            yield from read(stream, replace(context, name=context.name.removesuffix(suffix)))
            return
    yield _read_text(stream, context)


def _read_text(stream: BinaryIO, context: _Context) -> Document:
    head = _read_up_to(stream, context.max_bytes + 1)
    if len(head) <= context.max_bytes:
        return _document(context.identity, head)
    file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the document is no longer needed)
    file.write(head)
    shutil.copyfileobj(stream, file)
    return _check_long(context.identity, file)


def _check_long(identity: str, file: BinaryIO) -> Document:
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


def _read_json_lines(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _parse_line(line, f"{context.identity}:{number}", context.text_key)


def _parse_line(line: bytes, identity: str, text_key: str) -> Document:
    document = _document(identity, line)
    if document.text is None:
        return document
    try:
        value = json.loads(document.text)
    except (ValueError, RecursionError) as error:  # the second: of lists in lists in lists
        return Document(identity, None, f"not JSON: {error}")
    return _document_of_value(value, identity, text_key)


def _document_of_value(value: object, identity: str, text_key: str) -> Document:
    text = value.get(text_key) if isinstance(value, dict) else value
    if isinstance(text, list) and all(isinstance(paragraph, str) for paragraph in text):
        text = "\n\n".join(text)  # lm_dataformat's reading of a list
    if not isinstance(text, str):
        return Document(identity, None, f"no text under the key {text_key!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        return Document(identity, None, f"half a surrogate pair at character {error.start}")
    return Document(identity, text)


def _document(identity: str, content: bytes | bytearray) -> Document:
    try:
        return Document(identity, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Document(identity, None, f"not UTF-8 at byte {error.start}")


def _read_tar(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isfile():
                yield from _read_stream(archive.extractfile(member), context.member(member.name))


def _read_zip(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    with _seekable(stream) as whole, zipfile.ZipFile(whole) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as content:
                    yield from _read_stream(content, context.member(member.filename))


def _seekable(stream: BinaryIO) -> BinaryIO:
    with suppress(AttributeError):  # a member of a streamed archive has no such method
        if stream.seekable():
            return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the caller)
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def _decompressed(open_stream: Callable[[BinaryIO], BinaryIO], read_content: Reader = _read_stream) -> Reader:
    def read(stream: BinaryIO, context: _Context) -> Iterator[Document]:
        with open_stream(stream) as content:
            yield from read_content(content, context)

    return read


def _read_json(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    """Reads one array of texts, as lm_dataformat writes, or JSON Lines under this name, as C4 has them."""
    content = io.BufferedReader(stream)
    if not content.peek(1 << 12).lstrip().startswith(b"["):
        yield from _read_json_lines(content, context)
        return
    for number, value in enumerate(_array_elements(io.TextIOWrapper(content, encoding="utf-8", newline=""))):
        yield _document_of_value(value, f"{context.identity}:{number}", context.text_key)


_BETWEEN_ELEMENTS = re.compile(r"[\s,]*")
_MAX_CHARACTERS = 1 << 30  # of an element: a longer one means a damaged file


def _array_elements(text: TextIO) -> Iterator[object]:
    """Yields the elements of a JSON array, holding little more than one in memory."""
    decoder, buffer, at = json.JSONDecoder(), text.read(1 << 16), 0
    at = buffer.index("[") + 1
    while True:
        at = _BETWEEN_ELEMENTS.match(buffer, at).end()
        if buffer.startswith("]", at):
            return
        try:
            value, end = decoder.raw_decode(buffer, at)
        except ValueError:
            end = len(buffer)
        if end < len(buffer):  # else the element may continue
            yield value
            at = end
            continue
        more = text.read(max(1 << 16, len(buffer) - at))
        if not more or len(buffer) - at > _MAX_CHARACTERS:
            raise ValueError(f"not JSON, or truncated, in the element that begins with {buffer[at : at + 40]!r}")
        buffer, at = buffer[at:] + more, 0


def _read_dat(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    """Reads lm_dataformat's `DatArchive`: each text follows its length in bytes, as 16 digits."""
    number = 0
    while head := stream.read(16):
        if not re.fullmatch(rb"[0-9]{16}", head):
            raise ValueError(f"no length before text {number}")
        content = _read_up_to(stream, int(head))
        if len(content) < int(head):
            raise EOFError("it ends in the middle of a text")
        yield _document(f"{context.identity}:{number}", content)
        number += 1


def _read_up_to(stream: BinaryIO, length: int) -> bytearray:
    content = bytearray()
    # In parts: a stream may return less, and a damaged length must not reserve all memory.
    while part := stream.read(min(length - len(content), 1 << 20)):
        content += part
    return content


def _read_xz(stream: BinaryIO, context: _Context) -> Iterator[Document]:
    with io.BufferedReader(lzma.open(stream)) as content:
        # OpenWebText's `*_data.xz` are tar archives although their names do not say so.
        is_tar = content.peek(512)[257:262] == b"ustar"
        read = _read_tar if is_tar else _read_stream
        yield from read(content, context)


def _open_zstandard(stream: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_ZstandardFrames(stream))


class _ZstandardFrames(io.RawIOBase):
    """Decompresses all frames of a file; zstandard's own stream reader takes a truncated file for a complete one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frame = None
        self._compressed = b""
        self._text = memoryview(b"")  # slices of it copy nothing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._text and self._advance():
            pass
        count = min(len(buffer), len(self._text))
        buffer[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def _advance(self) -> bool:
        compressed = self._compressed or self._stream.read(1 << 12)  # little: it can become 30,000 times as much
        if not compressed:
            if self._frame:
                raise EOFError("it ends in the middle of a zstandard frame")
            return False
        self._frame = self._frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self._text = memoryview(self._frame.decompress(compressed))
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True


_READERS: dict[str, Reader] = {
    ".json.zst": _decompressed(_open_zstandard, _read_json),
    ".json.gz": _decompressed(gzip.open, _read_json),
    ".dat.zst": _decompressed(_open_zstandard, _read_dat),
    ".zst": _decompressed(_open_zstandard),
    ".tgz": _decompressed(gzip.open, _read_tar),
    ".gz": _decompressed(gzip.open),
    ".xz": _read_xz,
    ".jsonl": _read_json_lines,
    ".tar": _read_tar,
    ".zip": _read_zip,
}
