"""The text of an answer while its tokens come one by one: whole characters, cut before the first stop string.

What is given is never taken back, so what may yet become a stop string, or a character of several bytes, is held.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections import deque
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that was written, with what is told of it.

    Attributes:
        id: of the token.
        log_prob: its log-probability under the model itself.
        top: the likeliest alternatives, (id, log-probability) each, likeliest first.
    """

    id: int
    log_prob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Given:
    """What is given now.

    Attributes:
        text: goes on where the last one ended.
        tokens: whose text begins in what was given so far, and that were not given yet.
        is_cut: a stop string ends the answer here.
    """

    text: str
    tokens: tuple[Token, ...]
    is_cut: bool


def _first_stop(text: str, stops: Sequence[str]) -> int:
    """Where the first stop string in a text begins; the text's length: there is none."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))


def _open_end(text: str, stops: Sequence[str]) -> int:
    """Where the end of a text begins that may become a stop string; the text's length: it may not."""
    longest = max(map(len, stops), default=0)
    begins = range(max(0, len(text) - longest), len(text))
    return next((place for place in begins if any(stop.startswith(text[place:]) for stop in stops)), len(text))


def _n_ended(pending: bytes, text: bytes) -> int:
    """How many characters of the bytes that are pending end, as broken ones do, where a text goes on from there."""
    return max(0, len((pending + text[:1]).decode("utf-8", "replace")) - 1)


class AnswerText:
    """The text of one answer. Bytes that are not UTF-8 become U+FFFD, as when all of them are decoded at once."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Begins empty; none of the stop strings is."""
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._tokens: deque[tuple[int, Token]] = deque()  # with the place in `_held` where the text of each begins

    def add(self, token: Token, text: bytes) -> None:
        """Adds a token and the bytes it stands for."""
        pending, _ = self._decoder.getstate()
        self._tokens.append((len(self._held) + _n_ended(pending, text), token))
        self._held += self._decoder.decode(text)

    def take(self, is_last: bool) -> Given:
        """Gives all that will not be taken back; at the last, what is left."""
        if is_last:
            self._held += self._decoder.decode(b"", final=True)
        stop, open_end = _first_stop(self._held, self._stops), _open_end(self._held, self._stops)
        if stop < len(self._held) and (is_last or stop <= open_end):
            return Given(self._held[:stop], self._tokens_before(stop), True)
        if is_last:
            return Given(self._held, tuple(token for _, token in self._tokens), False)
        return self._advance(min(stop, open_end))

    def _advance(self, place: int) -> Given:
        given = Given(self._held[:place], self._tokens_before(place), False)
        self._held = self._held[place:]
        self._tokens = deque((start - place, token) for start, token in self._tokens)
        return given

    def _tokens_before(self, place: int) -> tuple[Token, ...]:
        given = []
        while self._tokens and self._tokens[0][0] < place:
            given.append(self._tokens.popleft()[1])
        return tuple(given)
