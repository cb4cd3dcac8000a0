"""Scans every record of every file of a dataset, for `--check_dataset` and check_tfrecords.py.

No damage stops the scan: errors are collected by file and record, and everything else is read.

Shape suffixes: B bins of document lengths, D documents, T ids of a block, V vocabulary.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from configs.errors import DataError
from data.check.report import (
    BINS_PER_OCTAVE,
    DatasetReport,
    Decode,
    FileErrors,
    decode_boundary,
    decode_record,
    find_boundary,
)
from data.check.validate import RecordBlock, explain_no_records, find_paths, split_into_blocks, validate_block
from data.loading.reader import RecordRules
from data.parallel.process_pool import in_order, processes_for
from data.preprocessing.manifest import FileEntry, checksum, find_entries
from data.tfrecord.records import Record, unreadable_file_error
from data.tfrecord.shards import count_in_name
from meshtf import tf

BYTES_PER_PROCESS = 1 << 28  # takes about as long to read as a process takes to start
N_BINS = 40 * BINS_PER_OCTAVE


def scan_dataset(
    patterns: Sequence[str],
    n_ctx: int | None,
    n_vocab: int,
    eos_id: int | None,
    decode: Decode,
    processes: int = 0,
    padding_id: int | None = None,
) -> DatasetReport:
    """Reads every record of the files that the globs match, with a progress bar on a terminal.

    Large files are read in several processes: call it under `if __name__ == "__main__"`.

    Args:
        patterns: globs of tfrecord files.
        n_ctx: each record must hold n_ctx + 1 ids; None: each record is a document, of any length.
        n_vocab: every id must lie in [0, n_vocab).
        eos_id: the id that separates documents; None: it is not known.
        decode: token ids to text.
        processes: number of reading processes; 0: by the number of cores and bytes.
        padding_id: the id that fills up examples at their end, and belongs to no document; None: it is not known.

    Raises:
        DataError: a glob matches nothing; errors in the files are in the report.
    """
    paths = find_paths(patterns)
    n_bytes = sum(map(_size_of, paths))
    ends = _EndIds(eos_id, None if n_ctx is None or padding_id == eos_id else padding_id)
    scan, totals = _Scan(patterns, RecordRules(n_ctx, n_vocab), ends), _Totals()
    results = in_order(scan.tasks(paths), processes or processes_for(n_bytes // BYTES_PER_PROCESS))
    with tqdm(total=n_bytes, unit="B", unit_scale=True, desc="checking", disable=None, leave=False) as bar:
        for result in results:
            scan.add_errors(result)
            totals.add(result)
            bar.update(result.n_bytes)
    n_documents = totals.count_documents()
    ids = np.flatnonzero(totals.counts_V)
    return DatasetReport(
        n_files=len(paths),
        n_examples=totals.n_examples,
        n_tokens=int(totals.counts_V.sum()),
        n_documents=totals.n_examples if n_ctx is None else None if eos_id is None else n_documents,
        min_id=int(ids[0]) if len(ids) else None,
        max_id=int(ids[-1]) if len(ids) else None,
        first_example="" if totals.first is None else decode_record(totals.first, eos_id, decode),
        boundary_example=None if totals.boundary is None else decode_boundary(totals.boundary, eos_id, decode),
        lengths_B=totals.lengths_B,
        counts_V=totals.counts_V,
        errors=scan.errors(),
        n_weighted=totals.n_weighted,
        n_segments=totals.n_segments,
    )


@dataclass(frozen=True)
class _EndIds:
    """The id that ends a document, and the one that fills up examples; None where it is not known."""

    eos_id: int | None
    padding_id: int | None

    def unpadded(self, record: Record) -> np.ndarray:
        """Returns the ids of an example without the padding at its end."""
        row = record.ids_L
        if record.segments_L is not None:
            return row[: np.count_nonzero(record.segments_L)]
        if self.padding_id is None or not len(row) or row[-1] != self.padding_id:
            return row
        return row[: len(np.trim_zeros(row != self.padding_id, "b"))]

    def shown(self, record: Record) -> Record:
        """Returns the text of an example to look at: no document begins in its padding."""
        text = self.unpadded(record)
        is_ended = record.segments_L is None and 0 < len(text) < len(record.ids_L) and text[-1] == self.eos_id
        return record[: len(text) - is_ended]


def _size_of(path: str) -> int:
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return 0


def _no_numbers() -> np.ndarray:
    return np.array([], dtype=np.int64)


@dataclass(frozen=True)
class _Result:
    """What one task found.

    Attributes:
        path: the file.
        n_bytes: bytes that were read.
        messages: errors of the file as a whole.
        record_errors: errors of records, by their numbers.
        n_examples: valid records.
        n_weighted: their ids of a weight above 0; None: no record has weights.
        n_segments: the segments in them; None: no record has any.
        spans_D: lengths of the text between separators, or of the records, where each is a document; the first and
            the last span may continue in other blocks.
        counts_V: occurrences of every id in the valid records.
        first: the first valid record, without padding.
        boundary: the first record with a document boundary, without padding.
    """

    path: str
    n_bytes: int = 0
    messages: tuple[str, ...] = ()
    record_errors: dict[int, str] = field(default_factory=dict)
    n_examples: int = 0
    n_weighted: int | None = None
    n_segments: int | None = None
    spans_D: np.ndarray = field(default_factory=_no_numbers)
    counts_V: np.ndarray = field(default_factory=_no_numbers)
    first: Record | None = None
    boundary: Record | None = None


def _scan_block(block: RecordBlock, rules: RecordRules, ends: _EndIds) -> _Result:
    try:
        validated = validate_block(block, rules)
    except DataError as error:
        return _Result(block.path, block.n_bytes(), (str(error),))
    if not validated.rows:
        return _Result(block.path, block.n_bytes(), (), validated.errors)
    rows = validated.rows
    return _Result(
        path=block.path,
        n_bytes=block.n_bytes(),
        record_errors=validated.errors,
        n_examples=len(rows),
        n_weighted=_sum(map(_n_weighted, rows)),
        n_segments=_sum(map(_n_segments, rows)),
        spans_D=_spans(rows, rules, ends),
        counts_V=np.bincount(np.concatenate([record.ids_L for record in rows])),
        first=ends.shown(rows[0]),
        boundary=next((record for record in map(ends.shown, rows) if find_boundary(record, ends.eos_id)), None),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    """Adds up the counts that are known; None: none is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _n_weighted(record: Record) -> int | None:
    return None if record.loss_weights_L is None else int(np.count_nonzero(record.loss_weights_L))


