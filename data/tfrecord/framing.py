"""Where the records of a tfrecord file lie, in a damaged file too.

A record is framed: its length (8 bytes), a checksum of that (4), its content, and a checksum of that (4). A file is
walked from head to head; where a head is damaged, the next sound one is searched for, so that one wrong bit costs one
record and not all that follow.

TensorFlow's own reader takes a length at its word, and ends the program where so much memory is not to be had: here no
length is believed that the file cannot hold.

Shape suffixes: C candidates, W bytes of a window.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from meshtf import tf

HEAD = struct.Struct("<QI")
FRAME_BYTES = 16  # of a record beside its content: its length (8), and two checksums (4 each)
WINDOW_BYTES = 4 << 20
LENGTH_BYTES = 8
POSSIBLE_LENGTH_BYTES = 5  # a record of a terabyte and more is none

_POLYNOMIAL = 0x82F63B78  # CRC-32C, its bits reversed
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class Frame:
    """The place of a record, or of what should have been one.

    Attributes:
        start: where it begins, in bytes.
        is_sound: its head is as it was written, and its content ends before the file does.
    """

    start: int
    is_sound: bool


def walk_frames(path: str) -> Iterator[Frame]:
    """Yields the place of every record; what is damaged, up to the next sound head, counts as one.

    The contents and their checksums are not read. What TensorFlow has to complain of is raised as it is.
    """
    size = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as file:
        view, start = _View(file, size), 0
        end = view.end_of_record(start)
        while start < size:
            following = view.next_head(start + 1) if end is None else view.after_record(start, end)
            yield Frame(start, end == following)
            start, end = following, view.end_of_record(following)


class _View:
    """A window on a file, which moves forward."""

    def __init__(self, file: tf.io.gfile.GFile, size: int) -> None:
        self._file, self._size = file, size
        self._begin, self._window = 0, b""

    def end_of_record(self, start: int) -> int | None:
        """Returns where the record that begins here ends; None: no sound one does."""
        if start + FRAME_BYTES > self._size:
            return None
        if not self._begin <= start <= self._begin + len(self._window) - HEAD.size:
            self._move(start)
        length, checksum = HEAD.unpack_from(self._window, start - self._begin)
        end = start + FRAME_BYTES + length
        return end if end <= self._size and checksum == _checksum_of_length(length) else None

    def after_record(self, start: int, end: int) -> int:
        """Returns where the next record begins; before the end, where a part of this one is missing."""
        if end == self._size or self.end_of_record(end) is not None:
            return end
        return min(end, self.next_head(start + 1))

    def next_head(self, start: int) -> int:
        """Returns where the next sound record begins; the end of the file: there is none."""
        while start + FRAME_BYTES <= self._size:
            self._move(start)
            for candidate in _heads_in(np.frombuffer(self._window, dtype=np.uint8)):
                if self.end_of_record(start + int(candidate)) is not None:
                    return start + int(candidate)
            start += len(self._window) - HEAD.size + 1
        return self._size

    def _move(self, start: int) -> None:
        self._file.seek(start)
        self._begin, self._window = start, self._file.read(WINDOW_BYTES)
        if len(self._window) < min(HEAD.size, self._size - start):
            raise tf.errors.DataLossError(None, None, "the file has become shorter")


def _heads_in(bytes_W: np.ndarray) -> np.ndarray:
    """Returns the places, [C], at which 8 bytes are followed by their checksum."""
    n_places = len(bytes_W) - HEAD.size + 1
    is_candidate = np.zeros(n_places, dtype=bool)
    for number in range(LENGTH_BYTES, HEAD.size):  # among zeros is no head: the checksum of zeros is another
        is_candidate |= bytes_W[number : number + n_places] != 0
    for number in range(POSSIBLE_LENGTH_BYTES, LENGTH_BYTES):
        is_candidate &= bytes_W[number : number + n_places] == 0
    (places_C,) = np.nonzero(is_candidate)
    heads = bytes_W[places_C[:, None] + np.arange(HEAD.size)]
    stored_C = np.ascontiguousarray(heads[:, LENGTH_BYTES:]).view("<u4")[:, 0]
    return places_C[_masked_checksums(heads[:, :LENGTH_BYTES]) == stored_C]


@functools.lru_cache(maxsize=1 << 16)
def _checksum_of_length(length: int) -> int:
    head = np.frombuffer(struct.pack("<Q", length), dtype=np.uint8)
    return int(_masked_checksums(head[None])[0])


def _masked_checksums(lengths: np.ndarray) -> np.ndarray:
    """CRC-32C of bytes [C, 8], turned and shifted as TFRecord stores it; Source: TensorFlow, lib/hash/crc32c.h."""
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
