"""Batches of texts that are packed into rows, so that texts of all lengths take few programs and little padding.

A text is a context and continuations of it, which see the context and themselves alone: the context is computed once.
What is asked for is each token of each continuation, from the position before it. `models.kernels.packing` has the
masks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime.generation.engine import Step

BATCH_TOKENS = 2048  # of all rows of a batch; on CPUs more is no faster
SHORTEST_LENGTH = 64
# The rows of most texts: long enough for little padding, and short enough for cheap attention.
TYPICAL_LENGTHS = range(192, 385, 32)
LONGEST_TYPICAL = TYPICAL_LENGTHS[-1]
# In rows of this length attention takes about as long as all other work.
ATTENTION_LENGTH = 2048
N_TRIED = 1000  # texts that are packed to find the best length


@dataclasses.dataclass(frozen=True)
class PackedText:
    """A context, and continuations of it, each of which is asked for.

    Attributes:
        context: at least one token.
        continuations: of at least one token each; the model does not read their last.
    """

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @functools.cached_property
    def n_tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.context) + self.n_asked - len(self.continuations)

    @functools.cached_property
    def n_asked(self) -> int:
        """How many tokens are asked for."""
        return sum(map(len, self.continuations))


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The shape of a program.

    Attributes:
        n_rows: how many rows there are.
        length: the tokens of each row.
        n_asked: how many tokens may be asked for in each row.
    """

    n_rows: int
    length: int
    n_asked: int


