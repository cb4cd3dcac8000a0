"""Who is written next: any number of asks on the rows of one engine, and the text of each as it grows.

An ask waits, in order, for a free row; rows are at different places of different answers, and one that ends makes room
at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from runtime.generation.detokenizer import AnswerText, Token
from runtime.generation.engine import ActiveSequence, Engine, TokenChunk

TURNS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """One answer that somebody wants.

    Attributes:
        job: its prompt, and how it is written.
        stops: strings, none empty; the answer is cut before the first of them.
    """

    job: ActiveSequence
    stops: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Delta:
    """What is new of an answer.

    Attributes:
        text: goes on where the last one ended, in whole characters, and is not taken back.
        tokens: those whose text begins in what was given so far, and that were not told yet.
        log_probs: of each of them, under the model itself.
        top: the likeliest alternatives to each.
        end: None: the answer goes on; "stop": at the end of the text or a stop string; "length": it has its tokens.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    end: str | None


@dataclasses.dataclass(frozen=True)
class _Answer:
    """An ask on its way."""

    ticket: int
    ask: GenerationRequest
    tell: Callable[[Delta], None]
    text: AnswerText


class Scheduler:
    """Shares an engine among asks; one thread calls all of it. Who is told may submit and cancel."""

    def __init__(self, engine: Engine, bytes_of: Callable[[int], bytes]) -> None:
        """Takes an engine whose rows are free, and what a token's bytes are."""
        self._engine = engine
        self._bytes_of = bytes_of
        self._waiting: dict[int, _Answer] = {}
        self._running: dict[int, _Answer] = {}
        self._tickets = itertools.count()

    @property
    def n_rows(self) -> int:
        """Asks that are answered at once."""
        return self._engine.n_rows

    @property
    def n_waiting(self) -> int:
        """Asks without a row."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Asks with a row."""
        return len(self._running)

    def submit(self, ask: GenerationRequest, tell: Callable[[Delta], None]) -> int:
        """Puts an ask last in the queue; returns the ticket that cancels it.

        Args:
            ask: what is wanted.
            tell: is called with what is new of the answer, in order; the last time with its end.
        """
        assert all(ask.stops), "an empty stop string"
        ticket = next(self._tickets)
        self._waiting[ticket] = _Answer(ticket, ask, tell, AnswerText(ask.stops))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forgets an ask, of which nothing more is told; one that has ended is forgotten already."""
        self._waiting.pop(ticket, None)
        for row, answer in list(self._running.items()):
            if answer.ticket == ticket:
                self._free(row)

    def turn(self, n_turns: int = TURNS_AT_ONCE) -> bool:
        """Gives free rows to those who wait, writes up to `n_turns` tokens in each row, and tells them.

        Returns:
            Whether there was anything to do.
        """
        self._admit()
        if not self._running:
            return False
        pieces = self._engine.advance(n_turns)
        for row, answer in list(self._running.items()):
            if self._running.get(row) is answer:  # another's `tell` may have cancelled it
                self._report(row, answer, pieces[row])
        return True

    def _admit(self) -> None:
        free = [row for row in range(self._engine.n_rows) if row not in self._running]
        for row, answer in zip(free, list(self._waiting.values()), strict=False):
            # One at a time: a program for each number of prompts takes longer to compile than it saves.
            self._engine.admit({row: answer.ask.job})
            self._running[row] = self._waiting.pop(answer.ticket)

    def _report(self, row: int, answer: _Answer, piece: TokenChunk) -> None:
        for token in map(Token, piece.tokens, piece.log_probs, piece.top):
            answer.text.add(token, self._bytes_of(token.id))
        given = answer.text.take(is_last=piece.end is not None)
        end = "stop" if given.is_cut else piece.end
        if end is not None:
            self._free(row)
        if given.text or given.tokens or end is not None:
            answer.tell(_delta(given.text, given.tokens, end))

    def _free(self, row: int) -> None:
        del self._running[row]
        self._engine.release(row)


def _delta(text: str, tokens: tuple[Token, ...], end: str | None) -> Delta:
    return Delta(
        text,
        tuple(token.id for token in tokens),
        tuple(token.log_prob for token in tokens),
        tuple(token.top for token in tokens),
        end,
    )
