"""Asks on the rows of an engine that writes what it is told to: who is served when, and what each is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from models.kernels.sampling import SamplingParams
from runtime.generation.engine import ActiveSequence, TokenChunk
from runtime.generation.scheduler import Delta, GenerationRequest, Scheduler

EOS = 0
LETTERS = "\0abcdefgh"


def bytes_of(token: int) -> bytes:
    return LETTERS[token].encode()


def job(text: str, n_new_tokens: int = 100) -> ActiveSequence:
    """A job whose prompt says what is written: an engine of `Script` repeats it."""
    return ActiveSequence(tuple(map(LETTERS.index, text)), SamplingParams(), 0, n_new_tokens)


class Script:
    """An engine whose rows write their prompts, an eos after them."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.jobs: dict[int, ActiveSequence] = {}
        self.n_written: dict[int, int] = {}
        self.ended: set[int] = set()
        self.admitted: list[tuple[int, ActiveSequence]] = []

    def admit(self, jobs: Mapping[int, ActiveSequence]) -> None:
        assert jobs and not set(jobs) & set(self.jobs) and set(jobs) <= set(range(self.n_rows))
        self.jobs |= jobs
        self.n_written |= dict.fromkeys(jobs, 0)
        self.admitted += jobs.items()

    def advance(self, n_turns: int) -> dict[int, TokenChunk]:
        return {row: self._written(row, job, n_turns) for row, job in self.jobs.items()}

    def _written(self, row: int, job: ActiveSequence, n_turns: int) -> TokenChunk:
        assert row not in self.ended, "a row that has ended must be released"
        begin, end = self.n_written[row], min(self.n_written[row] + n_turns, job.n_new_tokens)
        tokens, self.n_written[row] = job.tokens[begin:end], end
        reason = "length" if end == job.n_new_tokens else None
        if end > len(job.tokens):
            reason = "stop"
        if reason:
            self.ended.add(row)
        return TokenChunk(
            tokens, tuple(-float(token) for token in tokens), tuple(((token, -1.0),) for token in tokens), reason
        )

    def release(self, row: int) -> None:
        del self.jobs[row]
        self.ended.discard(row)


@dataclasses.dataclass
class Told:
    """Everything that one was told."""

    deltas: list[Delta] = dataclasses.field(default_factory=list)

    def __call__(self, delta: Delta) -> None:
        assert not self.deltas or self.deltas[-1].end is None, "nothing follows the end"
        self.deltas.append(delta)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def end(self) -> str | None:
        return self.deltas[-1].end if self.deltas else None


def finish(scheduler: Scheduler, n_turns: int = 3) -> None:
    while scheduler.turn(n_turns):
        pass


WORDS = st.text("abcd", min_size=1, max_size=12)
STOPS = st.lists(st.text("abcd", min_size=1, max_size=3), max_size=2)


@settings(max_examples=200, deadline=None)
@given(
    asks=st.lists(st.tuples(WORDS, STOPS, st.integers(1, 15)), max_size=8),
    n_rows=st.integers(1, 4),
    n_turns=st.integers(1, 9),
)
def test_each_is_told_its_own_answer_whatever_the_company(
    asks: Sequence[tuple[str, list[str], int]], n_rows: int, n_turns: int
) -> None:
    scheduler, told = Scheduler(Script(n_rows), bytes_of), [Told() for _ in asks]
    for (text, stops, limit), each in zip(asks, told, strict=True):
        scheduler.submit(GenerationRequest(job(text, limit), tuple(stops)), each)
    finish(scheduler, n_turns)
    for (text, stops, limit), each in zip(asks, told, strict=True):
        written = text[:limit]
        cut = min((written.index(stop) for stop in stops if stop in written), default=len(written))
        is_whole = cut == len(written) and limit <= len(text)
        assert (each.text, each.end) == (written[:cut], "length" if is_whole else "stop")
        ids = [LETTERS.index(letter) for letter in written[:cut]]
        assert [token for delta in each.deltas for token in delta.tokens] == ids
        assert [value for delta in each.deltas for value in delta.log_probs] == [-float(token) for token in ids]
        assert [top for delta in each.deltas for top in delta.top] == [((token, -1.0),) for token in ids]
    assert (scheduler.n_waiting, scheduler.n_running) == (0, 0)


def test_who_came_first_is_served_first_and_a_free_row_is_taken_at_once() -> None:
    engine = Script(2)
    scheduler = Scheduler(engine, bytes_of)
    for text in ("aa", "bbbbbbbb", "c", "dd"):
        scheduler.submit(GenerationRequest(job(text)), Told())
    assert (scheduler.n_waiting, scheduler.n_running) == (4, 0)
    scheduler.turn(1)
    assert (scheduler.n_waiting, scheduler.n_running) == (2, 2)
    finish(scheduler, 1)
    order = [(row, "".join(LETTERS[token] for token in job.tokens)) for row, job in engine.admitted]
    assert order == [(0, "aa"), (1, "bbbbbbbb"), (0, "c"), (0, "dd")]
    assert engine.jobs == {}


def test_text_comes_as_it_is_made_but_not_what_may_become_a_stop_string() -> None:
    scheduler, told = Scheduler(Script(1), bytes_of), Told()
    scheduler.submit(GenerationRequest(job("abcde"), ("cdx",)), told)
    finish(scheduler, 1)
    assert [delta.text for delta in told.deltas] == ["a", "b", "cde", ""]
    assert [delta.tokens for delta in told.deltas] == [(1,), (2,), (3, 4, 5), ()]
    assert [delta.end for delta in told.deltas] == [None, None, None, "stop"]


def test_nothing_to_do_is_said() -> None:
    scheduler = Scheduler(Script(1), bytes_of)
    assert not scheduler.turn()
    scheduler.submit(GenerationRequest(job("a")), Told())
    assert scheduler.turn() and not scheduler.turn()


def test_what_is_cancelled_is_told_nothing_and_makes_room() -> None:
    engine = Script(1)
    scheduler, told = Scheduler(engine, bytes_of), [Told(), Told(), Told()]
    tickets = [scheduler.submit(GenerationRequest(job("abcdefgh")), each) for each in told]
    scheduler.turn(2)
    scheduler.cancel(tickets[0])
    scheduler.cancel(tickets[1])
    assert (scheduler.n_waiting, scheduler.n_running, engine.jobs) == (1, 0, {})
    finish(scheduler)
    assert [each.text for each in told] == ["ab", "", "abcdefgh"]
    for ticket in (*tickets, 99):
        scheduler.cancel(ticket)  # all have ended


def test_who_is_told_may_cancel_and_ask() -> None:
    scheduler, told = Scheduler(Script(3), bytes_of), Told()

    def cancel_the_other(delta: Delta) -> None:
        scheduler.cancel(other)
        scheduler.cancel(own)
        scheduler.submit(GenerationRequest(job("h")), told)

    own = scheduler.submit(GenerationRequest(job("aaaa")), cancel_the_other)
    other = scheduler.submit(GenerationRequest(job("bbbb")), told)
    finish(scheduler, 2)
    assert (told.text, told.end) == ("h", "stop")