def _n_segments(record: Record) -> int | None:
    return None if record.segments_L is None else int(record.segments_L.max())


def _spans(rows: Sequence[Record], rules: RecordRules, ends: _EndIds) -> np.ndarray:
    # Nothing continues after a document or a segment, which the 0 says.
    if rules.n_ctx is None:
        return np.array([*(len(record.ids_L) for record in rows), 0])
    if all(record.segments_L is not None for record in rows):
        return np.concatenate([*(np.bincount(record.segments_L)[1:] for record in rows), [0]])
    if ends.eos_id is None:
        return _no_numbers()
    ids_T = np.concatenate([ends.unpadded(row) for row in rows])
    return np.diff(np.flatnonzero(ids_T == ends.eos_id), prepend=-1, append=len(ids_T)) - 1


def _compare_with_manifest(path: str, entry: FileEntry) -> _Result:
    try:
        n_bytes, digest = checksum(path)
    except tf.errors.OpError as error:
        return _Result(path, messages=(str(unreadable_file_error(path, error)),))
    if n_bytes != entry.bytes:
        problem = f"has {n_bytes} bytes, but its manifest says {entry.bytes}"
    elif digest != entry.sha256:
        problem = "has another checksum than its manifest says"
    else:
        return _Result(path)
    return _Result(path, messages=(f"{path}: {problem}; copy it again, or write the dataset again",))


