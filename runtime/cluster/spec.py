"""Finds the processes of a run in the command line, `TF_CONFIG` or Slurm's variables."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Sequence

from configs.errors import UserError

JOB = "worker"
# TensorFlow orders a group by the names of its processes, as texts: with as many digits each, 10 comes after 2.
FIRST_TASK = 1_000_000
# The name or address of a machine, and a port: a:2222, 10.0.0.2:2222 or [::1]:2222.
HOST = re.compile(r"(?P<machine>[\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})", re.ASCII)
# The ports of jobs under Slurm: below those that systems give to outgoing connections. A job has a multiple of 32.
FIRST_PORT, N_PORTS, PORT_STEP = 10_000, 22_688, 32


class ClusterError(UserError):
    """The processes of a run cannot connect, or one is lost."""


class PeerLostError(ClusterError):
    """Another process is missing or lost; restarting all of them may help."""

    exit_status = 3


def task_number(index: int) -> int:
    """Returns TensorFlow's number of a process."""
    return FIRST_TASK + index


def task_name(index: int) -> str:
    """Returns TensorFlow's name of a process."""
    return f"/job:{JOB}/replica:0/task:{task_number(index)}"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, with one device each.

    Attributes:
        hosts: `name:port` of each; the others connect to the first.
        index: the index of this process.
    """

    hosts: tuple[str, ...]
    index: int

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self.hosts)

    def local_rank(self) -> int:
        """Returns how many of the processes before this one run on the same machine."""
        machines = [host.rpartition(":")[0] for host in self.hosts]
        return machines[: self.index].count(machines[self.index])


def find_cluster(hosts: str | None, host_index: int | None) -> Cluster | None:
    """Returns the cluster of the command line, or else of `TF_CONFIG`, or else of Slurm; None: this process is alone.

    Args:
        hosts: `name:port` of each process, separated by commas; None: not given.
        host_index: the index of this process, from 0; None: not given.

    Raises:
        ClusterError: these do not describe a cluster.
    """
    if hosts is not None or host_index is not None:
        return _cluster_of_flags(hosts, host_index)
    if os.environ.get("TF_CONFIG"):
        return _cluster_of_tf_config(os.environ["TF_CONFIG"])
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "1"):
        return _cluster_of_slurm()
    return None


def _checked(source: str, hosts: Sequence[str], index: int) -> Cluster | None:
    """Returns the cluster if there is more than one process; `source` names it in messages."""
    addresses = [_parse_host(source, host) for host in hosts]
    repeated = [host for host, address in zip(hosts, addresses, strict=True) if addresses.count(address) > 1]
    if repeated:
        raise ClusterError(f"{source}: {repeated[0]} is given twice; give each process its own port")
    if not 0 <= index < len(hosts):
        raise ClusterError(
            f"{source}: there is no process {index} among {len(hosts)}; count from 0 to {len(hosts) - 1}"
        )
    return Cluster(tuple(hosts), index) if len(hosts) > 1 else None


def _parse_host(source: str, host: str) -> tuple[str, int]:
    """Returns the machine and the port."""
    found = HOST.fullmatch(host)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ClusterError(
            f"{source}: {host!r} is not a name and a port; give each process as host:2222, separated by commas"
        )
    return found["machine"].lower(), int(found["port"])


def _cluster_of_flags(hosts: str | None, host_index: int | None) -> Cluster | None:
    if hosts is None or host_index is None:
        given, missing = ("--hosts", "--host_index") if host_index is None else ("--host_index", "--hosts")
        raise ClusterError(f"{given}: is given without {missing}; give both, as --hosts a:2222,b:2222 --host_index 0")
    return _checked(
        f"--hosts {hosts} --host_index {host_index}", [host.strip() for host in hosts.split(",")], host_index
    )


def _cluster_of_tf_config(text: str) -> Cluster | None:
    """Reads the variable that Kubeflow and Vertex AI set; a chief comes before the workers."""
    try:
        config = json.loads(text)
        jobs = {name: _hosts_of_job(name, hosts) for name, hosts in (config.get("cluster") or {}).items() if hosts}
        if not jobs:
            return None
        job, index = config["task"]["type"], int(str(config["task"]["index"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ClusterError(
            f"TF_CONFIG = {text}: cannot be read: {type(error).__name__}: {error}; write it as "
            '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    for name in [*jobs, job]:
        if name not in ("chief", JOB):
            raise ClusterError(
                f"TF_CONFIG: unknown job {name}; all processes train, so name them worker, or the first of them chief"
            )
    chiefs, workers = jobs.get("chief", []), jobs.get(JOB, [])
    n_of_job = len(chiefs if job == "chief" else workers)
    if not 0 <= index < n_of_job:
        raise ClusterError(f"TF_CONFIG: there is no {job} {index} among {n_of_job}; index counts from 0 within a job")
    return _checked("TF_CONFIG", [*chiefs, *workers], index if job == "chief" else len(chiefs) + index)


def _hosts_of_job(name: str, hosts: object) -> list[str]:
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise TypeError(f"the hosts of {name} are not a list of strings")
    return hosts


def _cluster_of_slurm() -> Cluster | None:
    """Reads the tasks of the step that `srun` started.

    TensorFlow's resolver sorts machines as text, so that n10 would come first in n[9-10].
    """
    try:
        index, n_tasks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
        machines = _expand_machines(os.environ["SLURM_STEP_NODELIST"])
        counts = _expand_counts(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        ports = _slurm_ports(max(counts))
    except (ValueError, KeyError) as error:
        raise ClusterError(
            f"Slurm: its variables cannot be read: {type(error).__name__}: {error}; start the processes with srun, "
            "or give --hosts and --host_index"
        ) from error
    tasks = [(name, rank) for name, count in zip(machines, counts, strict=False) for rank in range(count)]
    own_machine = os.environ.get("SLURMD_NODENAME")
    if len(tasks) != n_tasks or not 0 <= index < n_tasks or own_machine not in (None, tasks[index][0]):
        raise ClusterError(
            f"Slurm: task {index} of {n_tasks} is not on the machine that a block distribution gives it; start the "
            "processes with srun --distribution=block, or give --hosts and --host_index"
        )
    return _checked("Slurm", [f"{name}:{ports[rank]}" for name, rank in tasks], index)


def _slurm_ports(n_tasks: int) -> Sequence[int]:
    """Returns the ports of this step for the tasks of one machine.

    They are those that Slurm has reserved (`srun --resv-ports`), or else follow from the ids: jobs that share a
    machine, and steps of one job, have their own, but a job of more than PORT_STEP tasks there may meet a smaller one.
    """
    parts = filter(None, os.environ.get("SLURM_STEP_RESV_PORTS", "").split(","))
    reserved = [int(port) for part in parts for port in _expand_range(part)]
    if len(reserved) >= n_tasks:
        return reserved
    job, step = (int(os.environ.get(f"SLURM_{name}_ID") or 0) for name in ("JOB", "STEP"))
    width = PORT_STEP * math.ceil(n_tasks / PORT_STEP)
    first = FIRST_PORT + (7 * job + step) % max(1, N_PORTS // width) * width
    return range(first, first + width)


def _expand_machines(text: str) -> list[str]:
    """`n[1-2,09],m` -> n1, n2, n09, m."""
    parts = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text)
    return [name for part in parts for name in _expand_brackets(part)]


def _expand_brackets(text: str) -> list[str]:
    before, bracket, rest = text.partition("[")
    if not bracket:
        return [text]
    ranges, _, after = rest.partition("]")
    ends = _expand_brackets(after)
    return [before + number + end for part in ranges.split(",") for number in _expand_range(part) for end in ends]


def _expand_range(text: str) -> list[str]:
    """`08-10` -> 08, 09, 10."""
    first, _, last = text.partition("-")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]


def _expand_counts(text: str) -> list[int]:
    """`2(x3),1` -> 2, 2, 2, 1."""
    counts = []
    for part in text.split(","):
        count, _, times = part.removesuffix(")").partition("(x")
        counts += [int(count)] * int(times or 1)
    return counts
