"""From a request to what the engine is asked for."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

from configs.schema import MAX_SEED
from models.kernels.sampling import SamplingParams
from runtime.generation.engine import ActiveSequence
from runtime.generation.requests import sample_seed
from runtime.generation.scheduler import GenerationRequest
from serving.errors import Refusal, bad_request
from serving.model import ServedModel
from serving.protocol import DEFAULT_MAX_TOKENS, CompletionRequest

_RULE_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)} & set(CompletionRequest.model_fields)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What an answer follows.

    Attributes:
        text: as it is echoed.
        tokens: as the model reads it: at least one.
        is_empty: there is no text, and the token is the end of the document before.
    """

    text: str
    tokens: tuple[int, ...]
    is_empty: bool = False

    @property
    def shown(self) -> tuple[int, ...]:
        """The tokens of the text."""
        return () if self.is_empty else self.tokens


@dataclasses.dataclass(frozen=True)
class SamplingRequest:
    """A request, understood.

    Attributes:
        prompts: each is answered `n` times.
        n: answers of each prompt that are given.
        n_written: answers of each prompt that are written; the likeliest are given.
        max_tokens: of each.
        n_top: likeliest tokens at each place; None: no log-probabilities are wanted.
        is_echoed: the prompt stands before the answer.
        stops: strings before which an answer ends.
        rule: how tokens are chosen.
        seed: of all samples.
    """

    prompts: tuple[Prompt, ...]
    n: int
    n_written: int
    max_tokens: int
    n_top: int | None
    is_echoed: bool
    stops: tuple[str, ...]
    rule: SamplingParams
    seed: int

    @property
    def is_scored(self) -> bool:
        """Whether it matters how likely answers are."""
        return self.n_top is not None or self.n_written > self.n

    def asks(self) -> list[GenerationRequest]:
        """What is to be written: of the first prompt all samples, then of the next."""
        if self.max_tokens == 0:
            return []
        n_top = max(1, self.n_top or 0) if self.is_scored else 0
        jobs = [
            ActiveSequence(prompt.tokens, self.rule, sample_seed(self.seed, sample), self.max_tokens, n_top)
            for prompt in self.prompts
            for sample in range(self.n_written)
        ]
        return [GenerationRequest(job, self.stops) for job in jobs]


def parse_request(request: CompletionRequest, model: ServedModel) -> SamplingRequest:
    """What a request wants of a model.

    Raises:
        Refusal: fields do not go together, or not with the model.
    """
    _check_together(request)
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    prompts = tuple(_prompts(request.prompt, model))
    for prompt in prompts:
        _check_length(prompt, max_tokens, model.engine.n_ctx)
    n = request.n or 1
    return SamplingRequest(
        prompts=prompts,
        n=n,
        n_written=request.best_of or n,
        max_tokens=max_tokens,
        n_top=request.logprobs,
        is_echoed=bool(request.echo),
        stops=_stops(request.stop),
        rule=SamplingParams(**request.model_dump(include=_RULE_FIELDS, exclude_none=True)),
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
    )


def _check_together(request: CompletionRequest) -> None:
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise bad_request(
            f"best_of = {request.best_of}: is less than n = {request.n or 1}; give n to 128, or null", "best_of"
        )
    if request.best_of is not None and request.best_of > (request.n or 1) and request.stream:
        raise bad_request(
            f"best_of = {request.best_of}: the best are known at the end only; leave out stream or best_of",
            "best_of",
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options: say nothing without stream; give stream: true, or null", "stream_options")


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _prompts(given: str | Sequence, model: ServedModel) -> list[Prompt]:
    if given is None or isinstance(given, str):
        return [_of_text(given or "", model)]
    if isinstance(given[0], int):
        return [_of_ids(given, model)]
    return [_of_text(one, model) if isinstance(one, str) else _of_ids(one, model) for one in given]


def _of_text(text: str, model: ServedModel) -> Prompt:
    # No more of it than tells that it is too long.
    tokens = tuple(model.tokenizer.encode_end(text, model.engine.n_ctx + 1))
    return Prompt(text, tokens) if tokens else Prompt(text, (model.eos_id,), is_empty=True)


def _of_ids(ids: Sequence[int], model: ServedModel) -> Prompt:
    n_vocab = model.tokenizer.n_vocab
    wrong = next((token for token in ids if token >= n_vocab), None)
    if wrong is not None:
        raise bad_request(f"prompt: holds the id {wrong}; give ids of 0 to {n_vocab - 1}", "prompt")
    return Prompt(model.tokenizer.decode(ids[: model.engine.n_ctx + 1]), tuple(ids))


def _check_length(prompt: Prompt, max_tokens: int, n_ctx: int) -> None:
    n_tokens = len(prompt.tokens)
    if n_tokens + max_tokens > n_ctx:
        raise _too_long(str(n_tokens) if n_tokens <= n_ctx else f"more than {n_ctx}", max_tokens, n_ctx)


def _too_long(n_tokens: str, max_tokens: int, n_ctx: int) -> Refusal:
    return bad_request(
        f"max_tokens = {max_tokens}: with the prompt's {n_tokens} tokens is more than the context of {n_ctx}; "
        "give less of one of them",
        "max_tokens",
        "context_length_exceeded",
    )
