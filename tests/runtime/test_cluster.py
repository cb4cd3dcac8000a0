"""Which processes there are, and what is said when they cannot meet."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from runtime.cluster import Cluster, ClusterError, _check_port_is_free, find_cluster

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import sys
from runtime.cluster import Cluster, joined
try:
    with joined(Cluster(tuple(sys.argv[1].split(",")), 0), wait_seconds=1.0):
        pass
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(autouse=True)
def no_cluster_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name == "TF_CONFIG" or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def refusal(hosts: str | None = None, host_index: int | None = None) -> str:
    with pytest.raises(ClusterError) as error:
        find_cluster(hosts, host_index)
    assert isinstance(error.value, UserError)
    return str(error.value)


# By hand.


def test_a_process_is_alone_unless_told_otherwise() -> None:
    assert find_cluster(None, None) is None
    assert find_cluster("a:2222", 0) is None


def test_hosts_by_hand() -> None:
    assert find_cluster("a:2222, 10.0.0.2:2223", 1) == Cluster(("a:2222", "10.0.0.2:2223"), 1)


@pytest.mark.parametrize(
    ("hosts", "host_index", "message"),
    [
        (
            "a:1,b:1",
            None,
            "--hosts -- is given without --host_index -- give both, as --hosts a:2222,b:2222 --host_index 0",
        ),
        (None, 1, "--host_index -- is given without --hosts -- give both, as --hosts a:2222,b:2222 --host_index 0"),
        (
            "a:1,b",
            0,
            "--hosts a:1,b --host_index 0 -- 'b' is not a name and a port -- give each process as host:2222",
        ),
        (
            "a:1,b:0",
            0,
            "--hosts a:1,b:0 --host_index 0 -- 'b:0' is not a name and a port -- give each process as host:2222",
        ),
        (
            "a:1,a:1",
            0,
            "--hosts a:1,a:1 --host_index 0 -- a:1 is there twice -- give each process a port of its own",
        ),
        (
            "a:1,b:1",
            2,
            "--hosts a:1,b:1 --host_index 2 -- there is no process 2 among 2 -- count from 0 to 1",
        ),
    ],
)
def test_hosts_that_are_no_cluster(hosts: str | None, host_index: int | None, message: str) -> None:
    assert refusal(hosts, host_index) == message


def test_processes_of_one_machine_are_counted() -> None:
    hosts = ("a:1", "b:1", "a:2", "b:2", "a:3")
    assert [Cluster(hosts, index).local_rank() for index in range(5)] == [0, 0, 1, 1, 2]


# TF_CONFIG.


def set_tf_config(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))


WORKERS = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("jobs", "job", "index", "cluster"),
    [
        (WORKERS, "worker", 1, Cluster(("a:1", "b:1"), 1)),
        (WORKERS, "worker", "1", Cluster(("a:1", "b:1"), 1)),
        ({**WORKERS, "chief": ["c:1"]}, "chief", 0, Cluster(("c:1", "a:1", "b:1"), 0)),
        ({**WORKERS, "chief": ["c:1"]}, "worker", 1, Cluster(("c:1", "a:1", "b:1"), 2)),
        ({"chief": ["c:1"]}, "chief", 0, None),
    ],
)
def test_tf_config(
    monkeypatch: pytest.MonkeyPatch, jobs: dict, job: str, index: int | str, cluster: Cluster | None
) -> None:
    set_tf_config(monkeypatch, {"cluster": jobs, "task": {"type": job, "index": index}})
    assert find_cluster(None, None) == cluster


@pytest.mark.parametrize("text", ["", "{}", '{"cluster": {}}'])
def test_tf_config_of_no_cluster(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    set_tf_config(monkeypatch, text)
    assert find_cluster(None, None) is None


def test_the_command_line_comes_before_tf_config(monkeypatch: pytest.MonkeyPatch) -> None:
    set_tf_config(monkeypatch, {"cluster": WORKERS, "task": {"type": "worker", "index": 1}})
    assert find_cluster("x:1,y:1", 0) == Cluster(("x:1", "y:1"), 0)


@pytest.mark.parametrize(
    "text", ["{", "3", "[]", '{"cluster": 3}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}']
)
def test_tf_config_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    set_tf_config(monkeypatch, text)
    message = refusal()
    assert message.startswith(f"TF_CONFIG = {text} -- cannot be read: ")
    assert message.endswith(
        '-- write it as {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
    )


@pytest.mark.parametrize(
    ("jobs", "job", "index", "message"),
    [
        (WORKERS, "worker", 2, "TF_CONFIG -- there is no worker 2 among 2 -- index counts from 0 within a job"),
        (WORKERS, "chief", 0, "TF_CONFIG -- there is no chief 0 among 0 -- index counts from 0 within a job"),
        ({**WORKERS, "ps": ["c:1"]}, "worker", 0, "TF_CONFIG -- has the job ps, which nothing is done by here"),
        (WORKERS, "evaluator", 0, "TF_CONFIG -- has the job evaluator, which nothing is done by here"),
        ({"worker": ["a:1", "b"]}, "worker", 0, "TF_CONFIG -- 'b' is not a name and a port"),
    ],
)
def test_tf_config_that_is_no_cluster(
    monkeypatch: pytest.MonkeyPatch, jobs: dict, job: str, index: int, message: str
) -> None:
    set_tf_config(monkeypatch, {"cluster": jobs, "task": {"type": job, "index": index}})
    assert refusal().startswith(message)


# Slurm.


def set_slurm(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, PROCID="2", STEP_NUM_TASKS="3", STEP_NODELIST="node[01-02]", STEP_TASKS_PER_NODE="2,1")
    assert find_cluster(None, None) == Cluster(("node01:2222", "node01:2223", "node02:2222"), 2)


def test_one_task_of_slurm_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, PROCID="0", STEP_NUM_TASKS="1", STEP_NODELIST="node01", STEP_TASKS_PER_NODE="1")
    assert find_cluster(None, None) is None


def test_slurm_without_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, STEP_NUM_TASKS="3")
    assert refusal() == (
        "Slurm -- its variables cannot be read: SLURM_PROCID not found in environment. Not running inside a SLURM "
        "step? -- start the processes with srun, or give --hosts and --host_index"
    )


# Meeting.


def test_a_port_in_use() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError) as error:
            _check_port_is_free(f"here:{port}")
    assert str(error.value) == (
        f"here:{port} -- port {port} cannot be used on this machine: Address already in use -- end the process that "
        "uses it, or give another port"
    )
    _check_port_is_free(f"here:{port}")


@pytest.mark.slow
def test_a_process_that_does_not_come() -> None:
    with socket.create_server(("", 0)) as first, socket.create_server(("", 0)) as second:
        own, missing = (f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{own},{missing}"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.stdout == (
        f"ClusterError {missing} -- not there after 1 s of waiting -- start the same command there with its own "
        "host_index, and see that a firewall lets this machine through\n"
    )
