"""Records of a data set by number: any record can be read next, in threads that run ahead of the caller.

Nothing is read but the files in which something is asked for, so that going on from anywhere costs nothing.

Shape suffixes: R records, N shards.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from configs.errors import DataError
from data.tfrecord.random_access import OpenFiles
from data.tfrecord.records import FEATURE, decode_record, parse_example, read_examples
from data.tfrecord.shards import Shard, count_in_name, locate, on_host, shard_ends, shuffle_shards
from meshtf import tf

THREADS = 4
BLOCK_RECORDS = 256  # read at once where all are read in order

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RecordRules:
    """What every record of a data set must obey.

    Attributes:
        n_ctx: a record holds n_ctx + 1 ids; None: it is a document, of any length above 0.
        n_vocab: every id lies in [0, n_vocab).
    """

    n_ctx: int | None
    n_vocab: int


class Records:
    """The records of a data set, epoch after epoch without end, by number.

    Args:
        shards: the files, in the order of the first epoch, or before they are shuffled.
        rules: for every record.
        seed: shuffles the files, in each epoch anew; None: they stay in order.

    Raises:
        DataError: there is no record at all.
    """

    def __init__(self, shards: Sequence[Shard], rules: RecordRules, seed: int | None = None) -> None:
        self._shards = tuple(shards)
        self._rules = rules
        self._files = OpenFiles()
        self._order = functools.lru_cache(maxsize=4)(functools.partial(_order, self._shards, seed))
        self.n_records = int(shard_ends(self._shards)[-1])

    def read(self, numbers_R: np.ndarray) -> list[np.ndarray]:
        """Reads records by number, >= 0; one past the last is the first of the next epoch.

        Returns:
            int64 ids of each, [n_ctx + 1], or [length] of a document.

        Raises:
            DataError: a record breaks the rules, a file is damaged, or holds another number of records than expected.
        """
        return self._read(numbers_R, self._read_in_whole_file)

    def _read(self, numbers_R: np.ndarray, read_one: Callable[[Shard, int], bytes]) -> list[np.ndarray]:
        places = self.places(numbers_R)
        with on_host():
            return parse_records([read_one(*place) for place in places], places, self._rules)

    def _read_in_whole_file(self, shard: Shard, record: int) -> bytes:
        file = self._files.file_of(shard)
        if not file.is_whole:
            raise _explain(shard, self._rules)
        return file.read(record)

    def _read_in_any_file(self, shard: Shard, record: int) -> bytes:
        return self._files.file_of(shard).read(record)

    def read_sound(self, numbers_R: np.ndarray) -> list[np.ndarray | DataError]:
        """As `read`, but what cannot be used has its error in its place."""
        try:
            return list(self._read(numbers_R, self._read_in_any_file))
        except DataError:
            return [self._read_or_error(number) for number in numbers_R]

    def _read_or_error(self, number: np.int64) -> np.ndarray | DataError:
        try:
            return self._read(np.array([number]), self._read_in_any_file)[0]
        except DataError as error:
            return error

    def places(self, numbers_R: np.ndarray) -> list[tuple[Shard, int]]:
        """The file that each record lies in, and its number there."""
        epochs_R, in_epoch_R = np.divmod(numbers_R, self.n_records)
        places: list[tuple[Shard, int]] = []
        for epoch, group in itertools.groupby(range(len(epochs_R)), lambda row: int(epochs_R[row])):
            shards, ends_N = self._order(epoch)
            shards_R, records_R = locate(ends_N, in_epoch_R[list(group)])
            places += [(shards[n], record) for n, record in zip(shards_R.tolist(), records_R.tolist(), strict=True)]
        return places


def _order(shards: tuple[Shard, ...], seed: int | None, epoch: int) -> tuple[tuple[Shard, ...], np.ndarray]:
    """The files of an epoch: the first one is GPT-Neo's, whose every epoch is the same."""
    if seed is not None:
        shards = shuffle_shards(shards, seed if epoch == 0 else f"{seed}/{epoch}")
    return shards, shard_ends(shards)


def read_once(shards: Sequence[Shard], rules: RecordRules) -> Iterator[np.ndarray]:
    """Yields the ids of every record once, in order; see `Records.read`."""
    records = Records(shards, rules)
    starts = range(0, records.n_records, BLOCK_RECORDS)
    blocks = (np.arange(start, min(start + BLOCK_RECORDS, records.n_records)) for start in starts)
    for rows in ahead(records.read, blocks, n_ahead=THREADS):
        yield from rows


