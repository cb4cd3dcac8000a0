"""The tfrecord files of a data set as one long row of records: counts, order, and reading on from anywhere.

Where to resume is integer arithmetic over the counts of the files, so it costs nothing however much was read before.

Shape suffixes: B records of a block, T ids of a block, N shards.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from natsort import natsorted

from configs.errors import DataError
from data.tfrecords import FEATURE, parse_example, read_examples
from meshtf import tf

COUNTS_FILE = ".neomesh_counts.json"
FRAME_BYTES = 16  # of a record in a tfrecord file: its length (8), and two checksums (4 each)
BLOCK_RECORDS = 32
BLOCKS_AHEAD = 4

_COUNT_IN_NAME = re.compile(r"_(\d+).tfrecords$")


@dataclass(frozen=True)
class Shard:
    """One tfrecord file and the number of records that it holds."""

    path: str
    n_examples: int


@dataclass(frozen=True)
class RecordRules:
    """What every record of a data set must obey.

    Attributes:
        n_ctx: a record holds n_ctx + 1 ids; None: it is a document, of any length above 0.
        n_vocab: every id lies in [0, n_vocab).
    """

    n_ctx: int | None
    n_vocab: int


# Names and counts.


def list_shards(pattern: str) -> tuple[Shard, ...]:
    """Finds the files of a glob, in natural order, with their counts.

    The count is the number that ends the name (`_100.tfrecords`). A file without one, or with 0 there, as GPT-Neo's
    demo file has, is counted once; the count is remembered in `.neomesh_counts.json` beside it, if that can be written.

    Raises:
        DataError: no file matches, the glob is a folder, or a file that must be counted is damaged.
    """
    if tf.io.gfile.isdir(pattern):
        raise DataError(f"{pattern}: is a folder -- give a glob such as {pattern.rstrip('/')}/*.tfrecords")
    paths = [path for path in tf.io.gfile.glob(pattern) if os.path.basename(path) != COUNTS_FILE]
    if not paths:
        raise DataError(
            f"{pattern}: no file matches -- check the path in the dataset config "
            f"(relative paths start at {os.getcwd()})"
        )
    uncounted = [path for path in paths if not count_in_name(path)]
    counts = {path: count_in_name(path) for path in paths} | _counts_of(uncounted)
    return sort_shards(Shard(path, counts[path]) for path in paths)


def count_in_name(path: str) -> int:
    """Returns the count that the file's name carries; 0: none."""
    match = _COUNT_IN_NAME.search(path)
    return int(match.group(1)) if match else 0


def _counts_of(paths: Sequence[str]) -> dict[str, int]:
    counts = {}
    for directory in sorted({os.path.dirname(path) for path in paths}):
        counts |= _counts_in_directory(directory, [path for path in paths if os.path.dirname(path) == directory])
    return counts


def _counts_in_directory(directory: str, paths: Sequence[str]) -> dict[str, int]:
    memory = os.path.join(directory, COUNTS_FILE)
    remembered = _load_counts(memory)
    entries = {os.path.basename(path): _count_entry(path, remembered) for path in paths}
    if not entries.items() <= remembered.items():
        _write_counts(memory, remembered | entries)
    return {path: entries[os.path.basename(path)]["n_examples"] for path in paths}


def _count_entry(path: str, remembered: dict) -> dict:
    status = tf.io.gfile.stat(path)
    identity = {"size_bytes": status.length, "mtime_nanoseconds": status.mtime_nsec}
    entry = remembered.get(os.path.basename(path))
    if isinstance(entry, dict) and isinstance(entry.get("n_examples"), int) and identity.items() <= entry.items():
        return entry
    return identity | {"n_examples": _count_records(path, status.length, status.mtime_nsec)}


@functools.cache
def _count_records(path: str, size_bytes: int, mtime_nanoseconds: int) -> int:
    """Reads the file through; size and time are the identity under which a count stays in memory."""
    try:
        with on_host():
            records = tf.data.TFRecordDataset(path).map(lambda record: tf.strings.length(record, unit="BYTE"))
            sums = records.reduce(np.zeros(2, np.int64), lambda sums, length: sums + [1, tf.cast(length, tf.int64)])
        n_records, n_bytes = (int(total) for total in sums)
    except tf.errors.OpError as error:
        raise _explain([Shard(path, 0)], RecordRules(None, np.iinfo(np.int64).max), error.message) from None
    # TensorFlow takes a file that ends inside the head of a record for one that ends before it.
    if n_bytes + n_records * FRAME_BYTES != size_bytes:
        raise DataError(f"{path}: record {n_records} is cut off -- copy the file again, or write it again")
    return n_records


