"""`--processes`: real processes on this machine, their signals, and how they end; and a mesh that follows them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from commands import local_processes
from commands.local_processes import run_local_processes
from tests.program import ENVIRONMENT, REPOSITORY, command, count_lines, losses, run_process, write_project

STEPS = ("--set", "train_steps=40", "--steps_per_checkpoint", "4")
MESH = (
    *("--set", "mesh_shape=x:2,y:2", "--set", "layout=batch:x,heads:y,vocab:y,intermediate_expanded:y"),
    *("--set", "elastic_mesh=true", "--set", "model_path=runs/elastic"),
)
# A program in place of main.py: it writes its index and its id, and does what the word for its index says.
PROGRAM = """
    import os, pathlib, signal, sys, time
    def stop(number, frame):
        os.write(1, b"got %d\\n" % number)
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, stop)
    index = int(sys.argv[sys.argv.index("--host_index") + 1])
    pathlib.Path(f"{index}.txt").write_text(str(os.getpid()))
    deed = sys.argv[1].split(",")[index]
    while not all(pathlib.Path(f"{other}.txt").exists() for other in range(sys.argv[1].count(",") + 1)):
        time.sleep(0.01)
    if deed == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif deed == "waits":
        time.sleep(60)
    elif deed == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    time.sleep(0.3 * (deed == "3"))
    sys.exit(int(deed))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    monkeypatch.setattr(local_processes, "MAIN", path)
    monkeypatch.setattr(local_processes, "SECONDS_TO_NOTICE", 0.5)
    monkeypatch.setattr(local_processes, "SECONDS_TO_END", 0.5)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize(
    ("deeds", "status"),
    [
        ("0,0,0", 0),
        ("0,2,0", 2),
        ("3,3,5", 5),
        ("3,3", 3),
        ("3,killed,3", 137),
        ("waits,2", 2),
        ("deaf,1", 1),
    ],
)
def test_the_status_is_that_of_the_first_to_fail(
    program: Path, capfd: pytest.CaptureFixture[str], deeds: str, status: int
) -> None:
    assert run_local_processes(deeds.count(",") + 1, [deeds]) == status
    assert ("process 1: was killed by SIGKILL\n" in capfd.readouterr().err) == ("killed" in deeds)


@pytest.mark.parametrize(
    ("sent", "got"), [(signal.SIGTERM, 15), (signal.SIGINT, 15), (signal.SIGUSR1, 10), (signal.SIGKILL, 15)], ids=str
)
def test_signals_reach_all(program: Path, sent: signal.Signals, got: int) -> None:
    """Also the one that none can handle: the processes see that their parent is gone."""
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\nfrom pathlib import Path\n"
        f"from commands import local_processes as own\nown.MAIN = Path({str(program)!r})\n"
        "sys.exit(own.run_local_processes(2, ['waits,waits']))"
    )
    pipe = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipe) as launcher:
        while not all(Path(f"{index}.txt").exists() for index in range(2)):
            assert launcher.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(launcher.pid, sent)
        assert launcher.stdout.read() == f"got {got}\n" * 2
    assert launcher.returncode == (-9 if sent == signal.SIGKILL else 128 + got)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def start(folder: Path, n_processes: int, n_lines: int) -> subprocess.Popen[str]:
    """Starts the run, and returns when so many steps are measured in all."""
    words = command(*STEPS, *MESH, "--processes", str(n_processes))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen(words, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, **pipes)
    while count_lines(folder / "runs/elastic/metrics.jsonl") < n_lines:
        assert launcher.poll() is None, launcher.stdout.read()
        time.sleep(0.05)
    return launcher


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_comes_back_with_fewer_and_with_more_processes(tmp_path: Path) -> None:
    write_project(tmp_path)
    alone = run_process(tmp_path, *STEPS, "--set", "model_path=runs/alone")
    assert alone.returncode == 0, alone.stderr
    with start(tmp_path, 4, n_lines=6) as stopped:
        stopped.send_signal(signal.SIGTERM)
        output = stopped.communicate(timeout=120)[0]
    assert stopped.returncode == 143 and "mesh: x:2,y:2 (" in output, output
    with start(tmp_path, 2, n_lines=14) as killed:
        os.kill(children_of(killed)[1], signal.SIGKILL)
        output = killed.communicate(timeout=120)[0]
    assert killed.returncode == 137 and "process 1: was killed by SIGKILL\n" in output, output
    assert "mesh_shape = x:2,y:2: is x:1,y:2 on what is there (elastic_mesh)\n" in output
    refused = run_process(tmp_path, *STEPS, *MESH, "--processes", "3")
    assert refused.returncode == 2
    assert (
        "mesh_shape = x:2,y:2: is x:3,y:1 on what is there (elastic_mesh): layout: batch:x splits train_batch_size = 4 "
        "over 3 devices, which does not divide it; change train_batch_size, the size of x, or the rule\n"
    ) in refused.stderr
    ended = run_process(tmp_path, *STEPS, *MESH, "--processes", "4")
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_allclose(losses(tmp_path / "runs/elastic"), losses(tmp_path / "runs/alone"), rtol=0, atol=1e-5)
