"""From what the engine gives to the choices of an answer."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

from runtime.generation.engine import TokenChunk
from runtime.generation.scheduler import Delta
from serving.protocol import Choice, LogProbs
from serving.request import Prompt

Top = Sequence[tuple[int, float]]


def token_name(token_bytes: bytes) -> str:
    """A token as JSON can hold it: its text, or its bytes if it is a part of a character only."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


class ChoiceWriter:
    """Makes the pieces of one choice, in order."""

    def __init__(self, index: int, bytes_of: Callable[[int], bytes], n_top: int | None) -> None:
        """Takes how many likeliest tokens are told at each place; None: there are no scores."""
        self._index = index
        self._bytes_of = bytes_of
        self._n_top = n_top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def echo(self, prompt: Prompt, score: TokenChunk | None) -> Choice:
        """The prompt, with scores of its tokens from the second on; None: it has no second one."""
        log_probs = (None, *(score.log_probs if score else ()))
        top = ((), *(score.top if score else ()))
        return self._piece(prompt.text, prompt.shown, log_probs, top, None)

    def written(self, delta: Delta) -> Choice:
        """What is new of the answer."""
        return self._piece(delta.text, delta.tokens, delta.log_probs, delta.top, delta.end)

    def _piece(
        self, text: str, tokens: Sequence[int], log_probs: Sequence[float | None], top: Sequence[Top], end: str | None
    ) -> Choice:
        logprobs = self._logprobs(tokens, log_probs, top) if self._n_top is not None else None
        return Choice(text=text, index=self._index, logprobs=logprobs, finish_reason=end)

    def _logprobs(self, tokens: Sequence[int], log_probs: Sequence[float | None], top: Sequence[Top]) -> LogProbs:
        rows = list(zip(tokens, log_probs, top, strict=False))  # an empty prompt shows none of its scores
        return LogProbs(
            tokens=[token_name(self._bytes_of(token)) for token in tokens],
            token_logprobs=[log_prob for _, log_prob, _ in rows],
            top_logprobs=[None if log_prob is None else self._named(token, log_prob, t) for token, log_prob, t in rows],
            text_offset=[self._next_offset(token) for token in tokens],
        )

    def _named(self, token: int, log_prob: float, top: Top) -> dict[str, float]:
        named: dict[str, float] = {}
        for other, other_log_prob in [*top[: self._n_top], (token, log_prob)]:
            named.setdefault(token_name(self._bytes_of(other)), other_log_prob)
        return named

    def _next_offset(self, token: int) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(self._bytes_of(token)))
        return offset


def joined(pieces: Sequence[Choice]) -> Choice:
    """One choice of all its pieces."""
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return Choice(
        text="".join(piece.text for piece in pieces),
        index=pieces[0].index,
        logprobs=_joined_logprobs(logprobs) if logprobs else None,
        finish_reason=pieces[-1].finish_reason,
    )


def _joined_logprobs(parts: Iterable[LogProbs]) -> LogProbs:
    whole = LogProbs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for part in parts:
        whole.tokens += part.tokens
        whole.token_logprobs += part.token_logprobs
        whole.top_logprobs += part.top_logprobs
        whole.text_offset += part.text_offset
    return whole
