"""Chat completions: messages become the prompt of a conversation, and its answers the objects of OpenAI's API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from configs.errors import DataError
from data.dialogue.conversation import ASSISTANT, SYSTEM, USER, Turn
from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import TokenChunk
from serving.errors import ApiError, bad_request
from serving.model import ServedModel
from serving.protocol import (
    AssistantMessage,
    ChatChoice,
    ChatLogProbs,
    ChatRequest,
    ChatTokenLogProb,
    ChunkChoice,
    Delta,
    Message,
    TokenLogProb,
)
from serving.request import EncodedPrompt, SamplingRequest, sampling_request
from serving.response import token_name

DEVELOPER = "developer"  # OpenAI's newer word for system


def parse_chat(request: ChatRequest, model: ServedModel) -> SamplingRequest:
    """Checks a request against the model, and encodes its messages.

    Raises:
        ApiError: the messages do not fit, the chat template refuses them, or fields contradict each other.
    """
    _check_combination(request)
    answered = _answered(request, model)
    tokens, n_ctx = _encode(request.messages, model), model.engine.n_ctx
    max_tokens = request.max_completion_tokens or request.max_tokens
    if len(tokens) + (max_tokens or 1) > n_ctx:
        raise _too_long(str(len(tokens)), max_tokens, n_ctx)
    n_top = (request.top_logprobs or 0) if request.logprobs else None
    prompts, room = (EncodedPrompt("", tokens),), n_ctx - len(tokens)
    end_ids = model.template.end_ids
    n_generated = model.ranking.n_candidates if answered else request.n or 1
    parsed = sampling_request(request, model, prompts, max_tokens or room, n_top, n_generated, end_ids=end_ids)
    return dataclasses.replace(parsed, answered=answered, shows_candidates=bool(request.show_candidates))


def _answered(request: ChatRequest, model: ServedModel) -> tuple[str, ...]:
    """Returns the turns by which answers are ranked; none where the server ranks none, or nothing was said."""
    if model.ranking is None:
        if request.show_candidates:
            raise bad_request(
                "show_candidates: this server ranks no answers; leave it out, or start it with --mmi_model or "
                "--rank_model",
                "show_candidates",
            )
        return ()
    if (request.n or 1) > model.ranking.n_candidates:
        raise bad_request(
            f"n = {request.n}: is more than the {model.ranking.n_candidates} candidates of an answer; give at most "
            "that many",
            "n",
        )
    return tuple(filter(str.strip, (_text(each) for each in request.messages if each.role in (USER, ASSISTANT))))


def _check_combination(request: ChatRequest) -> None:
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request(
            f"top_logprobs = {request.top_logprobs}: has no effect without logprobs; set logprobs to true, or leave it "
            "out",
            "top_logprobs",
        )
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise bad_request(
            f"max_tokens = {request.max_tokens}: is another number than max_completion_tokens; give one of them",
            "max_tokens",
        )


def _encode(messages: Sequence[Message], model: ServedModel) -> tuple[int, ...]:
    turns = [Turn(SYSTEM if each.role == DEVELOPER else each.role, _text(each)) for each in messages]
    system = next((number for number, turn in enumerate(turns) if turn.role == SYSTEM), None)
    if system is not None and not model.template.has_system:
        raise bad_request(
            f"messages.{system}.role = {messages[system].role!r}: the chat template {model.template.name} has no "
            "system line; leave the message out",
            f"messages.{system}.role",
        )
    n_ctx = model.engine.n_ctx
    if sum(len(turn.text.encode()) for turn in turns) > model.tokenizer.most_bytes(n_ctx):
        raise _too_long(f"more than {n_ctx}", None, n_ctx)
    try:
        # A template may make nothing of empty messages; the model is then given the start of a document.
        return tuple(model.template.prompt_ids(turns)) or (model.eos_id,)
    except DataError as error:
        raise bad_request(f"messages: {error}", "messages") from None


def _text(message: Message) -> str:
    return "".join(part.text for part in message.content)


def _too_long(n_tokens: str, max_tokens: int | None, n_ctx: int) -> ApiError:
    answer = "leave no room for an answer" if max_tokens is None else f"do not fit beside max_tokens = {max_tokens}"
    return bad_request(
        f"messages: make {n_tokens} tokens, which {answer} in the context of {n_ctx}; leave out the oldest ones, or "
        "shorten them",
        "messages",
        "context_length_exceeded",
    )


class ChatChoiceBuilder:
    """Makes the parts of one answer, in order."""

    def __init__(self, index: int, bytes_of: Callable[[int], bytes], n_top: int | None, end_ids: Sequence[int]) -> None:
        """Takes how many of the most likely tokens to report at each position; None: no log-probabilities."""
        self._index, self._bytes_of, self._n_top, self._end_ids = index, bytes_of, n_top, end_ids

    def opening(self, prompt: EncodedPrompt, score: TokenChunk | None) -> ChunkChoice:
        """Returns who speaks."""
        return ChunkChoice(index=self._index, delta=Delta(role="assistant", content=""))

    def generated(self, chunk: TextChunk) -> ChunkChoice:
        """Returns a chunk of the answer."""
        delta = Delta(content=chunk.text) if chunk.text else Delta()
        logprobs = None if self._n_top is None else ChatLogProbs(content=self._log_probs(chunk))
        return ChunkChoice(index=self._index, delta=delta, logprobs=logprobs, finish_reason=chunk.finish_reason)

    def _log_probs(self, chunk: TextChunk) -> list[ChatTokenLogProb]:
        rows = zip(chunk.tokens, chunk.log_probs, chunk.top, strict=True)
        return [
            ChatTokenLogProb(
                **self._named(token, log_prob),
                top_logprobs=[TokenLogProb(**self._named(*other)) for other in top[: self._n_top]],
            )
            for token, log_prob, top in rows
            if token not in self._end_ids
        ]

    def _named(self, token: int, log_prob: float) -> dict[str, object]:
        token_bytes = self._bytes_of(token)
        return {"token": token_name(token_bytes), "logprob": log_prob, "bytes": list(token_bytes)}


def join_chat_choices(index: int, parts: Sequence[ChunkChoice]) -> ChatChoice:
    """Returns one answer of all its parts, with this index."""
    tokens = [token for part in parts if part.logprobs is not None for token in part.logprobs.content]
    has_log_probs = any(part.logprobs is not None for part in parts)
    return ChatChoice(
        index=index,
        message=AssistantMessage(content="".join(part.delta.content or "" for part in parts)),
        logprobs=ChatLogProbs(content=tokens) if has_log_probs else None,
        finish_reason=parts[-1].finish_reason,
        candidates=parts[-1].candidates,
    )
