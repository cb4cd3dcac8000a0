"""The result of a check: statistics of a dataset, the errors in its files, and both as text.

Shape suffixes: B bins of document lengths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from configs.errors import DataError
from data.tfrecord.records import Record

MAX_MESSAGES = 5  # for one file; its other invalid records are named by their numbers
MAX_FILES = 200
MAX_RANGES = 50
EXCERPT_CHARACTERS = 500
BINS_PER_OCTAVE = 4  # of the histogram of document lengths
BOUNDARY = "\n──────── one document ends, another begins ────────\n"

Decode = Callable[[Sequence[int]], str]


@dataclass
class FileErrors:
    """What is wrong with a file.

    Attributes:
        path: the file.
        messages: about the file as a whole.
        records: numbers of the invalid records.
        record_messages: about the first `MAX_MESSAGES` of them.
    """

    path: str
    messages: list[str] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    record_messages: list[str] = field(default_factory=list)

    def add_record(self, number: int, message: str) -> None:
        """Adds an invalid record."""
        self.records.append(number)
        if len(self.record_messages) < MAX_MESSAGES:
            self.record_messages.append(message)


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """What a scan found.

    Attributes:
        n_files: files that were read.
        n_examples: valid records.
        n_tokens: their ids.
        n_documents: texts that a separator ends, or, where each record is a document, records. None: the separator is
            not known.
        min_id: the smallest id of a valid record; None if there is none.
        max_id: the largest id; None likewise.
        first_example: the first valid record without padding, decoded, with the boundaries between its documents.
        boundary_example: the text around a document boundary, or None if no record shows one.
        lengths_B: documents by length: bin b holds the lengths from 2^(b / BINS_PER_OCTAVE). Documents continue from
            one example to the next, and from one file to the next.
        counts_V: occurrences of every id, up to the largest one.
        errors: of the files that have any.
        n_weighted: ids of a loss weight above 0; None: the records have no weights.
        n_segments: the conversations or documents that the records mark as segments; None: they mark none.
    """

    n_files: int
    n_examples: int
    n_tokens: int
    n_documents: int | None
    min_id: int | None
    max_id: int | None
    first_example: str
    boundary_example: str | None
    lengths_B: np.ndarray
    counts_V: np.ndarray
    errors: tuple[FileErrors, ...]
    n_weighted: int | None = None
    n_segments: int | None = None


def find_boundary(record: Record, eos_id: int | None) -> int | None:
    """Returns the position of a separator with text on both sides, or of the second segment; None: there is none."""
    ids = record.ids_L
    if record.segments_L is not None:
        return int(np.argmax(record.segments_L == 2)) or None
    if eos_id is None:
        return None
    boundaries = np.flatnonzero((ids[1:-1] == eos_id) & (ids[:-2] != eos_id) & (ids[2:] != eos_id))
    return int(boundaries[0]) + 1 if len(boundaries) else None


def decode_example(ids: np.ndarray, eos_id: int | None, decode: Decode) -> str:
    """Decodes ids with a line at each boundary; several separators in a row, as in padding, count as one."""
    if eos_id is None:
        return decode(ids.tolist())
    texts = [part[part != eos_id] for part in np.split(ids, np.flatnonzero(ids == eos_id))]
    kept = [text for number, text in enumerate(texts) if len(text) or number in (0, len(texts) - 1)]
    return BOUNDARY.join(decode(text.tolist()) for text in kept)


def decode_record(record: Record, eos_id: int | None, decode: Decode) -> str:
    """Decodes a record with a line at each boundary; turns of conversations that count in the loss follow a `>`."""
    if record.segments_L is None:
        return decode_example(record.ids_L, eos_id, decode)
    starts = np.flatnonzero(np.diff(record.segments_L)) + 1
    ids, segments = np.split(record.ids_L, starts), [None] * (len(starts) + 1)
    weights = segments if record.loss_weights_L is None else np.split(record.loss_weights_L, starts)
    decoded = [
        decode_example(part, eos_id, decode) if weights is None else _decode_turns(part, weights > 0, eos_id, decode)
        for part, weights in zip(ids, weights, strict=True)
    ]
    return BOUNDARY.join(decoded)


def _decode_turns(ids: np.ndarray, counts: np.ndarray, eos_id: int | None, decode: Decode) -> str:
    is_start = np.diff(counts) | (ids[:-1] == eos_id)
    starts = [0, *np.flatnonzero(is_start) + 1]
    texts = [decode(part.tolist()) for part in np.split(ids, starts[1:])]
    return "\n".join(f"{'>' if counts[start] else ' '} {text}" for start, text in zip(starts, texts, strict=True))


def decode_boundary(record: Record, eos_id: int | None, decode: Decode) -> str:
    """Decodes the text around the first boundary of `find_boundary`."""
    position = find_boundary(record, eos_id)
    after = position + (record.segments_L is None)
    before, after = (decode_record(part, eos_id, decode) for part in (record[:position], record[after:]))
    return before[-EXCERPT_CHARACTERS:] + BOUNDARY + after[:EXCERPT_CHARACTERS]


def format_report(report: DatasetReport) -> str:
    """Formats the statistics, an excerpt of the first example, and a document boundary."""
    conversations = {"weighted": report.n_weighted, "segments": report.n_segments}
    statistics = {
        "files": report.n_files,
        "examples": report.n_examples,
        "tokens": report.n_tokens,
        **{name: value for name, value in conversations.items() if value is not None},
        "documents": report.n_documents,
        "smallest id": report.min_id,
        "largest id": report.max_id,
    }
    lines = [f"{name:<12} {'-' if value is None else f'{value:,}':>16}" for name, value in statistics.items()]
    example = _excerpt(report.first_example)
    lines += ["first example:", example]
    if report.boundary_example is not None and BOUNDARY not in example:
        lines += ["first document boundary:", report.boundary_example]
    return "\n".join(lines)


def _excerpt(text: str) -> str:
    if len(text) <= 2 * EXCERPT_CHARACTERS:
        return text
    n_omitted = len(text) - 2 * EXCERPT_CHARACTERS
    return f"{text[:EXCERPT_CHARACTERS]}\n[... {n_omitted:,} characters ...]\n{text[-EXCERPT_CHARACTERS:]}"


def check_no_errors(errors: Sequence[FileErrors]) -> None:
    """Raises if a scan found errors.

    Raises:
        DataError: names every file and record, by number where they are many.
    """
    if errors:
        raise DataError(format_errors(errors))


def format_errors(errors: Sequence[FileErrors]) -> str:
    """Formats the errors, file by file, and their total."""
    lines = [line for of_file in errors[:MAX_FILES] for line in _format_file_errors(of_file)]
    if len(errors) > MAX_FILES:
        lines.append(f"... and {len(errors) - MAX_FILES:,} more files")
    n_records = sum(len(of_file.records) for of_file in errors)
    lines.append(f"invalid records: {n_records:,}; files with errors: {len(errors):,}")
    return "\n".join(lines)


def _format_file_errors(errors: FileErrors) -> list[str]:
    lines = [*errors.messages, *errors.record_messages]
    if len(errors.records) > len(errors.record_messages):
        lines.append(f"{errors.path}: {len(errors.records):,} invalid records: {_format_ranges(errors.records)}")
    return lines


def _format_ranges(numbers: Sequence[int]) -> str:
    """Lists ascending numbers, consecutive ones as a range."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    ranges = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:MAX_RANGES]]
    n_more = sum(map(len, runs[MAX_RANGES:]))
    return ", ".join([*ranges, *([f"and {n_more:,} more"] if n_more else [])])
