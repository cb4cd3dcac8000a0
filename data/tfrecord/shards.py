"""The tfrecord files of a dataset: their record counts, their order, and the location of each record.

A record is located by integer arithmetic over the counts of the files, at no cost however much was read before.

Shape suffixes: B records, N shards.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from natsort import natsorted

from configs.errors import DataError, UserError, looked_from
from data.tfrecord.records import read_records, unreadable_file_error
from meshtf import tf
from storage.files import write_text

COUNTS_FILE = ".neomesh_counts.json"

_COUNT_IN_NAME = re.compile(r"_(\d+).tfrecords$")


@dataclass(frozen=True)
class Shard:
    """One tfrecord file.

    Attributes:
        path: its path.
        n_examples: the number of records that it holds.
        has_segments: whether its dataset has segments; None: it is not read for a model.
    """

    path: str
    n_examples: int
    has_segments: bool | None = None


def list_shards(pattern: str) -> tuple[Shard, ...]:
    """Finds the files of a glob, in natural order, with their counts.

    The count is the number that ends the name (`_100.tfrecords`). A file without one, or with 0 there, as in
    GPT-Neo's demo file, is counted once; the count is cached in `.neomesh_counts.json` beside it, if possible.

    Raises:
        DataError: no file matches, the glob names a folder, or a file that must be counted is damaged.
    """
    paths = glob_files(pattern)
    if not paths:
        where = looked_from(pattern)
        raise DataError(f"{pattern}: no file matches; check the path in the dataset config{where}")
    uncounted = [path for path in paths if not count_in_name(path)]
    counts = {path: count_in_name(path) for path in paths} | _counts_of(uncounted)
    return sort_shards(Shard(path, counts[path]) for path in paths)


def glob_files(pattern: str) -> list[str]:
    """Returns the paths that a glob matches, without the JSON files that are kept beside tfrecords.

    Raises:
        DataError: the glob names a folder, or cannot be searched.
    """
    try:
        if tf.io.gfile.isdir(pattern):
            raise DataError(f"{pattern}: is a folder; give a glob such as {pattern.rstrip('/')}/*.tfrecords")
        return [path for path in tf.io.gfile.glob(pattern) if not _is_other(path)]
    except tf.errors.NotFoundError:  # in a bucket
        return []
    except tf.errors.OpError as error:
        raise unreadable_file_error(pattern, error) from None


def _is_other(path: str) -> bool:
    """Whether a file is one of counts or a manifest, or what a Mac puts into an archive beside each file."""
    return path.endswith(".json") or os.path.basename(path).startswith("._")


def count_in_name(path: str) -> int:
    """Returns the count at the end of a file's name, 0 if there is none."""
    match = _COUNT_IN_NAME.search(path)
    return int(match.group(1)) if match else 0


def name_with_count(name: str, n_examples: int) -> str:
    """Returns the name of a file with this count at its end, instead of any other."""
    return f"{_COUNT_IN_NAME.sub('', name).removesuffix('.tfrecords')}_{n_examples}.tfrecords"


def _counts_of(paths: Sequence[str]) -> dict[str, int]:
    counts = {}
    for directory, in_directory in itertools.groupby(sorted(paths, key=os.path.dirname), os.path.dirname):
        cache = os.path.join(directory, COUNTS_FILE)
        cached = _load_counts(cache)
        entries = {path: _count_entry(path, cached) for path in in_directory}
        by_name = {os.path.basename(path): entry for path, entry in entries.items()}
        if not by_name.items() <= cached.items():
            with contextlib.suppress(UserError):  # if the folder is not writable, the next process counts again
                write_text(cache, json.dumps(cached | by_name, indent=1, sort_keys=True) + "\n")
        counts |= {path: entry["n_examples"] for path, entry in entries.items()}
    return counts


def _count_entry(path: str, cached: dict) -> dict:
    try:
        status = tf.io.gfile.stat(path)
    except tf.errors.OpError as error:
        raise unreadable_file_error(path, error) from None
    identity = {"size_bytes": status.length, "mtime_nanoseconds": status.mtime_nsec}
    entry = cached.get(os.path.basename(path))
    if isinstance(entry, dict) and isinstance(entry.get("n_examples"), int) and identity.items() <= entry.items():
        return entry
    return identity | {"n_examples": _count_records(path, status.length, status.mtime_nsec)}


@functools.cache
def _count_records(path: str, size_bytes: int, mtime_nanoseconds: int) -> int:
    """Counts the records of a file, once for each size and time of change."""
    return sum(1 for _ in read_records(path))


def _load_counts(cache: str) -> dict:
    try:
        with tf.io.gfile.GFile(cache) as file:
            counts = json.loads(file.read())
    except (tf.errors.OpError, ValueError):
        return {}
    return counts if isinstance(counts, dict) else {}


def sort_shards(shards: Iterable[Shard]) -> tuple[Shard, ...]:
    """Sorts by path in natural order (`a_2` before `a_10`)."""
    by_path = sorted(shards, key=lambda shard: shard.path)
    return tuple(natsorted(by_path, key=lambda shard: shard.path))


def shuffle_shards(shards: Sequence[Shard], seed: int | str) -> tuple[Shard, ...]:
    """Shuffles as GPT-Neo does: with Python's `random`, the same in every version and process."""
    shuffled = list(shards)
    random.Random(seed).shuffle(shuffled)
    return tuple(shuffled)


def shard_ends(shards: Sequence[Shard]) -> np.ndarray:
    """Returns the number of records up to the end of each shard, int64 [N].

    Raises:
        DataError: there is no record at all.
    """
    ends_N = np.cumsum([shard.n_examples for shard in shards], dtype=np.int64)
    if not len(ends_N) or ends_N[-1] == 0:
        files = ", ".join(shard.path for shard in shards[:3]) or "no file"
        raise DataError(f"{files}: the dataset holds no record; write it with data/create_tfrecords.py")
    return ends_N


def locate(ends_N: np.ndarray, records_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Locates records, over any number of epochs.

    Args:
        ends_N: result of `shard_ends`.
        records_B: numbers of records >= 0; the one after the last is the first of the next epoch.

    Returns:
        The number of the shard, [B], and that of the record in the shard, [B].
    """
    in_epoch_B = np.asarray(records_B, dtype=np.int64) % ends_N[-1]
    shards_B = np.searchsorted(ends_N, in_epoch_B, side="right")
    starts_N = np.concatenate([[0], ends_N[:-1]])
    return shards_B, in_epoch_B - starts_N[shards_B]


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Runs TensorFlow eagerly on the CPU, whatever graph and device the caller is using."""
    with tf.__internal__.eager_context.eager_mode(), tf.device("/cpu:0"):
        yield
