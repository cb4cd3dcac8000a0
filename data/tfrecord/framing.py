"""Finds the records of a tfrecord file, also in a damaged file.

A record is framed: its length (8 bytes), a checksum of the length (4), its content, and a checksum of the content (4).
The file is walked from header to header; after a damaged header the next valid one is searched for, so that one wrong
bit costs one record and not all that follow.

TensorFlow's own reader trusts a damaged length, and aborts the program if it cannot allocate that much memory. Here a
length that exceeds the file is damage.

Shape suffixes: C candidates, W bytes of a window.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from meshtf import tf

HEADER = struct.Struct("<QI")
FRAME_BYTES = 16  # of a record besides its content: its length (8), and two checksums (4 each)
WINDOW_BYTES = 4 << 20
LENGTH_BYTES = 8
USED_LENGTH_BYTES = 5  # no record has a terabyte or more

_POLYNOMIAL = 0x82F63B78  # CRC-32C, bit-reversed
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class Frame:
    """The location of a record, or of damaged bytes in its place.

    Attributes:
        start: offset of its first byte.
        is_valid: its header is intact, and its content ends within the file.
    """

    start: int
    is_valid: bool


def walk_frames(path: str) -> Iterator[Frame]:
    """Yields the frame of every record; damaged bytes, up to the next valid header, count as one record.

    Contents and their checksums are not read. TensorFlow's errors are raised as they are.
    """
    size = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as file:
        window, start = _Window(file, size), 0
        end = window.end_of_record(start)
        while start < size:
            following = window.next_header(start + 1) if end is None else window.after_record(start, end)
            yield Frame(start, end == following)
            start, end = following, window.end_of_record(following)


class _Window:
    """A window on a file that moves forward."""

    def __init__(self, file: tf.io.gfile.GFile, size: int) -> None:
        self._file, self._size = file, size
        self._begin, self._content = 0, b""

    def end_of_record(self, start: int) -> int | None:
        """Returns where the record that begins at `start` ends; None: no valid one begins there."""
        if start + FRAME_BYTES > self._size:
            return None
        if not self._begin <= start <= self._begin + len(self._content) - HEADER.size:
            self._move(start)
        length, checksum = HEADER.unpack_from(self._content, start - self._begin)
        end = start + FRAME_BYTES + length
        return end if end <= self._size and checksum == _checksum_of_length(length) else None

    def after_record(self, start: int, end: int) -> int:
        """Returns where the next record begins, which is before `end` if a part of this record is missing."""
        if end == self._size or self.end_of_record(end) is not None:
            return end
        return min(end, self.next_header(start + 1))

    def next_header(self, start: int) -> int:
        """Returns where the next valid record begins, or the end of the file."""
        while start + FRAME_BYTES <= self._size:
            self._move(start)
            for candidate in _headers_in(np.frombuffer(self._content, dtype=np.uint8)):
                if self.end_of_record(start + int(candidate)) is not None:
                    return start + int(candidate)
            start += len(self._content) - HEADER.size + 1
        return self._size

    def _move(self, start: int) -> None:
        self._file.seek(start)
        self._begin, self._content = start, self._file.read(WINDOW_BYTES)
        if len(self._content) < min(HEADER.size, self._size - start):
            raise tf.errors.DataLossError(None, None, "the file was truncated")


def _headers_in(bytes_W: np.ndarray) -> np.ndarray:
    """Returns the offsets, [C], at which 8 bytes are followed by their checksum."""
    n_offsets = len(bytes_W) - HEADER.size + 1
    is_candidate = np.zeros(n_offsets, dtype=bool)
    for number in range(LENGTH_BYTES, HEADER.size):  # zeros are no header: their checksum is not zero
        is_candidate |= bytes_W[number : number + n_offsets] != 0
    for number in range(USED_LENGTH_BYTES, LENGTH_BYTES):
        is_candidate &= bytes_W[number : number + n_offsets] == 0
    (offsets_C,) = np.nonzero(is_candidate)
    headers = bytes_W[offsets_C[:, None] + np.arange(HEADER.size)]
    stored_C = np.ascontiguousarray(headers[:, LENGTH_BYTES:]).view("<u4")[:, 0]
    return offsets_C[_masked_checksums(headers[:, :LENGTH_BYTES]) == stored_C]


@functools.lru_cache(maxsize=1 << 16)
def _checksum_of_length(length: int) -> int:
    header = np.frombuffer(struct.pack("<Q", length), dtype=np.uint8)
    return int(_masked_checksums(header[None])[0])


def _masked_checksums(lengths: np.ndarray) -> np.ndarray:
    """Returns the CRC-32C of bytes [C, 8], masked as TFRecord stores it.

    Source: TensorFlow, lib/hash/crc32c.h.
    """
    checksums_C = np.full(len(lengths), 0xFFFFFFFF, dtype=np.uint32)
    for bytes_C in lengths.T:
        checksums_C = _TABLE[(checksums_C ^ bytes_C) & 0xFF] ^ (checksums_C >> 8)
    checksums_C = ~checksums_C
    return ((checksums_C >> 15) | (checksums_C << 17)) + np.uint32(_MASK_DELTA)


def _checksum_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


_TABLE = _checksum_table()
