"""The records of tfrecord files, the sound ones apart from the wrong ones: reading that no damage ends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import DataError
from data.loading.reader import RecordRules, parse_record, parse_records
from data.tfrecord.framing import Frame, walk_frames
from data.tfrecord.records import damaged_record_error, read_frame, unreadable_file_error
from data.tfrecord.shards import Shard, count_in_name, glob_files, on_host, sort_shards
from meshtf import RecordReader, tf

BLOCK_RECORDS = 512
GZIP_BEGINNING = b"\x1f\x8b"


def find_paths(patterns: Sequence[str]) -> list[str]:
    """Returns what the globs match, in natural order, without what is kept beside tfrecords.

    Raises:
        DataError: a glob is a folder, or matches nothing.
    """
    shards = []
    for pattern in patterns:
        paths = glob_files(pattern)
        if not paths:
            raise DataError(f"{pattern}: no file matches; check the path (relative paths start at {os.getcwd()})")
        shards += sort_shards(Shard(path, count_in_name(path)) for path in paths)
    return list(dict.fromkeys(shard.path for shard in shards))


@dataclass(frozen=True)
class Block:
    """Records of a file that follow each other.

    Attributes:
        first: the number of the first one in the file.
    """

    path: str
    first: int
    frames: tuple[Frame, ...]

    def n_bytes(self) -> int:
        """From the first to the last record."""
        return self.frames[-1].start - self.frames[0].start


def blocks_of(path: str) -> Iterator[Block]:
    """Yields all that a file holds.

    Raises:
        DataError: it cannot be read.
    """
    frames, first = _frames_of(path), 0
    while block := tuple(itertools.islice(frames, BLOCK_RECORDS)):
        yield Block(path, first, block)
        first += len(block)


def _frames_of(path: str) -> Iterator[Frame]:
    try:
        yield from walk_frames(path)
    except tf.errors.OpError as error:
        raise unreadable_file_error(path, error) from None


@dataclass(frozen=True)
class Sifted:
    """The records of a block, the sound ones apart from the wrong ones.

    Attributes:
        records: the sound ones, in bytes.
        rows: their ids, int64 [length] each.
        problems: by the numbers of the wrong ones, what is wrong with each.
    """

    records: list[bytes]
    rows: list[np.ndarray]
    problems: dict[int, str]


def sift(block: Block, rules: RecordRules) -> Sifted:
    """Reads the records of a block.

    Raises:
        DataError: the file cannot be read any more.
    """
    read, problems = _read(block)
    try:
        with on_host():
            shard = Shard(block.path, 0)
            rows = parse_records(list(read.values()), [(shard, number) for number in read], rules) if read else []
        return Sifted(list(read.values()), rows, problems)
    except DataError:
        return _sift_one_by_one(block.path, read, problems, rules)


def _read(block: Block) -> tuple[dict[int, bytes], dict[int, str]]:
    read, problems = {}, {}
    try:
        reader = RecordReader(block.path)
        for number, frame in enumerate(block.frames, start=block.first):
            try:
                read[number] = read_frame(reader, frame)
            except (tf.errors.DataLossError, IndexError):
                problems[number] = str(damaged_record_error(block.path, number))
    except tf.errors.OpError as error:
        raise unreadable_file_error(block.path, error) from None
    return read, problems


def _sift_one_by_one(path: str, read: dict[int, bytes], problems: dict[int, str], rules: RecordRules) -> Sifted:
    sifted = Sifted([], [], dict(problems))
    for number, record in read.items():
        try:
            sifted.rows.append(parse_record(record, path, number, rules))
            sifted.records.append(record)
        except DataError as error:
            sifted.problems[number] = str(error)
    return sifted


def what_it_is(path: str) -> str:
    """Says of a file in which no record begins what it is instead."""
    with tf.io.gfile.GFile(path, "rb") as file:
        beginning = file.read(len(GZIP_BEGINNING))
    if not beginning:
        return f"{path}: is empty; copy it again, or remove it"
    if beginning == GZIP_BEGINNING:
        return f"{path}: is compressed; unpack it with gzip -d"
    return f"{path}: record 0 is truncated or damaged, and no other one follows: is no tfrecord file; remove it"
