from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.supervise.child import LastWords
from tracking.supervise.exit_policy import (
    MAX_FRUITLESS,
    MAX_PAUSE_SECONDS,
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

CRASH = Ending("FAILED", "crashed", 1, True)
DESCRIPTIONS = {
    "finished": ((0, None), ("COMPLETED", "finished", 0, False)),
    "finished when told to stop": ((0, signal.SIGINT), ("COMPLETED", "finished", 0, False)),
    "refused": ((2, None), ("FAILED", "main.py refused: last error", 2, False)),
    "lost process": ((3, None), ("FAILED", "another process of the cluster was lost: last error", 3, True)),
    "crash": ((1, None), ("FAILED", "main.py crashed with exit status 1: last error", 1, True)),
    "segmentation fault": ((-11, None), ("FAILED", "main.py was killed by SIGSEGV: last error", -11, True)),
    "unknown signal": ((-60, None), ("FAILED", "main.py was killed by signal 60: last error", -60, True)),
    "memory": ((-9, None), ("FAILED", "main.py was killed by SIGKILL: memory", -9, True)),
    "memory, by a shell": ((137, None), ("FAILED", "main.py was killed by SIGKILL: memory", 137, True)),
    "from outside": ((143, None), ("INTERRUPTED", "main.py was stopped by SIGTERM from outside: last", 143, False)),
    "from outside, early": (
        (-15, None),
        ("INTERRUPTED", "main.py was stopped by SIGTERM from outside: last", -15, False),
    ),
    "Ctrl-C": ((143, signal.SIGINT), ("INTERRUPTED", "stopped by SIGINT: last", 130, False)),
    "Ctrl-C and killed": (
        (-9, signal.SIGINT),
        ("INTERRUPTED", "stopped by SIGINT and killed, as it went on", 130, False),
    ),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_each_ending_has_its_reason(case: str) -> None:
    (status, asked), expected = DESCRIPTIONS[case]
    assert describe(status, asked, LastWords("last", "last error"), "memory") == Ending(*expected)


def test_a_child_that_said_nothing() -> None:
    assert describe(1, None, LastWords(), "").reason == "main.py crashed with exit status 1"
    assert describe(1, None, LastWords("x"), "").reason == "main.py crashed with exit status 1: x"
    assert hung(12.4, 7, -9) == Ending("TIMEOUT", "no new step for 12 s since step 7", -9, True)
    assert hung(12.4, None, -9).reason == "no new step for 12 s since it was started"


def test_pauses_double_while_there_is_no_progress() -> None:
    patience = Patience(pause_seconds=5.0, max_restarts=1000)
    pauses = [next_move(CRASH, 0, n_fruitless, patience) for n_fruitless in range(MAX_FRUITLESS)]
    assert pauses == [Restart(5.0), Restart(5.0), Restart(10.0), Restart(20.0), Restart(40.0)]
    assert next_move(CRASH, 0, MAX_FRUITLESS, patience) == GiveUp("given up after 5 starts without a new step")


@given(n_restarts=st.integers(0, 200), n_fruitless=st.integers(0, 10), pause=st.floats(0, 1e6))
def test_limits_hold(n_restarts: int, n_fruitless: int, pause: float) -> None:
    move = next_move(CRASH, n_restarts, n_fruitless, Patience(pause_seconds=pause, max_restarts=100))
    assert isinstance(move, Restart) == (n_restarts < 100 and n_fruitless < MAX_FRUITLESS)
    assert not isinstance(move, Restart) or 0 <= move.pause_seconds <= MAX_PAUSE_SECONDS


def test_what_a_restart_does_not_help_ends_the_run() -> None:
    assert next_move(Ending("FAILED", "refused", 2, False), 0, 0, Patience()) is None


def test_the_evidence_follows_the_kernels_count() -> None:
    count = count_memory_kills()
    assert memory_evidence(None).startswith("out of memory? it had held ")
    if count is not None:
        assert memory_evidence(count).startswith("out of memory? the kernel has killed none for that meanwhile")
        assert memory_evidence(count - 1).startswith("out of memory: the kernel has killed a process for that")
