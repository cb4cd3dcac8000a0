"""The program as many processes that train one model together, as a person starts them."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from commands.local_processes import free_ports
from main import main
from runtime.run.metrics import read_metrics
from tests.program import ENVIRONMENT, command, count_lines, losses, run_process, write_project

N_STEPS = 24
STEPS = ("--set", f"train_steps={N_STEPS}", "--steps_per_checkpoint", "8")
MEASURED = ("--set", "eval_steps=2", "--set", "eval_batch_size=5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `runs/alone` was trained by one process."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    alone = run_process(folder, *STEPS, *MEASURED, "--set", "model_path=runs/alone")
    assert alone.returncode == 0, alone.stderr
    return folder


class Processes:
    """All processes of one command; ended with the test."""

    def __init__(
        self,
        folder: Path,
        commands: Sequence[Sequence[str]],
        variables: Sequence[dict[str, str]],
        last: Path | None = None,
    ) -> None:
        """Starts them in a folder, the last one in another if one is given."""
        folders = [folder] * (len(commands) - 1) + [last or folder]
        self.all = [
            subprocess.Popen(
                command(*arguments),
                cwd=own_folder,
                env={**ENVIRONMENT, **added},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for own_folder, arguments, added in zip(folders, commands, variables, strict=True)
        ]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.all:
            process.kill()
            process.communicate()

    def ended(self, seconds: float = 120.0) -> list[tuple[int, str, str]]:
        """Exit status, output and errors of each."""
        printed = [process.communicate(timeout=seconds) for process in self.all]
        return [(process.returncode, *texts) for process, texts in zip(self.all, printed, strict=True)]


def together(folder: Path, n_processes: int, *arguments: str, last: Path | None = None) -> Processes:
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(n_processes))
    commands = [[*arguments, "--hosts", hosts, "--host_index", str(index)] for index in range(n_processes)]
    return Processes(folder, commands, [{}] * n_processes, last)


def held_out(run: Path) -> list[tuple[int, float, int]]:
    return [(line["step"], line["loss"], line["tokens"]) for line in read_metrics(str(run)) if line["split"] == "eval"]


def test_two_processes_train_evaluate_and_write_as_one(folder: Path) -> None:
    with together(folder, 2, *STEPS, *MEASURED, "--set", "model_path=runs/two") as processes:
        (status, out, error), second = processes.ended()
    assert status == 0, error
    assert second == (0, "", "")
    assert "mesh: all:2 (batch:all) on CPU:0, process 0 of 2\n" in out
    assert out.endswith(f"trained to step {N_STEPS}; checkpoints, metrics and loss.png are in runs/two\n")
    alone, two = folder / "runs/alone", folder / "runs/two"
    np.testing.assert_allclose(losses(two), losses(alone), rtol=0, atol=1e-5)
    np.testing.assert_allclose(held_out(two), held_out(alone), rtol=0, atol=1e-5)
    kept = {path.name for path in two.iterdir() if "tfevents" not in path.name}
    assert kept == {path.name for path in alone.iterdir() if "tfevents" not in path.name}


@pytest.mark.slow
@pytest.mark.processes
def test_a_cluster_of_the_environment_goes_on_from_the_checkpoint_of_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    split = ("--set", "mesh_shape=x:2", "--set", "layout=heads:x,vocab:x,intermediate_expanded:x")
    on = [*split, "--set", "model_path=runs/alone", "--seed", "5", "--set", "predict_max_steps=9", "--predict"]
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    tasks = [{"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}} for index in range(2)]
    with Processes(folder, [on, on], [{"TF_CONFIG": json.dumps(task)} for task in tasks]) as processes:
        (status, out, error), second = processes.ended()
    assert status == 0, error
    assert second == (0, "", "")
    monkeypatch.chdir(folder)
    assert main(["--model", "tiny.json", *on[len(split) :]]) == 0
    alone = capsys.readouterr().out
    assert out.splitlines()[2:-1] == alone.splitlines()[2:-1] != []


@pytest.mark.parametrize(
    ("of_second", "what"),
    [
        pytest.param(["--set", "lr=0.5"], "the config", id="config"),
        pytest.param(
            ["--steps_per_checkpoint", "7"],
            "the command line",
            id="flag",
            marks=[pytest.mark.slow, pytest.mark.processes],
        ),
    ],
)
def test_processes_that_were_told_different_things_do_not_begin(folder: Path, of_second: list[str], what: str) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    common = ["--set", "model_path=runs/unequal", "--hosts", hosts, "--host_index"]
    with Processes(folder, [[*common, "0"], [*common, "1", *of_second]], [{}, {}]) as processes:
        ended = processes.ended()
    message = (
        f"{what}: differs between the 2 processes; start each with the same command and files, except for "
        "--host_index\n"
    )
    assert ended == [(2, "", message), (2, "", message)]
    assert not (folder / "runs/unequal").exists()


@pytest.mark.slow
@pytest.mark.processes
def test_a_signal_to_one_process_ends_all_at_the_same_step_and_the_run_goes_on(folder: Path) -> None:
    arguments = (*STEPS, *MEASURED, "--set", "model_path=runs/stopped")
    with together(folder, 2, *arguments) as processes:
        wait_for_lines(folder / "runs/stopped/metrics.jsonl", 5, processes)
        processes.all[1].send_signal(signal.SIGTERM)
        (status, out, error), second = processes.ended()
    assert (status, second) == (143, (143, "", "")), error
    step = int(re.search(r"stopped at step (\d+); the checkpoint is saved", out)[1])
    assert (folder / f"runs/stopped/model.ckpt-{step}.index").exists()
    with together(folder, 2, *arguments) as processes:
        (status, out, error), _ = processes.ended()
    assert status == 0, error
    assert f"restored runs/stopped/model.ckpt-{step}\n" in out
    np.testing.assert_allclose(losses(folder / "runs/stopped"), losses(folder / "runs/alone"), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.processes
def test_processes_with_other_data_change_nothing(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("datasets"))
    (tmp_path / "copy/texts/0.txt").write_text("the cat saw the dog\n" * 40)
    run = tmp_path / "run"
    shutil.copytree(folder / "runs/alone", run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    arguments = (*STEPS, *MEASURED, "--set", f"model_path={run}")
    for flags in (["--new", "--yes"], ["--eval"]):
        with together(folder, 2, *arguments, *flags, last=tmp_path / "copy") as processes:
            ended = processes.ended()
        assert [status for status, *_ in ended] == [2, 2], ended
        last_lines = [error.splitlines()[-1] for *_, error in ended]
        assert all(re.match("the (data|tokenizer): differs between the 2 processes", line) for line in last_lines)
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert {name: after.get(name) for name in before} == before


@pytest.mark.slow
@pytest.mark.processes
def test_a_layout_is_chosen_for_the_processes_and_applied(folder: Path) -> None:
    arguments = ("--set", "train_steps=2", "--set", "model_path=runs/chosen", "--auto_layout_and_mesh_shape", "--apply")
    with together(folder, 2, *arguments) as processes:
        (status, out, error), second = processes.ended()
    assert (status, second) == (0, (0, "", "")), error
    chosen = re.match('"mesh_shape": "([xyz:0-9,]+)"', out)[1]
    assert math.prod(int(axis.split(":")[1]) for axis in chosen.split(",")) == 2
    assert f"mesh: {chosen} (" in out


def wait_for_lines(path: Path, count: int, processes: Processes) -> None:
    while all(process.poll() is None for process in processes.all) and count_lines(path) < count:
        time.sleep(0.005)


def test_processes_and_virtual_devices_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "quickstart", "--hosts", "a:1,b:1", "--host_index", "0", "--cpu_devices", "2"]) == 2
    assert capsys.readouterr().err.startswith("--hosts, TF_CONFIG or Slurm: each process has one device")


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Path:
    """A run of 200 steps by four processes."""
    with together(folder, 4, *LONG, "--set", "model_path=runs/unbroken") as processes:
        statuses = [status for status, *_ in processes.ended(400.0)]
    assert statuses == [0] * 4
    return folder / "runs/unbroken"


LONG = (
    *("--set", "train_steps=200", "--steps_per_checkpoint", "25"),
    *("--set", "mesh_shape=x:2,y:2", "--set", "layout=batch:x,heads:y,vocab:y,intermediate_expanded:y"),
)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("seed", range(3))
def test_a_process_killed_at_any_step_costs_no_more_than_the_steps_since_the_checkpoint(
    folder: Path, unbroken: Path, seed: int
) -> None:
    draw = random.Random(seed)
    run, killed = folder / f"runs/killed{seed}", draw.randrange(4)
    arguments = (*LONG, "--set", f"model_path=runs/{run.name}")
    with together(folder, 4, *arguments) as processes:
        wait_for_lines(run / "metrics.jsonl", draw.randrange(30, 170), processes)
        processes.all[killed].kill()
        begin_seconds = time.monotonic()
        ended = processes.ended()
    assert time.monotonic() - begin_seconds < 60.0
    for index, (status, _, error) in enumerate(ended):
        assert (status == 3 and "ends too" in error) if index != killed else status == -signal.SIGKILL, error
    with together(folder, 4, *arguments) as processes:
        statuses = [status for status, *_ in processes.ended(400.0)]
    assert statuses == [0] * 4
    assert losses(run) == losses(unbroken)


@pytest.mark.slow
@pytest.mark.processes
def test_processes_that_are_all_killed_while_they_save_resume_exactly(folder: Path, unbroken: Path) -> None:
    run, draw = folder / "runs/all_killed", random.Random(4)
    arguments = (*LONG, "--steps_per_checkpoint", "2", "--set", f"model_path=runs/{run.name}")
    for _ in range(5):
        with together(folder, 4, *arguments) as processes:
            wait_for_lines(run / "metrics.jsonl", count_lines(run / "metrics.jsonl") + draw.randrange(3, 30), processes)
            time.sleep(draw.uniform(0.0, 0.05))
            for process in processes.all:
                process.kill()
    with together(folder, 4, *arguments) as processes:
        ended = processes.ended(400.0)
    assert [status for status, *_ in ended] == [0] * 4, ended
    assert "trying the checkpoint before it" not in ended[0][1]
    assert losses(run) == losses(unbroken)
    assert not list(run.glob("*.parts"))


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_evaluate_tasks_as_one(folder: Path) -> None:
    lines = [{"query": "one dog", "choices": ["saw a cat", "run"], "gold": number % 2} for number in range(7)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "talk.jsonl").write_text('{"context": ["the cat"], "references": ["sat on a mat"]}\n' * 3)
    kinds = {"mine": "multiple_choice", "talk": "dialogue"}
    tasks = [{"name": name, "file": f"{name}.jsonl", "kind": kind} for name, kind in kinds.items()]
    on = ["--eval", "--set", f"eval_tasks={json.dumps(tasks)}", "--set", "model_path=runs/alone"]
    alone = run_process(folder, *on, "--sacred_id", "1", "--log_samples")
    assert alone.returncode == 0, alone.stderr
    with together(folder, 2, *on, "--sacred_id", "2", "--log_samples") as processes:
        (status, out, error), second = processes.ended()
    assert status == 0, error
    assert second == (0, "", "")
    assert out[out.index("step ") :] == alone.stdout[alone.stdout.index("step ") :]
    for name in kinds:
        one, two = (
            [json.loads(line) for line in (folder / f"runs/alone/samples_{id}_{name}_{N_STEPS}.jsonl").open()]
            for id in (1, 2)
        )
        scores = [[record.pop("log_likelihoods", []) for record in records] for records in (one, two)]
        assert one == two and len(one) > 2
        np.testing.assert_allclose(*scores, rtol=1e-5)
