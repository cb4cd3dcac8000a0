"""Answers requests of every kind: whole, or as server-sent events while the text is generated."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import TokenChunk
from runtime.generation.reranking import best_first, ranking_keys
from serving.chat import ChatChoiceBuilder, join_chat_choices
from serving.errors import CLIENT_CLOSED_REQUEST, ApiError
from serving.metrics import ServerMetrics
from serving.model import ServedModel
from serving.protocol import (
    AnswerCandidate,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Completion,
    Usage,
)
from serving.queue import RequestQueue, ResponseStream
from serving.request import EncodedPrompt, SamplingRequest
from serving.response import ChoiceBuilder, join_choices
from serving.spelled_tokens import SpelledTokens

CANCELLED = "cancelled"
EMPTY_CHUNK = TextChunk("", (), (), (), "length")

Result = TypeVar("Result")
Part = Choice | ChunkChoice
Builder = ChoiceBuilder | ChatChoiceBuilder


@dataclasses.dataclass(frozen=True)
class ResponseForm:
    """The objects that answer one kind of request.

    Attributes:
        id_prefix: of the names of answers.
        whole: the answer as a whole.
        event: the answer as an event of a stream.
        builder: makes the parts of one choice, from its index, the model and the request.
        join: makes a choice of its parts, with an index.
        has_opening: whether a part always precedes the text.
    """

    id_prefix: str
    whole: type[BaseModel]
    event: type[BaseModel]
    builder: Callable[[int, ServedModel, SamplingRequest], Builder]
    join: Callable[..., BaseModel]
    has_opening: bool


COMPLETION = ResponseForm(
    "cmpl",
    Completion,
    Completion,
    lambda index, model, request: ChoiceBuilder(index, model.bytes_of, request.n_top),
    join_choices,
    has_opening=False,
)
CHAT = ResponseForm(
    "chatcmpl",
    ChatCompletion,
    ChatCompletionChunk,
    lambda index, model, request: ChatChoiceBuilder(
        index, model.bytes_of, request.n_top, (model.eos_id, *model.end_ids, *request.sampling.end_ids)
    ),
    join_chat_choices,
    has_opening=True,
)


@dataclasses.dataclass(frozen=True)
class Service:
    """What all requests share.

    Attributes:
        model: the one that is served.
        queue: the way to its engine.
        metrics: counts requests and tokens.
        spelled: counts the special tokens that prompts spell.
        started: when the server was started, in seconds since 1970.
    """

    model: ServedModel
    queue: RequestQueue
    metrics: ServerMetrics
    spelled: SpelledTokens
    started: int


class _Sequence:
    """One generated sequence of a request."""

    def __init__(self, prompt: EncodedPrompt, score: TokenChunk | None, builder: Builder) -> None:
        self._prompt = prompt
        self._score = score
        self._builder = builder
        self._sum_log_prob = 0.0
        self.n_tokens = 0
        self.finish_reason: str | None = None

    def opening(self) -> Part:
        """Returns what precedes the text; to be called once, as the scores of a prompt may be large."""
        score, self._score = self._score, None
        return self._builder.opening(self._prompt, score)

    def append(self, chunk: TextChunk) -> Part:
        """Adds a chunk and returns it."""
        self._sum_log_prob += sum(chunk.log_probs)
        self.n_tokens += len(chunk.tokens)
        self.finish_reason = chunk.finish_reason
        return self._builder.generated(chunk)

    @property
    def mean_log_prob(self) -> float:
        """Mean log-probability of its tokens."""
        return self._sum_log_prob / max(1, self.n_tokens)


class CompletionTask:
    """Carries out one request."""

    def __init__(self, service: Service, request: SamplingRequest, form: ResponseForm) -> None:
        """Prepares the answer to a request; generation starts with `whole` or `events`."""
        self._service = service
        self._request = request
        self._form = form
        self._start_seconds = time.monotonic()
        self._is_first = True
        self._sequences: list[_Sequence] = []
        self._head = {
            "id": f"{form.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.model.name,
        }

    async def whole(self) -> bytes:
        """Returns the answer as JSON once all of it is generated."""
        parts: dict[int, list[Part]] = {}
        async with contextlib.aclosing(self._chosen_parts()) as generated:
            async for part in generated:
                parts.setdefault(part.index, []).append(part)
        return await asyncio.to_thread(self._whole_json, parts)

    def _whole_json(self, parts: dict[int, list[Part]]) -> bytes:
        # One choice at a time, and each is let go of at once: no other thread runs while one is made or freed.
        choices = [
            self._form.join(index, parts.pop(number)).model_dump_json().encode()
            for index, number in enumerate(self._best())
        ]
        whole = self._form.whole(**self._head, choices=[], usage=self._usage()).model_dump_json()
        before, after = whole.encode().split(b'"choices":[]', 1)
        return b"".join([before, b'"choices":[', b",".join(choices), b"]", after])

    async def events(self, send: Send, has_usage: bool) -> None:
        """Sends the answer while it is generated; the response head is sent with the first event.

        Raises:
            ApiError: generation failed before anything was sent.
        """
        has_begun = False
        try:
            async with contextlib.aclosing(self._chosen_parts()) as generated:
                async for part in generated:
                    if not has_begun:
                        await send(EVENTS_HEAD)
                        has_begun = True
                    await send(_event(self._to_json([part], has_usage)))
        except ApiError as error:
            if not has_begun:
                raise
            await send(_event(error.body().model_dump_json()))
        else:
            if has_usage:
                last = self._form.event(**self._head, choices=[], usage=self._usage())
                await send(_event(last.model_dump_json()))
            await send(_event("[DONE]"))
        await send({"type": "http.response.body", "body": b""})

    def _to_json(self, choices: list[Part], has_usage: bool) -> str:
        # As with OpenAI, all events of a stream that ends with the usage have the field, and others do not.
        event = self._form.event(**self._head, choices=choices)
        return event.model_dump_json(exclude=None if has_usage else {"usage"})

    async def _chosen_parts(self) -> AsyncIterator[Part]:
        """Yields the parts of the sequences to return; ranked answers, once all candidates are generated."""
        async with contextlib.aclosing(self._parts()) as generated:
            if not self._request.answered:
                async for part in generated:
                    yield part
                return
            parts: dict[int, list[ChunkChoice]] = {}
            async for part in generated:
                parts.setdefault(part.index, []).append(part)
        for part in await self._ranked([parts[number] for number in sorted(parts)]):
            yield part

    async def _ranked(self, candidates: list[list[ChunkChoice]]) -> list[ChunkChoice]:
        """Returns the parts of the best answers, numbered from the best."""
        request, ranking = self._request, self._service.model.ranking
        texts = ["".join(part.delta.content or "" for part in parts) for parts in candidates]
        scores = await self._service.queue.compute(lambda: ranking.scores(request.answered, texts))
        order = best_first(texts, scores)
        shown = [AnswerCandidate(text=texts[number], **ranking_keys(scores[number])) for number in order]
        chosen = []
        for index, number in enumerate(order[: request.n]):
            chosen += [part.model_copy(update={"index": index}) for part in candidates[number]]
            if request.shows_candidates:
                chosen[-1] = chosen[-1].model_copy(update={"candidates": shown})
        return chosen

    async def _parts(self) -> AsyncIterator[Part]:
        """Yields the parts of all sequences as they are generated; those of one sequence are in order."""
        self._sequences = self._new_sequences(await self._scores())
        with self._service.queue.generate(self._request.generation_requests()) as stream, self._counted():
            if self._request.is_echoed or self._form.has_opening:
                for sequence in self._sequences:
                    yield await self._made(sequence.opening)
            if self._request.max_tokens == 0:
                for sequence in self._sequences:
                    yield await self._made(sequence.append, EMPTY_CHUNK)
            while any(sequence.finish_reason is None for sequence in self._sequences):
                yield await self._next(stream)

    async def _next(self, stream: ResponseStream[TextChunk]) -> Part:
        number, chunk = await stream.next()
        if self._is_first:
            self._service.metrics.count_first_token(time.monotonic() - self._start_seconds)
            self._is_first = False
        return await self._made(self._sequences[number].append, chunk)

    async def _made(self, make: Callable[..., Part], *inputs: object) -> Part:
        """Makes a part; in a thread if it has log-probabilities, whose names take a while."""
        if self._request.n_top is not None:
            return await asyncio.to_thread(make, *inputs)
        await asyncio.sleep(0)  # other requests have their turn, however many parts are ready
        return make(*inputs)

    async def _scores(self) -> list[TokenChunk | None]:
        """Returns the scores of each prompt; None if it has only one token, or no scores are requested."""
        if not self._request.is_echoed or self._request.n_top is None:
            return [None] * len(self._request.prompts)
        texts = [prompt.tokens for prompt in self._request.prompts if len(prompt.tokens) > 1]
        scores = iter(await self._service.queue.score(texts, self._request.n_top))
        return [next(scores) if len(prompt.tokens) > 1 else None for prompt in self._request.prompts]

    def _new_sequences(self, scores: list[TokenChunk | None]) -> list[_Sequence]:
        request, model = self._request, self._service.model
        of_prompts = [pair for pair in zip(request.prompts, scores, strict=True) for _ in range(request.n_generated)]
        return [
            _Sequence(prompt, score, self._form.builder(number, model, request))
            for number, (prompt, score) in enumerate(of_prompts)
        ]

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts the tokens and sequences of the request, also if it is cancelled."""
        try:
            yield
        finally:
            self._service.metrics.count_tokens(self._usage())
            for sequence in self._sequences:
                self._service.metrics.count_sequence(sequence.finish_reason or CANCELLED)

    def _best(self) -> list[int]:
        """Returns the numbers of the sequences to return, in the order of the prompts."""
        if self._request.answered:
            return list(range(self._request.n))
        n_generated, best = self._request.n_generated, []
        for first in range(0, len(self._sequences), n_generated):
            numbers = range(first, first + n_generated)
            if n_generated > self._request.n:
                ranked = sorted(numbers, key=lambda number: -self._sequences[number].mean_log_prob)
                numbers = ranked[: self._request.n]
            best += numbers
        return best

    def _usage(self) -> Usage:
        n_prompt = sum(len(prompt.tokens) for prompt in self._request.prompts)
        n_completion = sum(sequence.n_tokens for sequence in self._sequences)
        return Usage(prompt_tokens=n_prompt, completion_tokens=n_completion, total_tokens=n_prompt + n_completion)


EVENTS_HEAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")],
}


def _event(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}


class EventsResponse(Response):
    """A response of server-sent events, until the answer is complete or the client disconnects."""

    def __init__(self, task: CompletionTask, has_usage: bool) -> None:
        """Takes the task that sends the events, and whether the last one holds the usage."""
        super().__init__(media_type="text/event-stream")
        self._task = task
        self._has_usage = has_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        await unless_disconnected(receive, self._task.events(send, self._has_usage))


async def whole_response(task: CompletionTask, request: Request) -> Response:
    """Returns the response once the answer is complete."""
    completion = await unless_disconnected(request.receive, task.whole())
    if completion is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(completion, media_type="application/json")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Returns the result of the work; if the client disconnects first, cancels the work and returns None."""
    working, disconnecting = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, disconnecting):
            task.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
