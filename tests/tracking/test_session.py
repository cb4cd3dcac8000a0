"""Whole experiments on a real process that trains nothing but fails in every way."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import math
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import UserError
from tests.tracking.experiments import INTERRUPT, Done, Experiments, meanwhile, run_many_at_once, signal_self, until
from tracking.record import recorder
from tracking.record.store import Series, series_of
from tracking.supervise.exit_policy import RestartPolicy


@pytest.fixture
def here(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path)


def series(done: Done, name: str = "train.loss") -> Series:
    return series_of(done.run.lines())[name]


def restart_reasons(done: Done) -> list[str]:
    return [restart["reason"] for restart in done.run.info["restarts"]]


def test_an_incomplete_record_is_reported(here: Experiments) -> None:
    stands_in_the_way = here.store / "1" / "metrics.json"
    with meanwhile(lambda: until((here.store / "1" / "run.json").exists), stands_in_the_way.mkdir):
        done = here.run("--seconds_per_step", "0.05")
    assert (done.status, done.run.status) == (0, "COMPLETED")
    assert done.messages[-1] == (
        f"run 1: its record in {done.run.folder} is incomplete, as reported; the metrics are also in "
        f"{here.folder / 'model'}"
    )
    assert ": cannot be recorded now; the run continues, and this is retried" in done.messages[-3]


def test_nothing_is_recorded_where_another_process_trains(here: Experiments) -> None:
    """The metrics of that process would be recorded as those of this run."""
    (here.folder / "model").mkdir()
    with (here.folder / "model" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"^model_path = {here.folder}/model: another process trains here; "):
            here.run()
    assert not here.store.exists()
    assert here.run().status == 0


def test_a_run_is_recorded_completely(here: Experiments, capfd: pytest.CaptureFixture[str]) -> None:
    done = here.run()
    run, captured = done.run, capfd.readouterr()
    assert (done.status, run.id, run.name, run.status) == (0, 1, "trial", "COMPLETED")
    assert done.messages == [f"run 1: recorded in {run.folder}", "run 1: COMPLETED: finished"]
    assert series(done).steps.tolist() == list(range(1, 21))
    assert series(done).values[:3].tolist() == [10.0, 5.0, 10 / 3] and math.isnan(series(done).values[12])
    assert series(done, "eval.loss").steps.tolist() == [5, 10, 15, 20]
    assert (run.info["step"], run.info["latest"]["eval"]) == (20, {"loss": 0.55, "step": 20})
    assert (run.config, run.info["reason"]) == ({"lr": 0.1, "a.b": {"$c": 2**70}}, "finished")
    assert (
        "--sacred_id', '1'" in captured.out
        and captured.out.endswith("trained to step 20\n")
        and "step 20/20" in captured.err
    )
    assert sorted(run.output(10**6)) == sorted(captured.out + captured.err)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_samples_and_plots_are_artifacts(here: Experiments, suffix: str) -> None:
    run = here.run("--ending", suffix).run
    names = {"loss.png", *(f"predictions_1_{step}{suffix}" for step in (5, 10, 15, 20))}
    assert {path.name for path in run.artifacts} == names and len(run.artifacts) == len(names)
    assert (run.folder / f"predictions_1_15{suffix}").read_text() == "sample 15"


def test_files_are_strict_json(here: Experiments) -> None:
    run = here.run("--steps", "13").run

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for name in ("run.json", "config.json", "info.json"):
        json.loads((run.folder / name).read_text(), parse_constant=refuse)
    assert run.info["latest"]["train"]["loss"] == "nan"


def test_metrics_are_also_written_in_sacreds_layout(here: Experiments) -> None:
    run = here.run("--steps", "7").run
    metric = json.loads((run.folder / "metrics.json").read_text())["train.loss"]
    assert metric["steps"] == list(range(1, 8)) and metric["values"][1] == 5.0
    assert metric["timestamps"][0] > run.entry["start_time"] and len(metric["timestamps"]) == 7


def test_a_second_run_in_the_same_folder_records_only_its_own_metrics(here: Experiments) -> None:
    here.run("--steps", "12")
    done = here.run("--steps", "17")
    assert (done.run.id, series(done).steps.tolist()) == (2, [13, 14, 15, 16, 17])
    assert {path.name for path in done.run.artifacts} == {"loss.png", "predictions_2_15.txt"}


def test_concurrent_runs_have_different_numbers(here: Experiments) -> None:
    run_many_at_once(here, 10)
    assert [run.id for run in here.runs()] == list(range(1, 11))
    assert {run.info["model_path"] for run in here.runs()} == {str(here.folder / f"m{n}") for n in range(10)}
    for run in here.runs():
        assert series_of(run.lines())["train.loss"].steps.tolist() == list(range(1, 21))


def test_a_folder_that_cannot_be_written(here: Experiments) -> None:
    (here.folder / "experiments").write_text("a file")
    with pytest.raises(UserError, match="--store .*experiments: cannot be written: .*; make room there, or give"):
        here.run()
    assert not (here.folder / "model").exists()


def test_a_full_disk_does_not_end_the_run(here: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record's folder becomes unwritable for a while: what was not written is written later."""
    monkeypatch.setattr(recorder, "HEARTBEAT_SECONDS", 0.1)
    run = here.store / "1"

    def break_and_repair() -> None:
        until(lambda: len(here.lines()) > 5)
        run.rename(here.store / "away")
        until(lambda: len(here.lines()) > 25)
        (here.store / "away").rename(run)

    with meanwhile(break_and_repair):
        done = here.run("--steps", "40", "--seconds_per_step", "0.05")
    assert done.status == 0 and any("cannot be recorded now; the run continues" in line for line in done.messages)
    assert series(done).steps.tolist() == list(range(1, 41))