class _Scan:
    """The tasks of a scan, and the errors found so far."""

    def __init__(self, patterns: Sequence[str], rules: RecordRules, ends: _EndIds) -> None:
        self._patterns, self._rules, self._ends = patterns, rules, ends
        self._errors: dict[str, FileErrors] = {}
        self._entries: dict[str, FileEntry] = {}

    def tasks(self, paths: Sequence[str]) -> Iterator[Callable[[], _Result]]:
        """Yields the tasks of each file: to scan its blocks, and to compare it with its manifest."""
        self._read_manifests(paths)
        for path in paths:
            try:
                yield from self._tasks_of_file(path)
            except DataError as error:
                self._errors_of(path).messages.append(str(error))

    def _tasks_of_file(self, path: str) -> Iterator[Callable[[], _Result]]:
        n_records, has_valid, entry = 0, False, self._entries.get(path)
        for block in split_into_blocks(path):
            n_records += len(block.frames)
            has_valid = has_valid or any(frame.is_valid for frame in block.frames)
            if has_valid:
                yield functools.partial(_scan_block, block, self._rules, self._ends)
        messages = _count_errors(path, n_records, entry) if has_valid else [explain_no_records(path)]
        self._errors_of(path).messages += messages
        if entry is not None:
            yield functools.partial(_compare_with_manifest, path, entry)

    def _read_manifests(self, paths: Sequence[str]) -> None:
        for directory in dict.fromkeys(os.path.dirname(path) for path in paths):
            try:
                entries = find_entries(directory or ".")
            except DataError as error:
                self._errors_of(directory or ".").messages.append(str(error))
                continue
            self._entries |= {os.path.join(directory, name): entry for name, entry in entries.items()}
        for path in self._entries.keys() - set(paths):
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in self._patterns):
                message = f"{path}: is missing, but its manifest lists it; copy it again, or write the dataset again"
                self._errors_of(path).messages.append(message)

    def _errors_of(self, path: str) -> FileErrors:
        return self._errors.setdefault(path, FileErrors(path))

    def add_errors(self, result: _Result) -> None:
        """Adds the errors that a task found."""
        errors = self._errors_of(result.path)
        errors.messages += result.messages
        for number, message in sorted(result.record_errors.items()):
            errors.add_record(number, message)

    def errors(self) -> tuple[FileErrors, ...]:
        """Returns the errors of each file that has any."""
        return tuple(errors for errors in self._errors.values() if errors.messages or errors.records)


def _count_errors(path: str, n_records: int, entry: FileEntry | None) -> list[str]:
    """Returns a message for each source that gives another number of records."""
    expected = {"its name": count_in_name(path) or None, "its manifest": entry.examples if entry else None}
    return [
        f"{path}: holds {n_records} examples, but {source} says {count}; copy it again if it was cut short, or write "
        "it again"
        for source, count in expected.items()
        if count not in (None, n_records)
    ]


class _Totals:
    """The sums over all results, which come in the order of the files."""

    def __init__(self) -> None:
        self.n_examples = 0
        self.n_weighted: int | None = None
        self.n_segments: int | None = None
        self.counts_V = np.zeros(0, dtype=np.int64)
        self.lengths_B = np.zeros(N_BINS, dtype=np.int64)
        self.first: Record | None = None
        self.boundary: Record | None = None
        self._open_length = 0

    def add(self, result: _Result) -> None:
        """Adds what one task found."""
        self.n_examples += result.n_examples
        self.n_weighted = _sum([self.n_weighted, result.n_weighted])
        self.n_segments = _sum([self.n_segments, result.n_segments])
        n_more_ids = max(0, len(result.counts_V) - len(self.counts_V))
        self.counts_V = np.pad(self.counts_V, (0, n_more_ids))
        self.counts_V[: len(result.counts_V)] += result.counts_V
        if len(result.spans_D):
            self._add_spans(result.spans_D)
        self.first = result.first if self.first is None else self.first
        self.boundary = result.boundary if self.boundary is None else self.boundary

    def count_documents(self) -> int:
        """Returns how many documents have ended, or 1 if none has, and adds the text after the last to `lengths_B`."""
        n_ended = int(self.lengths_B.sum())
        self._add_spans(np.array([0, 0]))
        return n_ended or int(self.lengths_B.sum())

    def _add_spans(self, spans_D: np.ndarray) -> None:
        """Adds the documents that have ended; the last span may continue in the next block."""
        joined_D = spans_D.copy()
        joined_D[0] += self._open_length
        lengths_D, self._open_length = joined_D[:-1], int(joined_D[-1])
        bins_D = np.floor(np.log2(lengths_D[lengths_D > 0]) * BINS_PER_OCTAVE).astype(np.int64)
        self.lengths_B += np.bincount(bins_D, minlength=N_BINS)
