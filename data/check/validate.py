"""Reads the records of tfrecord files, and separates the valid ones from the invalid; no damage stops it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from natsort import natsorted

from configs.errors import DataError, looked_from
from data.loading.reader import RecordRules, parse_record, parse_records
from data.tfrecord.framing import Frame, walk_frames
from data.tfrecord.records import Record, compression_of, damaged_record_error, read_frame, unreadable_file_error
from data.tfrecord.shards import Shard, glob_files, on_host
from meshtf import RecordReader, tf

BLOCK_RECORDS = 512


def find_paths(patterns: Sequence[str]) -> list[str]:
    """Returns the tfrecord files that the globs match, in natural order.

    Raises:
        DataError: a glob names a folder, or matches nothing.
    """
    paths = []
    for pattern in patterns:
        matching = glob_files(pattern)
        if not matching:
            raise DataError(f"{pattern}: no file matches; check the path{looked_from(pattern)}")
        paths += natsorted(sorted(matching))
    return list(dict.fromkeys(paths))


@dataclass(frozen=True)
class RecordBlock:
    """Consecutive records of a file.

    Attributes:
        path: the file.
        first: number of the first record in the file.
        frames: where the records are.
    """

    path: str
    first: int
    frames: tuple[Frame, ...]

    def n_bytes(self) -> int:
        """Returns the size of the block without its last record, as a measure of progress."""
        return self.frames[-1].start - self.frames[0].start


def split_into_blocks(path: str) -> Iterator[RecordBlock]:
    """Yields all records of a file, valid or not, in blocks.

    Raises:
        DataError: it cannot be read.
    """
    frames, first = walk_frames(path), 0
    try:
        while block := tuple(itertools.islice(frames, BLOCK_RECORDS)):
            yield RecordBlock(path, first, block)
            first += len(block)
    except tf.errors.OpError as error:
        raise unreadable_file_error(path, error) from None


@dataclass(frozen=True)
class ValidatedBlock:
    """The records of a block, the valid ones apart from the invalid.

    Attributes:
        records: the valid ones, serialized.
        rows: the same, parsed.
        errors: what is wrong with each invalid record, by its number.
    """

    records: list[bytes]
    rows: list[Record]
    errors: dict[int, str]


def validate_block(block: RecordBlock, rules: RecordRules) -> ValidatedBlock:
    """Reads and validates the records of a block.

    Raises:
        DataError: the file can no longer be read.
    """
    records, errors = _read(block)
    try:
        with on_host():
            locations = [(Shard(block.path, 0), number) for number in records]
            rows = parse_records(list(records.values()), locations, rules) if records else []
        return ValidatedBlock(list(records.values()), rows, errors)
    except DataError:
        return _validate_one_by_one(block.path, records, errors, rules)


def _read(block: RecordBlock) -> tuple[dict[int, bytes], dict[int, str]]:
    records, errors = {}, {}
    try:
        reader = RecordReader(block.path)
        for number, frame in enumerate(block.frames, start=block.first):
            try:
                records[number] = read_frame(reader, frame)
            except (tf.errors.DataLossError, IndexError):
                errors[number] = str(damaged_record_error(block.path, number))
    except tf.errors.OpError as error:
        raise unreadable_file_error(block.path, error) from None
    return records, errors


def _validate_one_by_one(
    path: str, records: dict[int, bytes], errors: dict[int, str], rules: RecordRules
) -> ValidatedBlock:
    validated = ValidatedBlock([], [], dict(errors))
    for number, record in records.items():
        try:
            validated.rows.append(parse_record(record, path, number, rules))
            validated.records.append(record)
        except DataError as error:
            validated.errors[number] = str(error)
    return validated


def explain_no_records(path: str) -> str:
    """Returns the message for a file that holds no valid record at all."""
    if tf.io.gfile.stat(path).length == 0:
        return f"{path}: is empty; copy it again, or remove it"
    if compression := compression_of(path):
        return f"{path}: is compressed with {compression}; unpack it, and give the file inside"
    return f"{path}: is not a tfrecord file: record 0 is truncated or damaged, and no other follows; remove it"
