"""What goes over the wire: OpenAI's objects for completions, models and errors, and what a field may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.schema import MAX_SEED

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_SAMPLES = 128
MAX_STOPS = 4
MAX_TOP = 5
MAX_PROMPTS = 2048
MAX_COUNT = 1_000_000  # more than any vocabulary or context

# A list is read to its first fault only (`fail_fast`): to list a million of them takes a minute.
_SOME = Field(min_length=1, fail_fast=True)
_PROMPTS = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
Ids = Annotated[list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], _SOME]
Prompt = str | Ids | Annotated[list[str], _PROMPTS] | Annotated[list[Ids], _PROMPTS]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(BaseModel):
    """What a streamed answer holds besides."""

    model_config = STRICT

    include_usage: bool | None = Field(None, description="true or false; true: a last chunk counts the tokens")


class CompletionRequest(BaseModel):
    """What a client asks for. The descriptions are also what a refusal tells, so each begins with what is allowed."""

    model_config = STRICT

    model: str = Field(description="the name that /v1/models gives")
    prompt: Prompt | None = Field(
        None,
        description="a text, a list of token ids, or a list of up to "
        f"{MAX_PROMPTS} texts or lists of ids; left out or empty: the beginning of a document",
    )
    max_tokens: int | None = Field(
        DEFAULT_MAX_TOKENS, ge=0, le=MAX_COUNT, description="0 or more; with the prompt at most the context"
    )
    temperature: float | None = Field(1.0, ge=0, le=2, description="0 to 2; 0: always the likeliest token")
    top_p: float | None = Field(
        1.0, gt=0, le=1, description="more than 0, to 1: sample among the likeliest tokens that hold this share"
    )
    n: int | None = Field(1, ge=1, le=MAX_SAMPLES, description=f"1 to {MAX_SAMPLES}: samples of each prompt")
    best_of: int | None = Field(
        None,
        ge=1,
        le=MAX_SAMPLES,
        description=f"n to {MAX_SAMPLES}: samples of which the n likeliest a token are given; not with stream",
    )
    stream: bool | None = Field(False, description="true or false; true: server-sent events, as it is written")
    stream_options: StreamOptions | None = Field(None, description='{"include_usage": true or false}, with stream only')
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP,
        description=f"0 to {MAX_TOP}: likeliest tokens at each place; null: no log-probabilities",
    )
    echo: bool | None = Field(False, description="true or false; true: the prompt stands before the answer")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        None, description=f"a text, or up to {MAX_STOPS} of them, each of 1 to 1000 characters: the answer ends before"
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description=f"0 to {MAX_SEED}: the same one gives the same answer; null: a random one"
    )
    presence_penalty: float | None = Field(
        0.0, ge=-2, le=2, description="-2 to 2: taken from tokens that the answer holds"
    )
    frequency_penalty: float | None = Field(
        0.0, ge=-2, le=2, description="-2 to 2: taken from tokens for each time that the answer holds them"
    )
    user: str | None = Field(None, description="a text; it is not looked at")
    logit_bias: None = Field(None, description="null only: this server has no such thing")
    suffix: None = Field(None, description="null only: this server has no such thing")
    top_k: int | None = Field(
        0, ge=0, le=MAX_COUNT, description=f"0 to {MAX_COUNT}: sample among the k likeliest tokens; 0: all"
    )
    min_p: float | None = Field(
        0.0, ge=0, le=1, description="0 to 1: least share of the likeliest token's probability; 0: all"
    )
    typical_p: float | None = Field(
        1.0, gt=0, le=1, description="more than 0, to 1: sample among the most typical tokens that hold this share"
    )
    repetition_penalty: float | None = Field(
        1.0, ge=0.01, le=100, description="0.01 to 100: divides what prompt and answer hold already"
    )
    no_repeat_ngram: int | None = Field(
        0, ge=0, le=MAX_COUNT, description=f"0 to {MAX_COUNT}: no n tokens in a row come twice; 0: they may"
    )
    never_end: bool | None = Field(False, description="true or false; true: the end of a document is never written")


class LogProbs(BaseModel):
    """Scores of tokens, under the model itself: before temperature, penalties and filters."""

    tokens: list[str] = Field(description="a token whose bytes are no text is written as bytes:\\x..")
    token_logprobs: list[float | None] = Field(description="null for a first token, which follows nothing")
    top_logprobs: list[dict[str, float] | None] = Field(description="the likeliest tokens, and the one that is there")
    text_offset: list[int] = Field(description="the character of `text` at which each begins")


class Choice(BaseModel):
    """One answer, or a piece of it."""

    text: str
    index: int = Field(description="answers are counted by prompts, and by samples within a prompt")
    logprobs: LogProbs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="null: there is more to come")


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int = Field(description="of all prompts, each once")
    completion_tokens: int = Field(description="of all answers; the end of a document that ends one is a token of it")
    total_tokens: int


class Completion(BaseModel):
    """The answer to a request, or one event of it with `stream`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[Choice]
    usage: Usage | None = Field(None, description="in a stream in the last chunk, if it is asked for")


class Model(BaseModel):
    """What can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the server was started, in seconds since 1970")
    owned_by: Literal["neomesh"] = "neomesh"


class ModelList(BaseModel):
    """All that can be asked: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """That the server answers."""

    status: Literal["ok"] = "ok"


class Error(BaseModel):
    """Why there is no answer."""

    message: str = Field(description="thing: what is wrong; what to do")
    type: str
    param: str | None = Field(description="the field of the request that is wrong")
    code: str | None


class ErrorAnswer(BaseModel):
    """What is sent in place of an answer."""

    error: Error
