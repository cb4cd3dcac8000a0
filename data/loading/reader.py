"""Random access to the records of a dataset, and reading ahead in threads.

Only the files that hold a requested record are opened, so resuming anywhere costs nothing.

Shape suffixes: R records, N shards.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from configs.errors import DataError
from data.parallel.ordered_results import results_in_order
from data.tfrecord.random_access import FileCache
from data.tfrecord.records import Record, decode_record, find_record_issue, parse_examples, read_records
from data.tfrecord.shards import Shard, count_in_name, locate, on_host, shard_ends, shuffle_shards
from meshtf import tf

THREADS = 4
BLOCK_RECORDS = 256  # read at once where all are read in order

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RecordRules:
    """What makes a record of a dataset valid.

    Attributes:
        n_ctx: a record holds n_ctx + 1 ids; None: it is a document, of any length above 0.
        n_vocab: every id lies in [0, n_vocab).
        eos_id: the id that ends a document, and a segment of a record that does not say where these begin.
    """

    n_ctx: int | None
    n_vocab: int
    eos_id: int | None = None


class Records:
    """The records of a dataset by number, epoch after epoch without end.

    Args:
        shards: the files, in the order of the first epoch, or before they are shuffled.
        rules: what makes a record valid.
        seed: shuffles the files, differently in each epoch; None: they stay in order.

    Raises:
        DataError: there is no record at all.
    """

    def __init__(self, shards: Sequence[Shard], rules: RecordRules, seed: int | None = None) -> None:
        self._shards = tuple(shards)
        self._rules = rules
        self._files = FileCache()
        self._order = functools.lru_cache(maxsize=4)(functools.partial(_order, self._shards, seed))
        self.n_records = int(shard_ends(self._shards)[-1])

    def read(self, numbers_R: np.ndarray) -> list[Record]:
        """Reads records by number, >= 0; the one after the last is the first of the next epoch.

        Returns:
            Each record, of n_ctx + 1 ids, or of any number in a document.

        Raises:
            DataError: a record is invalid, or a file is damaged or holds another number of records than expected.
        """
        return self._read(numbers_R, self._read_from_complete_file)

    def _read(self, numbers_R: np.ndarray, read_one: Callable[[Shard, int], bytes]) -> list[Record]:
        locations = self.locations(numbers_R)
        with on_host():
            records = parse_records([read_one(*location) for location in locations], locations, self._rules)
        return [_packed(record, *location, self._rules) for record, location in zip(records, locations, strict=True)]

    def _read_from_complete_file(self, shard: Shard, record: int) -> bytes:
        file = self._files.open(shard)
        if not file.is_complete:
            raise _diagnose(shard, self._rules)
        return file.read(record)

    def _read_from_any_file(self, shard: Shard, record: int) -> bytes:
        return self._files.open(shard).read(record)

    def try_read(self, numbers_R: np.ndarray) -> list[Record | DataError]:
        """Reads records like `read`, but returns the error of each invalid one in its place."""
        try:
            return list(self._read(numbers_R, self._read_from_any_file))
        except DataError:
            return [self._read_or_error(number) for number in numbers_R]

    def _read_or_error(self, number: np.int64) -> Record | DataError:
        try:
            return self._read(np.array([number]), self._read_from_any_file)[0]
        except DataError as error:
            return error

    def locations(self, numbers_R: np.ndarray) -> list[tuple[Shard, int]]:
        """Returns the file of each record, and its number there."""
        epochs_R, in_epoch_R = np.divmod(numbers_R, self.n_records)
        locations: list[tuple[Shard, int]] = []
        for epoch, group in itertools.groupby(range(len(epochs_R)), lambda row: int(epochs_R[row])):
            shards, ends_N = self._order(epoch)
            shards_R, records_R = locate(ends_N, in_epoch_R[list(group)])
            locations += [(shards[n], record) for n, record in zip(shards_R.tolist(), records_R.tolist(), strict=True)]
        return locations


def _order(shards: tuple[Shard, ...], seed: int | None, epoch: int) -> tuple[tuple[Shard, ...], np.ndarray]:
    """Returns the files in the order of an epoch; the first epoch is GPT-Neo's, whose epochs are all the same."""
    if seed is not None:
        shards = shuffle_shards(shards, seed if epoch == 0 else f"{seed}/{epoch}")
    return shards, shard_ends(shards)


def read_epoch(shards: Sequence[Shard], rules: RecordRules) -> Iterator[Record]:
    """Yields every record once, in order; raises as `Records.read`."""
    records = Records(shards, rules)
    starts = range(0, records.n_records, BLOCK_RECORDS)
    blocks = (np.arange(start, min(start + BLOCK_RECORDS, records.n_records)) for start in starts)
    for rows in prefetch(records.read, blocks, n_ahead=THREADS):
        yield from rows


