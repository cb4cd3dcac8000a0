"""Parses requests into generation requests: what all kinds have in common, and completions."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from models.kernels.sampling import SamplingParams
from runtime.generation.requests import GenerationRequest, sample_seed
from serving.errors import ApiError, bad_request, invalid, not_an_object, too_many_parts, unknown_field
from serving.model import ServedModel
from serving.protocol import (
    DEFAULT_MAX_TOKENS,
    EMPTY_VALUES,
    MAX_SEED,
    NEUTRAL_VALUES,
    CompletionRequest,
    Message,
    SamplingFields,
    StreamOptions,
)

MAX_LOG_PROBS = 1 << 21  # of one request: each takes some 100 bytes until the answer is sent
MAX_PARTS = 10_000  # lists, objects and names in a body: no other request is answered while a million of them are read
_IS_PART = np.isin(np.arange(256), list(b"[{:"))
_SAMPLING_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)} & set(SamplingFields.model_fields)

Fields = TypeVar("Fields", bound=SamplingFields)


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its tokens.

    Attributes:
        text: as it is echoed.
        tokens: as the model is given them, at least one.
        is_empty: whether the text is empty, and all tokens are what texts begin with or eos.
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
    """A valid request.

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
        answered: the turns that the samples answer, if they are ranked as answers; else empty.
        shows_candidates: whether the answer holds all samples with their scores.
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
    answered: tuple[str, ...] = ()
    shows_candidates: bool = False

    @property
    def is_scored(self) -> bool:
        """Whether log-probabilities are needed."""
        return self.n_top is not None or (self.n_generated > self.n and not self.answered)

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


