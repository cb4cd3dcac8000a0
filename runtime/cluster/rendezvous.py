"""Connects the processes of a run."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from configs.errors import DeviceError
from meshtf import ServerDef, collective_ops, eager_context, tf
from runtime.cluster.heartbeat import Heartbeat, is_alive, raise_peer_loss, watch_peers
from runtime.cluster.process_group import ALONE, ProcessGroup
from runtime.cluster.spec import JOB, Cluster, ClusterError, PeerLostError, task_name, task_number

BARRIER_KEY = 0  # of the group of all processes, below the keys of a mesh
QUIET_SECONDS = 10.0  # of waiting before the missing processes are logged


@contextlib.contextmanager
def connect(cluster: Cluster | None, wait_seconds: float) -> Iterator[ProcessGroup]:
    """Connects to the other processes and watches them until the run is over; call it before TensorFlow runs anything.

    A lost process ends this one: with an error if a collective fails because of it, otherwise with one line and exit
    status 3. A process that hangs prints its stack and ends the same way. At the end the processes wait for each other.

    Args:
        cluster: the processes; None: this process is alone.
        wait_seconds: how long to wait for the others to start.

    Raises:
        ClusterError: the port is in use, a process is missing or has the wrong index, or one is lost.
        DeviceError: this machine has fewer GPUs than processes.
    """
    if cluster is None:
        yield ALONE
        return
    device = _own_device(cluster)
    _check_machine(cluster)
    _start_server(cluster)
    _wait_for_all(cluster, wait_seconds)
    heartbeat = Heartbeat()
    all_reduce_max = _make_all_reduce_max(cluster, heartbeat)
    group = ProcessGroup(cluster.index, cluster.size, device, all_reduce_max, heartbeat)
    with watch_peers(cluster, heartbeat), raise_peer_loss(cluster):
        group.barrier()
        yield group
        group.barrier()


def _own_device(cluster: Cluster) -> str:
    gpus, rank = tf.config.list_physical_devices("GPU"), cluster.local_rank()
    if not gpus:
        return "/device:CPU:0"
    if len(gpus) == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return "/device:GPU:0"  # whatever started the processes gave each its own
    if rank >= len(gpus):
        raise DeviceError(
            f"--hosts: {cluster.hosts[cluster.index]} is process {rank + 1} of its machine, which has {len(gpus)} "
            "GPUs; start at most one process per GPU on a machine, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    tf.config.set_visible_devices(gpus[rank], "GPU")
    return "/device:GPU:0"


def _start_server(cluster: Cluster) -> None:
    """Starts TensorFlow's server, as `MultiWorkerMirroredStrategy` does."""
    _check_port_is_free(cluster.hosts[cluster.index])
    context = eager_context.context()
    # Without the filter a process would wait for all others before it places its own operations.
    context.configure_collective_ops(collective_leader=task_name(0), device_filters=(task_name(cluster.index),))
    specification = tf.train.ClusterSpec({JOB: {task_number(at): host for at, host in enumerate(cluster.hosts)}})
    server = ServerDef(
        cluster=specification.as_cluster_def(),
        job_name=JOB,
        task_index=task_number(cluster.index),
        protocol="grpc",
        default_session_config=context.config,
    )
    context.enable_collective_ops(server)
    context.ensure_initialized()


def _check_port_is_free(host: str) -> None:
    """Checks the port, because TensorFlow's server would share it with another process."""
    port = int(host.rpartition(":")[2])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ClusterError(
                f"{host}: port {port} cannot be used on this machine: {os.strerror(error.errno or 0)}; end the "
                "process that uses it, or give another port"
            ) from error


def _check_machine(cluster: Cluster) -> None:
    """Refuses the index of another machine: the process would wait for itself."""
    own = cluster.hosts[cluster.index]
    for index, host in enumerate(cluster.hosts):
        is_same_port = index != cluster.index and host.rpartition(":")[2] == own.rpartition(":")[2]
        if is_same_port and _is_here(host):
            raise ClusterError(
                f"{host}: process {index} is on this machine, where process {cluster.index} ({own}) was started with "
                "the same port; start each process on its own machine, or give each its own port"
            )


def _addresses(host: str) -> list[tuple]:
    """Returns the addresses of a machine's name; empty: the name does not resolve, or not yet."""
    name = host.rpartition(":")[0].strip("[]")
    try:
        return [found[4] for found in socket.getaddrinfo(name, 1, type=socket.SOCK_DGRAM)]
    except OSError:
        return []


def _is_here(host: str) -> bool:
    return any(map(_is_of_this_machine, _addresses(host)))


def _is_of_this_machine(address: tuple) -> bool:
    """Whether packets to this address would come from it; sends none."""
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return probe.getsockname()[0] == address[0]


def _wait_for_all(cluster: Cluster, wait_seconds: float) -> None:
    start_seconds = time.monotonic()
    is_logged = False
    missing = [index for index in range(cluster.size) if index != cluster.index]
    while missing := [index for index in missing if not is_alive(index, 2.0)]:
        waited_seconds = time.monotonic() - start_seconds
        names = [cluster.hosts[index] for index in missing]
        if waited_seconds > wait_seconds:
            raise PeerLostError(_describe_absence(cluster, names, wait_seconds))
        if waited_seconds > QUIET_SECONDS and not is_logged:
            print(f"waiting up to {wait_seconds:.0f} s for {', '.join(names)}", file=sys.stderr, flush=True)
            is_logged = True
        time.sleep(0.2)


def _describe_absence(cluster: Cluster, missing: Sequence[str], wait_seconds: float) -> str:
    unknown = [host for host in missing if not _addresses(host)]
    if unknown:
        return (
            f"{', '.join(unknown)}: unknown host on this machine, after {wait_seconds:.0f} s; correct the name, or "
            "give an address"
        )
    own = cluster.hosts[cluster.index]
    return (
        f"{', '.join(missing)}: not there after {wait_seconds:.0f} s; start the same command there with its own "
        "--host_index, give a longer --wait_seconds, and check that no firewall blocks this machine"
        + ("" if _is_here(own) else f"; the others look for this process at {own}, which is another machine")
    )


def _make_all_reduce_max(cluster: Cluster, heartbeat: Heartbeat) -> Callable[[int], int]:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.int32)])
    def reduce(number: tf.Tensor) -> tf.Tensor:
        with tf.device("/device:CPU:0"):
            return collective_ops.all_reduce_v2(number, cluster.size, BARRIER_KEY, BARRIER_KEY, "Max")

    def all_reduce_max(number: int) -> int:
        heartbeat.n_syncs += 1
        with raise_peer_loss(cluster):
            return int(reduce(tf.constant(number)).numpy())

    return all_reduce_max
