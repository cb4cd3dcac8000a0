"""Processes on two machines, simulated by network namespaces, with a network between them that fails."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ADDRESSES = ("10.213.7.1", "10.213.7.2")
HOSTS = tuple(f"{address}:2222" for address in ADDRESSES)
UNUSED_ADDRESS = "02:00:00:00:00:99"
PROGRAM = """
import sys
from runtime.cluster.spec import Cluster, ClusterError
from runtime.cluster.rendezvous import connect
hosts, index, wait_seconds = sys.argv[1:]
try:
    with connect(Cluster(tuple(hosts.split(",")), int(index)), float(wait_seconds)):
        print("connected")
except ClusterError as error:
    print(error)
"""

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclasses.dataclass
class Network:
    """Two machines with a cable between them.

    Attributes:
        names: of the namespaces.
        processes: started on them.
    """

    names: tuple[str, str]
    processes: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    def start(self, machine: int, *arguments: str) -> subprocess.Popen:
        """Starts Python on a machine."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[machine], sys.executable, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def start_training(self, machine: int, folder: Path) -> subprocess.Popen:
        """Starts a process that trains until it is killed."""
        worker = ["-m", "tests.runtime.spmd_worker", ",".join(HOSTS), str(machine), str(folder), "forever"]
        return self.start(machine, *worker)

    def start_connecting(self, machine: int, hosts: Sequence[str], index: int, wait_seconds: float) -> subprocess.Popen:
        """Starts a process that connects to the others and exits."""
        return self.start(machine, "-c", PROGRAM, ",".join(hosts), str(index), str(wait_seconds))

    def cut(self) -> None:
        """Sends all packets to an unused address, so that neither machine learns that they are lost."""
        for name, address in zip(self.names, reversed(ADDRESSES), strict=True):
            ip("-n", name, "neigh", "replace", address, "lladdr", UNUSED_ADDRESS, "nud", "permanent", "dev", "cable")


@pytest.fixture
def network() -> Iterator[Network]:
    names = (f"neomesh{os.getpid()}a", f"neomesh{os.getpid()}b")
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` here: install iproute2")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    machines = Network(names)
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield machines
    finally:
        for process in machines.processes:
            process.kill()
            process.communicate()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def wait_for(process: subprocess.Popen, start_of_line: str, limit_seconds: float) -> None:
    """Reads the output up to a line that starts so; kills the process after the time limit."""
    limit = threading.Timer(limit_seconds, process.kill)
    limit.start()
    try:
        assert any(line.startswith(start_of_line) for line in process.stdout)
    finally:
        limit.cancel()


def loss_of(lost: int) -> str:
    return (
        f"process {lost} ({HOSTS[lost]}): ended, hangs or is unreachable, so this process ({1 - lost}) ends "
        "too; see its last output, then restart all processes: they resume from the last checkpoint"
    )


def test_two_disconnected_machines_report_each_other(network: Network, tmp_path: Path) -> None:
    processes = [network.start_training(machine, tmp_path) for machine in (0, 1)]
    for process in processes:
        wait_for(process, "step 2", 120)
    network.cut()
    deadline_seconds = time.monotonic() + 60
    outputs = [process.communicate(timeout=deadline_seconds - time.monotonic())[0] for process in processes]
    assert [text.splitlines()[-1] for text in outputs] == [loss_of(1), loss_of(0)]
    assert {process.returncode for process in processes} <= {2, 3}


def test_a_machine_that_starts_late_is_awaited(network: Network, tmp_path: Path) -> None:
    first = network.start_training(0, tmp_path)
    wait_for(first, f"waiting up to 60 s for {HOSTS[1]}", 60)
    second = network.start_training(1, tmp_path)
    for process in (first, second):
        wait_for(process, "step 2", 120)


def test_a_machine_that_does_not_answer_is_reported(network: Network) -> None:
    network.cut()
    first = network.start_connecting(0, HOSTS, 0, 3.0)
    text, _ = first.communicate(timeout=60)
    assert text == (
        f"{HOSTS[1]}: not there after 3 s; start the same command there with its own --host_index, "
        "give a longer --wait_seconds, and check that no firewall blocks this machine\n"
    )


def test_swapped_indices_are_refused(network: Network) -> None:
    processes = [network.start_connecting(machine, HOSTS, 1 - machine, 60.0) for machine in (0, 1)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == [
        f"{HOSTS[machine]}: process {machine} is on this machine, where process {1 - machine} "
        f"({HOSTS[1 - machine]}) was started with the same port; start each process on its own machine, or give each "
        "its own port\n"
        for machine in (0, 1)
    ]


def test_a_process_under_another_address_is_not_found(network: Network) -> None:
    elsewhere = "10.213.7.3:2222"
    first = network.start_connecting(0, [elsewhere, HOSTS[1]], 0, 60.0)
    second = network.start_connecting(1, [elsewhere, HOSTS[1]], 1, 3.0)
    text, _ = second.communicate(timeout=60)
    assert text.startswith(f"{elsewhere}: not there after 3 s; start the same command there ")
    text, _ = first.communicate(timeout=60)
    assert text.splitlines()[-1] == loss_of(1)


def test_a_process_whose_own_address_is_elsewhere_says_so(network: Network) -> None:
    first = network.start_connecting(0, ["10.213.7.3:2222", HOSTS[1]], 0, 3.0)
    text, _ = first.communicate(timeout=60)
    assert text.endswith("; the others look for this process at 10.213.7.3:2222, which is another machine\n")


def test_an_unknown_host_name_is_reported(network: Network) -> None:
    first = network.start_connecting(0, [HOSTS[0], "nowhere.invalid:2222"], 0, 2.0)
    text, _ = first.communicate(timeout=60)
    assert text == (
        "nowhere.invalid:2222: unknown host on this machine, after 2 s; correct the name, or give an address\n"
    )
