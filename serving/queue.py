"""Where requests hand in what they want: it counts what is on its way, refuses what is too much, and gives the news to
who asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from runtime.generation.engine import TokenChunk
from runtime.generation.scheduler import Delta, GenerationRequest
from serving.errors import Refusal, bad_request, broken, full, late, stopping
from serving.model import ServedModel
from serving.settings import ServingSettings
from serving.worker import Forget, Worker

What = TypeVar("What", Delta, TokenChunk)
Start = Callable[[Callable[[What], None]], Forget]


class ResponseStream(Generic[What]):
    """What comes of one request: each with the number of the part that it is of."""

    def __init__(self, n_parts: int) -> None:
        self.n_parts = n_parts
        self._news: asyncio.Queue[tuple[int, What] | Refusal] = asyncio.Queue()

    def put(self, number: int, what: What) -> None:
        """Appends what is new of a part."""
        self._news.put_nowait((number, what))

    def end(self, refusal: Refusal) -> None:
        """Ends it too early."""
        self._news.put_nowait(refusal)

    async def next(self) -> tuple[int, What]:
        """Waits for the next news.

        Raises:
            Refusal: there is none to come.
        """
        news = await self._news.get()
        if isinstance(news, Refusal):
            raise news
        return news


class RequestQueue:
    """The one way from the event loop, whose thread calls all of it, to the worker.

    Attributes:
        worker: entered as a context by who has made the desk.
        failure: what has ended the worker; None: nothing.
        is_closed: nothing more is taken.
    """

    def __init__(self, model: ServedModel, settings: ServingSettings, on_failure: Callable[[], None]) -> None:
        """Is made in the event loop; `on_failure` is called there."""
        self.failure: BaseException | None = None
        self.is_closed = False
        self.worker = Worker(model, self._hear_failure)
        self._n_most = model.engine.n_rows + settings.n_waiting
        self._answer_seconds = settings.answer_seconds
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._open: set[ResponseStream] = set()

    @property
    def n_open(self) -> int:
        """Sequences of all requests that are not answered yet."""
        return sum(news.n_parts for news in self._open)

    def _hear_failure(self, failure: BaseException) -> None:
        """Is told by the worker, in its thread, what has ended it."""
        self._loop.call_soon_threadsafe(self._fail, failure)

    def _fail(self, failure: BaseException) -> None:
        self.failure = failure
        self._end_all(broken())
        self._on_failure()

    def _end_all(self, refusal: Refusal) -> None:
        for news in self._open:
            news.end(refusal)

    def cut_short(self) -> None:
        """Ends all that is not answered yet."""
        self._end_all(stopping())

    def check_open(self) -> None:
        """Raises a refusal if nothing is taken any more."""
        if self.failure is not None:
            raise broken()
        if self.is_closed:
            raise stopping()

    def _check_room(self, n_parts: int) -> None:
        self.check_open()
        if n_parts > self._n_most:
            raise bad_request(
                f"prompt, n and best_of: are {n_parts} sequences together; ask for at most {self._n_most} at once",
                "prompt",
            )
        if self.n_open + n_parts > self._n_most:
            raise full(self.n_open, self._n_most)

    @contextlib.contextmanager
    def _news_of(self, starts: Sequence[Start]) -> Iterator[ResponseStream]:
        self._check_room(len(starts))
        news: ResponseStream = ResponseStream(len(starts))
        self._open.add(news)
        alarm = self._loop.call_later(self._answer_seconds, news.end, late(self._answer_seconds))
        forgets = [start(functools.partial(self._pass_on, news, number)) for number, start in enumerate(starts)]
        try:
            yield news
        finally:
            alarm.cancel()
            self._open.remove(news)
            for forget in forgets:
                forget()

    def _pass_on(self, news: ResponseStream, number: int, what: Delta | TokenChunk) -> None:
        """Is called by the worker, in its thread."""
        self._loop.call_soon_threadsafe(news.put, number, what)

    def writing(self, asks: Sequence[GenerationRequest]) -> contextlib.AbstractContextManager[ResponseStream[Delta]]:
        """The deltas of answers, which are forgotten at the end of the context.

        Raises:
            Refusal: there is no room for so many, or nothing is taken any more.
        """
        return self._news_of([functools.partial(self.worker.write, ask) for ask in asks])

    async def scores(self, texts: Sequence[tuple[int, ...]], n_top: int) -> list[TokenChunk]:
        """The scores of each text's tokens from the second on.

        Raises:
            Refusal: there is no room for so many, or nothing is taken any more, or they are not done in time.
        """
        scores: dict[int, TokenChunk] = {}
        with self._news_of([functools.partial(self.worker.score, tokens, n_top) for tokens in texts]) as news:
            while len(scores) < len(texts):
                number, piece = await news.next()
                scores[number] = piece
        return [scores[number] for number in range(len(texts))]
