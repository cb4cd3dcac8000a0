"""The token ids of texts that were encoded together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EncodedBatch:
    """The token ids of texts, packed so that a process hands over few arrays however many texts there are.

    Attributes:
        ids: int32, [tokens of all texts]; of conversations, records of id, weight and segment.
        ends: int64, [texts], where each text's ids end.
        text_bytes: int64, [texts], the UTF-8 bytes of each cleaned text.
    """

    ids: np.ndarray
    ends: np.ndarray
    text_bytes: np.ndarray

    def texts(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yields the ids and the bytes of each text."""
        starts = np.concatenate([[0], self.ends[:-1]]) if len(self.ends) else self.ends
        for start, end, count in zip(starts.tolist(), self.ends.tolist(), self.text_bytes.tolist(), strict=True):
            yield self.ids[start:end], count
