"""Starts a child, watches its progress, and restarts it from its checkpoint when it crashes or hangs."""

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
    ChildExit,
    GiveUp,
    Restart,
    RestartPolicy,
    classify_exit,
    classify_hang,
    count_oom_kills,
    next_action,
    oom_evidence,
)

POLL_SECONDS = 0.2
RECREATE_LIMIT_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        furthest_step: the highest step measured so far; -1: none.
        newest_seconds: when the newest metrics were measured, in seconds since 1970.
        newest_step: their step; after a restart it may be lower than the furthest.
    """

    furthest_step: int = -1
    newest_seconds: float = 0.0
    newest_step: int = -1


class Journal(Protocol):
    """Where the supervisor records what happens."""

    def update(self) -> None:
        """Reads what the child has written since the last call; never raises."""

    def progress(self) -> Progress:
        """Returns the progress according to what the child has written."""

    def keep_output(self, data: bytes) -> None:
        """Stores output of the child."""

    def last_lines(self, n_lines: int) -> list[str]:
        """Returns its last lines of output."""

    def note_restart(self, event: dict[str, object]) -> None:
        """Records why and when the child is restarted."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to run, and how to supervise it.

    Attributes:
        command: returns the command line; called before each start.
        policy: timeouts and limits of restarts.
        watches_steps: whether a child that makes no steps counts as hung.
        recreate_command: what to run before each restart; empty: nothing.
    """

    command: Callable[[], Sequence[str]]
    policy: RestartPolicy
    watches_steps: bool
    recreate_command: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: its status in Sacred, the reason, the number of restarts, and the exit status."""

    status: str
    reason: str
    n_restarts: int
    exit_status: int