def read_request(body: bytes, kind: type[Fields] = CompletionRequest) -> Fields:
    """Reads the body of a request of a kind.

    Raises:
        ApiError: it is no JSON object, or a field is unknown or has a value that is not allowed.
    """
    if _n_parts(body) > MAX_PARTS:
        raise too_many_parts(MAX_PARTS)
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise not_an_object(f"is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise not_an_object("is not an object")
    known = _known_fields(fields, kind)
    if isinstance(options := known.get("stream_options"), dict):
        known["stream_options"] = _known_fields(options, StreamOptions, "stream_options.")
    if isinstance(messages := known.get("messages"), list):
        known["messages"] = [
            _known_fields(each, Message, f"messages.{number}.") if isinstance(each, dict) else each
            for number, each in enumerate(messages)
        ]
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise invalid(error, kind) from error


def _n_parts(body: bytes) -> int:
    """Returns how many lists, objects and names a body holds; those that strings spell count only if all are few."""
    n_spelled = sum(map(body.count, (b"[", b"{", b":")))
    if n_spelled <= MAX_PARTS:
        return n_spelled
    # Without escapes, each quote begins or ends a string.
    letters = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    is_in_string = np.cumsum(letters == ord('"'), dtype=np.int32) & 1
    return int(np.count_nonzero(_IS_PART[letters] & (is_in_string == 0)))


def _known_fields(fields: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Returns the fields that the model has; others must ask for nothing."""
    known = {}
    for name, value in fields.items():
        if name in model.model_fields:
            known[name] = value
        elif not any(_is_same(value, neutral) for neutral in (*EMPTY_VALUES, *NEUTRAL_VALUES.get(name, ()))):
            raise unknown_field(prefix + name, value)
    return known


def _is_same(value: object, other: object) -> bool:
    """Returns whether two JSON values are equal; to Python, false is also 0, and true 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def parse_completion(request: CompletionRequest, model: ServedModel) -> SamplingRequest:
    """Checks a request against the model, and encodes its prompts.

    Raises:
        ApiError: fields contradict each other or exceed the model's limits.
    """
    _check_combination(request)
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    reader = model.reading_special_tokens if request.special_tokens else model
    prompts = tuple(_prompts(request.prompt, reader, max_tokens))
    for prompt in prompts:
        _check_length(prompt, max_tokens, model.engine.n_ctx)
    n_generated, is_echoed = request.best_of or request.n or 1, bool(request.echo)
    return sampling_request(request, model, prompts, max_tokens, request.logprobs, n_generated, is_echoed)


def sampling_request(
    request: SamplingFields,
    model: ServedModel,
    prompts: tuple[EncodedPrompt, ...],
    max_tokens: int,
    n_top: int | None,
    n_generated: int,
    is_echoed: bool = False,
    end_ids: tuple[int, ...] = (),
) -> SamplingRequest:
    """Returns the samples that a request of any kind asks for; arguments as the attributes of `SamplingRequest`.

    Raises:
        ApiError: fields contradict each other or exceed the model's limits.
    """
    n_vocab = model.tokenizer.n_vocab
    parsed = SamplingRequest(
        prompts=prompts,
        n=request.n or 1,
        n_generated=n_generated,
        max_tokens=max_tokens,
        n_top=None if n_top is None else min(n_top, n_vocab),
        is_echoed=is_echoed,
        stop_strings=_stop_strings(request.stop),
        sampling=dataclasses.replace(_sampling(request, n_vocab), end_ids=end_ids),
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
    )
    _check_min_tokens(parsed)
    _check_log_probs(parsed)
    _check_streaming(request)
    return parsed


def _sampling(request: SamplingFields, n_vocab: int) -> SamplingParams:
    given = request.model_dump(include=_SAMPLING_FIELDS, exclude_none=True)
    biases = tuple((int(token), bias) for token, bias in given.pop("logit_bias", {}).items())
    wrong = next((token for token, _ in biases if token >= n_vocab), None)
    if wrong is not None:
        raise bad_request(f"logit_bias: the id {wrong} is out of range; give ids from 0 to {n_vocab - 1}", "logit_bias")
    given |= {"top_k": max(0, request.top_k or 0), "never_end": bool(request.never_end or request.ignore_eos)}
    return SamplingParams(**given, logit_bias=biases)


def _check_min_tokens(request: SamplingRequest) -> None:
    min_tokens = request.sampling.min_tokens
    if min_tokens > request.max_tokens:
        raise bad_request(
            f"min_tokens = {min_tokens}: is more than max_tokens = {request.max_tokens}; give at most that many",
            "min_tokens",
        )


def _check_log_probs(request: SamplingRequest) -> None:
    """Checks that the answer is not too large for the server's memory."""
    if request.n_top is None:
        return
    n_positions = len(request.prompts) * request.n_generated * request.max_tokens
    if request.is_echoed:
        n_positions += request.n_generated * sum(len(prompt.tokens) for prompt in request.prompts)
    n_log_probs = n_positions * (request.n_top + 1)
    if n_log_probs > MAX_LOG_PROBS:
        raise bad_request(
            f"logprobs = {request.n_top}: with prompt, n and max_tokens makes up to {n_log_probs} log-probabilities; "
            f"ask for at most {MAX_LOG_PROBS} in one request",
            "logprobs",
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


def _check_streaming(request: SamplingFields) -> None:
    if request.stream_options is not None and request.stream_options.include_usage and not request.stream:
        raise bad_request(
            "stream_options: have no effect without stream; set stream to true, or leave them out", "stream_options"
        )


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def _prompts(given: str | Sequence | None, model: ServedModel, max_tokens: int) -> list[EncodedPrompt]:
    if given is None or isinstance(given, str):
        return [_encode_text(given or "", model, max_tokens)]
    if isinstance(given[0], int):
        return [_check_ids(given, model)]
    return [_encode_text(one, model, max_tokens) if isinstance(one, str) else _check_ids(one, model) for one in given]


def _encode_text(text: str, model: ServedModel, max_tokens: int) -> EncodedPrompt:
    n_ctx = model.engine.n_ctx
    if len(text.encode()) > model.tokenizer.most_bytes(n_ctx):  # to encode a word of a million letters takes seconds
        raise _too_long(f"more than {n_ctx}", max_tokens, n_ctx)
    # Encode only enough to show that it is too long.
    start, tokens = model.tokenizer.start_ids, model.tokenizer.encode_end(text, n_ctx + 1)
    return EncodedPrompt(text, (*start, *tokens) or (model.eos_id,), is_empty=not tokens)


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
