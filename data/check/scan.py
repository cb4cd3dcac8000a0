"""The scan behind `--check_dataset`: every record of every file, what is wrong, and what a person wants to know.

Nothing ends the scan: what is damaged is noted by file and record, and the rest is read.

Shape suffixes: B bins of document lengths, D documents, T ids of a block, V vocabulary.
"""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from configs.errors import DataError
from data.check.validate import Block, blocks_of, find_paths, sift, what_it_is
from data.loading.reader import RecordRules
from data.preprocessing.manifest import FileEntry, checksum, find_entries
from data.preprocessing.process_pool import in_order, processes_for
from data.tfrecord.records import unreadable_file_error
from data.tfrecord.shards import count_in_name
from meshtf import tf

BYTES_PER_PROCESS = 1 << 28  # a process takes seconds to start: it should have as much to do
MESSAGES_KEPT = 5  # of one file; all its wrong records are named by their numbers
FILES_SHOWN = 200
RANGES_SHOWN = 50
EXCERPT_CHARACTERS = 500
BORDER = "\n──────── one document ends, another begins ────────\n"
BINS_PER_OCTAVE = 4
N_BINS = 40 * BINS_PER_OCTAVE

Decode = Callable[[Sequence[int]], str]


@dataclass
class FileDamage:
    """What is wrong with a file.

    Attributes:
        faults: of the file as a whole, a message each.
        records: the numbers of the wrong ones.
        messages: on the first `MESSAGES_KEPT` of them.
    """

    path: str
    faults: list[str] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def add(self, number: int, message: str) -> None:
        """Notes a wrong record."""
        self.records.append(number)
        if len(self.messages) < MESSAGES_KEPT:
            self.messages.append(message)


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """What a scan found.

    Attributes:
        n_examples: sound records.
        n_documents: separators seen, or, where each record is a document, records; None: no separator is known.
        min_id: the smallest id of a sound record; None without one, as `max_id`.
        first_example: the first sound record, decoded, with the borders between its documents.
        border_example: the text around a border, if the first example shows none.
        lengths_B: documents by length: bin b holds the lengths from 2^(b / BINS_PER_OCTAVE) on. A document goes on from
            one example to the next, and from one file to the next.
        counts_V: of every id, as far as the largest one.
        damages: of the files in which anything is wrong.
    """

    n_files: int
    n_examples: int
    n_tokens: int
    n_documents: int | None
    min_id: int | None
    max_id: int | None
    first_example: str
    border_example: str | None
    lengths_B: np.ndarray
    counts_V: np.ndarray
    damages: tuple[FileDamage, ...]


