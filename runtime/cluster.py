"""The processes of one run: who they are, how they meet, and that none goes on when one is lost.

TensorFlow's collectives wait without end for a process that is gone. So the first process asks all others every few
seconds whether they are there, and all others ask the first: one that is lost ends the first, and that ends the others.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from configs.errors import DeviceError, UserError
from meshtf import ServerDef, collective_ops, eager_context, tf

JOB = "worker"
MEETING_KEY = 0  # below the keys of a mesh
WAIT_SECONDS = 300.0
SLURM_PORT = 2222
# A loss that two processes must notice, one after the other, is noticed by both within 60 s.
CHECK_SECONDS = 5.0  # between two rounds
ANSWER_SECONDS = 8.0  # for one answer
N_QUESTIONS = 2  # before a process is given up
EXIT_STATUS_LOST = 3


class ClusterError(UserError):
    """The processes of a run cannot find each other, or one is lost."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, of one device each.

    Attributes:
      hosts: `name:port` of each; the first is the one that the others meet at.
      index: which of them this process is.
    """

    hosts: tuple[str, ...]
    index: int

    @property
    def size(self) -> int:
        return len(self.hosts)

    def local_rank(self) -> int:
        """How many of the processes before this one run on the same machine."""
        machines = [host.rpartition(":")[0] for host in self.hosts]
        return machines[: self.index].count(machines[self.index])


# ------------------------------------------------------------------------------------------------ who the processes are


def find_cluster(hosts: str | None, host_index: int | None) -> Cluster | None:
    """The cluster that the command line gives, or else `TF_CONFIG`, or else Slurm; None: this process is alone.

    Args:
      hosts: `name:port` of each process, apart by commas; None: not given.
      host_index: which of them this process is, from 0; None: not given.

    Raises:
      ClusterError: what is given does not describe a cluster.
    """
    if hosts is not None or host_index is not None:
        return _cluster_by_hand(hosts, host_index)
    if os.environ.get("TF_CONFIG"):
        return _cluster_of_tf_config(os.environ["TF_CONFIG"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _cluster_of_slurm()
    return None


def _checked(source: str, hosts: Sequence[str], index: int) -> Cluster | None:
    """The cluster, if there is more than one process; `source` is where it was given."""
    for host in hosts:
        name, _, port = host.rpartition(":")
        if not name or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ClusterError(f"{source} -- {host!r} is not a name and a port -- give each process as host:2222")
    repeated = [host for host, count in collections.Counter(hosts).items() if count > 1]
    if repeated:
        raise ClusterError(f"{source} -- {repeated[0]} is there twice -- give each process a port of its own")
    if not 0 <= index < len(hosts):
        raise ClusterError(
            f"{source} -- there is no process {index} among {len(hosts)} -- count from 0 to {len(hosts) - 1}"
        )
    return Cluster(tuple(hosts), index) if len(hosts) > 1 else None


def _cluster_by_hand(hosts: str | None, host_index: int | None) -> Cluster | None:
    if hosts is None or host_index is None:
        given, missing = ("--hosts", "--host_index") if host_index is None else ("--host_index", "--hosts")
        raise ClusterError(
            f"{given} -- is given without {missing} -- give both, as --hosts a:2222,b:2222 --host_index 0"
        )
    return _checked(
        f"--hosts {hosts} --host_index {host_index}", [host.strip() for host in hosts.split(",")], host_index
    )


def _cluster_of_tf_config(text: str) -> Cluster | None:
    """Kubeflow and Vertex AI set `TF_CONFIG`; their chief, if there is one, comes before the workers."""
    try:
        config = json.loads(text)
        jobs: Mapping[str, Sequence[str]] = dict(config.get("cluster") or {})
        if not jobs:
            return None
        job, index = config["task"]["type"], int(config["task"]["index"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ClusterError(
            f"TF_CONFIG = {text} -- cannot be read: {type(error).__name__}: {error} -- write it as "
            '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    for name in [*jobs, job]:
        if name not in ("chief", JOB):
            raise ClusterError(
                f"TF_CONFIG -- has the job {name}, which nothing is done by here -- all processes train: name them "
                "worker, or the first of them chief"
            )
    chiefs, workers = jobs.get("chief", []), jobs.get(JOB, [])
    n_of_job = len(chiefs if job == "chief" else workers)
    if not 0 <= index < n_of_job:
        raise ClusterError(
            f"TF_CONFIG -- there is no {job} {index} among {n_of_job} -- index counts from 0 within a job"
        )
    return _checked("TF_CONFIG", [*chiefs, *workers], index if job == "chief" else len(chiefs) + index)


def _cluster_of_slurm() -> Cluster | None:
    """The tasks of the step that `srun` has started."""
    try:
        # It can hand out GPUs too, but fails where there is none: each process takes its own by its local rank.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=SLURM_PORT, gpus_per_node=2**20, gpus_per_task=1, auto_set_gpu=False
        )
        hosts = resolver.cluster_spec().as_dict()[JOB]
        _, index = resolver.get_task_info()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ClusterError(
            f"Slurm -- its variables cannot be read: {error} -- start the processes with srun, or give --hosts and "
            "--host_index"
        ) from error
    return _checked("Slurm", hosts, index)


# -------------------------------------------------------------------------------------------------- meeting and parting


@dataclasses.dataclass(frozen=True)
class Membership:
    """This process in a cluster that has met.

    Attributes:
      device: the device of this process.
      greatest: of the numbers that the processes call it with, when all have called it; as of the signals that came, so
        that all end at the same step.
    """

    cluster: Cluster
    device: str
    greatest: Callable[[int], int]

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.greatest(0)


@contextlib.contextmanager
def joined(cluster: Cluster, wait_seconds: float = WAIT_SECONDS) -> Iterator[Membership]:
    """Meets the other processes, and watches over them until the run is over; to be entered before TensorFlow runs
    anything.

    A process that is lost ends this one: with an error where a collective fails by that, or else with one line and
    exit status 3. At the end the processes wait for each other.

    Args:
      cluster: the processes.
      wait_seconds: how long to wait for the others to start.

    Raises:
      ClusterError: the port is in use, a process does not come, or one is lost.
      DeviceError: more processes than GPUs are on this machine.
    """
    device = _own_device(cluster)
    _start_server(cluster)
    _wait_for_all(cluster, wait_seconds)
    membership = Membership(cluster, device, _make_greatest(cluster))
    with _watching(cluster), _loss_told(cluster):
        membership.barrier()
        yield membership
        membership.barrier()


def _own_device(cluster: Cluster) -> str:
    gpus, rank = tf.config.list_physical_devices("GPU"), cluster.local_rank()
    if not gpus:
        return "/device:CPU:0"
    if rank >= len(gpus):
        raise DeviceError(
            f"--hosts -- {cluster.hosts[cluster.index]} is process {rank + 1} of its machine, which has {len(gpus)} "
            "GPUs -- start no more processes than GPUs on a machine, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    tf.config.set_visible_devices(gpus[rank], "GPU")
    return "/device:GPU:0"


def _start_server(cluster: Cluster) -> None:
    """Lets TensorFlow speak to the other processes, as its own strategy for many workers does."""
    _check_port_is_free(cluster.hosts[cluster.index])
    context = eager_context.context()
    # Without the filter a process would wait for all others before it may place its own operations.
    context.configure_collective_ops(
        collective_leader=_task_name(0), device_filters=(f"/job:{JOB}/task:{cluster.index}",)
    )
    specification = tf.train.ClusterSpec({JOB: list(cluster.hosts)})
    server = ServerDef(
        cluster=specification.as_cluster_def(),
        job_name=JOB,
        task_index=cluster.index,
        protocol="grpc",
        default_session_config=context.config,
    )
    context.enable_collective_ops(server)
    context.ensure_initialized()


def _check_port_is_free(host: str) -> None:
    """Asks first: the server of TensorFlow would share the port with another process."""
    port = int(host.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ClusterError(
                f"{host} -- port {port} cannot be used on this machine: {os.strerror(error.errno or 0)} -- end the "
                "process that uses it, or give another port"
            ) from error


def _task_name(index: int) -> str:
    return f"/job:{JOB}/replica:0/task:{index}"


def _answers(index: int, limit_seconds: float) -> bool:
    """Whether a process is there, and is the one that was there before."""
    try:
        eager_context.context().check_collective_ops_peer_health(_task_name(index), int(limit_seconds * 1000))
    except tf.errors.OpError:
        return False
    return True


def _wait_for_all(cluster: Cluster, wait_seconds: float) -> None:
    deadline_seconds = time.monotonic() + wait_seconds
    missing = [index for index in range(cluster.size) if index != cluster.index]
    while missing := [index for index in missing if not _answers(index, 2.0)]:
        if time.monotonic() > deadline_seconds:
            raise ClusterError(
                f"{', '.join(cluster.hosts[index] for index in missing)} -- not there after {wait_seconds:.0f} s of "
                "waiting -- start the same command there with its own host_index, and see that a firewall lets this "
                "machine through"
            )
        time.sleep(0.2)


def _make_greatest(cluster: Cluster) -> Callable[[int], int]:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.int32)])
    def meet(number: tf.Tensor) -> tf.Tensor:
        with tf.device("/device:CPU:0"):
            return collective_ops.all_reduce_v2(number, cluster.size, MEETING_KEY, MEETING_KEY, "Max")

    def greatest(number: int) -> int:
        with _loss_told(cluster):
            return int(meet(tf.constant(number)).numpy())

    return greatest


# ----------------------------------------------------------------------------------------------------- losing a process


def _lost_process(watched: Iterable[int]) -> int | None:
    """The first of the processes that does not answer, even when asked again."""
    for index in watched:
        if not any(_answers(index, ANSWER_SECONDS) for _ in range(N_QUESTIONS)):
            return index
    return None


def _describe_loss(cluster: Cluster, index: int) -> str:
    return (
        f"process {index} ({cluster.hosts[index]}) -- has died, hangs or cannot be reached, so this process "
        f"({cluster.index}) ends too -- see what it said last, and start all processes again: they go on from the last "
        "checkpoint"
    )


@contextlib.contextmanager
def _watching(cluster: Cluster) -> Iterator[None]:
    is_over = threading.Event()
    watched = range(1, cluster.size) if cluster.index == 0 else [0]

    def watch() -> None:
        while not is_over.wait(CHECK_SECONDS):
            lost = _lost_process(watched)
            if lost is not None and not is_over.is_set():
                # The main thread waits in a collective that never ends, and cannot be woken.
                sys.stdout.flush()
                print(_describe_loss(cluster, lost), file=sys.stderr, flush=True)
                os._exit(EXIT_STATUS_LOST)

    thread = threading.Thread(target=watch, name="watch over the cluster", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def _loss_told(cluster: Cluster) -> Iterator[None]:
    """Turns the error of a collective into one that names the process that is lost."""
    try:
        yield
    except tf.errors.OpError as error:
        others = [index for index in range(cluster.size) if index != cluster.index]
        # One that fails in an orderly way is there for some seconds more.
        for pause_seconds in (0.0, 3.0, 6.0):
            time.sleep(pause_seconds)
            lost = _lost_process(others)
            if lost is not None:
                raise ClusterError(_describe_loss(cluster, lost)) from error
        raise
