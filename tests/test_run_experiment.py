"""The program from the command line: main.py under supervision, and the errors of wrong command lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.load import load_config, resolved_json
from run_experiment import is_first_process, main, parse_arguments
from runtime.run.metrics import read_metrics
from tests.program import ENVIRONMENT, REPOSITORY, count_lines, write_project
from tracking.record.store import Run, list_runs, series_of

PROGRAM = [sys.executable, str(REPOSITORY / "run_experiment.py"), "--model", "tiny.json"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.delenv("MONGO_URL", raising=False)
    return project


def changes(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "MONGO_URL"}
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest(folder: Path) -> Run:
    return list_runs(folder / "experiments")[-1]


def recorded_losses(run: Run) -> list[tuple[int, float]]:
    series = series_of(run.lines())["train.loss"]
    return list(zip(series.steps, series.values, strict=True))


def losses(folder: Path, model_path: str) -> list[tuple[int, float]]:
    lines = read_metrics(str(folder / model_path))
    return [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]


def test_a_training_run_is_recorded_completely(project: Path) -> None:
    settings = changes(model_path="runs/whole", train_steps=40, predict_steps=1, predict_max_steps=4, eval_steps=2)
    process = start(project, *settings, "--experiment_name", "trial", "--steps_per_checkpoint", "20", "--autostack")
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    run = newest(project)
    assert process.returncode == 0, err
    assert out.endswith("trained to step 40; checkpoints, metrics and loss.png are in runs/whole\n")
    printed = [line for line in err.splitlines() if not line.startswith("step ")]
    assert printed == [
        "--autostack has no effect: variables keep their names",
        f"run {run.id}: recorded in experiments/{run.id}",
        f"run {run.id}: COMPLETED: finished",
    ]
    assert (run.name, run.status, run.info["step"], run.info["restarts"]) == ("trial", "COMPLETED", 40, [])
    assert recorded_losses(run) == losses(project, "runs/whole") and len(recorded_losses(run)) == 40
    assert series_of(run.lines())["eval.loss"].steps.tolist() == [20, 40]
    samples = {f"predictions_{run.id}_{step}.txt" for step in (20, 40)}
    assert {path.name for path in run.artifacts} == {"loss.png", *samples}
    for path in run.artifacts:
        assert path.read_bytes() == (project / "runs" / "whole" / path.name).read_bytes()
    assert run.config == json.loads(resolved_json(load_config(str(project / "tiny.json"), settings[1::2])))
    assert any(name.endswith("tiny.json") for name, _ in run.entry["experiment"]["sources"])


@pytest.mark.slow
@pytest.mark.processes
def test_ctrl_c_writes_a_checkpoint_and_the_same_command_resumes(project: Path) -> None:
    settings = changes(model_path="runs/broken", train_steps=3000)
    process = start(project, *settings)
    try:
        while process.poll() is None and count_lines(project / "runs/broken/metrics.jsonl") < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    run = newest(project)
    reached = run.info["step"]
    assert (process.returncode, run.status) == (130, "INTERRUPTED"), err
    stopped = f"stopped at step {reached}; the checkpoint is saved: run the same command again to resume"
    assert run.info["reason"] == f"stopped by SIGINT: {stopped}" and out.splitlines()[-1] == stopped
    assert recorded_losses(run) == losses(project, "runs/broken")
    go_on = start(project, *settings[:-1], f"train_steps={reached + 5}")
    try:
        assert go_on.communicate(timeout=200)[0].count(f"restored runs/broken/model.ckpt-{reached}\n") == 1
    finally:
        go_on.kill()
    assert [step for step, _ in recorded_losses(newest(project))] == list(range(reached + 1, reached + 6))


@pytest.mark.slow
@pytest.mark.processes
def test_a_closed_pipe_does_not_end_the_run(project: Path) -> None:
    """As with `| head`: the run continues, and is recorded completely."""
    process = start(project, *changes(model_path="runs/unread", train_steps=60))
    try:
        process.stdout.close()
        process.stderr.close()
        assert process.wait(200) == 0
    finally:
        process.kill()
    assert newest(project).status == "COMPLETED"
    assert recorded_losses(newest(project)) == losses(project, "runs/unread")


REFUSALS = {
    "a typo in a key": (
        ["--set", "lerning_rate=1"],
        "--set: lerning_rate = 1: is not a known key; remove it; docs/configuration.md lists the keys",
    ),
    "a number of one's own": (["--sacred_id", "7"], "--sacred_id: is set to the number of the run; leave it out"),
    "a heartbeat before now": (
        ["--heartbeat_timeout", "-1"],
        "--heartbeat_timeout -1.0: is not a number of at least 0; give one",
    ),
    "no number": (["--grace", "nan"], "--grace nan: is not a number of at least 0; give one"),
    "a server": (
        ["--serve", "0"],
        "--serve: runs until it is stopped, and cannot be recorded; use main.py",
    ),
    "a talk": (
        ["--interactive"],
        "--interactive: runs until it is stopped, and cannot be recorded; use main.py",
    ),
    "prompts that come once": (
        ["--predict", "--prompt", "-"],
        "--prompt -: would be empty after a restart; give a file",
    ),
    "recreate what": (
        ["--recreate_command", "true"],
        "--recreate_command: is for TPUs; give --tpu too, or leave it out",
    ),
    "another database": (
        ["--mongo", "http://me:secret@host"],
        "--mongo host: is not the URL of a MongoDB: Invalid URI scheme: URI must begin with 'mongodb://' or "
        "'mongodb+srv://'; write it as mongodb://NAME:PASSWORD@HOST:27017/DATABASE",
    ),
    "sync and train": (["--sync", "1"], "--sync: cannot be combined with flags of main.py; leave out --model"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_one_message_status_2_and_nothing_recorded(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, message = REFUSALS[case]
    before = sorted(here.rglob("*"))
    assert main(["--model", "tiny.json", *arguments]) == 2
    assert capsys.readouterr() == ("", f"{message}\n")
    assert sorted(here.rglob("*")) == before


def test_an_unknown_flag(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--model", "tiny.json", "--nonsense"])
    assert end.value.code == 2 and "unrecognized arguments: --nonsense" in capsys.readouterr().err


def test_new_cannot_be_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    """A restart drops exactly this word."""
    with pytest.raises(SystemExit):
        main(["--model", "tiny.json", "--ne"])
    assert "ambiguous option: --ne could match --new, --never_end" in capsys.readouterr().err


def test_flags_are_split_between_the_programs() -> None:
    line = (
        "--tpu t --model m --experiment_name e --steps_per_checkpoint 7 --new --no_delete_tpu --gpu_ids a b --set c=d"
    )
    line += " --initial_heartbeat_timeout 5 --heartbeat_timeout 6 --max_restarts 3 --recreate_command 'a b'"
    own, others = parse_arguments(line.replace("'a b'", "a").split())
    assert (own.experiment_name, own.initial_heartbeat_timeout, own.heartbeat_timeout, own.max_restarts) == (
        "e",
        5,
        6,
        3,
    )
    assert " ".join(others) == "--tpu t --model m --steps_per_checkpoint 7 --new --gpu_ids a b --set c=d"


CHIEF = {"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}}
WORKERS = {"cluster": {"worker": ["b:1", "c:1"]}}


@pytest.mark.parametrize(
    ("host_index", "environment", "expected"),
    [
        (None, {}, True),
        (0, {}, True),
        (1, {}, False),
        (None, {"SLURM_PROCID": "0"}, True),
        (None, {"SLURM_PROCID": "3"}, False),
        (None, {"TF_CONFIG": "{"}, True),
        (None, {"TF_CONFIG": json.dumps({**WORKERS, "task": {"type": "worker", "index": 0}})}, True),
        (None, {"TF_CONFIG": json.dumps({**WORKERS, "task": {"type": "worker", "index": 1}})}, False),
        (None, {"TF_CONFIG": json.dumps({**CHIEF, "task": {"type": "worker", "index": 0}})}, False),
        (None, {"TF_CONFIG": json.dumps({**CHIEF, "task": {"type": "chief", "index": 0}})}, True),
    ],
)
def test_only_the_first_process_of_many_writes_metrics(
    host_index: int | None, environment: dict[str, str], expected: bool
) -> None:
    assert is_first_process(host_index, environment) == expected


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def child_of(process: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.slow
@pytest.mark.processes
def test_one_of_two_processes_is_killed_and_both_resume(project: Path) -> None:
    settings = changes(mesh_shape="all:2", layout="batch:all", train_steps=600, model_path="runs/two")
    hosts = ("--hosts", f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}", "--store", "experiments_of_two")
    quick = ("--steps_per_checkpoint", "50", "--backoff", "1")
    processes = [start(project, *settings, *hosts, *quick, "--host_index", str(index)) for index in range(2)]
    try:
        while all(p.poll() is None for p in processes) and count_lines(project / "runs/two/metrics.jsonl") < 70:
            time.sleep(0.05)
        os.kill(child_of(processes[1]), signal.SIGKILL)
        printed = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    (run,) = list_runs(project / "experiments_of_two")
    (other,) = list_runs(project / "experiments_of_two" / "other_processes")
    assert (run.status, other.status) == ("COMPLETED", "COMPLETED")
    assert run.info["restarts"][0]["reason"].startswith("another process of the cluster was lost: process 1 ")
    assert other.info["restarts"][0]["reason"].startswith("main.py was killed by SIGKILL: ")
    assert [step for step, _ in recorded_losses(run)] == list(range(1, 601))
