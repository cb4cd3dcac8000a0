"""An answer to a request for completions: whole, or as events while it is written."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from runtime.generation.engine import TokenChunk
from runtime.generation.scheduler import Delta
from serving.errors import CLIENT_GONE, Refusal
from serving.metrics import Statistics
from serving.model import ServedModel
from serving.protocol import Choice, Completion, Usage
from serving.queue import RequestQueue, ResponseStream
from serving.request import Prompt, SamplingRequest
from serving.response import ChoiceWriter, joined

FORGOTTEN = "cancelled"
NOTHING_WRITTEN = Delta("", (), (), (), "length")

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Service:
    """What answers are made with."""

    model: ServedModel
    desk: RequestQueue
    statistics: Statistics
    started: int


class _Sequence:
    """One of the sequences of a request as it grows."""

    def __init__(self, prompt: Prompt, score: TokenChunk | None, writer: ChoiceWriter) -> None:
        self._prompt = prompt
        self._score = score
        self._writer = writer
        self._sum_log_prob = 0.0
        self.n_tokens = 0
        self.end: str | None = None

    def echo(self) -> Choice:
        """The prompt."""
        return self._writer.echo(self._prompt, self._score)

    def grow(self, delta: Delta) -> Choice:
        """What is new."""
        self._sum_log_prob += sum(delta.log_probs)
        self.n_tokens += len(delta.tokens)
        self.end = delta.end
        return self._writer.written(delta)

    @property
    def mean_log_prob(self) -> float:
        """How likely it is, a token."""
        return self._sum_log_prob / max(1, self.n_tokens)


class Answering:
    """One request being answered."""

    def __init__(self, service: Service, wish: SamplingRequest) -> None:
        self._service = service
        self._wish = wish
        self._began = time.monotonic()
        self._is_first = True
        self._sequences: list[_Sequence] = []
        self._completion = functools.partial(
            Completion, id=f"cmpl-{secrets.token_hex(12)}", created=int(time.time()), model=service.model.name
        )

    async def whole(self) -> Completion:
        """The answer when all of it is written."""
        pieces: dict[int, list[Choice]] = {}
        async with contextlib.aclosing(self._pieces()) as written:
            async for piece in written:
                pieces.setdefault(piece.index, []).append(piece)
        choices = [joined(pieces[number]) for number in self._best()]
        for index, choice in enumerate(choices):
            choice.index = index
        return self._completion(choices=choices, usage=self._usage())

    async def events(self, send: Send, has_usage: bool) -> None:
        """Sends the answer as it is written; its head goes first when there is something to send.

        Raises:
            Refusal: before anything was sent.
        """
        has_begun = False
        try:
            async with contextlib.aclosing(self._pieces()) as written:
                async for piece in written:
                    if not has_begun:
                        await send(EVENTS_HEAD)
                        has_begun = True
                    await send(_event(self._chunk([piece], has_usage)))
        except Refusal as refusal:
            if not has_begun:
                raise
            await send(_event(refusal.answer().model_dump_json()))
        else:
            if has_usage:
                await send(_event(self._completion(choices=[], usage=self._usage()).model_dump_json()))
            await send(_event("[DONE]"))
        await send({"type": "http.response.body", "body": b""})

    def _chunk(self, choices: list[Choice], has_usage: bool) -> str:
        # As OpenAI's: a stream that ends with the usage has the field everywhere, another one nowhere.
        return self._completion(choices=choices).model_dump_json(exclude=None if has_usage else {"usage"})

    async def _pieces(self) -> AsyncIterator[Choice]:
        """All that is written, as it comes: of each sequence in order, and of all sequences mixed."""
        self._sequences = self._begin(await self._scores())
        with self._service.desk.writing(self._wish.asks()) as news, self._counted():
            if self._wish.is_echoed:
                for sequence in self._sequences:
                    yield sequence.echo()
            if self._wish.max_tokens == 0:
                for sequence in self._sequences:
                    yield sequence.grow(NOTHING_WRITTEN)
            while any(sequence.end is None for sequence in self._sequences):
                yield await self._next(news)

    async def _next(self, news: ResponseStream[Delta]) -> Choice:
        number, delta = await news.next()
        if self._is_first:
            self._service.statistics.count_first(time.monotonic() - self._began)
            self._is_first = False
        return self._sequences[number].grow(delta)

    async def _scores(self) -> list[TokenChunk | None]:
        """Of each prompt; None: it has no second token, or nobody wants its scores."""
        if not self._wish.is_echoed or self._wish.n_top is None:
            return [None] * len(self._wish.prompts)
        texts = [prompt.tokens for prompt in self._wish.prompts if len(prompt.tokens) > 1]
        scores = iter(await self._service.desk.scores(texts, self._wish.n_top))
        return [next(scores) if len(prompt.tokens) > 1 else None for prompt in self._wish.prompts]

    def _begin(self, scores: list[TokenChunk | None]) -> list[_Sequence]:
        wish, bytes_of = self._wish, self._service.model.bytes_of
        of_prompts = [pair for pair in zip(wish.prompts, scores, strict=True) for _ in range(wish.n_written)]
        return [
            _Sequence(prompt, score, ChoiceWriter(number, bytes_of, wish.n_top))
            for number, (prompt, score) in enumerate(of_prompts)
        ]

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts what was read and written, also of what is left before its end."""
        try:
            yield
        finally:
            self._service.statistics.count_tokens(self._usage())
            for sequence in self._sequences:
                self._service.statistics.count_end(sequence.end or FORGOTTEN)

    def _best(self) -> list[int]:
        """The sequences that are given, in the order of the prompts."""
        n_written, best = self._wish.n_written, []
        for first in range(0, len(self._sequences), n_written):
            numbers = range(first, first + n_written)
            if n_written > self._wish.n:
                numbers = sorted(numbers, key=lambda number: -self._sequences[number].mean_log_prob)[: self._wish.n]
            best += numbers
        return best

    def _usage(self) -> Usage:
        read = sum(len(prompt.tokens) for prompt in self._wish.prompts)
        written = sum(sequence.n_tokens for sequence in self._sequences)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


EVENTS_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
}


def _event(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}


class EventsResponse(Response):
    """Server-sent events, until the answer or the client is gone."""

    def __init__(self, answering: Answering, has_usage: bool) -> None:
        super().__init__(media_type="text/event-stream")
        self._answering = answering
        self._has_usage = has_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        await unless_gone(receive, self._answering.events(send, self._has_usage))


async def whole_response(answering: Answering, request: Request) -> Response:
    """The answer, once all of it is there."""
    completion = await unless_gone(request.receive, answering.whole())
    if completion is None:
        return Response(status_code=CLIENT_GONE)
    return JSONResponse(completion.model_dump())


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What work gives; None: the client has gone before, and the work is cancelled."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
