"""Partitions of a dump: its submissions and comments by a hash of the submission, each small enough for memory.

A dump is read once, in order. Processes parse batches of its lines and drop what the first filters drop; the rest, some
fields of each, is appended to a file for each partition, so that all comments of a thread are in one partition.
"""

from __future__ import annotations

import collections
import functools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import zstandard
from tqdm import tqdm

from data.dialogue.reddit_extraction.dumps import Dump, DumpReader, Line
from data.dialogue.reddit_extraction.filters import COMMENT_FILTERS, SUBMISSION_FILTERS, Filter, first_rejecting
from data.dialogue.reddit_extraction.records import COMMENTS, SUBMISSIONS, parse_comment, parse_submission, to_line
from data.dialogue.reddit_extraction.rules.lists import ListPaths, load_lists
from data.dialogue.reddit_extraction.rules.settings import Rules, Settings
from data.parallel.process_pool import in_order
from data.text.decompression import Expansion, open_zstandard
from data.text.json_values import MAX_JSON_BYTES
from storage.files import flush_to_disk, writing_to

BUFFERED_BYTES = 1 << 25
MAX_PROBLEMS = 8  # damaged lines that are named
DAMAGED_LINE = "damaged"


@dataclass(frozen=True)
class Kind:
    """How the lines of a dump of submissions or of comments are read."""

    parse: Callable[[bytes], object]
    filters: tuple[Filter, ...]


KINDS = {
    SUBMISSIONS: Kind(parse_submission, SUBMISSION_FILTERS),
    COMMENTS: Kind(parse_comment, COMMENT_FILTERS),
}


@dataclass(frozen=True)
class SplitBatch:
    """A batch of lines, split.

    Attributes:
        partitions: what each one gets.
        counts: lines read, and those that are dropped by name of the filter.
        problems: numbers of damaged lines, and what is wrong with each; the first few.
    """

    partitions: dict[int, bytes]
    counts: collections.Counter[str]
    problems: list[tuple[int, str]]


def split_batch(batch: Sequence[Line], kind: str, n_partitions: int, rules: Rules, paths: ListPaths) -> SplitBatch:
    """Parses and filters lines."""
    partitions, counts, problems = collections.defaultdict(list), collections.Counter({kind: len(batch)}), []
    lists, reading = load_lists(paths), KINDS[kind]
    for number, line in batch:
        try:
            parsed = reading.parse(_whole(line))
        except ValueError as error:
            counts[f"{DAMAGED_LINE}_{kind}"] += 1
            problems.append((number, str(error)))
            continue
        if reason := first_rejecting(reading.filters, parsed, rules, lists):
            counts[reason] += 1
        else:
            partitions[partition_of(parsed.link, n_partitions)].append(to_line(parsed.to_fields()))
    joined = {number: b"".join(lines) for number, lines in partitions.items()}
    return SplitBatch(joined, counts, problems[:MAX_PROBLEMS])


def _whole(line: bytes | None) -> bytes:
    if line is None:
        raise ValueError(f"more than {MAX_JSON_BYTES:,} bytes")
    return line


def partition_of(link: str, n_partitions: int) -> int:
    """Returns the number of the partition of a submission, the same on every machine."""
    return zlib.crc32(link.encode()) % n_partitions


class PartitionWriter:
    """Appends to the files of partitions, each time frames of zstandard, of which a file may have many."""

    def __init__(self, folder: str, kind: str) -> None:
        """Begins with no files."""
        self._folder, self._kind = folder, kind
        self._buffers: dict[int, list[bytes]] = collections.defaultdict(list)
        self._n_bytes = 0
        self._paths: set[str] = set()

    def add(self, partitions: dict[int, bytes]) -> None:
        """Adds lines of partitions; writes if there are many."""
        for number, lines in partitions.items():
            self._buffers[number].append(lines)
            self._n_bytes += len(lines)
        if self._n_bytes >= BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes all that was added."""
        compressor = zstandard.ZstdCompressor()
        for number, parts in self._buffers.items():
            path = partition_path(self._folder, self._kind, number)
            with writing_to(path), open(path, "ab") as file:
                file.write(compressor.compress(b"".join(parts)))
            self._paths.add(path)
        self._buffers.clear()
        self._n_bytes = 0

    def close(self) -> None:
        """Writes the rest, and flushes all files to the disk."""
        self.flush()
        for path in self._paths:
            with writing_to(path):
                flush_to_disk(path)


def partition_path(folder: str, kind: str, number: int) -> str:
    """Returns the path of a partition, which is not there if the partition is empty."""
    return os.path.join(folder, f"{kind}_{number}.zst")


def lines_of_partition(folder: str, kind: str, number: int) -> Iterator[bytes]:
    """Yields the lines of a partition."""
    path = partition_path(folder, kind, number)
    if os.path.exists(path):
        with open(path, "rb") as packed, open_zstandard(packed, Expansion(os.path.getsize(path))) as stream:
            yield from stream


def split_dump(dump: Dump, kind: str, folder: str, n_partitions: int, settings: Settings) -> dict[str, object]:
    """Splits the submissions or the comments of a dump into partitions.

    Returns:
        the "counts", the first "problems", and the "damage" of the file, if there is any.

    Raises:
        DataError: the dump is damaged, or there is no room.
    """
    file = dump.files[kind]
    remove_partitions(folder, kind, range(n_partitions))  # of an interrupted run
    writer, counts, problems = PartitionWriter(folder, kind), collections.Counter(), []
    split = functools.partial(
        split_batch,
        kind=kind,
        n_partitions=n_partitions,
        rules=settings.rules,
        paths=settings.lists.of_dump(dump.name),
    )
    with tqdm(total=file.state()[0], desc=f"{dump.name} {kind}", unit="B", unit_scale=True, disable=None) as bar:
        reader = DumpReader(file, settings.on_bad_file, lambda n_bytes: bar.update(n_bytes - bar.n))
        tasks = (functools.partial(split, batch) for batch in reader.batches())
        with closing(in_order(tasks, settings.processes)) as batches:
            for batch in batches:
                writer.add(batch.partitions)
                counts.update(batch.counts)
                named = [f"{file.relative}:{number}: {problem}" for number, problem in batch.problems]
                problems = [*problems, *named][:MAX_PROBLEMS]
    writer.close()
    return {"counts": counts, "problems": problems, "damage": reader.problem}


def remove_partitions(folder: str, kind: str, numbers: Iterable[int]) -> None:
    """Removes the files of partitions that are there."""
    for number in numbers:
        with writing_to(folder), suppress(FileNotFoundError):
            os.remove(partition_path(folder, kind, number))