SMALLEST_SHAPE = BatchShape(1, SHORTEST_LENGTH, SHORTEST_LENGTH)  # of programs for any texts


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """The texts of a batch: their indices by row."""

    shape: BatchShape
    rows: Sequence[Sequence[int]]

    def arrays(self, texts: Sequence[PackedText]) -> list[np.ndarray]:
        """Returns the inputs of the program, all int32.

        Tokens and the three tensors of `Packing`, [rows, length] each; then the index in its row and the label of each
        token that is asked for, [rows, asked] each.
        """
        of_tokens = np.zeros((4, self.shape.n_rows, self.shape.length), np.int32)
        asked = np.zeros((2, self.shape.n_rows, self.shape.n_asked), np.int32)
        for row, indices in enumerate(self.rows):
            _fill_row(of_tokens[:, row], asked[:, row], [texts[index] for index in indices])
        return [*of_tokens, *asked]

    def split(self, texts: Sequence[PackedText], output: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the index of each text and its part of an output [rows, asked] of the program."""
        for row, indices in enumerate(self.rows):
            begin = 0
            for index in indices:
                end = begin + texts[index].n_asked
                yield index, output[row, begin:end]
                begin = end


def _fill_row(of_tokens: np.ndarray, asked: np.ndarray, texts: Sequence[PackedText]) -> None:
    """Writes texts into a row of the inputs, [4, length] and [2, asked]."""
    end = end_asked = 0
    for text in texts:
        context_start, n_context = end, len(text.context)
        end += n_context
        of_tokens[:, context_start:end] = _part(text.context, context_start, context_start, 0)
        for continuation in text.continuations:
            start, end = end, end + len(continuation) - 1
            of_tokens[:, start:end] = _part(continuation[:-1], start, context_start, n_context)
            begin_asked, end_asked = end_asked, end_asked + len(continuation)
            asked[0, begin_asked:end_asked] = [context_start + n_context - 1, *range(start, end)]
            asked[1, begin_asked:end_asked] = continuation
    of_tokens[1:3, end:] = end  # the padding is a text of its own


def _part(tokens: Sequence[int], start: int, context_start: int, position: int) -> np.ndarray:
    """Returns [4, tokens] of a part whose first token has this position."""
    n_tokens = len(tokens)
    starts = ([start] * n_tokens, [context_start] * n_tokens)
    return np.array([tokens, *starts, range(position, position + n_tokens)], np.int32).reshape(4, n_tokens)


def _rounded_up(number: int, steps: int) -> int:
    """Rounds up to one of the `steps` evenly spaced numbers that end at the next power of two."""
    power = 1 << (number - 1).bit_length()
    step = max(1, power // (2 * steps))
    return -(-number // step) * step


def plan_batches(texts: Sequence[PackedText], batch_tokens: int, multiple: int = 1) -> list[PackedBatch]:
    """Packs texts into rows, and rows into batches, the longest texts first.

    Args:
        texts: in any order.
        batch_tokens: how many tokens a batch has room for; at least one row.
        multiple: the number of rows of each batch is a multiple of it.
    """
    if not texts:
        return []
    sizes = np.array([(text.n_tokens, text.n_asked) for text in texts])
    n_tokens = sizes[:, 0]
    lengths = _row_lengths(n_tokens, _typical_length(n_tokens, batch_tokens), batch_tokens)
    room = {length: _room(sizes, lengths == length, length, batch_tokens) for length in np.unique(lengths).tolist()}
    rows = _pack(sizes, lengths, room)
    return [
        batch
        for length in sorted(rows, reverse=True)
        for batch in _batches(rows[length], length, room[length], batch_tokens, multiple)
    ]


def _typical_length(n_tokens: np.ndarray, batch_tokens: int) -> int:
    """Returns the length of the rows of most texts: the one by which all rows together take the least time."""
    n_all = int(n_tokens.sum())
    if n_all <= batch_tokens:
        return max(SHORTEST_LENGTH, _rounded_up(min(LONGEST_TYPICAL, n_all), 2))
    every = -(-len(n_tokens) // N_TRIED)
    some, share = n_tokens[::every], batch_tokens // every
    return min(TYPICAL_LENGTHS, key=lambda length: _duration(some, _row_lengths(some, length, share), share))


def _duration(n_tokens: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> float:
    """Returns how long the batches of texts take, in the time of a token without attention."""
    sizes, room = np.stack([n_tokens, np.zeros_like(n_tokens)], 1), dict.fromkeys(lengths.tolist(), 0)
    duration = 0.0
    for length, rows in _pack(sizes, lengths, room).items():
        n_rows = _n_rows(len(rows), max(1, batch_tokens // length))
        duration += -(-len(rows) // n_rows) * n_rows * length * (1.0 + length / ATTENTION_LENGTH)
    return duration


def _row_lengths(n_tokens: np.ndarray, typical: int, batch_tokens: int) -> np.ndarray:
    """Returns the row length of each text, int [texts]: the typical one, or a round one if the text is longer.

    Every length is one more program to compile, so that each but the last fills a batch at least.

    Args:
        n_tokens: of each text.
        typical: the shortest length.
        batch_tokens: see `plan_batches`.
    """
    lengths = np.array([max(typical, _rounded_up(n, 2)) for n in n_tokens.tolist()])
    found = np.unique(lengths).tolist()
    for length, longer in zip(found, found[1:], strict=False):
        if n_tokens[lengths == length].sum() < batch_tokens:
            lengths[lengths == length] = longer
    return lengths


def _room(sizes: np.ndarray, own: np.ndarray, length: int, batch_tokens: int) -> int:
    """Returns how many tokens may be asked for in a row of a length.

    Texts that fill no batch take a program for any: others of their kind would soon need another one.

    Args:
        sizes: of all texts; see `_pack`.
        own: which texts are in rows of this length.
        length: of the row.
        batch_tokens: see `plan_batches`.
    """
    most, (n_tokens, n_asked) = int(sizes[own, 1].max()), sizes.sum(0).tolist()
    if n_tokens <= batch_tokens:
        return max(length, _rounded_up(most, 1))
    mean = length * n_asked / n_tokens
    return _rounded_up(max(int(mean + 2.0 * math.sqrt(mean)), most), 4)  # most rows need no more


def _pack(sizes: np.ndarray, lengths: np.ndarray, room: dict[int, int]) -> dict[int, list[list[int]]]:
    """Returns the rows of each length, each the indices of its texts: first fit, the longest text first.

    Args:
        sizes: of the texts, [texts, 2]: the tokens that the model reads, and those that are asked for.
        lengths: of the row that each text opens if no row has room.
        room: how many tokens may be asked for in a row, by its length.
    """
    rows: list[list[int]] = []
    row_lengths, free = [], np.zeros((2, len(sizes)), np.int64)
    for index in np.argsort(-sizes[:, 0], kind="stable").tolist():
        needed = sizes[index]
        fits = (free[0, : len(rows)] >= needed[0]) & (free[1, : len(rows)] >= needed[1])
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            length = int(lengths[index])
            free[:, row] = length, room[length]
            rows.append([])
            row_lengths.append(length)
        free[:, row] -= needed
        rows[row].append(index)
    return {length: [rows[i] for i, own in enumerate(row_lengths) if own == length] for length in set(row_lengths)}


def _batches(
    rows: list[list[int]], length: int, n_asked: int, batch_tokens: int, multiple: int
) -> Iterator[PackedBatch]:
    """Yields the batches of rows of one length; few rows take a smaller program."""
    shape = BatchShape(-(-_n_rows(len(rows), max(1, batch_tokens // length)) // multiple) * multiple, length, n_asked)
    for start in range(0, len(rows), shape.n_rows):
        yield PackedBatch(shape, rows[start : start + shape.n_rows])


def _n_rows(n_all: int, most: int) -> int:
    """Returns how many rows batches have, such that the last one has few empty ones."""
    if n_all <= most:
        return min(most, _rounded_up(n_all, 1))
    return min(range(most, most * 3 // 4, -1), key=lambda n_rows: -(-n_all // n_rows) * n_rows)


class PackedBatches:
    """Runs programs over texts of any lengths."""

    def __init__(self, build: Callable[[BatchShape], Step], multiple: int, batch_tokens: int = BATCH_TOKENS) -> None:
        """Builds the smallest program, which makes the model's variables.

        Args:
            build: builds the program of a shape, from the arrays of `PackedBatch` to outputs [rows, asked].
            multiple: see `plan_batches`.
            batch_tokens: see `plan_batches`.
        """
        self._build, self._multiple, self._batch_tokens = functools.cache(build), multiple, batch_tokens
        self._build(dataclasses.replace(SMALLEST_SHAPE, n_rows=multiple))

    def outputs(self, texts: Sequence[PackedText]) -> Iterator[dict[int, dict[str, np.ndarray]]]:
        """Yields, batch by batch, the outputs of texts by their index and by name, each [asked of the text]."""
        for batch in plan_batches(texts, self._batch_tokens, self._multiple):
            found: dict[int, dict[str, np.ndarray]] = {}
            for name, output in self._build(batch.shape)(*batch.arrays(texts)).items():
                for index, part in batch.split(texts, output):
                    found.setdefault(index, {})[name] = part
            yield found
