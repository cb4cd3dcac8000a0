"""Turns chunks of text into the choices of a response."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import TokenChunk
from serving.protocol import Choice, LogProbs
from serving.request import EncodedPrompt

Top = Sequence[tuple[int, float]]


def token_name(token_bytes: bytes) -> str:
    """Returns a token as JSON can hold it: its text, or its bytes if it is part of a character."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


class ChoiceBuilder:
    """Makes the parts of one choice, in order."""

    def __init__(self, index: int, bytes_of: Callable[[int], bytes], n_top: int | None) -> None:
        """Takes how many of the most likely tokens to report at each position; None: no log-probabilities."""
        self._index = index
        self._bytes_of = bytes_of
        self._n_top = n_top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def opening(self, prompt: EncodedPrompt, score: TokenChunk | None) -> Choice:
        """Returns the prompt with the scores of its tokens from the second on, if it has them."""
        log_probs, top = (score.log_probs, score.top) if score else ((), ())
        return self._part(prompt.text, None, self._logprobs(prompt.shown_tokens, (None, *log_probs), ((), *top)))

    def generated(self, chunk: TextChunk) -> Choice:
        """Returns a chunk of the text."""
        return self._part(chunk.text, chunk.finish_reason, self._logprobs(chunk.tokens, chunk.log_probs, chunk.top))

    def _part(self, text: str, finish_reason: str | None, logprobs: LogProbs | None) -> Choice:
        return Choice(text=text, index=self._index, logprobs=logprobs, finish_reason=finish_reason)

    def _logprobs(
        self, tokens: Sequence[int], log_probs: Sequence[float | None], top: Sequence[Top]
    ) -> LogProbs | None:
        if self._n_top is None:
            return None
        rows = list(zip(tokens, log_probs, top, strict=False))  # an empty prompt has a score but shows no token
        return LogProbs(
            tokens=[token_name(self._bytes_of(token)) for token in tokens],
            token_logprobs=[log_prob for _, log_prob, _ in rows],
            top_logprobs=[
                None if log_prob is None else self._by_name(token, log_prob, t) for token, log_prob, t in rows
            ],
            text_offset=[self._next_offset(token) for token in tokens],
        )

    def _by_name(self, token: int, log_prob: float, top: Top) -> dict[str, float]:
        by_name: dict[str, float] = {}
        for other, other_log_prob in [*top[: self._n_top], (token, log_prob)]:
            by_name.setdefault(token_name(self._bytes_of(other)), other_log_prob)
        return by_name

    def _next_offset(self, token: int) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(self._bytes_of(token)))
        return offset


def join_choices(index: int, parts: Sequence[Choice]) -> Choice:
    """Returns one choice of all its parts, with this index."""
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    return Choice(
        text="".join(part.text for part in parts),
        index=index,
        logprobs=_join_logprobs(logprobs) if logprobs else None,
        finish_reason=parts[-1].finish_reason,
    )


def _join_logprobs(parts: Iterable[LogProbs]) -> LogProbs:
    whole = LogProbs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for part in parts:
        whole.tokens += part.tokens
        whole.token_logprobs += part.token_logprobs
        whole.top_logprobs += part.top_logprobs
        whole.text_offset += part.text_offset
    return whole
