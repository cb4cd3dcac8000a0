"""Starts a child, watches whether it gets on, and starts it again from its checkpoint when it does not."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Protocol

from tracking.supervise.child import Child
from tracking.supervise.exit_policy import (
    SIGNALS_TO_STOP,
    Ending,
    GiveUp,
    Patience,
    Restart,
    count_memory_kills,
    describe,
    hung,
    memory_evidence,
    next_move,
)

LOOK_SECONDS = 0.2
RECREATE_LIMIT_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        furthest_step: the highest step that was ever measured; -1: none was.
        newest_seconds: when the newest measure was made, since 1970.
        newest_step: and at which step; after a restart it may be lower than the furthest.
    """

    furthest_step: int = -1
    newest_seconds: float = 0.0
    newest_step: int = -1


class Journal(Protocol):
    """Where what happens is written down."""

    def look(self) -> None:
        """Takes in what the child has written since; never raises."""

    def progress(self) -> Progress:
        """How far the run is by what the child has written."""

    def keep_output(self, data: bytes) -> None:
        """Takes in what the child says."""

    def last_lines(self, n_lines: int) -> list[str]:
        """The last that it said."""

    def note_restart(self, event: dict[str, object]) -> None:
        """Writes down why and when the child is started again."""


@dataclasses.dataclass(frozen=True)
class Orders:
    """What to run.

    Attributes:
        command: gives the words of the command; called anew before each start.
        patience: how long to wait.
        watches_steps: whether a child that makes no steps is a hung one.
        recreate_command: what to run before each restart; empty: nothing.
    """

    command: Callable[[], Sequence[str]]
    patience: Patience
    watches_steps: bool
    recreate_command: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: Sacred's word for it, the reason, restarts made, and an exit status that says as much."""

    status: str
    reason: str
    n_restarts: int
    exit_status: int


