"""The processes of a run from flags and variables, and the errors when they cannot connect."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from commands.local_processes import free_ports
from configs.errors import UserError
from runtime.checkpoint.reader import latest_checkpoint
from runtime.cluster.heartbeat import CHECK_SECONDS, Heartbeat, Timeouts
from runtime.cluster.rendezvous import _check_machine, _check_port_is_free
from runtime.cluster.spec import Cluster, ClusterError, find_cluster, task_name
from tests.runtime.mesh.test_multi_process import last_lines, start

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import sys
from runtime.cluster.spec import Cluster
from runtime.cluster.rendezvous import connect
try:
    with connect(Cluster(tuple(sys.argv[1].split(",")), 0), wait_seconds=1.0):
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


# Flags.


def test_a_process_is_alone_by_default() -> None:
    assert find_cluster(None, None) is None
    assert find_cluster("a:2222", 0) is None


def test_hosts_of_flags() -> None:
    assert find_cluster("a:2222, 10.0.0.2:2223", 1) == Cluster(("a:2222", "10.0.0.2:2223"), 1)


@pytest.mark.parametrize(
    ("hosts", "host_index", "message"),
    [
        (
            "a:1,b:1",
            None,
            "--hosts: is given without --host_index; give both, as --hosts a:2222,b:2222 --host_index 0",
        ),
        (None, 1, "--host_index: is given without --hosts; give both, as --hosts a:2222,b:2222 --host_index 0"),
        (
            "a:1,b",
            0,
            "--hosts a:1,b --host_index 0: 'b' is not a name and a port; give each process as "
            "host:2222, separated by commas",
        ),
        (
            "a:1,b:0",
            0,
            "--hosts a:1,b:0 --host_index 0: 'b:0' is not a name and a port; give each process as "
            "host:2222, separated by commas",
        ),
        (
            "a:1,a:1",
            0,
            "--hosts a:1,a:1 --host_index 0: a:1 is given twice; give each process its own port",
        ),
        (
            "a:1,b:1",
            2,
            "--hosts a:1,b:1 --host_index 2: there is no process 2 among 2; count from 0 to 1",
        ),
    ],
)
def test_hosts_that_form_no_cluster_are_refused(hosts: str | None, host_index: int | None, message: str) -> None:
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
def test_a_tf_config_of_one_process_is_alone(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    set_tf_config(monkeypatch, text)
    assert find_cluster(None, None) is None


def test_the_command_line_comes_before_tf_config(monkeypatch: pytest.MonkeyPatch) -> None:
    set_tf_config(monkeypatch, {"cluster": WORKERS, "task": {"type": "worker", "index": 1}})
    assert find_cluster("x:1,y:1", 0) == Cluster(("x:1", "y:1"), 0)


@pytest.mark.parametrize(
    "text", ["{", "3", "[]", '{"cluster": 3}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}']
)
def test_a_malformed_tf_config_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    set_tf_config(monkeypatch, text)
    message = refusal()
    assert message.startswith(f"TF_CONFIG = {text}: cannot be read: ")
    assert message.endswith(
        '; write it as {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
    )


@pytest.mark.parametrize(
    ("jobs", "job", "index", "message"),
    [
        (WORKERS, "worker", 2, "TF_CONFIG: there is no worker 2 among 2; index counts from 0 within a job"),
        (WORKERS, "chief", 0, "TF_CONFIG: there is no chief 0 among 0; index counts from 0 within a job"),
        ({**WORKERS, "ps": ["c:1"]}, "worker", 0, "TF_CONFIG: unknown job ps; all processes train"),
        (WORKERS, "evaluator", 0, "TF_CONFIG: unknown job evaluator; all processes train"),
        ({"worker": ["a:1", "b"]}, "worker", 0, "TF_CONFIG: 'b' is not a name and a port"),
    ],
)
def test_a_tf_config_that_forms_no_cluster_is_refused(
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
    assert find_cluster(None, None) == Cluster(("node01:10000", "node01:10001", "node02:10000"), 2)


def slurm_ports(monkeypatch: pytest.MonkeyPatch, job: int, step: int, n_tasks: int) -> set[str]:
    count = str(n_tasks)
    set_slurm(monkeypatch, PROCID="0", STEP_NUM_TASKS=count, STEP_NODELIST="n", STEP_TASKS_PER_NODE=count)
    set_slurm(monkeypatch, JOB_ID=str(job), STEP_ID=str(step))
    return {host.rpartition(":")[2] for host in find_cluster(None, None).hosts}


@pytest.mark.parametrize("job", [1, 708, 709, 4_294_901_760])
@pytest.mark.parametrize(("n_tasks", "n_jobs"), [(8, 50), (32, 50), (33, 50), (128, 25), (256, 10)])
def test_slurm_jobs_and_steps_that_share_a_machine_have_their_own_ports(
    monkeypatch: pytest.MonkeyPatch, job: int, n_tasks: int, n_jobs: int
) -> None:
    steps = [(job + after, step) for after in range(n_jobs) for step in range(3)]
    ports = [slurm_ports(monkeypatch, *step, n_tasks) for step in steps]
    assert len(set().union(*ports)) == sum(map(len, ports)) == n_tasks * n_jobs * 3
    assert all(10_000 <= int(port) < 32_768 for port in set().union(*ports))


def test_the_ports_that_slurm_has_reserved_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, STEP_RESV_PORTS="12000,12003-12005")
    assert slurm_ports(monkeypatch, 5, 0, 4) == {"12000", "12003", "12004", "12005"}
    assert len(slurm_ports(monkeypatch, 5, 0, 5) & {"12000", "12003", "12004", "12005"}) == 0  # too few


def test_one_task_of_slurm_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, PROCID="0", STEP_NUM_TASKS="1", STEP_NODELIST="node01", STEP_TASKS_PER_NODE="1")
    assert find_cluster(None, None) is None


@pytest.mark.parametrize(
    ("machines", "tasks", "hosts"),
    [
        ("n[9-10]", "1(x2)", "n9:10000,n10:10000"),  # in the order of Slurm, which is not that of text
        ("n10,n9", "1,2", "n10:10000,n9:10000,n9:10001"),
        ("n[1,08-10],m", "1(x3),2,1", "n1:10000,n08:10000,n09:10000,n10:10000,n10:10001,m:10000"),
        ("r[1-2]n[1-2]x", "1(x4)", "r1n1x:10000,r1n2x:10000,r2n1x:10000,r2n2x:10000"),
    ],
)
def test_machines_of_slurm(monkeypatch: pytest.MonkeyPatch, machines: str, tasks: str, hosts: str) -> None:
    expected = tuple(hosts.split(","))
    n_tasks = str(len(expected))
    set_slurm(monkeypatch, PROCID="1", STEP_NUM_TASKS=n_tasks, STEP_NODELIST=machines, STEP_TASKS_PER_NODE=tasks)
    assert find_cluster(None, None) == Cluster(expected, 1)


def test_slurm_tasks_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch, PROCID="1", STEP_NUM_TASKS="4", STEP_NODELIST="n[1-2]", STEP_TASKS_PER_NODE="2(x2)")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert find_cluster(None, None) == Cluster(("n1:10000", "n1:10001", "n2:10000", "n2:10001"), 1)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    assert refusal() == (
        "Slurm: task 1 of 4 is not on the machine that a block distribution gives it; start the processes "
        "with srun --distribution=block, or give --hosts and --host_index"
    )


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({}, "KeyError: 'SLURM_PROCID'"),
        ({"PROCID": "0"}, "KeyError: 'SLURM_STEP_NODELIST'"),
        ({"PROCID": "x"}, "ValueError: invalid literal for int() with base 10: 'x'"),
        (
            {"PROCID": "0", "STEP_NODELIST": "n[1-x]", "STEP_TASKS_PER_NODE": "3"},
            "ValueError: invalid literal for int() with base 10: 'x'",
        ),
    ],
)
def test_malformed_slurm_variables_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], error: str
) -> None:
    set_slurm(monkeypatch, STEP_NUM_TASKS="3", **variables)
    assert refusal() == (
        f"Slurm: its variables cannot be read: {error}; start the processes with srun, or give --hosts and --host_index"
    )


# Connecting.


def test_a_port_in_use() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError) as error:
            _check_port_is_free(f"here:{port}")
    assert str(error.value) == (
        f"here:{port}: port {port} cannot be used on this machine: Address already in use; end the process that "
        "uses it, or give another port"
    )
    _check_port_is_free(f"here:{port}")


@pytest.mark.parametrize("here", ["127.0.0.1:2222", "localhost:2222"])
def test_an_index_of_another_machine(here: str) -> None:
    with pytest.raises(ClusterError) as error:
        _check_machine(Cluster(("192.0.2.1:2222", here), 0))
    assert str(error.value) == (
        f"{here}: process 1 is on this machine, where process 0 (192.0.2.1:2222) was started with the same port; "
        "start each process on its own machine, or give each its own port"
    )


@pytest.mark.parametrize("other", ["127.0.0.1:2223", "192.0.2.1:2222", "nowhere.invalid:2222"])
def test_processes_that_are_elsewhere(other: str) -> None:
    _check_machine(Cluster(("127.0.0.1:2222", other), 0))


@pytest.mark.slow
@pytest.mark.processes
def test_a_process_that_never_starts() -> None:
    own, missing = (f"127.0.0.1:{port}" for port in free_ports(2))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{own},{missing}"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.stdout == (
        f"PeerLostError {missing}: not there after 1 s; start the same command there with its own --host_index, "
        "give a longer --wait_seconds, and check that no firewall blocks this machine\n"
    )


# Hanging.


def round_of_timeout(n_rounds: int, *processes: Callable[[int], Heartbeat]) -> tuple[int, int] | None:
    """The round in which a process times out, and its index; each process maps the round to its heartbeat."""
    timeouts = Timeouts(len(processes))
    for number in range(n_rounds):
        hanging = timeouts.expired([dataclasses.astuple(process(number)) for process in processes])
        if hanging is not None:
            return number, hanging
    return None


def ahead(number: int) -> Heartbeat:
    return Heartbeat(7, 0, 30)


@pytest.mark.parametrize("timeout_seconds", [5, 30, 31, 600])
def test_a_process_that_others_wait_for_hangs_after_its_timeout(timeout_seconds: int) -> None:
    number, hanging = round_of_timeout(200, ahead, lambda number: Heartbeat(6, 3, timeout_seconds))
    assert hanging == 1
    assert timeout_seconds < number * CHECK_SECONDS <= timeout_seconds + CHECK_SECONDS


@pytest.mark.parametrize(
    "heartbeat",
    [
        lambda number: Heartbeat(7, 0, 30),  # both wait, or work, side by side
        lambda number: Heartbeat(6, number, 30),
        lambda number: Heartbeat(6, number // 7, 30),
        lambda number: Heartbeat(6, 0, 0),
    ],
)
def test_a_process_that_makes_progress_does_not_hang(heartbeat: Callable[[int], Heartbeat]) -> None:
    assert round_of_timeout(200, ahead, heartbeat) is None


def test_each_sign_of_progress_restarts_the_timeout() -> None:
    number, hanging = round_of_timeout(200, lambda number: Heartbeat(6, min(number, 50), 30), ahead)
    assert (number, hanging) == (57, 0)


def in_others(lost: int, processes: Sequence[subprocess.Popen], message: str) -> dict[int, str]:
    """What the other processes should print: the message with {host} and {own}."""
    host = processes[0].args[3].split(",")[lost]
    return {own: message.format(host=host, own=own) for own in range(len(processes)) if own != lost}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(("n_processes", "lost"), [(2, 0), (4, 2)])
def test_a_process_that_hangs_ends_all_and_says_where(tmp_path: Path, n_processes: int, lost: int) -> None:
    processes = start(n_processes, tmp_path, "forever")
    assert last_lines(processes, lost, signal.SIGUSR1) == in_others(
        lost,
        processes,
        f"process {lost} ({{host}}): hangs: the others wait for it, and it makes no progress, so this process ({{own}})"
        " ends too; see the stack that it prints, then restart all processes: they resume from the last checkpoint",
    )
    output = processes[lost].stdout.read()
    assert "and it makes no progress; it is this process, which ends here:\n" in output
    assert output.splitlines()[-3].endswith("in hang_in_python")


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_whose_python_is_blocked_ends_all(tmp_path: Path, lost: int) -> None:
    processes = start(2, tmp_path, "forever")
    assert last_lines(processes, lost, signal.SIGUSR2) == in_others(
        lost,
        processes,
        f"process {lost} ({{host}}): hangs outside Python, so this process ({{own}}) ends too; see which process "
        "prints its stack, kill it, then restart all processes: they resume from the last checkpoint",
    )
    assert " in hang_with_python\n" in processes[lost].stdout.read()


# Signals.


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("signalled", [[0], [1], [0, 1]])
def test_a_signal_to_any_process_stops_all_at_one_step(tmp_path: Path, signalled: Sequence[int]) -> None:
    processes = start(2, tmp_path, "until_stopped")
    try:
        for process in processes:
            assert any(line.startswith("step 2") for line in process.stdout)
        for index in signalled:
            processes[index].send_signal(signal.SIGTERM)
        output = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(output)) == 1
    verb, number = output[0].split()
    assert verb == "saved"
    assert latest_checkpoint(f"{tmp_path}/stopped").endswith(f"model.ckpt-{number}")


# More than ten.


def test_the_names_of_processes_sort_like_their_numbers() -> None:
    names = [task_name(index) for index in range(4_096)]
    assert sorted(names) == names


@pytest.mark.slow
@pytest.mark.processes
def test_slices_of_twelve_processes_come_in_their_order(tmp_path: Path) -> None:
    processes = start(12, tmp_path, "ordered")
    try:
        output = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * 12, "\n".join(text[-500:] for text in output)
    numbers = np.arange(144, dtype=np.float32).reshape(12, 12)
    for index in range(12):
        results = np.load(tmp_path / f"{index}.npz")
        np.testing.assert_array_equal(results["ordered/gathered"], numbers)
        np.testing.assert_array_equal(results["ordered/exchanged"], numbers)
        np.testing.assert_array_equal(results["ordered/summed"], numbers.sum(0))


@pytest.mark.parametrize(
    "hosts", ["a:1 b:1", "a:1;b:1", "http://a:1,b:1", "user@a:1,b:1", "a/b:1,c:1", "a:1:2,b:1", "a:1,A:1", "a:1,a:01"]
)
def test_impossible_or_equal_hosts_are_refused(hosts: str) -> None:
    with pytest.raises(ClusterError, match="is not a name and a port|is given twice"):
        find_cluster(hosts, 0)


def test_hosts_by_address() -> None:
    assert find_cluster("[::1]:2222,10.0.0.2:2222,n-1.cluster_a:3", 1).hosts[0] == "[::1]:2222"


@pytest.mark.parametrize(
    "workers", [None, [1, 2], [["a:1"], ["b:2"]], "a:1,b:2"], ids=["null", "numbers", "lists", "text"]
)
def test_tf_config_workers_must_be_a_list_of_strings(monkeypatch: pytest.MonkeyPatch, workers: object) -> None:
    set_tf_config(monkeypatch, {"cluster": {"worker": workers}, "task": {"type": "worker", "index": 0}})
    if workers is None:
        assert find_cluster(None, None) is None
        return
    with pytest.raises(ClusterError, match="TF_CONFIG = .*: cannot be read: TypeError: the hosts of worker are not"):
        find_cluster(None, None)


def test_jobs_of_tf_config_without_processes_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {"worker": ["a:1", "b:1"], "ps": []}
    set_tf_config(monkeypatch, {"cluster": jobs, "task": {"type": "worker", "index": 1}})
    assert find_cluster(None, None) == Cluster(("a:1", "b:1"), 1)
    set_tf_config(monkeypatch, {"cluster": jobs, "task": {"type": "worker", "index": 1.7}})
    with pytest.raises(ClusterError, match="cannot be read: ValueError"):
        find_cluster(None, None)


@pytest.mark.parametrize("n_tasks", ["", "x"])
def test_an_invalid_number_of_slurm_tasks_is_refused(monkeypatch: pytest.MonkeyPatch, n_tasks: str) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", n_tasks)
    if not n_tasks:
        assert find_cluster(None, None) is None
        return
    with pytest.raises(ClusterError, match="Slurm: its variables cannot be read"):
        find_cluster(None, None)
