"""The scan behind `--check_dataset`: every record of every file, and what a person wants to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data.reading import RecordRules, read_once
from data.shards import Shard, list_shards

EXCERPT_CHARACTERS = 500


@dataclass(frozen=True)
class DatasetReport:
    """What a scan found.

    Attributes:
        n_documents: separators seen, or, where each record is a document, records.
        first_example: the first record, decoded.
    """

    n_files: int
    n_examples: int
    n_tokens: int
    n_documents: int
    min_id: int
    max_id: int
    first_example: str


@dataclass
class _Tally:
    n_tokens: int = 0
    n_separators: int = 0
    min_id: int = np.iinfo(np.int64).max
    max_id: int = -1

    def add(self, ids: np.ndarray, eos_id: int) -> None:
        self.n_tokens += len(ids)
        self.n_separators += int(np.count_nonzero(ids == eos_id))
        self.min_id = min(self.min_id, int(ids.min()))
        self.max_id = max(self.max_id, int(ids.max()))


def inspect_dataset(
    patterns: Sequence[str], n_ctx: int | None, n_vocab: int, eos_id: int, decode: Callable[[Sequence[int]], str]
) -> DatasetReport:
    """Reads every record of the files that the globs match, with a progress bar on a terminal.

    Args:
        patterns: globs of tfrecord files.
        n_ctx: each record must hold n_ctx + 1 ids; None: each record is a document, of any length.
        n_vocab: every id must lie in [0, n_vocab).
        eos_id: the id that separates documents.
        decode: token ids to text.

    Raises:
        DataError: a glob matches nothing, or a file or record is wrong; the message names it.
    """
    shards = tuple(shard for pattern in patterns for shard in list_shards(pattern))
    tally, first_ids = _scan(shards, RecordRules(n_ctx, n_vocab), eos_id)
    n_examples = sum(shard.n_examples for shard in shards)
    return DatasetReport(
        n_files=len(shards),
        n_examples=n_examples,
        n_tokens=tally.n_tokens,
        n_documents=n_examples if n_ctx is None else tally.n_separators,
        min_id=tally.min_id,
        max_id=tally.max_id,
        first_example=decode(first_ids.tolist()),
    )


def _scan(shards: Sequence[Shard], rules: RecordRules, eos_id: int) -> tuple[_Tally, np.ndarray]:
    tally, first_ids = _Tally(), np.array([], dtype=np.int64)
    total = sum(shard.n_examples for shard in shards)
    records = read_once(shards, rules)
    for ids in tqdm(records, total=total, unit=" examples", desc="checking", disable=None, leave=False):
        if not tally.n_tokens:
            first_ids = ids
        tally.add(ids, eos_id)
    return tally, first_ids


def format_report(report: DatasetReport) -> str:
    """Lays the report out for the screen: figures first, then the beginning and the end of the first example."""
    figures = {
        "files": report.n_files,
        "examples": report.n_examples,
        "tokens": report.n_tokens,
        "documents": report.n_documents,
        "smallest id": report.min_id,
        "largest id": report.max_id,
    }
    lines = [f"{name:<12} {figure:>16,}" for name, figure in figures.items()]
    return "\n".join([*lines, "first example:", _excerpt(report.first_example)])


def _excerpt(text: str) -> str:
    if len(text) <= 2 * EXCERPT_CHARACTERS:
        return text
    n_left_out = len(text) - 2 * EXCERPT_CHARACTERS
    return f"{text[:EXCERPT_CHARACTERS]}\n[... {n_left_out:,} characters ...]\n{text[-EXCERPT_CHARACTERS:]}"
