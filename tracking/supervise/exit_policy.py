"""Classifies how a child process ended, and decides whether to restart it. Decisions only: no processes."""

from __future__ import annotations

import dataclasses
import re
import resource
import signal
from pathlib import Path

from tracking.supervise.child import LastLines

MAX_FAILURES = 5  # exits in a row without a new furthest step
MAX_BACKOFF_SECONDS = 300.0
REFUSED = 2  # main.py's exit status for an error that the user can fix
PROCESS_LOST = 3  # its exit status when another process of the cluster is lost
# Job schedulers announce the end of a job by SIGUSR1 or SIGUSR2 too.
SIGNALS_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclasses.dataclass(frozen=True)
class RestartPolicy:
    """How long to wait for a child, and how often to restart it.

    Attributes:
        first_step_seconds: timeout of the first step after a start, which also prepares data and compiles.
        step_seconds: timeout of each further step.
        grace_seconds: between asking a child to stop and killing it.
        backoff_seconds: before the first restart; doubles with every further restart without progress.
        max_restarts: in one run.
    """

    first_step_seconds: float = 7200.0
    step_seconds: float = 1800.0
    grace_seconds: float = 300.0
    backoff_seconds: float = 5.0
    max_restarts: int = 100


@dataclasses.dataclass(frozen=True)
class ChildExit:
    """How a child process ended.

    Attributes:
        status: the status of the run in Sacred, if the child is not restarted.
        reason: an explanation for people.
        exit_status: of the child: negative for a signal that killed it, 128 + number for one that stopped the run.
        can_restart: whether a restart may help.
    """

    status: str
    reason: str
    exit_status: int
    can_restart: bool


@dataclasses.dataclass(frozen=True)
class Restart:
    """Restart after a pause."""

    backoff_seconds: float


@dataclasses.dataclass(frozen=True)
class GiveUp:
    """Do not restart; `why` is appended to the reason of the last exit."""

    why: str


def classify_exit(exit_status: int, asked_to_stop: int | None, last_lines: LastLines, memory: str) -> ChildExit:
    """Classifies the exit of a child that ended by itself or by a signal.

    Args:
        exit_status: of the child; negative for a signal that killed it.
        asked_to_stop: the signal with which the user stopped the run; None: the user did not.
        last_lines: its last lines of output.
        memory: what `oom_evidence` returned.
    """
    if exit_status == 0:
        return ChildExit("COMPLETED", "finished", 0, False)
    last_output, last_error = _as_end(last_lines.output), _as_end(last_lines.error or last_lines.output)
    if asked_to_stop is not None:
        how = " and killed while still running" if _is_killed(exit_status) else last_output
        reason = f"stopped by {signal.Signals(asked_to_stop).name}{how}"
        return ChildExit("INTERRUPTED", reason, 128 + asked_to_stop, False)
    if exit_status == REFUSED:
        return ChildExit("FAILED", f"main.py refused its input{last_error}", exit_status, False)
    if (number := _stop_signal(exit_status)) is not None:
        return ChildExit(
            "INTERRUPTED", f"main.py was stopped by {number.name} from outside{last_output}", exit_status, False
        )
    return ChildExit("FAILED", _describe_crash(exit_status, last_error, memory), exit_status, True)


def _as_end(words: str) -> str:
    return f": {words}" if words else ""


def _describe_crash(exit_status: int, last_error: str, memory: str) -> str:
    if exit_status == PROCESS_LOST:
        return f"another process of the cluster was lost{last_error}"
    if _is_killed(exit_status):
        return f"main.py was killed by SIGKILL: {memory}"
    if exit_status < 0:
        return f"main.py was killed by {_signal_name(-exit_status)}{last_error}"
    return f"main.py crashed with exit status {exit_status}{last_error}"


def _is_killed(exit_status: int) -> bool:
    return exit_status in (-signal.SIGKILL, 128 + signal.SIGKILL)


def _stop_signal(exit_status: int) -> signal.Signals | None:
    """Returns the signal that stopped the child, if one did: it exits with 128 + number, or dies of the signal."""
    number = exit_status - 128 if exit_status > 128 else -exit_status
    return signal.Signals(number) if number in SIGNALS_TO_STOP else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def classify_hang(waited_seconds: float, step: int | None, exit_status: int) -> ChildExit:
    """Returns the exit of a child that was ended because it made no step for too long."""
    since = "since it was started" if step is None else f"since step {step}"
    return ChildExit("TIMEOUT", f"no new step for {waited_seconds:.0f} s {since}", exit_status, True)


def next_action(
    child_exit: ChildExit, n_restarts: int, n_failures: int, policy: RestartPolicy
) -> Restart | GiveUp | None:
    """Decides what to do after a child has ended; None: nothing, the run is over.

    Args:
        child_exit: how it ended.
        n_restarts: so far.
        n_failures: exits in a row, including this one, since the last new furthest step.
        policy: the limits.
    """
    if not child_exit.can_restart:
        return None
    if n_failures >= MAX_FAILURES:
        return GiveUp(f"gave up after {n_failures} starts without a new step")
    if n_restarts >= policy.max_restarts:
        return GiveUp(f"gave up after {n_restarts} restarts")
    return Restart(min(policy.backoff_seconds * 2 ** max(0, n_failures - 1), MAX_BACKOFF_SECONDS))


def count_oom_kills() -> int | None:
    """Returns how many processes the kernel has killed for memory since boot; None: it does not count them."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


def oom_evidence(n_kills_before: int | None) -> str:
    """Describes whether a child that was killed was killed for memory.

    Args:
        n_kills_before: what `count_oom_kills` returned when the child was started.
    """
    n_kills = count_oom_kills()
    held = f"its peak was {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.1f} GiB"
    if n_kills is None or n_kills_before is None:
        return f"out of memory? {held}; see `dmesg`"
    if n_kills > n_kills_before:
        return f"out of memory: the kernel has killed a process for it meanwhile; {held}"
    return f"out of memory? the kernel has killed no process for it meanwhile, so probably another program did; {held}"
