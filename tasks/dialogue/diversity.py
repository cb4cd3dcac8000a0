"""Entropy and distinct n-grams of texts of any number, and their mean length.

Entropy-n is the entropy of the distribution of all n-grams, in nats (Zhang et al., "Generating Informative and Diverse
Conversational Responses via Adversarial Information Maximization", 2018); Dist-n is the number of different n-grams
divided by the number of all (Li et al., "A Diversity-Promoting Objective Function", 2016). Whitespace separates words.

Memory is bounded: each n-gram is hashed to 64 bits, and hashes beyond `BUFFERED_NGRAMS` go to temporary files, 32 bytes
for a word of text, of which one in `PARTITIONS` at a time is read back and counted. Among a hundred million n-grams two
have the same hash in one case of four thousand, which would make the number of different ones too low by one.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from storage.files import writing_to

ENTROPY_ORDERS = (1, 2, 3, 4)
DIST_ORDERS = (1, 2)
BLOCK_WORDS = 1 << 17
BUFFERED_NGRAMS = 1 << 19  # of each order
REMEMBERED_WORDS = 1 << 18
PARTITION_BITS = 8
PARTITIONS = 1 << PARTITION_BITS
# Odd constants of splitmix64, a mixing function whose output bits each depend on all input bits.
MULTIPLIER, MIX_1, MIX_2 = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Diversity:
    """How varied texts are.

    Attributes:
        n_texts: number of texts.
        n_empty: number of texts without a word.
        entropy: in nats, for n-grams of 1 to 4 words; 0 without n-grams.
        dist: fraction of different n-grams of 1 and 2 words; None without n-grams.
        mean_words: mean number of words of a text.
    """

    n_texts: int
    n_empty: int
    entropy: tuple[float, ...]
    dist: tuple[float | None, ...]
    mean_words: float


class NgramCounter:
    """Counts numbers that stand for n-grams, in files where they are many."""

    def __init__(self, folder: str) -> None:
        """Keeps its files in an empty folder."""
        self._folder = folder
        self._buffer: list[np.ndarray] = []
        self._n_buffered = 0
        self._is_on_disk = False

    def add(self, ngrams: np.ndarray) -> None:
        """Adds the n-grams of a block.

        Raises:
            UserError: there is no room for temporary files.
        """
        self._buffer.append(ngrams)
        self._n_buffered += len(ngrams)
        if self._n_buffered > BUFFERED_NGRAMS:
            self._spill()

    def _spill(self) -> None:
        ngrams = np.sort(self._take())
        starts = np.searchsorted(ngrams >> np.uint64(64 - PARTITION_BITS), np.arange(PARTITIONS + 1))
        for part, (start, end) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            with writing_to(self._folder), open(self._path(part), "ab") as file:
                file.write(ngrams[start:end].tobytes())
        self._is_on_disk = True

    def _take(self) -> np.ndarray:
        ngrams = np.concatenate([*self._buffer, np.empty(0, np.uint64)])
        self._buffer, self._n_buffered = [], 0
        return ngrams

    def _path(self, part: int) -> str:
        return os.path.join(self._folder, str(part))

    def _parts(self) -> Iterator[np.ndarray]:
        """Yields all n-grams, equal ones in the same part."""
        if not self._is_on_disk:
            yield self._take()
            return
        self._spill()
        for part in range(PARTITIONS):
            yield np.fromfile(self._path(part), np.uint64)

    def entropy_and_dist(self) -> tuple[float, float | None]:
        """Returns the entropy in nats and the fraction of different n-grams; the counter is empty afterwards."""
        total, different, weighted_logs = 0, 0, 0.0
        for ngrams in self._parts():
            counts = np.unique(ngrams, return_counts=True)[1]
            total += len(ngrams)
            different += len(counts)
            weighted_logs += float(counts @ np.log(counts))
        return (math.log(total) - weighted_logs / total, different / total) if total else (0.0, None)


def measure_diversity(texts: Iterable[str]) -> Diversity:
    """Measures texts in one pass.

    Raises:
        UserError: there is no room for temporary files.
    """
    n_texts = n_empty = n_words = 0
    with ExitStack() as stack:
        counters = [NgramCounter(stack.enter_context(tempfile.TemporaryDirectory())) for _ in ENTROPY_ORDERS]
        for lengths, words in _blocks(texts):
            n_texts += len(lengths)
            n_empty += int((lengths == 0).sum())
            n_words += len(words)
            for counter, ngrams in zip(counters, _ngrams(lengths, words), strict=True):
                counter.add(ngrams)
        figures = [counter.entropy_and_dist() for counter in counters]
    entropy, dist = zip(*figures, strict=True)
    return Diversity(n_texts, n_empty, entropy, dist[: len(DIST_ORDERS)], n_words / n_texts if n_texts else 0.0)


def _blocks(texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the lengths of some texts, and the numbers of their words one after the other."""
    numbers: dict[str, int] = {}
    lengths: list[int] = []
    words: list[int] = []
    for text in texts:
        split = text.split()
        lengths.append(len(split))
        words.extend(numbers.get(word) or _number(word, numbers) for word in split)
        if len(words) >= BLOCK_WORDS:
            yield np.array(lengths), np.array(words, np.uint64)
            lengths, words = [], []
    yield np.array(lengths, int), np.array(words, np.uint64)


def _number(word: str, numbers: dict[str, int]) -> int:
    """Returns the number of a word and remembers it; forgets all others when they are too many."""
    if len(numbers) >= REMEMBERED_WORDS:
        numbers.clear()
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return numbers.setdefault(word, int.from_bytes(digest, "little"))


def _ngrams(lengths: np.ndarray, words: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the numbers of the n-grams of each order; none crosses the end of a text."""
    text_ids = np.repeat(np.arange(len(lengths)), lengths)
    ngrams = words
    yield ngrams
    for order in ENTROPY_ORDERS[1:]:
        ngrams = _mix(ngrams[:-1] * MULTIPLIER + words[order - 1 :])
        yield ngrams[text_ids[order - 1 :] == text_ids[: len(ngrams)]]


def _mix(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * MIX_1
    numbers = (numbers ^ (numbers >> np.uint64(27))) * MIX_2
    return numbers ^ (numbers >> np.uint64(31))
