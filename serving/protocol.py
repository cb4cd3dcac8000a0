"""The objects of the API, which are OpenAI's, and the values that their fields allow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from models.kernels.sampling import MAX_BIASES, MAX_TOP

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_SAMPLES = 128
MAX_STOPS = 64
MAX_BIAS = 100
MAX_SEED = 2**63 - 1
MAX_PROMPTS = 2048
MAX_COUNT = 1_000_000  # above any vocabulary or context

# Lists are checked up to the first error (`fail_fast`): to report a million errors takes a minute.
_SOME = Field(min_length=1, fail_fast=True)
_PROMPTS = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
Ids = Annotated[list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], _SOME]
Prompt = str | Ids | Annotated[list[str], _PROMPTS] | Annotated[list[Ids], _PROMPTS]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


def _check_bias_count(biases: object) -> object:
    """Checks the number of biases before each of them is checked, which may give as many errors."""
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        raise PydanticCustomError("too_long", "has {count} tokens", {"count": len(biases)})
    return biases


Biases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Field(max_length=MAX_BIASES),
    BeforeValidator(_check_bias_count),
]

# Values that ask for nothing, of a field that is not known here; what asks for something is refused by name.
EMPTY_VALUES: tuple[Any, ...] = (None, "", [], {})
# The same for fields that OpenAI's other paths and other servers have.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    name: values
    for names, values in {
        "suffix tools functions metadata prediction audio moderation web_search_options safety_identifier "
        "prompt_cache_key prompt_cache_options prompt_cache_retention max_completion_tokens stop_token_ids bad_words "
        "allowed_token_ids logits_processors prompt_logprobs truncate_prompt_tokens grammar json_schema regex ebnf "
        "structured_outputs guided_json guided_regex guided_choice guided_grammar lora_path n_indent": (),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "tool_choice function_call": ("none", "auto"),
        "parallel_tool_calls cache_prompt add_special_tokens": (False, True),
        "store use_beam_search early_stopping include_stop_str_in_output no_stop_trim return_token_ids "
        "return_tokens_as_token_ids watermark details decoder_input_details return_progress timings_per_token "
        "post_sampling_probs include_obfuscation continuous_usage_stats special_tokens echo": (False,),
        "skip_special_tokens spaces_between_special_tokens detokenize do_sample": (True,),
        "top_logprobs priority mirostat dynatemp_range xtc_probability dry_multiplier n_keep n_probs top_a "
        "penalty_alpha epsilon_cutoff eta_cutoff diversity_penalty": (0,),
        "length_penalty repeat_penalty tfs tfs_z num_beams num_return_sequences guidance_scale "
        "encoder_repetition_penalty best_of": (1,),
        "n_predict id_slot": (-1,),
    }.items()
    for name in names.split()
}


STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _range(default: float | None, least: float, most: float, meaning: str) -> Any:
    """Returns a field with bounds, which its description states."""
    return Field(default, ge=least, le=most, description=f"{least} to {most}: {meaning}")


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = STRICT

    include_usage: bool | None = Field(None, description="true or false; true: a last chunk holds the usage")


class SamplingFields(BaseModel):
    """What requests of every kind may say. Errors quote the descriptions, so each starts with the values allowed."""

    model_config = STRICT

    model: str = Field(description="the name that /v1/models gives")
    temperature: float | None = _range(1.0, 0, 2, "0 always takes the most likely token")
    top_p: float | None = _range(
        1.0, 0, 1, "sample from the most likely tokens with this total probability; 0: the most likely one"
    )
    n: int | None = _range(1, 1, MAX_SAMPLES, "samples of each prompt")
    stream: bool | None = Field(False, description="true or false; true: server-sent events during generation")
    stream_options: StreamOptions | None = Field(None, description='{"include_usage": true or false}, with stream only')
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = Field(
        None, description=f"a string, or up to {MAX_STOPS} of them, each of 1 to 1000 characters: the text ends before"
    )
    seed: int | None = _range(None, -MAX_SEED - 1, MAX_SEED, "the same seed gives the same text; null: a random seed")
    presence_penalty: float | None = _range(0.0, -2, 2, "subtracted from the logit of a token that was generated")
    frequency_penalty: float | None = _range(
        0.0, -2, 2, "subtracted from the logit of a token for each time that it was generated"
    )
    user: str | None = Field(None, description="a string; ignored")
    logit_bias: Biases | None = Field(
        None,
        description=f"an object of up to {MAX_BIASES} token ids, each with a number from {-MAX_BIAS} to {MAX_BIAS}: "
        "added to its logit",
    )
    min_tokens: int | None = _range(0, 0, MAX_COUNT, "the text does not end before it has this many tokens")
    top_k: int | None = _range(0, -1, MAX_COUNT, "sample from the k most likely tokens; 0 or -1: all")
    min_p: float | None = _range(0.0, 0, 1, "minimum probability relative to the most likely token; 0: all")
    typical_p: float | None = _range(1.0, 0, 1, "sample from the most typical tokens with this total probability")
    repetition_penalty: float | None = _range(
        1.0, 0.01, 100, "more than 1 discourages tokens of the prompt and the generated text"
    )
    no_repeat_ngram: int | None = _range(0, 0, MAX_COUNT, "no sequence of n tokens is repeated; 0: any may be")
    penalize_end: bool | None = Field(
        False, description="true or false; true: the two above act on an end of text in the prompt too"
    )
    never_end: bool | None = Field(False, description="true or false; true: never generate the end-of-text token")
    ignore_eos: bool | None = Field(False, description="true or false; true: as never_end")


class CompletionRequest(SamplingFields):
    """A completions request."""

    prompt: Prompt | None = Field(
        None,
        description="a text, a list of token ids, or a list of up to "
        f"{MAX_PROMPTS} texts or lists of ids; left out or empty: the start of a document",
    )
    max_tokens: int | None = Field(
        DEFAULT_MAX_TOKENS, ge=0, le=MAX_COUNT, description="0 or more; with the prompt at most the context"
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=MAX_SAMPLES,
        description=f"n to {MAX_SAMPLES}: generate so many, return the n most likely; not with stream",
    )
    logprobs: int | None = _range(
        None, 0, MAX_TOP, "most likely tokens to report at each position; null: no log-probabilities"
    )
    echo: bool | None = Field(False, description="true or false; true: the prompt precedes the text")
    special_tokens: bool | None = Field(
        False,
        description="true or false; true: special tokens that a prompt spells, such as <|endoftext|>, count as such",
    )


class TextPart(BaseModel):
    """A part of what a message says."""

    model_config = STRICT

    type: Literal["text"]
    text: str


def _as_parts(content: object) -> object:
    """Returns a text as the one part of a list, so that errors name the place in either."""
    if not isinstance(content, str | list):
        raise PydanticCustomError("content", "is neither a text nor a list of text parts")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Content = Annotated[
    list[TextPart], Field(fail_fast=True), BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart])
]


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = STRICT

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer: as system")
    content: Content = Field(description="a text, or a list of text parts")


class ChatRequest(SamplingFields):
    """A chat completions request."""

    messages: Annotated[list[Message], _SOME] = Field(
        description='a list of messages, each {"role": "user", "content": "..."}; roles are system, developer, user '
        "and assistant, contents texts or lists of text parts"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="1 or more; with the messages at most the context; null: all of it"
    )
    max_tokens: int | None = Field(None, ge=1, le=MAX_COUNT, description="1 or more; as max_completion_tokens")
    logprobs: bool | None = Field(False, description="true or false; true: log-probabilities of the answer's tokens")
    show_candidates: bool | None = Field(
        False, description="true or false; true: all candidates with their scores, where the server ranks answers"
    )
    top_logprobs: int | None = _range(
        None, 0, MAX_TOP, "most likely tokens to report at each position; with logprobs only"
    )


class LogProbs(BaseModel):
    """Log-probabilities of tokens under the model itself: before temperature, penalties and filters."""

    tokens: list[str] = Field(description="a token that is only part of a character is written as bytes:\\x..")
    token_logprobs: list[float | None] = Field(description="null for the first token of a prompt")
    top_logprobs: list[dict[str, float] | None] = Field(description="the most likely tokens, and the token itself")
    text_offset: list[int] = Field(description="index of the character of `text` at which each token starts")


class Choice(BaseModel):
    """One sample, or with `stream` a part of it."""

    text: str
    index: int = Field(description="samples are numbered prompt by prompt")
    logprobs: LogProbs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="null: more follows")


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int = Field(description="of all prompts, each counted once")
    completion_tokens: int = Field(description="of all samples; the end-of-text token that ends one counts")
    total_tokens: int


class Completion(BaseModel):
    """The response to a request, or with `stream` one event of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[Choice]
    usage: Usage | None = Field(None, description="in a stream: in the last chunk, if requested")


