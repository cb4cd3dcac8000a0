"""Real processes: their output, their exit, and that they leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tracking.supervise.child import Child

REPOSITORY = Path(__file__).resolve().parents[3]


def until(is_true: Callable[[], bool], limit_seconds: float = 10.0) -> None:
    end_seconds = time.monotonic() + limit_seconds
    while not is_true():
        assert time.monotonic() < end_seconds, "it never came"
        time.sleep(0.01)


def is_there(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


def python(program: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(program)]


def test_output_is_shown_and_kept(capfd: pytest.CaptureFixture[str]) -> None:
    kept: list[bytes] = []
    child = Child(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"), kept.append)
    assert child.wait(10.0) == 7
    assert (child.poll(), sorted(b"".join(kept).split())) == (7, [b"err", b"out"])
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("out\n", "err\n")


def test_steps_are_parsed_from_output() -> None:
    child = Child(python("print('step 1/9  x\\nstep 2/9  y\\nmisstep 5/9 \\nstep 7', flush=True); input()"), bytes)
    try:
        until(lambda: child.printed_step == 2)
    finally:
        child.kill()


def test_progress_lines_are_not_last_lines() -> None:
    program = "import sys; print('out\\nlast out'); print('first\\nwrong: \\u20ac\\n\\nstep 3/9  x', file=sys.stderr)"
    child = Child(python(program), bytes)
    assert child.wait(10.0) == 0
    assert (child.last_lines.output, child.last_lines.error) == ("last out", "wrong: \N{EURO SIGN}")


def test_much_output_without_a_pause(capfd: pytest.CaptureFixture[str]) -> None:
    kept: list[bytes] = []
    child = Child(python("for _ in range(20000): print('x' * 99)"), kept.append)
    assert child.wait(20.0) == 0
    assert sum(map(len, kept)) == 2_000_000


def test_its_own_children_end_with_it() -> None:
    kept: list[bytes] = []
    program = """
    import subprocess, sys
    print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
    """
    child = Child(python(program), kept.append)
    assert child.wait(10.0) == 0
    until(lambda: not is_there(int(b"".join(kept))))


def test_a_child_that_ignores_signals_is_killed() -> None:
    kept: list[bytes] = []
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    child = Child(python(program), kept.append)
    until(lambda: b"ready" in b"".join(kept))
    child.send(signal.SIGTERM)
    assert child.wait(0.2) is None
    assert child.kill() == -signal.SIGKILL and not is_there(child.id)


def test_a_program_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child(["/no/such/program"], bytes)
    assert child.wait(10.0) == 1
    assert capfd.readouterr().err == "/no/such/program: cannot be started: No such file or directory\n"


def test_a_child_gets_sigterm_when_its_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL, as by the kernel: the parent cannot clean up."""
    grandchild = "import signal, sys, time; signal.signal(15, lambda *_: (open('stopped', 'w'), sys.exit(0)));"
    grandchild += "open('ready', 'w').write('x'); time.sleep(600)"
    program = f"""
    import sys
    sys.path.insert(0, {str(REPOSITORY)!r})
    from tracking.supervise.child import Child
    child = Child([sys.executable, "-c", {grandchild!r}], bytes)
    open("child", "w").write(str(child.id))
    child.wait(600)
    """
    parent = subprocess.Popen(python(program), cwd=tmp_path)
    try:
        until(lambda: (tmp_path / "ready").exists() and (tmp_path / "child").exists())
    finally:
        parent.kill()
        parent.wait()
    until((tmp_path / "stopped").exists)
    until(lambda: not is_there(int((tmp_path / "child").read_text())))
