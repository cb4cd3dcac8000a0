"""The queue between the event loop and the worker: limits the number of open sequences and streams their chunks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import TokenChunk
from runtime.generation.requests import GenerationRequest
from serving.errors import ApiError, bad_request, failed, queue_full, stopping, timed_out
from serving.model import ServedModel
from serving.settings import ServingSettings
from serving.worker import Cancel, Worker

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")
Start = Callable[[Callable[[Chunk], None]], Cancel]


class ResponseStream(Generic[Chunk]):
    """The chunks of one HTTP request, each with the index of its sequence."""

    def __init__(self, n_sequences: int) -> None:
        """Starts empty."""
        self.n_sequences = n_sequences
        self._chunks: asyncio.Queue[tuple[int, Chunk] | ApiError] = asyncio.Queue()

    def put(self, index: int, chunk: Chunk) -> None:
        """Appends a chunk of a sequence."""
        self._chunks.put_nowait((index, chunk))

    def fail(self, error: ApiError) -> None:
        """Ends the stream with an error."""
        self._chunks.put_nowait(error)

    async def next(self) -> tuple[int, Chunk]:
        """Waits for the next chunk.

        Raises:
            ApiError: the stream has failed.
        """
        chunk = await self._chunks.get()
        if isinstance(chunk, ApiError):
            raise chunk
        return chunk


class RequestQueue:
    """The only way from the event loop to the worker; all of it is called in the loop's thread.

    Attributes:
        worker: entered as a context by the owner of the queue.
        failure: the exception that has ended the worker, if any.
        is_closed: whether new requests are refused.
        n_open: number of unfinished sequences of all requests.
    """

    def __init__(self, model: ServedModel, settings: ServingSettings, on_failure: Callable[[], None]) -> None:
        """Must be called in the event loop, which also calls `on_failure`."""
        self.failure: BaseException | None = None
        self.is_closed = False
        self.worker = Worker(model, self._on_worker_failure)
        self._max_open = model.engine.n_rows + settings.n_waiting
        self._answer_seconds = settings.answer_seconds
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._open: set[ResponseStream] = set()
        self.n_open = 0

    def _on_worker_failure(self, failure: BaseException) -> None:
        """Called by the worker, in its thread."""
        self._loop.call_soon_threadsafe(self._fail, failure)

    def _fail(self, failure: BaseException) -> None:
        self.failure = failure
        self._fail_all(failed())
        self._on_failure()

    def _fail_all(self, error: ApiError) -> None:
        for stream in self._open:
            stream.fail(error)

    def abort(self) -> None:
        """Ends all unfinished requests."""
        self._fail_all(stopping())

    def check_open(self) -> None:
        """Raises an ApiError if requests are refused."""
        if self.failure is not None:
            raise failed()
        if self.is_closed:
            raise stopping()

    def _check_room(self, n_sequences: int) -> None:
        self.check_open()
        if n_sequences > self._max_open:
            raise bad_request(
                f"prompt, n and best_of: ask for {n_sequences} sequences; ask for at most {self._max_open} at once",
                "prompt",
            )
        if self.n_open + n_sequences > self._max_open:
            raise queue_full(self.n_open, self._max_open)

    @contextlib.contextmanager
    def _stream(self, starts: Sequence[Start]) -> Iterator[ResponseStream]:
        self._check_room(len(starts))
        stream: ResponseStream = ResponseStream(len(starts))
        self._open.add(stream)
        self.n_open += stream.n_sequences
        timeout = self._loop.call_later(self._answer_seconds, stream.fail, timed_out(self._answer_seconds))
        cancels = [start(functools.partial(self._on_chunk, stream, index)) for index, start in enumerate(starts)]
        try:
            yield stream
        finally:
            timeout.cancel()
            self._open.remove(stream)
            self.n_open -= stream.n_sequences
            for cancel in cancels:
                cancel()

    def _on_chunk(self, stream: ResponseStream, index: int, chunk: Any) -> None:
        """Called by the worker, in its thread."""
        self._loop.call_soon_threadsafe(stream.put, index, chunk)

    def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> contextlib.AbstractContextManager[ResponseStream[TextChunk]]:
        """Returns the stream of the requests' chunks, a context whose end cancels what is unfinished.

        Raises:
            ApiError: the queue is full or closed.
        """
        return self._stream([functools.partial(self.worker.generate, request) for request in requests])

    async def score(self, texts: Sequence[tuple[int, ...]], n_top: int) -> list[TokenChunk]:
        """Returns the scores of each text's tokens, from the second on.

        Raises:
            ApiError: the queue is full or closed, or the time is up.
        """
        return await self._results([functools.partial(self.worker.score, tokens, n_top) for tokens in texts])

    async def compute(self, work: Callable[[], Result]) -> Result:
        """Returns the result of work on the devices, which the worker does.

        Raises:
            ApiError: the queue is full or closed, or the time is up.
        """
        (result,) = await self._results([functools.partial(self.worker.compute, work)])
        return result

    async def _results(self, starts: Sequence[Start]) -> list[Any]:
        results: dict[int, Any] = {}
        with self._stream(starts) as stream:
            while len(results) < len(starts):
                index, result = await stream.next()
                results[index] = result
        return [results[index] for index in range(len(starts))]
