"""Parses a completions request into generation requests."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence

from configs.schema import MAX_SEED
from models.kernels.sampling import SamplingParams
from runtime.generation.requests import GenerationRequest, sample_seed
from serving.errors import ApiError, bad_request
from serving.model import ServedModel
from serving.protocol import DEFAULT_MAX_TOKENS, CompletionRequest

_SAMPLING_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)} & set(CompletionRequest.model_fields)


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its tokens.

    Attributes:
        text: as it is echoed.
        tokens: as the model is given them, at least one.
        is_empty: whether the text is empty and the only token is eos.
    """

    text: str
    tokens: tuple[int, ...]
    is_empty: bool = False

    @property
    def shown_tokens(self) -> tuple[int, ...]:
        """The tokens of the text: none for an empty one."""
        return () if self.is_empty else self.tokens


@dataclasses.dataclass(frozen=True)
class SamplingRequest:
    """A valid completions request.

    Attributes:
        prompts: each is continued `n` times.
        n: samples of each prompt to return.
        n_generated: samples of each prompt to generate; the most likely are returned.
        max_tokens: the most new tokens of each sample.
        n_top: how many of the most likely tokens to report at each position; None: no log-probabilities.
        is_echoed: whether the prompt precedes its continuation.
        stop_strings: strings before which a continuation ends.
        sampling: how tokens are chosen.
        seed: of all samples.
    """

    prompts: tuple[EncodedPrompt, ...]
    n: int
    n_generated: int
    max_tokens: int
    n_top: int | None
    is_echoed: bool
    stop_strings: tuple[str, ...]
    sampling: SamplingParams
    seed: int

    @property
    def is_scored(self) -> bool:
        """Whether log-probabilities are needed."""
        return self.n_top is not None or self.n_generated > self.n

    def generation_requests(self) -> list[GenerationRequest]:
        """Returns a request for each sample, ordered by prompt."""
        if self.max_tokens == 0:
            return []
        n_top = max(1, self.n_top or 0) if self.is_scored else 0
        return [
            GenerationRequest(
                prompt.tokens, self.sampling, sample_seed(self.seed, sample), self.max_tokens, n_top, self.stop_strings
            )
            for prompt in self.prompts
            for sample in range(self.n_generated)
        ]


def parse_request(request: CompletionRequest, model: ServedModel) -> SamplingRequest:
    """Checks a request against the model, and encodes its prompts.

    Raises:
        ApiError: fields contradict each other or exceed the model's limits.
    """
    _check_combination(request)
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    prompts = tuple(_prompts(request.prompt, model))
    for prompt in prompts:
        _check_length(prompt, max_tokens, model.engine.n_ctx)
    n = request.n or 1
    return SamplingRequest(
        prompts=prompts,
        n=n,
        n_generated=request.best_of or n,
        max_tokens=max_tokens,
        n_top=request.logprobs,
        is_echoed=bool(request.echo),
        stop_strings=_stop_strings(request.stop),
        sampling=SamplingParams(**request.model_dump(include=_SAMPLING_FIELDS, exclude_none=True)),
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
    )


def _check_combination(request: CompletionRequest) -> None:
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise bad_request(
            f"best_of = {request.best_of}: is less than n = {request.n or 1}; give n to 128, or null", "best_of"
        )
    if request.best_of is not None and request.best_of > (request.n or 1) and request.stream:
        raise bad_request(
            f"best_of = {request.best_of}: the best samples are only known at the end; leave out stream or best_of",
            "best_of",
        )
    if request.stream_options is not None and not request.stream:
        raise bad_request(
            "stream_options: have no effect without stream; set stream to true, or leave them out", "stream_options"
        )


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _prompts(given: str | Sequence, model: ServedModel) -> list[EncodedPrompt]:
    if given is None or isinstance(given, str):
        return [_encode_text(given or "", model)]
    if isinstance(given[0], int):
        return [_check_ids(given, model)]
    return [_encode_text(one, model) if isinstance(one, str) else _check_ids(one, model) for one in given]


def _encode_text(text: str, model: ServedModel) -> EncodedPrompt:
    # Encode only enough to show that it is too long.
    tokens = tuple(model.tokenizer.encode_end(text, model.engine.n_ctx + 1))
    return EncodedPrompt(text, tokens) if tokens else EncodedPrompt(text, (model.eos_id,), is_empty=True)


def _check_ids(ids: Sequence[int], model: ServedModel) -> EncodedPrompt:
    wrong = model.tokenizer.first_unknown(ids)
    if wrong is not None:
        last = model.tokenizer.n_vocab - 1
        raise bad_request(f"prompt: the id {wrong} is out of range; give ids from 0 to {last}", "prompt")
    return EncodedPrompt(model.tokenizer.decode(ids[: model.engine.n_ctx + 1]), tuple(ids))


def _check_length(prompt: EncodedPrompt, max_tokens: int, n_ctx: int) -> None:
    n_tokens = len(prompt.tokens)
    if n_tokens + max_tokens > n_ctx:
        raise _too_long(str(n_tokens) if n_tokens <= n_ctx else f"more than {n_ctx}", max_tokens, n_ctx)


def _too_long(n_tokens: str, max_tokens: int, n_ctx: int) -> ApiError:
    return bad_request(
        f"max_tokens = {max_tokens}: exceeds the context of {n_ctx} tokens together with the {n_tokens} tokens of the "
        "prompt; shorten one of them",
        "max_tokens",
        "context_length_exceeded",
    )
