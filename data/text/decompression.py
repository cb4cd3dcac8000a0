"""Decompressing gzip, bzip2, xz and zstandard to the very end of a file.

The readers of the standard library and of zstandard end silently where a file is cut between two frames, or where what
follows a frame is none. Here both are errors, and every checksum is compared.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import zstandard

MAX_GROWTH = 200
ALWAYS_ALLOWED_BYTES = 1 << 30
_READ_BYTES = 1 << 12  # little: zstandard can make 30,000 times as much of it


@dataclass
class Expansion:
    """Bounds what a file may become when it is unpacked, archives in archives included.

    Text becomes some 10 times as much; a decompression bomb, which would fill memory or disk, 1,000 times.

    Attributes:
        compressed_bytes: size of the file.
        unpacked_bytes: what has been unpacked so far.
    """

    compressed_bytes: int
    unpacked_bytes: int = 0

    def add(self, n_bytes: int) -> None:
        """Counts unpacked bytes.

        Raises:
            ValueError: they are too many.
        """
        self.unpacked_bytes += n_bytes
        limit = max(ALWAYS_ALLOWED_BYTES, MAX_GROWTH * self.compressed_bytes)
        if self.unpacked_bytes > limit:
            raise ValueError(
                f"it unpacks to more than {limit:,} bytes, {MAX_GROWTH} times its size or more, as a decompression "
                "bomb does; if it is none, unpack it yourself"
            )


@dataclass(frozen=True)
class _Format:
    """A format of compressed frames.

    Attributes:
        frame: what it calls a frame, for messages.
        new_frame: returns what decompresses one, and has `decompress`, `eof` and `unused_data`.
        padding: bytes that may follow a frame.
    """

    frame: str
    new_frame: Callable[[], Any]
    padding: bytes = b""


_GZIP = _Format("gzip member", lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), padding=b"\0")
_BZIP2 = _Format("bzip2 stream", bz2.BZ2Decompressor)
_XZ = _Format("xz stream", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), padding=b"\0")
_ZSTANDARD = _Format("zstandard frame", lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())


def open_gzip(stream: BinaryIO, expansion: Expansion) -> BinaryIO:
    """Opens a gzip file of any number of members."""
    return io.BufferedReader(_Frames(stream, _GZIP, expansion))


def open_bzip2(stream: BinaryIO, expansion: Expansion) -> BinaryIO:
    """Opens a bzip2 file of any number of streams."""
    return io.BufferedReader(_Frames(stream, _BZIP2, expansion))


def open_xz(stream: BinaryIO, expansion: Expansion) -> BinaryIO:
    """Opens an xz file of any number of streams."""
    return io.BufferedReader(_Frames(stream, _XZ, expansion))


def open_zstandard(stream: BinaryIO, expansion: Expansion) -> BinaryIO:
    """Opens a zstandard file of any number of frames."""
    return io.BufferedReader(_Frames(stream, _ZSTANDARD, expansion))


OPENERS = {".zst": open_zstandard, ".gz": open_gzip, ".xz": open_xz, ".bz2": open_bzip2}
"""What opens a compressed file, by its last suffix."""


def counted(stream: BinaryIO, expansion: Expansion) -> BinaryIO:
    """Wraps a stream that is decompressed elsewhere, such as a member of a zip file."""
    return io.BufferedReader(_Counted(stream, expansion))


def read_to_end(stream: BinaryIO) -> None:
    """Reads what is left of a stream, at the end of which its checksum is compared."""
    while stream.read(1 << 20):
        pass


class _Counted(io.RawIOBase):
    def __init__(self, stream: BinaryIO, expansion: Expansion) -> None:
        self._stream, self._expansion = stream, expansion

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = self._stream.read(len(buffer))
        self._expansion.add(len(content))
        buffer[: len(content)] = content
        return len(content)


class _Frames(io.RawIOBase):
    def __init__(self, stream: BinaryIO, format_: _Format, expansion: Expansion) -> None:
        self._stream, self._format, self._expansion = stream, format_, expansion
        self._frame: Any = None
        self._has_frame = False
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
        compressed = self._compressed or self._stream.read(_READ_BYTES)
        if not compressed:
            if self._frame or not self._has_frame:
                raise EOFError(f"it ends in the middle of a {self._format.frame}")
            return False
        self._compressed = b""
        if self._frame is None:
            compressed = compressed.lstrip(self._format.padding) if self._has_frame else compressed
            if not compressed:
                return True
            self._frame, self._has_frame = self._format.new_frame(), True
        self._decompress(compressed)
        return True

    def _decompress(self, compressed: bytes) -> None:
        self._text = memoryview(self._frame.decompress(compressed))
        self._expansion.add(len(self._text))
        if self._frame.eof:
            self._compressed = self._frame.unused_data
            self._frame = None
