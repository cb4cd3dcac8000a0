"""Scheduling requests onto the rows of an engine that repeats their prompts: the order, and the chunks of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from models.kernels.sampling import SamplingParams
from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import TokenChunk
from runtime.generation.requests import GenerationRequest
from runtime.generation.scheduler import Scheduler

EOS = 0
LETTERS = "\0abcdefgh"


def bytes_of(token: int) -> bytes:
    return LETTERS[token].encode()


def request(text: str, max_new_tokens: int = 100, stop_strings: tuple[str, ...] = ()) -> GenerationRequest:
    """A request for a text: `EchoEngine` repeats the prompt."""
    prompt = tuple(map(LETTERS.index, text))
    return GenerationRequest(prompt, SamplingParams(), 0, max_new_tokens, stop_strings=stop_strings)


class EchoEngine:
    """An engine that generates each prompt again, followed by an eos."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.requests: dict[int, GenerationRequest] = {}
        self.n_generated: dict[int, int] = {}
        self.ended: set[int] = set()
        self.prefilled: list[tuple[int, GenerationRequest]] = []

    def prefill(self, requests: Mapping[int, GenerationRequest]) -> None:
        assert requests and not set(requests) & set(self.requests) and set(requests) <= set(range(self.n_rows))
        self.requests |= requests
        self.n_generated |= dict.fromkeys(requests, 0)
        self.prefilled += requests.items()

    def decode_steps(self, n_steps: int) -> dict[int, TokenChunk]:
        return {row: self._chunk(row, request, n_steps) for row, request in self.requests.items()}

    def _chunk(self, row: int, request: GenerationRequest, n_steps: int) -> TokenChunk:
        assert row not in self.ended, "a row that has ended must be released"
        begin, end = self.n_generated[row], min(self.n_generated[row] + n_steps, request.max_new_tokens)
        tokens, self.n_generated[row] = request.prompt_tokens[begin:end], end
        reason = "length" if end == request.max_new_tokens else None
        if end > len(request.prompt_tokens):
            reason = "stop"
        if reason:
            self.ended.add(row)
        return TokenChunk(
            tokens, tuple(-float(token) for token in tokens), tuple(((token, -1.0),) for token in tokens), reason
        )

    def release(self, row: int) -> None:
        del self.requests[row]
        self.ended.discard(row)


@dataclasses.dataclass
class Received:
    """A callback that keeps the chunks of one request."""

    chunks: list[TextChunk] = dataclasses.field(default_factory=list)

    def __call__(self, chunk: TextChunk) -> None:
        assert not self.chunks or self.chunks[-1].finish_reason is None, "nothing follows the end"
        self.chunks.append(chunk)

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def finish_reason(self) -> str | None:
        return self.chunks[-1].finish_reason if self.chunks else None


def finish(scheduler: Scheduler, n_steps: int = 3) -> None:
    while scheduler.step(n_steps):
        pass


WORDS = st.text("abcd", min_size=1, max_size=12)
STOPS = st.lists(st.text("abcd", min_size=1, max_size=3), max_size=2)


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(st.tuples(WORDS, STOPS, st.integers(1, 15)), max_size=8),
    n_rows=st.integers(1, 4),
    n_steps=st.integers(1, 9),
)
def test_each_request_gets_its_own_text_whatever_else_is_running(
    requests: Sequence[tuple[str, list[str], int]], n_rows: int, n_steps: int
) -> None:
    scheduler, received = Scheduler(EchoEngine(n_rows), bytes_of), [Received() for _ in requests]
    for (text, stops, limit), each in zip(requests, received, strict=True):
        scheduler.submit(request(text, limit, tuple(stops)), each)
    finish(scheduler, n_steps)
    for (text, stops, limit), each in zip(requests, received, strict=True):
        written = text[:limit]
        cut = min((written.index(stop) for stop in stops if stop in written), default=len(written))
        is_whole = cut == len(written) and limit <= len(text)
        assert (each.text, each.finish_reason) == (written[:cut], "length" if is_whole else "stop")
        ids = [LETTERS.index(letter) for letter in written[:cut]]
        assert [token for chunk in each.chunks for token in chunk.tokens] == ids
        assert [value for chunk in each.chunks for value in chunk.log_probs] == [-float(token) for token in ids]
        assert [top for chunk in each.chunks for top in chunk.top] == [((token, -1.0),) for token in ids]
    assert (scheduler.n_waiting, scheduler.n_running) == (0, 0)


def test_requests_run_in_order_of_arrival_and_fill_a_free_row_at_once() -> None:
    engine = EchoEngine(2)
    scheduler = Scheduler(engine, bytes_of)
    for text in ("aa", "bbbbbbbb", "c", "dd"):
        scheduler.submit(request(text), Received())
    assert (scheduler.n_waiting, scheduler.n_running) == (4, 0)
    scheduler.step(1)
    assert (scheduler.n_waiting, scheduler.n_running) == (2, 2)
    finish(scheduler, 1)
    order = [(row, "".join(LETTERS[token] for token in request.prompt_tokens)) for row, request in engine.prefilled]
    assert order == [(0, "aa"), (1, "bbbbbbbb"), (0, "c"), (0, "dd")]
    assert engine.requests == {}


def test_text_is_released_at_once_unless_it_may_become_a_stop_string() -> None:
    scheduler, received = Scheduler(EchoEngine(1), bytes_of), Received()
    scheduler.submit(request("abcde", stop_strings=("cdx",)), received)
    finish(scheduler, 1)
    assert [chunk.text for chunk in received.chunks] == ["a", "b", "cde", ""]
    assert [chunk.tokens for chunk in received.chunks] == [(1,), (2,), (3, 4, 5), ()]
    assert [chunk.finish_reason for chunk in received.chunks] == [None, None, None, "stop"]


def test_step_returns_whether_there_was_work() -> None:
    scheduler = Scheduler(EchoEngine(1), bytes_of)
    assert not scheduler.step()
    scheduler.submit(request("a"), Received())
    assert scheduler.step() and not scheduler.step()


def test_a_cancelled_request_gets_no_more_chunks_and_frees_its_row() -> None:
    engine = EchoEngine(1)
    scheduler, received = Scheduler(engine, bytes_of), [Received(), Received(), Received()]
    request_ids = [scheduler.submit(request("abcdefgh"), each) for each in received]
    scheduler.step(2)
    scheduler.cancel(request_ids[0])
    scheduler.cancel(request_ids[1])
    assert (scheduler.n_waiting, scheduler.n_running, engine.requests) == (1, 0, {})
    finish(scheduler)
    assert [each.text for each in received] == ["ab", "", "abcdefgh"]
    for request_id in (*request_ids, 99):
        scheduler.cancel(request_id)  # all have ended


def test_a_callback_may_cancel_and_submit() -> None:
    scheduler, received = Scheduler(EchoEngine(3), bytes_of), Received()

    def cancel_the_other(chunk: TextChunk) -> None:
        scheduler.cancel(other)
        scheduler.cancel(own)
        scheduler.submit(request("h"), received)

    own = scheduler.submit(request("aaaa"), cancel_the_other)
    other = scheduler.submit(request("bbbb"), received)
    finish(scheduler, 2)
    assert (received.text, received.finish_reason) == ("h", "stop")
