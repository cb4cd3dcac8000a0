"""How the processes of a run meet, stay in touch, and part."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from configs.errors import DeviceError
from meshtf import ServerDef, collective_ops, eager_context, tf
from runtime.cluster.heartbeat import Heartbeat, answers, loss_told, task_name, watching
from runtime.cluster.spec import JOB, AbsenceError, Cluster, ClusterError

MEETING_KEY = 0  # of the group of all, below the keys of a mesh
WAIT_SECONDS = 300.0
QUIET_SECONDS = 10.0  # of waiting, before it is said for whom
PATIENCE_SECONDS = 30  # with a process that others wait for and that shows no life


@dataclasses.dataclass(frozen=True)
class Membership:
    """This process in a cluster that has met.

    Attributes:
        device: the device of this process.
        greatest: of the numbers that the processes call it with, when all have called it; as of the signals that came,
            so that all end at the same step.
    """

    cluster: Cluster
    device: str
    all_reduce_max: Callable[[int], int]
    pulse: Heartbeat

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.all_reduce_max(0)

    def synchronize(self) -> None:
        """To be called before a step in which the processes wait for each other; `all_reduce_max` calls it itself."""
        self.pulse.n_meetings += 1

    def show_life(self) -> None:
        """To be called now and then by long work between two meetings."""
        self.pulse.n_signs += 1

    @contextlib.contextmanager
    def timeout(self, seconds: int | None = PATIENCE_SECONDS) -> Iterator[None]:
        """Promises to come to each next meeting, or else to show life, in this time; None: no one can tell.

        A process that others wait for and that breaks its promise hangs: it ends, and so do the others. Work of which
        all do their part side by side may take longer, for nobody is behind.
        """
        before = self.pulse.patience_seconds
        self.pulse.patience_seconds = seconds or 0
        self.show_life()
        try:
            yield
        finally:
            self.pulse.patience_seconds = before
            self.show_life()


@contextlib.contextmanager
def joined(cluster: Cluster, wait_seconds: float = WAIT_SECONDS) -> Iterator[Membership]:
    """Meets the other processes, and watches over them until the run is over; to be entered before TensorFlow runs
    anything.

    A process that is lost ends this one: with an error where a collective fails by that, or else with one line and
    exit status 3. One that hangs says where, and ends in the same way. At the end the processes wait for each other.

    Args:
        cluster: the processes.
        wait_seconds: how long to wait for the others to start.

    Raises:
        ClusterError: the port is in use, a process does not come or is told to be another, or one is lost.
        DeviceError: more processes than GPUs are on this machine.
    """
    device = _own_device(cluster)
    _check_machine(cluster)
    _start_server(cluster)
    _wait_for_all(cluster, wait_seconds)
    pulse = Heartbeat()
    membership = Membership(cluster, device, _make_greatest(cluster, pulse), pulse)
    with watching(cluster, pulse), loss_told(cluster):
        membership.barrier()
        yield membership
        membership.barrier()


def _own_device(cluster: Cluster) -> str:
    gpus, rank = tf.config.list_physical_devices("GPU"), cluster.local_rank()
    if not gpus:
        return "/device:CPU:0"
    if len(gpus) == 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
        return "/device:GPU:0"  # whoever started the processes has given each its own
    if rank >= len(gpus):
        raise DeviceError(
            f"--hosts: {cluster.hosts[cluster.index]} is process {rank + 1} of its machine, which has {len(gpus)} "
            "GPUs; start no more processes than GPUs on a machine, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    tf.config.set_visible_devices(gpus[rank], "GPU")
    return "/device:GPU:0"


def _start_server(cluster: Cluster) -> None:
    """Lets TensorFlow speak to the other processes, as its own strategy for many workers does."""
    _check_port_is_free(cluster.hosts[cluster.index])
    context = eager_context.context()
    # Without the filter a process would wait for all others before it may place its own operations.
    context.configure_collective_ops(
        collective_leader=task_name(0), device_filters=(f"/job:{JOB}/task:{cluster.index}",)
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
                f"{host}: port {port} cannot be used on this machine: {os.strerror(error.errno or 0)}; end the "
                "process that uses it, or give another port"
            ) from error


def _check_machine(cluster: Cluster) -> None:
    """Finds a process with the index of another machine: it would wait for itself."""
    own = cluster.hosts[cluster.index]
    for index, host in enumerate(cluster.hosts):
        is_same_port = index != cluster.index and host.rpartition(":")[2] == own.rpartition(":")[2]
        if is_same_port and _is_here(host):
            raise ClusterError(
                f"{host}: is process {index} and on this machine, where process {cluster.index} ({own}) was started, "
                "on the same port; start each process on its own machine, or give each a port of its own"
            )


def _addresses(host: str) -> list[tuple]:
    """What the name of a machine stands for; none: it is not known, or not yet."""
    name = host.rpartition(":")[0].strip("[]")
    try:
        return [found[4] for found in socket.getaddrinfo(name, 1, type=socket.SOCK_DGRAM)]
    except OSError:
        return []


def _is_here(host: str) -> bool:
    return any(map(_is_of_this_machine, _addresses(host)))


def _is_of_this_machine(address: tuple) -> bool:
    """Whether what is sent there would come from there; nothing is sent."""
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return False
        return probe.getsockname()[0] == address[0]


def _wait_for_all(cluster: Cluster, wait_seconds: float) -> None:
    start_seconds = time.monotonic()
    is_told = False
    missing = [index for index in range(cluster.size) if index != cluster.index]
    while missing := [index for index in missing if not answers(index, 2.0)]:
        waited_seconds = time.monotonic() - start_seconds
        names = [cluster.hosts[index] for index in missing]
        if waited_seconds > wait_seconds:
            raise AbsenceError(_describe_absence(cluster, names, wait_seconds))
        if waited_seconds > QUIET_SECONDS and not is_told:
            print(f"waiting for {', '.join(names)}, {wait_seconds:.0f} s at most", file=sys.stderr, flush=True)
            is_told = True
        time.sleep(0.2)


def _describe_absence(cluster: Cluster, missing: Sequence[str], wait_seconds: float) -> str:
    unknown = [host for host in missing if not _addresses(host)]
    if unknown:
        return (
            f"{', '.join(unknown)}: no such name is known on this machine after {wait_seconds:.0f} s of waiting; "
            "correct the name, or give an address"
        )
    own = cluster.hosts[cluster.index]
    return (
        f"{', '.join(missing)}: not there after {wait_seconds:.0f} s of waiting; start the same command there with "
        "its own host_index, and see that a firewall lets this machine through"
        + ("" if _is_here(own) else f"; the others look for this process at {own}, which is not on this machine")
    )


def _make_greatest(cluster: Cluster, pulse: Heartbeat) -> Callable[[int], int]:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.int32)])
    def meet(number: tf.Tensor) -> tf.Tensor:
        with tf.device("/device:CPU:0"):
            return collective_ops.all_reduce_v2(number, cluster.size, MEETING_KEY, MEETING_KEY, "Max")

    def all_reduce_max(number: int) -> int:
        pulse.n_meetings += 1
        with loss_told(cluster):
            return int(meet(tf.constant(number)).numpy())

    return all_reduce_max