def _load_counts(memory: str) -> dict:
    try:
        with tf.io.gfile.GFile(memory) as file:
            counts = json.loads(file.read())
    except (tf.errors.OpError, ValueError):
        return {}
    return counts if isinstance(counts, dict) else {}


def _write_counts(memory: str, counts: dict) -> None:
    """Writes beside and renames; a data set that cannot be written to is counted again by the next process."""
    partial = f"{memory}.{os.getpid()}.partial"
    with contextlib.suppress(tf.errors.OpError):
        with tf.io.gfile.GFile(partial, "w") as file:
            file.write(json.dumps(counts, indent=1, sort_keys=True) + "\n")
        tf.io.gfile.rename(partial, memory, overwrite=True)


# Order and place.


def sort_shards(shards: Iterable[Shard]) -> tuple[Shard, ...]:
    """Sorts by path in natural order (`a_2` before `a_10`), whatever order the shards come in."""
    by_path = sorted(shards, key=lambda shard: shard.path)
    return tuple(natsorted(by_path, key=lambda shard: shard.path))


def shuffle_shards(shards: Sequence[Shard], seed: int) -> tuple[Shard, ...]:
    """Shuffles as GPT-Neo does: Python's `random` from `seed`, the same in every version and process."""
    shuffled = list(shards)
    random.Random(seed).shuffle(shuffled)
    return tuple(shuffled)


def shard_ends(shards: Sequence[Shard]) -> np.ndarray:
    """Returns, for each shard, the number of records up to its end, int64 [N].

    Raises:
        DataError: there is no record at all.
    """
    ends_N = np.cumsum([shard.n_examples for shard in shards], dtype=np.int64)
    if not len(ends_N) or ends_N[-1] == 0:
        files = ", ".join(shard.path for shard in shards[:3]) or "no file"
        raise DataError(f"{files}: the data set holds no record -- write it with data/create_tfrecords.py")
    return ends_N