def inspect_dataset(
    patterns: Sequence[str],
    n_ctx: int | None,
    n_vocab: int,
    eos_id: int | None,
    decode: Decode,
    processes: int = 0,
) -> DatasetReport:
    """Reads every record of the files that the globs match, with a progress bar on a terminal.

    Much is read in processes: call it under `if __name__ == "__main__"`.

    Args:
        patterns: globs of tfrecord files.
        n_ctx: each record must hold n_ctx + 1 ids; None: each record is a document, of any length.
        n_vocab: every id must lie in [0, n_vocab).
        eos_id: the id that separates documents; None: it is not known.
        decode: token ids to text.
        processes: how many read; 0: as many as there are cores and enough to do.

    Raises:
        DataError: a glob matches nothing; what is wrong within files is in the report.
    """
    paths = find_paths(patterns)
    n_bytes = sum(map(_size_of, paths))
    scan, tally = _Scan(patterns, RecordRules(n_ctx, n_vocab), eos_id), _Tally()
    findings = in_order(scan.tasks(paths), processes or processes_for(n_bytes // BYTES_PER_PROCESS))
    with tqdm(total=n_bytes, unit="B", unit_scale=True, desc="checking", disable=None, leave=False) as bar:
        for finding in findings:
            scan.note(finding)
            tally.add(finding)
            bar.update(finding.n_bytes)
    tally.end()
    is_counted = n_ctx is None or eos_id is not None
    return DatasetReport(
        n_files=len(paths),
        n_examples=tally.n_examples,
        n_tokens=tally.n_tokens,
        n_documents=(tally.n_examples if n_ctx is None else tally.n_separators) if is_counted else None,
        min_id=tally.id_span()[0],
        max_id=tally.id_span()[1],
        first_example="" if tally.first is None else _decode(tally.first, eos_id, decode),
        border_example=None if tally.bordered is None else _decode_border(tally.bordered, eos_id, decode),
        lengths_B=tally.lengths_B,
        counts_V=tally.counts_V,
        damages=scan.damages(),
    )


def _size_of(path: str) -> int:
    try:
        return tf.io.gfile.stat(path).length
    except tf.errors.OpError:
        return 0


# What is to be done, and what each part of it comes to.


def _nothing() -> np.ndarray:
    return np.array([], dtype=np.int64)


@dataclass(frozen=True)
class _Finding:
    """What one task came to.

    Attributes:
        faults: of the file as a whole.
        problems: of records, by their numbers.
        n_examples: sound records.
        n_tokens: their ids.
        n_separators: among their ids.
        pieces_D: lengths of the texts that separators cut the ids into; the first and the last of them are open.
        documents_D: lengths of the records, where each is a document.
        counts_V: of every id.
        first: a record to show.
        bordered: one that a border between two documents goes through.
    """

    path: str
    n_bytes: int = 0
    faults: tuple[str, ...] = ()
    problems: dict[int, str] = field(default_factory=dict)
    n_examples: int = 0
    n_tokens: int = 0
    n_separators: int = 0
    pieces_D: np.ndarray = field(default_factory=_nothing)
    documents_D: np.ndarray = field(default_factory=_nothing)
    counts_V: np.ndarray = field(default_factory=_nothing)
    first: np.ndarray | None = None
    bordered: np.ndarray | None = None


def _examine(block: Block, rules: RecordRules, eos_id: int | None) -> _Finding:
    try:
        sifted = sift(block, rules)
    except DataError as error:
        return _Finding(block.path, block.n_bytes(), (str(error),))
    if not sifted.rows:
        return _Finding(block.path, block.n_bytes(), (), sifted.problems)
    ids_T = np.concatenate(sifted.rows)
    ends = np.flatnonzero(ids_T == eos_id) if eos_id is not None else np.array([], dtype=np.int64)
    are_documents, are_joined = rules.n_ctx is None, rules.n_ctx is not None and eos_id is not None
    return _Finding(
        path=block.path,
        n_bytes=block.n_bytes(),
        problems=sifted.problems,
        n_examples=len(sifted.rows),
        n_tokens=len(ids_T),
        n_separators=len(ends),
        pieces_D=np.diff(ends, prepend=-1, append=len(ids_T)) - 1 if are_joined else _nothing(),
        documents_D=np.array([len(ids) for ids in sifted.rows]) if are_documents else _nothing(),
        counts_V=np.bincount(ids_T),
        first=sifted.rows[0],
        bordered=next((ids for ids in sifted.rows if _border_in(ids, eos_id) is not None), None),
    )


def _border_in(ids: np.ndarray, eos_id: int | None) -> int | None:
    """Returns the place of a separator with text on both sides."""
    if eos_id is None:
        return None
    borders = np.flatnonzero((ids[1:-1] == eos_id) & (ids[:-2] != eos_id) & (ids[2:] != eos_id))
    return int(borders[0]) + 1 if len(borders) else None


def _compare_with_manifest(path: str, entry: FileEntry) -> _Finding:
    try:
        n_bytes, digest = checksum(path)
    except tf.errors.OpError as error:
        return _Finding(path, faults=(str(unreadable_file_error(path, error)),))
    if n_bytes != entry.bytes:
        fault = f"has {n_bytes} bytes, but its manifest says {entry.bytes}"
    elif digest != entry.sha256:
        fault = "has another checksum than its manifest says"
    else:
        return _Finding(path)
    return _Finding(path, faults=(f"{path}: {fault}; copy it again, or write the data set again",))


class _Scan:
    """What is to be done, and what is wrong so far."""

    def __init__(self, patterns: Sequence[str], rules: RecordRules, eos_id: int | None) -> None:
        self._patterns, self._rules, self._eos_id = patterns, rules, eos_id
        self._damages: dict[str, FileDamage] = {}
        self._entries: dict[str, FileEntry] = {}

    def tasks(self, paths: Sequence[str]) -> Iterator[Callable[[], _Finding]]:
        """Yields what is to be done for each file: its blocks, and the comparison with its manifest."""
        self._read_manifests(paths)
        for path in paths:
            try:
                yield from self._tasks_of_file(path)
            except DataError as error:
                self._damage_of(path).faults.append(str(error))

    def _tasks_of_file(self, path: str) -> Iterator[Callable[[], _Finding]]:
        n_records, has_sound, entry = 0, False, self._entries.get(path)
        for block in blocks_of(path):
            n_records += len(block.frames)
            has_sound = has_sound or any(frame.is_valid for frame in block.frames)
            if has_sound:
                yield functools.partial(_examine, block, self._rules, self._eos_id)
        faults = _count_faults(path, n_records, entry) if has_sound else [what_it_is(path)]
        self._damage_of(path).faults += faults
        if entry is not None:
            yield functools.partial(_compare_with_manifest, path, entry)

    def _read_manifests(self, paths: Sequence[str]) -> None:
        for directory in dict.fromkeys(os.path.dirname(path) for path in paths):
            try:
                entries = find_entries(directory or ".")
            except DataError as error:
                self._damage_of(directory or ".").faults.append(str(error))
                continue
            self._entries |= {os.path.join(directory, name): entry for name, entry in entries.items()}
        for path in self._entries.keys() - set(paths):
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in self._patterns):
                fault = f"{path}: is not there, but its manifest lists it; copy it again, or write the data set again"
                self._damage_of(path).faults.append(fault)

    def _damage_of(self, path: str) -> FileDamage:
        return self._damages.setdefault(path, FileDamage(path))

    def note(self, finding: _Finding) -> None:
        """Takes down what is wrong."""
        damage = self._damage_of(finding.path)
        damage.faults += finding.faults
        for number, message in sorted(finding.problems.items()):
            damage.add(number, message)

    def damages(self) -> tuple[FileDamage, ...]:
        """Returns the files in which anything is wrong."""
        return tuple(damage for damage in self._damages.values() if damage.faults or damage.records)


def _count_faults(path: str, n_records: int, entry: FileEntry | None) -> list[str]:
    """Says where a name or a manifest promises another number of records."""
    promised = {"its name": count_in_name(path) or None, "its manifest": entry.examples if entry else None}
    return [
        f"{path}: holds {n_records} examples, but {source} says {count}; copy it again if it was cut short, or write "
        "it again"
        for source, count in promised.items()
        if count not in (None, n_records)
    ]


# Putting together.


class _Tally:
    """The sum of what was found; findings come in the order of the files."""

    def __init__(self) -> None:
        self.n_examples = self.n_tokens = self.n_separators = 0
        self.counts_V = np.zeros(0, dtype=np.int64)
        self.lengths_B = np.zeros(N_BINS, dtype=np.int64)
        self.first: np.ndarray | None = None
        self.bordered: np.ndarray | None = None
        self._open_length = 0

    def add(self, finding: _Finding) -> None:
        """Adds what one task came to."""
        self.n_examples += finding.n_examples
        self.n_tokens += finding.n_tokens
        self.n_separators += finding.n_separators
        self.counts_V = _sum(self.counts_V, finding.counts_V)
        self._add_lengths(finding.documents_D)
        if len(finding.pieces_D):
            self._join(finding.pieces_D)
        self.first = finding.first if self.first is None else self.first
        self.bordered = finding.bordered if self.bordered is None else self.bordered

    def end(self) -> None:
        """Takes what no separator follows for a document, too."""
        self._join(np.array([0, 0]))

    def _join(self, pieces_D: np.ndarray) -> None:
        """Adds the documents that have ended; the last piece may go on in the next block."""
        joined_D = pieces_D.copy()
        joined_D[0] += self._open_length
        self._add_lengths(joined_D[:-1])
        self._open_length = int(joined_D[-1])

    def _add_lengths(self, lengths_D: np.ndarray) -> None:
        bins_D = np.floor(np.log2(lengths_D[lengths_D > 0]) * BINS_PER_OCTAVE).astype(np.int64)
        self.lengths_B += np.bincount(bins_D, minlength=N_BINS)

    def id_span(self) -> tuple[int | None, int | None]:
        """Returns the smallest and the largest id."""
        ids = np.flatnonzero(self.counts_V)
        return (int(ids[0]), int(ids[-1])) if len(ids) else (None, None)


def _sum(counts: np.ndarray, others: np.ndarray) -> np.ndarray:
    longer, shorter = (counts, others) if len(counts) > len(others) else (others, counts)
    total = longer.astype(np.int64)
    total[: len(shorter)] += shorter
    return total


# For the screen.


def _decode(ids: np.ndarray, eos_id: int | None, decode: Decode) -> str:
    """Decodes with a line for each border; several separators in a row, as padding may be, are one."""
    if eos_id is None:
        return decode(ids.tolist())
    texts = [part[part != eos_id] for part in np.split(ids, np.flatnonzero(ids == eos_id))]
    kept = [text for number, text in enumerate(texts) if len(text) or number in (0, len(texts) - 1)]
    return BORDER.join(decode(text.tolist()) for text in kept)


def _decode_border(ids: np.ndarray, eos_id: int | None, decode: Decode) -> str:
    place = _border_in(ids, eos_id)
    before, after = _decode(ids[:place], eos_id, decode), _decode(ids[place + 1 :], eos_id, decode)
    return before[-EXCERPT_CHARACTERS:] + BORDER + after[:EXCERPT_CHARACTERS]


def format_report(report: DatasetReport) -> str:
    """Lays the report out for the screen: figures, an example from both ends, a border, and what is wrong."""
    figures = {
        "files": report.n_files,
        "examples": report.n_examples,
        "tokens": report.n_tokens,
        "documents": report.n_documents,
        "smallest id": report.min_id,
        "largest id": report.max_id,
    }
    lines = [f"{name:<12} {'-' if figure is None else f'{figure:,}':>16}" for name, figure in figures.items()]
    example = _excerpt(report.first_example)
    lines += ["first example:", example]
    if report.border_example is not None and BORDER not in example:
        lines += ["first border between documents:", report.border_example]
    return "\n".join(lines)


def _excerpt(text: str) -> str:
    if len(text) <= 2 * EXCERPT_CHARACTERS:
        return text
    n_left_out = len(text) - 2 * EXCERPT_CHARACTERS
    return f"{text[:EXCERPT_CHARACTERS]}\n[... {n_left_out:,} characters ...]\n{text[-EXCERPT_CHARACTERS:]}"


def check_sound(damages: Sequence[FileDamage]) -> None:
    """Ends a check in which anything was found to be wrong.

    Raises:
        DataError: names every file and record, by numbers where they are many.
    """
    if damages:
        raise DataError(describe_damages(damages))


def describe_damages(damages: Sequence[FileDamage]) -> str:
    """Says what is wrong, file by file, and how much in all."""
    lines = [line for damage in damages[:FILES_SHOWN] for line in _describe(damage)]
    if len(damages) > FILES_SHOWN:
        lines.append(f"... and {len(damages) - FILES_SHOWN:,} more files")
    n_records = sum(len(damage.records) for damage in damages)
    lines.append(f"wrong: {n_records:,} records; files in which anything is wrong: {len(damages):,}")
    return "\n".join(lines)


def _describe(damage: FileDamage) -> list[str]:
    lines = [*damage.faults, *damage.messages]
    if len(damage.records) > len(damage.messages):
        lines.append(f"{damage.path}: {len(damage.records):,} wrong records: {_format_numbers(damage.records)}")
    return lines


def _format_numbers(numbers: Sequence[int]) -> str:
    """Names numbers that rise, runs of them by their ends."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    named = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:RANGES_SHOWN]]
    n_more = sum(map(len, runs[RANGES_SHOWN:]))
    return ", ".join([*named, *([f"and {n_more:,} more"] if n_more else [])])
