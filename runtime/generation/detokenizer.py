"""Incremental detokenizing: turns tokens into text as they arrive, in whole characters, up to the first stop string.

Text that is returned is never taken back, so bytes that may yet become a character, and text that may yet become a
stop string, are held until that is decided.
"""

from __future__ import annotations

import codecs
import dataclasses
import math
from collections import deque
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class ScoredToken:
    """A generated token.

    Attributes:
        id: its id in the vocabulary.
        log_prob: its log-probability under the model itself.
        top: the most likely tokens at its position as (id, log-probability), most likely first.
    """

    id: int
    log_prob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class TextChunk:
    """The next part of a generated text.

    Attributes:
        text: whole characters, never taken back.
        tokens: those whose text starts in this chunk or an earlier one and that have not been reported before.
        log_probs: of each of these tokens, under the model itself.
        top: the most likely tokens at the position of each.
        finish_reason: "stop" for an end of text or a stop string, "length" for the token limit; None: the text is not
            finished.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str | None


def _first_stop(text: str, stops: Sequence[str], begin: int) -> int:
    """Returns where the first stop string from `begin` on starts; the text's length if there is none."""
    return min((start for stop in stops if (start := text.find(stop, begin)) >= 0), default=len(text))


def _partial_stop(text: str, stops: Sequence[str], begin: int) -> int:
    """Returns where an end of the text that may become a stop string starts; the text's length if none may."""
    longest = max(map(len, stops), default=0)
    starts = range(max(begin, len(text) - longest), len(text))
    return next((start for start in starts if any(stop.startswith(text[start:]) for stop in stops)), len(text))


def _n_completed(pending: bytes, new: bytes) -> int:
    """Returns how many characters of the pending bytes turn out to be broken once the new bytes follow."""
    return max(0, len((pending + new[:1]).decode("utf-8", "replace")) - 1)


class Detokenizer:
    """Decodes the tokens of one text. Invalid UTF-8 becomes U+FFFD, as if all bytes were decoded at once."""

    def __init__(self, stop_strings: Sequence[str], min_tokens: int = 0) -> None:
        """Starts with an empty text; no stop string may be empty, and none counts in the first `min_tokens` tokens."""
        self._stop_strings = tuple(stop_strings)
        self._n_tokens_before_stops = min_tokens
        self._stops_from = 0  # the index in `_held` from which stop strings count
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._tokens: deque[tuple[int, ScoredToken]] = deque()  # with the index in `_held` at which each starts

    def add(self, token: ScoredToken, token_bytes: bytes) -> None:
        """Adds a token and its bytes."""
        pending, _ = self._decoder.getstate()
        self._tokens.append((len(self._held) + _n_completed(pending, token_bytes), token))
        self._held += self._decoder.decode(token_bytes)
        if self._n_tokens_before_stops > 0:
            self._n_tokens_before_stops -= 1
            self._stops_from = len(self._held)

    def take(self, finish_reason: str | None) -> TextChunk:
        """Returns all new text that is certain.

        Args:
            finish_reason: why no more tokens follow, in which case all of the text is certain; None: more follow.
        """
        if finish_reason is not None:
            self._held += self._decoder.decode(b"", final=True)
        certain, tokens_end = len(self._held), math.inf
        stop = _first_stop(self._held, self._stop_strings, self._stops_from)
        if finish_reason is None:
            certain = tokens_end = _partial_stop(self._held, self._stop_strings, self._stops_from)
        if stop < len(self._held) and stop <= certain:
            return self._release(stop, stop, "stop")
        return self._release(certain, tokens_end, finish_reason)

    def _release(self, end: int, tokens_end: float, finish_reason: str | None) -> TextChunk:
        tokens = []
        while self._tokens and self._tokens[0][0] < tokens_end:
            tokens.append(self._tokens.popleft()[1])
        self._tokens = deque((start - end, token) for start, token in self._tokens)
        text, self._held = self._held[:end], self._held[end:]
        self._stops_from = max(0, self._stops_from - end)
        return TextChunk(
            text,
            tuple(token.id for token in tokens),
            tuple(token.log_prob for token in tokens),
            tuple(token.top for token in tokens),
            finish_reason,
        )