def locate(ends_N: np.ndarray, records_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds where records lie, over any number of epochs.

    Args:
        ends_N: of `shard_ends`.
        records_B: numbers of records >= 0; one past the last is the first of the next epoch.

    Returns:
        The number of the shard, [B], and that of the record in the shard, [B].
    """
    in_epoch_B = np.asarray(records_B, dtype=np.int64) % ends_N[-1]
    shards_B = np.searchsorted(ends_N, in_epoch_B, side="right")
    starts_N = np.concatenate([[0], ends_N[:-1]])
    return shards_B, in_epoch_B - starts_N[shards_B]


# Reading.


def read_cyclic(shards: Sequence[Shard], rules: RecordRules, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the ids of record `start` and of all that follow, epoch after epoch without end.

    Reading runs ahead of the caller. Nothing before `start` is read but the head of its own file.

    Yields:
        int64 ids, [n_ctx + 1], or [length] of a document.

    Raises:
        DataError: a record breaks the rules, a file is damaged, or it holds another number of records than expected.
    """
    ends_N = shard_ends(shards)
    (first,), (skipped,) = locate(ends_N, np.array([start]))
    from_first = np.roll(np.arange(len(shards)), -first)
    with on_host():
        head = _numbered_records(shards, from_first[:1]).skip(skipped)
        rest = _numbered_records(shards, np.roll(from_first, -1)).repeat()
        blocks = _blocks(head.concatenate(rest), rules)
    return _checked_rows(blocks, shards, rules, start, end=None)


def read_once(shards: Sequence[Shard], rules: RecordRules) -> Iterator[np.ndarray]:
    """Yields the ids of every record once, in order; see `read_cyclic`."""
    ends_N = shard_ends(shards)
    with on_host():
        blocks = _blocks(_numbered_records(shards, np.arange(len(shards))), rules)
    return _checked_rows(blocks, shards, rules, 0, end=int(ends_N[-1]))


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Runs TensorFlow eagerly on the host's processor, whatever graph and device the caller is at work on."""
    with tf.__internal__.eager_context.eager_mode(), tf.device("/cpu:0"):
        yield


def _numbered_records(shards: Sequence[Shard], order: np.ndarray) -> tf.data.Dataset:
    """Makes (number of shard, number of record in it, serialized record): the numbers show a file's true count."""
    paths_N = tf.constant([shard.path for shard in shards])

    def records_of(shard: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(paths_N[shard]).enumerate()
        return records.map(lambda number, serialized: (shard, number, serialized))

    return tf.data.Dataset.from_tensor_slices(order.astype(np.int64)).flat_map(records_of)


@dataclass(frozen=True)
class _Block:
    shards_B: np.ndarray
    records_B: np.ndarray
    ids_T: np.ndarray
    splits: np.ndarray  # [B + 1]; record b is ids_T[splits[b] : splits[b + 1]]


def _blocks(records: tf.data.Dataset, rules: RecordRules) -> Iterator[_Block]:
    def parse(shards_B: tf.Tensor, records_B: tf.Tensor, serialized_B: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ids = _parse_block(serialized_B, rules)
        return shards_B, records_B, ids.values, ids.row_splits

    elements = records.batch(BLOCK_RECORDS).map(parse).prefetch(BLOCKS_AHEAD).as_numpy_iterator()
    return _blocks_of(elements)


def _parse_block(serialized_B: tf.Tensor, rules: RecordRules) -> tf.RaggedTensor:
    if rules.n_ctx is None:
        return tf.io.parse_example(serialized_B, {FEATURE: tf.io.RaggedFeature(tf.int64)})[FEATURE]
    return tf.RaggedTensor.from_tensor(parse_example(serialized_B, rules.n_ctx + 1))


def _blocks_of(elements: Iterator[tuple[np.ndarray, ...]]) -> Iterator[_Block]:
    while True:
        with on_host():
            element = next(elements, None)
        if element is None:
            return
        yield _Block(*element)


def _checked_rows(
    blocks: Iterator[_Block], shards: Sequence[Shard], rules: RecordRules, position: int, end: int | None
) -> Iterator[np.ndarray]:
    ends_N = shard_ends(shards)
    while True:
        near_B = np.arange(position, position + BLOCK_RECORDS)
        # An extra record of a file shows only where the next file should begin, hence the record before.
        suspects = [shards[number] for number in np.unique(locate(ends_N, np.append(near_B, max(position - 1, 0)))[0])]
        block = _next_block(blocks, suspects, rules)
        if block is None and position == end:
            return
        if block is None or position == end or not _is_sound(block, rules, *locate(ends_N, near_B)):
            raise _explain(suspects, rules, "another number of records than expected")
        yield from np.split(block.ids_T, block.splits[1:-1])
        position += len(block.records_B)


def _next_block(blocks: Iterator[_Block], suspects: Sequence[Shard], rules: RecordRules) -> _Block | None:
    try:
        return next(blocks, None)
    except tf.errors.OpError as error:
        raise _explain(suspects, rules, error.message) from None


def _is_sound(block: _Block, rules: RecordRules, shards_B: np.ndarray, records_B: np.ndarray) -> bool:
    n_records = len(block.records_B)
    in_place = np.array_equal(block.shards_B, shards_B[:n_records])
    in_place = in_place and np.array_equal(block.records_B, records_B[:n_records])
    filled = bool(np.all(np.diff(block.splits) > 0))
    return in_place and filled and block.ids_T.min() >= 0 and block.ids_T.max() < rules.n_vocab


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
            f"{shard.path}: holds {n_found} examples, but {source} {shard.n_examples} -- copy it again if it was cut "
            f"short, or rename it so that it ends in _{n_found}.tfrecords"
        )


def _check_record(ids: np.ndarray, path: str, number: int, rules: RecordRules) -> None:
    where = f"{path}: record {number}"
    if not len(ids):
        raise DataError(f"{where} holds no id -- write the file again with data/create_tfrecords.py")
    if rules.n_ctx is not None and len(ids) != rules.n_ctx + 1:
        # After records of the right length, another n_ctx would only make those the wrong ones.
        other_n_ctx = f"set n_ctx to {len(ids) - 1}, or " if number == 0 and len(ids) > 1 else ""
        raise DataError(
            f"{where} holds {len(ids)} ids, but n_ctx {rules.n_ctx} needs {rules.n_ctx + 1} -- {other_n_ctx}"
            f"write the file again with --chunk_size {rules.n_ctx}"
        )
    outside = ids[(ids < 0) | (ids >= rules.n_vocab)]
    if len(outside):
        raise DataError(
            f"{where} holds the id {outside[0]}, outside [0, {rules.n_vocab}) -- raise n_vocab, or use the tokenizer "
            "and dataset config that the file was written with"
        )


def _explain(suspects: Sequence[Shard], rules: RecordRules, reason: str) -> DataError:
    """Returns the error that names file and record, found by reading the suspects again; else gives `reason`."""
    try:
        with on_host():
            for shard in suspects:
                check_shard(shard, rules)
    except DataError as found:
        return found
    files = ", ".join(shard.path for shard in suspects)
    return DataError(f"{files}: cannot be read ({reason}) -- check that nothing writes to it and start again")
