"""Incremental detokenizing: turns tokens into text as they arrive, in whole characters, up to the first stop string.

Text that is returned is never taken back, so bytes that may yet become a character, and text that may yet become a
stop string, are held until that is decided.
"""

from __future__ import annotations

import codecs
import dataclasses
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
class Detokenized:
    """The text and tokens that are released by one call.

    Attributes:
        text: continues the text released before.
        tokens: those whose text starts in what has been released and that were not returned before.
        is_cut: whether a stop string ends the text here.
    """

    text: str
    tokens: tuple[ScoredToken, ...]
    is_cut: bool


def _first_stop(text: str, stops: Sequence[str]) -> int:
    """Returns where the first stop string in a text starts; the text's length if there is none."""
    return min((start for stop in stops if (start := text.find(stop)) >= 0), default=len(text))


def _partial_stop(text: str, stops: Sequence[str]) -> int:
    """Returns where an end of the text that may become a stop string starts; the text's length if none may."""
    longest = max(map(len, stops), default=0)
    starts = range(max(0, len(text) - longest), len(text))
    return next((start for start in starts if any(stop.startswith(text[start:]) for stop in stops)), len(text))


def _n_completed(pending: bytes, new: bytes) -> int:
    """Returns how many characters of the pending bytes turn out to be broken once the new bytes follow."""
    return max(0, len((pending + new[:1]).decode("utf-8", "replace")) - 1)


class Detokenizer:
    """Decodes the tokens of one text. Invalid UTF-8 becomes U+FFFD, as if all bytes were decoded at once."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        """Starts with an empty text; no stop string may be empty."""
        self._stop_strings = tuple(stop_strings)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._tokens: deque[tuple[int, ScoredToken]] = deque()  # with the index in `_held` at which each starts

    def add(self, token: ScoredToken, token_bytes: bytes) -> None:
        """Adds a token and its bytes."""
        pending, _ = self._decoder.getstate()
        self._tokens.append((len(self._held) + _n_completed(pending, token_bytes), token))
        self._held += self._decoder.decode(token_bytes)

    def take(self, is_last: bool) -> Detokenized:
        """Returns all new text that is certain; if no more tokens follow, everything that is left."""
        if is_last:
            self._held += self._decoder.decode(b"", final=True)
        stop, partial_stop = _first_stop(self._held, self._stop_strings), _partial_stop(self._held, self._stop_strings)
        if stop < len(self._held) and (is_last or stop <= partial_stop):
            return Detokenized(self._held[:stop], self._tokens_before(stop), True)
        if is_last:
            return Detokenized(self._held, tuple(token for _, token in self._tokens), False)
        return self._release(min(stop, partial_stop))

    def _release(self, end: int) -> Detokenized:
        released = Detokenized(self._held[:end], self._tokens_before(end), False)
        self._held = self._held[end:]
        self._tokens = deque((start - end, token) for start, token in self._tokens)
        return released

    def _tokens_before(self, end: int) -> tuple[ScoredToken, ...]:
        tokens = []
        while self._tokens and self._tokens[0][0] < end:
            tokens.append(self._tokens.popleft()[1])
        return tuple(tokens)
