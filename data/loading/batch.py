"""The batch: what data loading hands to training and evaluation.

Shape suffixes: B batch, S sequence (n_ctx).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SkippedRecords:
    """Count of the records that one process has skipped since it began to read.

    Attributes:
        n_examples: rows of its batches, including those of weight 0.
        n_records: records that were skipped.
    """

    n_examples: int = 0
    n_records: int = 0

    def __add__(self, other: SkippedRecords) -> SkippedRecords:
        return SkippedRecords(self.n_examples + other.n_examples, self.n_records + other.n_records)

    @property
    def fraction(self) -> float:
        """Skipped records per example; `max_bad_share` is its limit."""
        return self.n_records / max(1, self.n_examples)


@dataclass(frozen=True)
class Batch:
    """Examples as the model takes them.

    Attributes:
        tokens_BS: int32 input ids, [batch, n_ctx].
        labels_BS: int32 target ids, [batch, n_ctx]: the next token of each position, or the ids before masking.
        weights_BS: float32, [batch, n_ctx], >= 0: how much each label counts; 0 in rows of padding.
        next_example: number of the example after the last one here; training resumes from it.
        examples_per_dataset: how many examples each dataset has given so far, by its name in the mixture; None in
            evaluation.
        problems: one message for each skipped record; the rows they would have filled have weight 0.
        skipped: count of the records skipped so far, including those of this batch.
        epoch: how often training has read the datasets so far, with this batch; 0 in evaluation.
        segment_starts_BS: int32, [batch, n_ctx], the position where the segment of each position begins; segments are
            texts that do not see one another. None: no dataset of the run has segments.
    """

    tokens_BS: np.ndarray
    labels_BS: np.ndarray
    weights_BS: np.ndarray
    next_example: int
    examples_per_dataset: Mapping[str, int] | None = None
    problems: tuple[str, ...] = ()
    skipped: SkippedRecords = SkippedRecords()
    epoch: float = 0.0
    segment_starts_BS: np.ndarray | None = None

    @property
    def segments(self) -> tuple[np.ndarray, ...]:
        """`segment_starts_BS`, or nothing, as steps take it."""
        return () if self.segment_starts_BS is None else (self.segment_starts_BS,)

    @property
    def training_inputs(self) -> tuple[np.ndarray, ...]:
        """What a training step takes of a batch: tokens, labels, weights and, if there are any, segment starts."""
        return self.tokens_BS, self.labels_BS, self.weights_BS, *self.segments
