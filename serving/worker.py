"""The thread that owns the engine. Other threads send it commands through a queue."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import TokenChunk
from runtime.generation.requests import GenerationRequest
from runtime.generation.scheduler import DECODE_STEPS, Scheduler
from serving.engine import ServingEngine
from serving.model import ServedModel

FIRST_DECODE_STEPS = 1

Command = Callable[[], object]
Cancel = Callable[[], None]
Result = TypeVar("Result")


class Worker:
    """Generates and scores texts in a thread of its own while it is entered as a context.

    Any thread may call its methods at any time. Commands sent after a failure or after the end are never run.
    """

    def __init__(self, model: ServedModel, on_failure: Callable[[BaseException], None]) -> None:
        """Takes over a model's engine. `on_failure` is called in the thread if an exception ends it."""
        self._engine = ServingEngine(model.engine)
        self._scheduler = Scheduler(self._engine, model.bytes_of)
        self._on_failure = on_failure
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._computations: collections.deque[Command] = collections.deque()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine")

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._commands.put(self._stop)
        self._thread.join()

    def generate(self, request: GenerationRequest, on_chunk: Callable[[TextChunk], None]) -> Cancel:
        """Submits a request; returns what cancels it. The thread calls `on_chunk`."""
        request_ids: list[int] = []
        self._commands.put(lambda: request_ids.append(self._scheduler.submit(request, on_chunk)))
        return lambda: self._commands.put(lambda: self._scheduler.cancel(request_ids[0]))

    def score(self, tokens: tuple[int, ...], n_top: int, on_scored: Callable[[TokenChunk], None]) -> Cancel:
        """Scores the tokens of a text from the second on; see `compute`."""
        return self.compute(lambda: self._engine.score(tokens, n_top), on_scored)

    def compute(self, work: Callable[[], Result], on_computed: Callable[[Result], None]) -> Cancel:
        """Does work on the devices between two steps; returns what cancels it. The thread calls `on_computed`."""
        is_wanted = [True]

        def compute_now() -> None:
            if is_wanted:
                on_computed(work())

        self._commands.put(lambda: self._computations.append(compute_now))
        return is_wanted.clear

    @property
    def n_running(self) -> int:
        """Number of texts with a row."""
        return self._scheduler.n_running

    @property
    def n_waiting(self) -> int:
        """Number of texts that wait for a row or for their scores."""
        return self._scheduler.n_waiting + len(self._computations)

    def _stop(self) -> None:
        self._is_stopping = True

    def _run(self) -> None:
        try:
            has_work = False
            while not self._is_stopping:
                self._run_commands(has_work)
                if self._computations:  # one between steps, so that many of them do not hold up generation
                    self._computations.popleft()()
                has_work = self._scheduler.step(self._n_steps()) or bool(self._computations)
        except BaseException as error:  # clients that wait must be answered
            self._on_failure(error)

    def _n_steps(self) -> int:
        """Returns few steps if a request gets a row now, since its client waits for the first token."""
        is_first_token_due = self._scheduler.n_waiting > 0 and self._scheduler.n_running < self._engine.n_rows
        return FIRST_DECODE_STEPS if is_first_token_due else DECODE_STEPS

    def _run_commands(self, has_work: bool) -> None:
        """Runs the commands received so far; waits for one if there is nothing else to do."""
        if not has_work:
            self._commands.get()()
        while not self._is_stopping:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()