class StopSignals:
    """A context manager that records signals to stop instead of dying of them.

    Attributes:
        numbers: the signals received, in order.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __enter__(self) -> StopSignals:
        # Ignored signals stay ignored, such as SIGHUP under nohup.
        taken = [number for number in SIGNALS_TO_STOP if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._receive) for number in taken}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)

    def first(self) -> int | None:
        """Returns the first signal received, if any."""
        return self.numbers[0] if self.numbers else None


def supervise(job: Job, journal: Journal, say: Callable[[str], None], stop: StopSignals) -> Outcome:
    """Runs a job until it finishes, is stopped, or fails for good."""
    return _Supervisor(job, journal, say, stop).run()


class _Supervisor:
    """One run, with all its restarts."""

    def __init__(self, job: Job, journal: Journal, say: Callable[[str], None], stop: StopSignals) -> None:
        self._job = job
        self._journal = journal
        self._say = say
        self._stop = stop
        self._furthest_step = -1
        self._n_failures = 0

    def run(self) -> Outcome:
        """Starts the child, and restarts it as the policy says, until the run is over."""
        n_restarts = 0
        while True:
            child_exit = self._one_child()
            self._count_progress()
            action = next_action(child_exit, n_restarts, self._n_failures, self._job.policy)
            if not isinstance(action, Restart):
                reason = f"{child_exit.reason}; {action.why}" if isinstance(action, GiveUp) else child_exit.reason
                return Outcome(child_exit.status, reason, n_restarts, _exit_status(child_exit))
            self._note(child_exit, n_restarts + 1, action)
            self._pause(action.backoff_seconds)
            self._recreate()
            if (number := self._stop.first()) is not None:
                reason = f"stopped by {signal.Signals(number).name} between two starts; before: {child_exit.reason}"
                return Outcome("INTERRUPTED", reason, n_restarts, 128 + number)
            n_restarts += 1

    def _count_progress(self) -> None:
        step = self._journal.progress().furthest_step
        self._n_failures = 0 if step > self._furthest_step else self._n_failures + 1
        self._furthest_step = step

    def _note(self, child_exit: ChildExit, number: int, action: Restart) -> None:
        self._say(f"{child_exit.reason}; restart {number} in {action.backoff_seconds:.0f} s")
        self._journal.note_restart(
            {
                "restart": number,
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "reason": child_exit.reason,
                "exit_status": child_exit.exit_status,
                "furthest_step": self._furthest_step,
                "last_lines": self._journal.last_lines(20),
            }
        )

    def _pause(self, seconds: float) -> None:
        end_seconds = time.monotonic() + seconds
        while time.monotonic() < end_seconds and not self._stop.numbers:
            time.sleep(min(POLL_SECONDS, seconds))
            self._journal.update()

    def _recreate(self) -> None:
        """Runs the user's command; if it fails, the next start of the child reports what is missing."""
        command = self._job.recreate_command
        if not command or self._stop.numbers:
            return
        self._say(f"--recreate_command: {shlex.join(command)}")
        end_seconds = time.monotonic() + RECREATE_LIMIT_SECONDS
        runner = Child(command, self._journal.keep_output)
        with _killed_on_exit(runner):
            while (status := runner.wait(POLL_SECONDS)) is None and time.monotonic() < end_seconds:
                self._journal.update()
                if self._stop.numbers:
                    return
        if status != 0:
            failure = f"took over {RECREATE_LIMIT_SECONDS:.0f} s" if status is None else f"has exit status {status}"
            self._say(f"--recreate_command {command[0]}: failed: {failure}; restarting the run anyway")

    def _one_child(self) -> ChildExit:
        n_kills = count_oom_kills()
        try:
            child = Child(self._job.command(), self._journal.keep_output)
        except OSError as error:
            return ChildExit("FAILED", f"main.py cannot be started: {error}", 1, True)
        with _killed_on_exit(child):
            return self._watch(child, n_kills)

    def _watch(self, child: Child, n_kills: int | None) -> ChildExit:
        detector = _HangDetector(self._job.policy, self._journal.progress().newest_seconds)
        while (status := child.wait(POLL_SECONDS)) is None:
            self._journal.update()
            detector.update(child.printed_step, self._journal.progress())
            if self._stop.numbers:
                status = self._stop_child(child)
                break
            if self._job.watches_steps and detector.is_hung():
                self._say(f"no new step for {detector.idle_seconds():.0f} s: stopping main.py")
                return self._end_hung(child, detector)
        self._journal.update()
        return classify_exit(status, self._stop.first(), child.last_lines, oom_evidence(n_kills))

    def _end_hung(self, child: Child, detector: _HangDetector) -> ChildExit:
        idle_seconds = detector.idle_seconds()
        status = self._stop_child(child)
        self._journal.update()
        if self._stop.numbers:
            return classify_exit(status, self._stop.first(), child.last_lines, "")
        return classify_hang(idle_seconds, detector.step, status)

    def _stop_child(self, child: Child) -> int:
        """Asks the child to write a checkpoint and stop; kills it after the grace period, or at a second signal."""
        n_signals = len(self._stop.numbers)
        child.send(signal.SIGTERM)
        end_seconds = time.monotonic() + self._job.policy.grace_seconds
        while (status := child.wait(POLL_SECONDS)) is None:
            self._journal.update()
            if time.monotonic() > end_seconds or len(self._stop.numbers) > max(1, n_signals):
                return child.kill()
        return status


def _exit_status(child_exit: ChildExit) -> int:
    """Returns the child's exit status as a process can return it; a failed run never returns 0."""
    if child_exit.status == "TIMEOUT":
        return 1
    return child_exit.exit_status if child_exit.exit_status >= 0 else 128 - child_exit.exit_status


class _HangDetector:
    """Detects a child that makes no progress: no new step, neither printed nor measured, for too long."""

    def __init__(self, policy: RestartPolicy, newest_seconds: float) -> None:
        self.step: int | None = None
        self._policy = policy
        self._seen: tuple[int | None, float] = (None, newest_seconds)
        self._since_seconds = time.monotonic()

    def update(self, printed_step: int | None, progress: Progress) -> None:
        """Compares the latest printed and measured steps with those seen before."""
        seen, before = (printed_step, progress.newest_seconds), self._seen
        if seen != before:
            self._seen = seen
            self._since_seconds = time.monotonic()
            printed = printed_step if printed_step is not None and printed_step != before[0] else -1
            self.step = max(printed, progress.newest_step if seen[1] != before[1] else -1)

    def idle_seconds(self) -> float:
        """Returns the time since the last progress."""
        return time.monotonic() - self._since_seconds

    def is_hung(self) -> bool:
        """Returns whether the time without progress exceeds the timeout."""
        policy = self._policy
        return self.idle_seconds() > (policy.first_step_seconds if self.step is None else policy.step_seconds)


@contextlib.contextmanager
def _killed_on_exit(child: Child) -> Iterator[None]:
    try:
        yield
    finally:
        if child.poll() is None:
            child.kill()