class TokenLogProb(BaseModel):
    """A token with its log-probability under the model itself: before temperature, penalties and filters."""

    token: str = Field(description="a token that is only part of a character is written as bytes:\\x..")
    logprob: float
    bytes: list[int]


class ChatTokenLogProb(TokenLogProb):
    """A token of an answer, and what else was likely there."""

    top_logprobs: list[TokenLogProb]


class ChatLogProbs(BaseModel):
    """Log-probabilities of the tokens of an answer, without that of its end."""

    content: list[ChatTokenLogProb]
    refusal: None = None


class AnswerCandidate(BaseModel):
    """One of the answers that an answer was chosen from."""

    text: str
    rank_score: float = Field(description="by which candidates are ranked; higher is better")
    rank_parts: dict[str, float] = Field(description="what the score is made of, by name")


# Only where a request asks for them.
Candidates = Annotated[list[AnswerCandidate] | None, Field(exclude_if=lambda value: value is None)]


class AssistantMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogProbs | None
    finish_reason: Literal["stop", "length"]
    candidates: Candidates = None


class ChatCompletion(BaseModel):
    """The response to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChatChoice]
    usage: Usage | None


class Delta(BaseModel):
    """A part of an answer: its role at first, and then its text."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class ChunkChoice(BaseModel):
    """A part of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogProbs | None = None
    finish_reason: Literal["stop", "length"] | None = Field(None, description="null: more follows")
    candidates: Candidates = None


class ChatCompletionChunk(BaseModel):
    """One event of a chat response with `stream`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(None, description="in the last chunk, if requested")


class ChatSettings(BaseModel):
    """How the chat page of this server asks for answers unless a person says otherwise."""

    temperature: float
    top_k: int
    top_p: float
    max_tokens: int


class Chat(BaseModel):
    """How the model talks."""

    template: str = Field(description="the chat template: how turns become tokens")
    has_system: bool = Field(description="whether it takes system messages")
    settings: ChatSettings


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the server was started, in seconds since 1970")
    owned_by: Literal["neomesh"] = "neomesh"
    n_ctx: int = Field(description="the most tokens of a prompt and its answer together")
    chat: Chat


class ModelList(BaseModel):
    """The list of models, which holds one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok"] = "ok"


class Error(BaseModel):
    """What is wrong with a request."""

    message: str = Field(description="what: what is wrong; what to do")
    type: str
    param: str | None = Field(description="the field of the request that is wrong")
    code: str | None


class ErrorResponse(BaseModel):
    """The body of an error response."""

    error: Error