class StopOrders:
    """A context manager that notes signals to stop instead of dying of them.

    Attributes:
        numbers: the signals that came, in order.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __enter__(self) -> StopOrders:
        # One that is ignored, as SIGHUP under nohup, stays so.
        taken = [number for number in SIGNALS_TO_STOP if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in taken}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)

    def first(self) -> int | None:
        """The first that came."""
        return self.numbers[0] if self.numbers else None


def supervise(orders: Orders, journal: Journal, say: Callable[[str], None], stop: StopOrders) -> Outcome:
    """Runs a child until it is finished, is stopped, or fails for good."""
    return _Supervision(orders, journal, say, stop).run()


class _Supervision:
    """One run, over all its children."""

    def __init__(self, orders: Orders, journal: Journal, say: Callable[[str], None], stop: StopOrders) -> None:
        self._orders = orders
        self._journal = journal
        self._say = say
        self._stop = stop
        self._furthest_step = -1
        self._n_fruitless = 0

    def run(self) -> Outcome:
        n_restarts = 0
        while True:
            ending = self._one_child()
            self._count_fruits()
            move = next_move(ending, n_restarts, self._n_fruitless, self._orders.patience)
            if not isinstance(move, Restart):
                reason = f"{ending.reason}; {move.why}" if isinstance(move, GiveUp) else ending.reason
                return Outcome(ending.status, reason, n_restarts, _exit_status(ending))
            self._note(ending, n_restarts + 1, move)
            self._pause(move.pause_seconds)
            self._recreate()
            if (number := self._stop.first()) is not None:
                reason = f"stopped by {signal.Signals(number).name} between two starts; before: {ending.reason}"
                return Outcome("INTERRUPTED", reason, n_restarts, 128 + number)
            n_restarts += 1

    def _count_fruits(self) -> None:
        step = self._journal.progress().furthest_step
        self._n_fruitless = 0 if step > self._furthest_step else self._n_fruitless + 1
        self._furthest_step = step

    def _note(self, ending: Ending, number: int, move: Restart) -> None:
        self._say(f"{ending.reason}; restart {number} in {move.pause_seconds:.0f} s")
        self._journal.note_restart(
            {
                "restart": number,
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "reason": ending.reason,
                "exit_status": ending.exit_status,
                "furthest_step": self._furthest_step,
                "last_lines": self._journal.last_lines(20),
            }
        )

    def _pause(self, seconds: float) -> None:
        end_seconds = time.monotonic() + seconds
        while time.monotonic() < end_seconds and not self._stop.numbers:
            time.sleep(min(LOOK_SECONDS, seconds))
            self._journal.look()

    def _recreate(self) -> None:
        """Runs the user's command; if it fails, the child that is started then will say what is missing."""
        command = self._orders.recreate_command
        if not command or self._stop.numbers:
            return
        self._say(f"--recreate_command: {shlex.join(command)}")
        end_seconds = time.monotonic() + RECREATE_LIMIT_SECONDS
        runner = Child(command, self._journal.keep_output)
        with _ended_whatever_happens(runner):
            while (status := runner.wait(LOOK_SECONDS)) is None and time.monotonic() < end_seconds:
                self._journal.look()
                if self._stop.numbers:
                    return
        if status != 0:
            failure = f"took over {RECREATE_LIMIT_SECONDS:.0f} s" if status is None else f"has exit status {status}"
            self._say(f"--recreate_command {command[0]}: failed: {failure}; the run is started again all the same")

    def _one_child(self) -> Ending:
        n_kills = count_memory_kills()
        try:
            child = Child(self._orders.command(), self._journal.keep_output)
        except OSError as error:
            return Ending("FAILED", f"main.py cannot be started: {error}", 1, True)
        with _ended_whatever_happens(child):
            return self._watch(child, n_kills)

    def _watch(self, child: Child, n_kills: int | None) -> Ending:
        pulse = _Pulse(self._orders.patience, self._journal.progress().newest_seconds)
        while (status := child.wait(LOOK_SECONDS)) is None:
            self._journal.look()
            pulse.feel(child.shown_step, self._journal.progress())
            if self._stop.numbers:
                status = self._stop_child(child)
                break
            if self._orders.watches_steps and pulse.is_lost():
                self._say(f"no new step for {pulse.still_seconds():.0f} s: main.py is ended")
                return self._end_hung(child, pulse)
        self._journal.look()
        return describe(status, self._stop.first(), child.last_words, memory_evidence(n_kills))

    def _end_hung(self, child: Child, pulse: _Pulse) -> Ending:
        still_seconds = pulse.still_seconds()
        status = self._stop_child(child)
        self._journal.look()
        if self._stop.numbers:
            return describe(status, self._stop.first(), child.last_words, "")
        return hung(still_seconds, pulse.step, status)

    def _stop_child(self, child: Child) -> int:
        """Asks it to write a checkpoint and stop; kills it after the grace, or at once when told a second time."""
        n_orders = len(self._stop.numbers)
        child.send(signal.SIGTERM)
        end_seconds = time.monotonic() + self._orders.patience.grace_seconds
        while (status := child.wait(LOOK_SECONDS)) is None:
            self._journal.look()
            if time.monotonic() > end_seconds or len(self._stop.numbers) > max(1, n_orders):
                return child.kill()
        return status


def _exit_status(ending: Ending) -> int:
    """The child's, in the form that a process can end with; a run that failed never ends with 0."""
    if ending.status == "TIMEOUT":
        return 1
    return ending.exit_status if ending.exit_status >= 0 else 128 - ending.exit_status


class _Pulse:
    """Whether a child gets on: it does with every new step that it shows or has measured."""

    def __init__(self, patience: Patience, newest_seconds: float) -> None:
        self.step: int | None = None
        self._patience = patience
        self._felt: tuple[int | None, float] = (None, newest_seconds)
        self._since_seconds = time.monotonic()

    def feel(self, shown_step: int | None, progress: Progress) -> None:
        felt, before = (shown_step, progress.newest_seconds), self._felt
        if felt != before:
            self._felt = felt
            self._since_seconds = time.monotonic()
            shown = shown_step if shown_step is not None and shown_step != before[0] else -1
            self.step = max(shown, progress.newest_step if felt[1] != before[1] else -1)

    def still_seconds(self) -> float:
        return time.monotonic() - self._since_seconds

    def is_lost(self) -> bool:
        patience = self._patience
        return self.still_seconds() > (patience.first_step_seconds if self.step is None else patience.step_seconds)


@contextlib.contextmanager
def _ended_whatever_happens(child: Child) -> Iterator[None]:
    try:
        yield
    finally:
        if child.ended() is None:
            child.kill()