def test_a_line_that_a_full_disk_cut_off_is_rewritten(here: Experiments) -> None:
    def tear() -> None:
        until(lambda: (here.store / "1" / "metrics.jsonl").exists() and len(here.lines()) > 5)
        with (here.store / "1" / "metrics.jsonl").open("ab") as file:
            file.write(b'{"torn": ')

    with meanwhile(tear):
        done = here.run("--steps", "40", "--seconds_per_step", "0.02")
    assert (done.run.folder / "metrics.jsonl").read_bytes() == (here.folder / "model" / "metrics.jsonl").read_bytes()


def test_a_crash_is_survived_and_no_step_recorded_twice(here: Experiments) -> None:
    done = here.run("--fail", "crash:13:1")
    assert (done.status, done.run.status, len(done.run.info["restarts"])) == (0, "COMPLETED", 1)
    reason = "main.py crashed with exit status 1: RuntimeError: something broke"
    assert restart_reasons(done) == [reason]
    assert done.messages[1:] == [f"{reason}; restart 1 in 0 s", "run 1: COMPLETED after 1 restart: finished"]
    assert series(done).steps.tolist() == list(range(1, 21))
    assert series(done, "train.start").values.tolist() == [1.0] * 10 + [2.0] * 10
    assert series(done, "eval.loss").steps.tolist() == [5, 10, 15, 20]


def test_a_lost_process_of_a_cluster(here: Experiments) -> None:
    done = here.run("--fail", "crash:13:2", "--status", "3")
    reason = "another process of the cluster was lost: RuntimeError: something broke"
    assert (done.status, restart_reasons(done)) == (0, [reason] * 2)


def test_five_crashes_at_the_start_are_enough(here: Experiments) -> None:
    done = here.run("--fail", "crash:0:99")
    reason = "main.py crashed with exit status 1: RuntimeError: something broke"
    assert (done.status, done.run.status, len(done.run.info["restarts"])) == (1, "FAILED", 4)
    assert done.run.info["reason"] == f"{reason}; gave up after 5 starts without a new step"
    assert done.run.entry["fail_trace"][0] == done.run.info["reason"]
    assert "RuntimeError: something broke" in done.run.entry["fail_trace"][1:]
    assert (here.folder / "model.starts").read_text() == "x" * 5