def prefetch(work: Callable[[Task], Result], tasks: Iterable[Task], n_ahead: int) -> Iterator[Result]:
    """Yields the result of each task, in order, while threads work on up to `n_ahead` tasks."""
    with ThreadPoolExecutor(min(THREADS, n_ahead), thread_name_prefix="reading") as pool:
        yield from results_in_order(functools.partial(pool.submit, work), tasks, n_ahead)


def parse_records(
    serialized: Sequence[bytes], locations: Sequence[tuple[Shard, int]], rules: RecordRules
) -> list[Record]:
    """Parses and validates records together, which is much faster than one by one.

    Raises:
        DataError: one of them is invalid; the message names it.
    """
    try:
        records = parse_examples(serialized, None if rules.n_ctx is None else rules.n_ctx + 1)
        if all(_is_valid(record, rules) for record in records):
            return records
    except (tf.errors.OpError, UnicodeDecodeError):  # the second: TensorFlow quotes bytes of the record as text
        pass
    return [
        parse_record(record, shard.path, number, rules)
        for record, (shard, number) in zip(serialized, locations, strict=True)
    ]


def _packed(record: Record, shard: Shard, number: int, rules: RecordRules) -> Record:
    """Returns a record with segments where its dataset is masked.

    Raises:
        DataError: the record and the `packing` of its dataset do not fit.
    """
    if shard.has_segments is False and record.segments_L is not None:
        raise DataError(
            f"{shard.path}: record {number} holds the segments of several texts, and packing stream would join them; "
            'write "packing": "masked" in the dataset config'
        )
    if not shard.has_segments or record.segments_L is not None or rules.n_ctx is None:
        return record
    if rules.eos_id is None:
        raise DataError(
            f"{shard.path}: record {number} holds no segments, and without eos_id packing masked cannot tell where a "
            "document ends; give eos_id in the dataset config"
        )
    return dataclasses.replace(record, segments_L=segments_of(record.ids_L, rules.eos_id))


def segments_of(ids_L: np.ndarray, eos_id: int) -> np.ndarray:
    """Numbers the documents that ids belong to, from 1; the end of a document belongs to it."""
    return 1 + np.cumsum(np.concatenate([[False], ids_L[:-1] == eos_id]))


def parse_record(record: bytes, path: str, number: int, rules: RecordRules) -> Record:
    """Parses and validates one record, slowly.

    Raises:
        DataError: it is invalid; the message names it.
    """
    decoded = decode_record(record, path, number)
    ids = decoded.ids_L
    named = f"{path}: record {number}"
    if not len(ids):
        raise DataError(f"{named} holds no id; write the file again with data/create_tfrecords.py")
    if rules.n_ctx is not None and len(ids) != rules.n_ctx + 1:
        # If the first record has the right length, another n_ctx would only make that one invalid.
        other_n_ctx = f"set n_ctx to {len(ids) - 1}, or " if number == 0 and len(ids) > 1 else ""
        raise DataError(
            f"{named} holds {len(ids)} ids, but n_ctx {rules.n_ctx} needs {rules.n_ctx + 1}; {other_n_ctx}"
            f"write the file again with --chunk_size {rules.n_ctx}; records of documents need input_fn = generic_text"
        )
    outside = ids[(ids < 0) | (ids >= rules.n_vocab)]
    if len(outside):
        raise DataError(
            f"{named} holds the id {outside[0]}, outside [0, {rules.n_vocab}); raise n_vocab, or use the tokenizer "
            "and dataset config that the file was written with"
        )
    if issue := find_record_issue(decoded):
        raise DataError(f"{named} {issue}; write the file again")
    return decoded


def _is_valid(record: Record, rules: RecordRules) -> bool:
    ids_L = record.ids_L
    return len(ids_L) > 0 and ids_L.min() >= 0 and ids_L.max() < rules.n_vocab and find_record_issue(record) is None


def _diagnose(shard: Shard, rules: RecordRules) -> DataError:
    """Returns the error that says what is wrong with a file, found by reading it again, record by record."""
    n_found = 0
    try:
        with on_host():
            for record in read_records(shard.path):
                parse_record(record, shard.path, n_found, rules)
                n_found += 1
    except DataError as found:
        return found
    if n_found == shard.n_examples:
        return DataError(
            f"{shard.path}: changed while it was being read; make sure that nothing writes to it, and restart"
        )
    source = "its name says" if count_in_name(shard.path) else "an earlier count found"
    return DataError(
        f"{shard.path}: holds {n_found} examples, but {source} {shard.n_examples}; copy it again if it was cut "
        f"short, or rename it so that it ends in _{n_found}.tfrecords"
    )
