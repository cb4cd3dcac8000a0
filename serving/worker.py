"""The thread that owns the engine: all that others want of it goes through a queue."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable

from runtime.generation.engine import TokenChunk
from runtime.generation.scheduler import TURNS_AT_ONCE, Delta, GenerationRequest, Scheduler
from serving.model import ServedModel
from serving.token_engine import ServedEngine

FIRST_TURNS = 1

Order = Callable[[], object]
Forget = Callable[[], None]


class Worker:
    """Writes answers and scores texts, in a thread of its own while it is entered as a context.

    Its methods may be called by any thread, at any time; what they ask for after a failure, or after the end, is never
    done.
    """

    def __init__(self, model: ServedModel, tell_failure: Callable[[BaseException], None]) -> None:
        """Takes a model's engine for itself; `tell_failure` is called, in the thread, with what ends it too early."""
        self._engine = ServedEngine(model.engine, model.eos_id)
        self._scheduler = Scheduler(self._engine, model.text_of)
        self._tell_failure = tell_failure
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._scores: collections.deque[Order] = collections.deque()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine")

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._orders.put(self._stop)
        self._thread.join()

    def write(self, ask: GenerationRequest, tell: Callable[[Delta], None]) -> Forget:
        """Wants an answer, of which the thread tells; returns what forgets it again."""
        tickets: list[int] = []
        self._orders.put(lambda: tickets.append(self._scheduler.submit(ask, tell)))
        return lambda: self._orders.put(lambda: self._scheduler.cancel(tickets[0]))

    def score(self, tokens: tuple[int, ...], n_top: int, tell: Callable[[TokenChunk], None]) -> Forget:
        """Wants the scores of a text's tokens from the second on, which the thread tells; returns what forgets it."""
        is_wanted = [True]

        def score_now() -> None:
            if is_wanted:
                tell(self._engine.score(tokens, n_top))

        self._orders.put(lambda: self._scores.append(score_now))
        return is_wanted.clear

    @property
    def n_running(self) -> int:
        """Answers with a row."""
        return self._scheduler.n_running

    @property
    def n_waiting(self) -> int:
        """What waits: answers without a row, and scores."""
        return self._scheduler.n_waiting + len(self._scores)

    def _stop(self) -> None:
        self._is_stopping = True

    def _run(self) -> None:
        try:
            has_work = False
            while not self._is_stopping:
                self._take_orders(has_work)
                if self._scores:  # one between turns, so that a long list of them keeps nobody waiting
                    self._scores.popleft()()
                has_work = self._scheduler.turn(self._n_turns()) or bool(self._scores)
        except BaseException as error:  # whoever waits for an answer must hear of it
            self._tell_failure(error)

    def _n_turns(self) -> int:
        """Few where somebody gets a row now, and waits to see the first of his text."""
        is_awaited = self._scheduler.n_waiting > 0 and self._scheduler.n_running < self._engine.n_rows
        return FIRST_TURNS if is_awaited else TURNS_AT_ONCE

    def _take_orders(self, has_work: bool) -> None:
        """Does what is asked for; waits for it if there is nothing else to do."""
        if not has_work:
            self._orders.get()()
        while not self._is_stopping:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            order()
