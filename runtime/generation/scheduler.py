"""Continuous batching: schedules any number of requests onto the rows of one engine.

Requests wait in order of arrival for a free row. Each row is at its own position of its own text, and a text that ends
frees its row at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from runtime.generation.detokenizer import Detokenizer, ScoredToken, TextChunk
from runtime.generation.engine import Engine, TokenChunk
from runtime.generation.requests import GenerationRequest

DECODE_STEPS = 8  # between two looks at the queue


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """A submitted request."""

    request_id: int
    request: GenerationRequest
    on_chunk: Callable[[TextChunk], None]
    detokenizer: Detokenizer


class Scheduler:
    """Shares an engine among requests. Only one thread may call it; callbacks may submit and cancel."""

    def __init__(self, engine: Engine, bytes_of: Callable[[int], bytes]) -> None:
        """Takes an engine without active rows, and a function from a token to its bytes."""
        self._engine = engine
        self._bytes_of = bytes_of
        self._waiting: dict[int, _Sequence] = {}
        self._running: dict[int, _Sequence] = {}  # by row
        self._request_ids = itertools.count()

    @property
    def n_rows(self) -> int:
        """How many requests can run at once."""
        return self._engine.n_rows

    @property
    def n_waiting(self) -> int:
        """Number of requests without a row."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Number of requests with a row."""
        return len(self._running)

    def submit(self, request: GenerationRequest, on_chunk: Callable[[TextChunk], None]) -> int:
        """Appends a request to the queue.

        Args:
            request: the text to generate.
            on_chunk: called with each chunk of the text in order; the last one has a `finish_reason`.

        Returns:
            The id that `cancel` takes.
        """
        assert all(request.stop_strings), "an empty stop string"
        request_id = next(self._request_ids)
        detokenizer = Detokenizer(request.stop_strings, request.sampling.min_tokens)
        self._waiting[request_id] = _Sequence(request_id, request, on_chunk, detokenizer)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Drops a request, whose callback is not called again. Does nothing if it has finished."""
        self._waiting.pop(request_id, None)
        for row, sequence in list(self._running.items()):
            if sequence.request_id == request_id:
                self._free(row)

    def step(self, n_steps: int = DECODE_STEPS) -> bool:
        """Prefills free rows from the queue, decodes up to `n_steps` tokens in each row, and reports them.

        Returns:
            Whether any row was active.
        """
        self._prefill()
        if not self._running:
            return False
        chunks = self._engine.decode_steps(n_steps)
        for row, sequence in list(self._running.items()):
            if self._running.get(row) is sequence:  # the callback of another may have cancelled it
                self._report(row, sequence, chunks[row])
        return True

    def _prefill(self) -> None:
        free = [row for row in range(self._engine.n_rows) if row not in self._running]
        for row, sequence in zip(free, list(self._waiting.values()), strict=False):
            # One at a time: a program for each number of prompts takes longer to compile than it saves.
            self._engine.prefill({row: sequence.request})
            self._running[row] = self._waiting.pop(sequence.request_id)

    def _report(self, row: int, sequence: _Sequence, chunk: TokenChunk) -> None:
        for token in map(ScoredToken, chunk.tokens, chunk.log_probs, chunk.top):
            # An engine that reports the token that ends a text gives it as the last one; it is no part of the text.
            sequence.detokenizer.add(token, b"" if token.id == chunk.end_id else self._bytes_of(token.id))
        new = sequence.detokenizer.take(chunk.finish_reason)
        if new.finish_reason is not None:
            self._free(row)
        if new.text or new.tokens or new.finish_reason is not None:
            sequence.on_chunk(new)

    def _free(self, row: int) -> None:
        del self._running[row]
        self._engine.release(row)