def test_repeated_crashes_at_the_same_step_are_not_progress(here: Experiments) -> None:
    done = here.run("--fail", "crash:13:99")
    assert (done.run.status, len(done.run.info["restarts"])) == ("FAILED", 5)
    assert series(done).steps.tolist() == list(range(1, 14))


def test_restarts_have_a_limit(here: Experiments) -> None:
    policy = dataclasses.replace(here.policy, max_restarts=2)
    done = dataclasses.replace(here, policy=policy).run("--fail", "crash:13:99")
    assert done.run.info["reason"].endswith("; gave up after 2 restarts")


def test_an_error_that_the_user_can_fix_is_not_retried(here: Experiments) -> None:
    here.run("--steps", "5")
    done = here.run("--fail", "crash:0:99", "--status", "2")
    assert (done.status, done.run.status, done.run.info["restarts"]) == (2, "FAILED", [])
    assert (done.run.lines(), done.run.artifacts) == ([], [])
    assert done.run.info["reason"] == "main.py refused its input: RuntimeError: something broke"


def test_killed_as_by_the_kernel(here: Experiments) -> None:
    done = here.run("--fail", "die:13:1")
    assert (done.status, series(done).steps.tolist()) == (0, list(range(1, 21)))
    (reason,) = restart_reasons(done)
    assert reason.startswith("main.py was killed by SIGKILL: out of memory? ")


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 96 MiB, below that of this process."""
    (own,) = [
        line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line
    ] or [""]
    group = Path(f"/sys/fs/cgroup/memory/{own}/trial-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(96 << 20))
        yield group
    finally:
        group.rmdir()


@pytest.mark.slow
@pytest.mark.processes
def test_killed_by_the_kernel_for_memory(here: Experiments, small_group: Path) -> None:
    done = here.run("--fail", "eat:13:1", "--group", str(small_group))
    assert (done.status, series(done).steps.tolist()) == (0, list(range(1, 21)))
    (reason,) = restart_reasons(done)
    assert reason.startswith("main.py was killed by SIGKILL: out of memory: the kernel has killed a process for it")


@pytest.mark.parametrize("deaf", [[], ["--deaf"]], ids=["listening", "deaf"])
def test_a_hung_child_is_restarted(here: Experiments, deaf: list[str]) -> None:
    policy = RestartPolicy(first_step_seconds=20.0, step_seconds=1.0, grace_seconds=0.5, backoff_seconds=0.01)
    done = dataclasses.replace(here, policy=policy).run("--fail", "hang:13:1", *deaf)
    assert (done.status, restart_reasons(done)) == (0, ["no new step for 1 s since step 13"])
    assert series(done).steps.tolist() == list(range(1, 21))


def test_the_step_of_a_hang_is_the_last_measured_or_printed(here: Experiments) -> None:
    """Progress is printed only now and then."""
    policy = RestartPolicy(first_step_seconds=20.0, step_seconds=1.0, grace_seconds=0.5, backoff_seconds=0.01)
    done = dataclasses.replace(here, policy=policy).run("--fail", "hang:12:2", "--shown", "2")
    assert restart_reasons(done) == ["no new step for 1 s since step 12"] * 2


def test_a_child_that_always_hangs_at_the_start(here: Experiments) -> None:
    policy = RestartPolicy(first_step_seconds=0.3, step_seconds=20.0, grace_seconds=0.1, backoff_seconds=0.01)
    done = dataclasses.replace(here, policy=policy).run("--fail", "hang:0:99")
    assert (done.status, done.run.status) == (1, "TIMEOUT")
    assert done.run.info["reason"].startswith("no new step for 0 s since it was started; gave up after 5 starts")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_stopped_with_a_checkpoint(here: Experiments, number: int, status: int) -> None:
    with meanwhile(lambda: until(lambda: len(here.lines()) > 5), functools.partial(signal_self, number)):
        done = here.run("--steps", "10000", "--seconds_per_step", "0.01")
    last_step = series(done).steps[-1]
    assert (done.status, done.run.status) == (status, "INTERRUPTED")
    name = signal.Signals(number).name
    assert done.run.info["reason"] == f"stopped by {name}: stopped at step {last_step}; the checkpoint is saved"
    assert (here.folder / "model" / "checkpoint").read_text() == str(last_step)
    assert signal.getsignal(number) == (signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def test_a_second_signal_kills_at_once(here: Experiments) -> None:
    steps = (lambda: until(lambda: len(here.lines()) > 5), INTERRUPT, lambda: until(lambda: len(here.lines()) > 20))
    policy = dataclasses.replace(here.policy, grace_seconds=600.0)
    with meanwhile(*steps, INTERRUPT):
        deaf = ("--steps", "10000", "--seconds_per_step", "0.02", "--deaf")
        done = dataclasses.replace(here, policy=policy).run(*deaf)
    assert (done.status, done.run.info["reason"]) == (
        130,
        "stopped by SIGINT and killed while still running",
    )


def test_a_child_stopped_from_outside_is_not_restarted(here: Experiments) -> None:
    def stop_child() -> None:
        until(lambda: len(here.lines()) > 5)
        (child,) = [
            int(path.name)
            for path in Path("/proc").iterdir()
            if path.name.isdecimal() and str(here.folder).encode() in _command_line(path)
        ]
        os.kill(child, signal.SIGTERM)

    with meanwhile(stop_child):
        done = here.run("--steps", "10000", "--seconds_per_step", "0.01")
    assert (done.status, done.run.status, done.run.info["restarts"]) == (143, "INTERRUPTED", [])
    assert done.run.info["reason"].startswith("main.py was stopped by SIGTERM from outside: stopped at step ")


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_stopped_between_two_starts(here: Experiments) -> None:
    policy = dataclasses.replace(here.policy, backoff_seconds=60.0)
    with meanwhile(lambda: until(lambda: any(run.info.get("restarts") for run in here.runs())), INTERRUPT):
        done = dataclasses.replace(here, policy=policy).run("--fail", "crash:13:1")
    assert (done.status, done.run.status) == (130, "INTERRUPTED")
    assert done.run.info["reason"].startswith("stopped by SIGINT between two starts; before: main.py crashed")


def test_new_is_passed_until_there_is_a_checkpoint(here: Experiments) -> None:
    here.run("--steps", "8")
    done = here.run("--new", "--fail", "crash:3:2")
    assert [("--new" in text, "--yes" in text) for text in _starts(done)] == [(True, False), (True, True)]
    done = here.run("--new", "--fail", "crash:13:4")
    assert [("--new" in text, "--yes" in text) for text in _starts(done)] == [(True, False), (False, False)]
    assert series(done).steps.tolist() == list(range(1, 21))


def _starts(done: Done) -> list[str]:
    return [line for line in done.run.output(10**6).splitlines() if line.startswith("arguments: ")]


def test_the_tpu_is_recreated_before_a_restart(here: Experiments) -> None:
    script = here.folder / "recreate"
    script.write_text(f"#!/bin/sh\necho recreated $1 >> {here.folder}/log\nexit 4\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    done = dataclasses.replace(here, recreate_command=(str(script), "a b; c")).run("--fail", "crash:13:2")
    assert (here.folder / "log").read_text() == "recreated a b; c\n" * 2
    assert f"--recreate_command: {script} 'a b; c'" in done.messages
    assert any(f"{script}: failed: has exit status 4; restarting the run anyway" in line for line in done.messages)
    assert done.run.status == "COMPLETED"
