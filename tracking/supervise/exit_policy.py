"""How a child ended, why, and what to do then. No processes here: decisions only."""

from __future__ import annotations

import dataclasses
import re
import resource
import signal
from pathlib import Path

from tracking.supervise.child import LastWords

MAX_FRUITLESS = 5  # ends in a row without a step further than ever before
MAX_PAUSE_SECONDS = 300.0
REFUSED = 2  # main.py's exit status for what the user can mend
PROCESS_LOST = 3  # and for the loss of another process of its cluster
SIGNALS_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to wait for a child, and how often to start it again.

    Attributes:
        first_step_seconds: for the first step after a start, which also prepares data and compiles.
        step_seconds: for each further step.
        grace_seconds: from asking a child to stop to killing it.
        pause_seconds: before the first restart; each further one without progress waits twice as long.
        max_restarts: of one run.
    """

    first_step_seconds: float = 7200.0
    step_seconds: float = 1800.0
    grace_seconds: float = 300.0
    pause_seconds: float = 5.0
    max_restarts: int = 100


@dataclasses.dataclass(frozen=True)
class Ending:
    """How one child ended.

    Attributes:
        status: what Sacred would call the run if nothing more were done.
        reason: for people.
        exit_status: of the child; a signal that killed it as a negative number, one that stopped the run as shells do.
        may_go_on: whether starting it again may help.
    """

    status: str
    reason: str
    exit_status: int
    may_go_on: bool


@dataclasses.dataclass(frozen=True)
class Restart:
    """Start again after a pause."""

    pause_seconds: float


@dataclasses.dataclass(frozen=True)
class GiveUp:
    """Do not start again; `why` is said beside the reason of the last ending."""

    why: str


def describe(exit_status: int, asked_to_stop: int | None, last_words: LastWords, memory: str) -> Ending:
    """How a child ended by itself, or by a signal.

    Args:
        exit_status: of the child; a signal that killed it as a negative number.
        asked_to_stop: the signal by which the user stopped the run; None: nobody did.
        last_words: what it said last.
        memory: what is known of kills for memory.
    """
    if exit_status == 0:
        return Ending("COMPLETED", "finished", 0, False)
    said, complained = _as_end(last_words.output), _as_end(last_words.error or last_words.output)
    if asked_to_stop is not None:
        how = " and killed, as it went on" if _is_killed(exit_status) else said
        reason = f"stopped by {signal.Signals(asked_to_stop).name}{how}"
        return Ending("INTERRUPTED", reason, 128 + asked_to_stop, False)
    if exit_status == REFUSED:
        return Ending("FAILED", f"main.py refused{complained}", exit_status, False)
    if (number := _stop_signal(exit_status)) is not None:
        return Ending("INTERRUPTED", f"main.py was stopped by {number.name} from outside{said}", exit_status, False)
    return Ending("FAILED", _describe_crash(exit_status, complained, memory), exit_status, True)


def _as_end(words: str) -> str:
    return f": {words}" if words else ""


def _describe_crash(exit_status: int, complained: str, memory: str) -> str:
    if exit_status == PROCESS_LOST:
        return f"another process of the cluster was lost{complained}"
    if _is_killed(exit_status):
        return f"main.py was killed by SIGKILL: {memory}"
    if exit_status < 0:
        return f"main.py was killed by {_signal_name(-exit_status)}{complained}"
    return f"main.py crashed with exit status {exit_status}{complained}"


def _is_killed(exit_status: int) -> bool:
    return exit_status in (-signal.SIGKILL, 128 + signal.SIGKILL)


def _stop_signal(exit_status: int) -> signal.Signals | None:
    """The signal that asked a child to stop, if one did: it says so in its exit status, as shells do, or dies of it."""
    number = exit_status - 128 if exit_status > 128 else -exit_status
    return signal.Signals(number) if number in SIGNALS_TO_STOP else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def hung(waited_seconds: float, step: int | None, exit_status: int) -> Ending:
    """How a child ended that made no step for too long."""
    since = "since it was started" if step is None else f"since step {step}"
    return Ending("TIMEOUT", f"no new step for {waited_seconds:.0f} s {since}", exit_status, True)


def next_move(ending: Ending, n_restarts: int, n_fruitless: int, patience: Patience) -> Restart | GiveUp | None:
    """What to do after a child ended; None: nothing, the run is over.

    Args:
        ending: how it ended.
        n_restarts: made so far.
        n_fruitless: endings in a row, this one too, since the run last came further than ever before.
        patience: the limits.
    """
    if not ending.may_go_on:
        return None
    if n_fruitless >= MAX_FRUITLESS:
        return GiveUp(f"given up after {n_fruitless} starts without a new step")
    if n_restarts >= patience.max_restarts:
        return GiveUp(f"given up after {n_restarts} restarts")
    return Restart(min(patience.pause_seconds * 2 ** max(0, n_fruitless - 1), MAX_PAUSE_SECONDS))


def count_memory_kills() -> int | None:
    """How many processes the kernel has ended for memory since it started; None: it does not count them."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


def memory_evidence(n_kills_before: int | None) -> str:
    """What is known of whether a child that was killed was killed for memory.

    Args:
        n_kills_before: what `count_memory_kills` said when it was started.
    """
    n_kills = count_memory_kills()
    held = f"it had held {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.1f} GiB"
    if n_kills is None or n_kills_before is None:
        return f"out of memory? {held}; see `dmesg`"
    if n_kills > n_kills_before:
        return f"out of memory: the kernel has killed a process for that meanwhile; {held}"
    return f"out of memory? the kernel has killed none for that meanwhile, so rather by another program; {held}"