def ahead(work: Callable[[Task], Result], tasks: Iterable[Task], n_ahead: int) -> Iterator[Result]:
    """Yields what becomes of each task, in order, while threads work on the next ones."""
    remaining = iter(tasks)
    with ThreadPoolExecutor(min(THREADS, n_ahead), thread_name_prefix="reading") as pool:
        pending: collections.deque[Future[Result]] = collections.deque()
        try:
            while True:
                for task in itertools.islice(remaining, n_ahead - len(pending)):
                    pending.append(pool.submit(work, task))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


# Ids.


def parse_records(
    serialized: Sequence[bytes], places: Sequence[tuple[Shard, int]], rules: RecordRules
) -> list[np.ndarray]:
    """Unpacks records that were read, together.

    Raises:
        DataError: one of them breaks the rules, and its place is named.
    """
    try:
        rows = _ids_of(serialized, rules)
        if all(_is_sound(ids, rules) for ids in rows):
            return rows
    except (tf.errors.OpError, UnicodeDecodeError):  # the second: TensorFlow quotes bytes of the record as text
        pass
    return [
        parse_record(record, shard.path, number, rules)
        for record, (shard, number) in zip(serialized, places, strict=True)
    ]


def parse_record(record: bytes, path: str, number: int, rules: RecordRules) -> np.ndarray:
    """Unpacks one record that was read, slowly.

    Raises:
        DataError: it breaks the rules, and is named.
    """
    ids = decode_record(record, path, number)
    _check_record(ids, path, number, rules)
    return ids


def _ids_of(serialized: Sequence[bytes], rules: RecordRules) -> list[np.ndarray]:
    records_R = tf.constant(serialized)
    if rules.n_ctx is not None:
        return list(parse_example(records_R, rules.n_ctx + 1).numpy())
    ragged = tf.io.parse_example(records_R, {FEATURE: tf.io.RaggedFeature(tf.int64)})[FEATURE]
    return np.split(ragged.values.numpy(), ragged.row_splits.numpy()[1:-1])


def _is_sound(ids: np.ndarray, rules: RecordRules) -> bool:
    return len(ids) > 0 and ids.min() >= 0 and ids.max() < rules.n_vocab


# What is wrong.


def check_shard(shard: Shard, rules: RecordRules) -> None:
    """Reads a file record by record, slowly, to say which record is wrong and how.

    Raises:
        DataError: the file cannot be read, a record breaks the rules, or the count is another than the shard's.
    """
    n_found = 0
    for ids in read_examples(shard.path):
        _check_record(ids, shard.path, n_found, rules)
        n_found += 1
    if n_found != shard.n_examples:
        source = "its name says" if count_in_name(shard.path) else "were counted before"
        raise DataError(
            f"{shard.path}: holds {n_found} examples, but {source} {shard.n_examples}; copy it again if it was cut "
            f"short, or rename it so that it ends in _{n_found}.tfrecords"
        )


def _check_record(ids: np.ndarray, path: str, number: int, rules: RecordRules) -> None:
    where = f"{path}: record {number}"
    if not len(ids):
        raise DataError(f"{where} holds no id; write the file again with data/create_tfrecords.py")
    if rules.n_ctx is not None and len(ids) != rules.n_ctx + 1:
        # After records of the right length, another n_ctx would only make those the wrong ones.
        other_n_ctx = f"set n_ctx to {len(ids) - 1}, or " if number == 0 and len(ids) > 1 else ""
        raise DataError(
            f"{where} holds {len(ids)} ids, but n_ctx {rules.n_ctx} needs {rules.n_ctx + 1}: {other_n_ctx}"
            f"write the file again with --chunk_size {rules.n_ctx}"
        )
    outside = ids[(ids < 0) | (ids >= rules.n_vocab)]
    if len(outside):
        raise DataError(
            f"{where} holds the id {outside[0]}, outside [0, {rules.n_vocab}); raise n_vocab, or use the tokenizer "
            "and dataset config that the file was written with"
        )


def _explain(shard: Shard, rules: RecordRules) -> DataError:
    """Returns the error that names file and record, found by reading the file again."""
    try:
        with on_host():
            check_shard(shard, rules)
    except DataError as found:
        return found
    return DataError(f"{shard.path}: has changed while it was read; see that nothing writes to it, and start again")
