from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.supervise.child import LastLines
from tracking.supervise.exit_policy import (
    MAX_BACKOFF_SECONDS,
    MAX_FAILURES,
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

CRASH = ChildExit("FAILED", "crashed", 1, True)
DESCRIPTIONS = {
    "finished": ((0, None), ("COMPLETED", "finished", 0, False)),
    "finished when asked to stop": ((0, signal.SIGINT), ("COMPLETED", "finished", 0, False)),
    "refused": ((2, None), ("FAILED", "main.py refused its input: last error", 2, False)),
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
        ("INTERRUPTED", "stopped by SIGINT and killed while still running", 130, False),
    ),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_each_exit_is_classified(case: str) -> None:
    (status, asked), expected = DESCRIPTIONS[case]
    assert classify_exit(status, asked, LastLines("last", "last error"), "memory") == ChildExit(*expected)


def test_a_child_without_output() -> None:
    assert classify_exit(1, None, LastLines(), "").reason == "main.py crashed with exit status 1"
    assert classify_exit(1, None, LastLines("x"), "").reason == "main.py crashed with exit status 1: x"
    assert classify_hang(12.4, 7, -9) == ChildExit("TIMEOUT", "no new step for 12 s since step 7", -9, True)
    assert classify_hang(12.4, None, -9).reason == "no new step for 12 s since it was started"


def test_pauses_double_while_there_is_no_progress() -> None:
    policy = RestartPolicy(backoff_seconds=5.0, max_restarts=1000)
    pauses = [next_action(CRASH, 0, n_failures, policy) for n_failures in range(MAX_FAILURES)]
    assert pauses == [Restart(5.0), Restart(5.0), Restart(10.0), Restart(20.0), Restart(40.0)]
    assert next_action(CRASH, 0, MAX_FAILURES, policy) == GiveUp("gave up after 5 starts without a new step")


@given(n_restarts=st.integers(0, 200), n_failures=st.integers(0, 10), pause=st.floats(0, 1e6))
def test_limits_hold(n_restarts: int, n_failures: int, pause: float) -> None:
    action = next_action(CRASH, n_restarts, n_failures, RestartPolicy(backoff_seconds=pause, max_restarts=100))
    assert isinstance(action, Restart) == (n_restarts < 100 and n_failures < MAX_FAILURES)
    assert not isinstance(action, Restart) or 0 <= action.backoff_seconds <= MAX_BACKOFF_SECONDS


def test_an_exit_that_a_restart_cannot_help_ends_the_run() -> None:
    assert next_action(ChildExit("FAILED", "refused", 2, False), 0, 0, RestartPolicy()) is None


def test_the_evidence_follows_the_kernels_count() -> None:
    count = count_oom_kills()
    assert oom_evidence(None).startswith("out of memory? its peak was ")
    if count is not None:
        assert oom_evidence(count).startswith("out of memory? the kernel has killed no process for it meanwhile")
        assert oom_evidence(count - 1).startswith("out of memory: the kernel has killed a process for it")
