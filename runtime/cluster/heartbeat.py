"""Heartbeats between the processes of a run, so that none keeps waiting for one that is lost or hangs.

TensorFlow's collectives wait forever for a process that is gone. So every few seconds the first process probes all
others, and all others probe the first: a lost process ends the first, which ends the rest.

TensorFlow's server answers probes even while Python hangs. So the processes also exchange, as often, how many
synchronization points each main thread has reached. A process that others wait for, and that makes no progress within
its timeout, hangs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

from meshtf import collective_ops, eager_context, tf
from runtime.cluster.spec import Cluster, PeerLostError, task_name

HEARTBEAT_KEY = 1  # of the group of all processes, below the keys of a mesh, as is that of barriers
# Two processes may have to notice a loss one after the other; both do within 60 s.
CHECK_SECONDS = 5.0  # between two rounds
PROBE_SECONDS = 8.0  # for one answer
N_PROBES = 2  # before a process counts as lost
N_MISSED_EXCHANGES = 6  # before Python counts as blocked in one of the processes
RESTART = "restart all processes: they resume from the last checkpoint"


@dataclasses.dataclass
class Heartbeat:
    """What a process reports about its main thread.

    Attributes:
        n_syncs: synchronization points reached.
        n_beats: signs of progress between them.
        timeout_seconds: time allowed until the next of either; 0: no limit.
        is_leaving: whether the process is done with the others.
    """

    n_syncs: int = 0
    n_beats: int = 0
    timeout_seconds: int = 0
    is_leaving: bool = False


def is_alive(index: int, timeout_seconds: float) -> bool:
    """Whether a process answers, and has not been restarted meanwhile."""
    try:
        eager_context.context().check_collective_ops_peer_health(task_name(index), int(timeout_seconds * 1000))
    except tf.errors.OpError:
        return False
    return True


def _lost_process(watched: Iterable[int]) -> int | None:
    """Returns the first process that answers none of the probes."""
    for index in watched:
        if not any(is_alive(index, PROBE_SECONDS) for _ in range(N_PROBES)):
            return index
    return None


def _describe_loss(cluster: Cluster, index: int) -> str:
    return (
        f"process {index} ({cluster.hosts[index]}): ended, hangs or is unreachable, so this process ({cluster.index}) "
        f"ends too; see its last output, then {RESTART}"
    )


def _end(message: str) -> None:
    """Ends this process from a side thread, because the main thread waits forever and cannot be woken."""
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    time.sleep(1.0)  # TensorFlow's server still informs the others
    os._exit(PeerLostError.exit_status)


@contextlib.contextmanager
def watch_peers(cluster: Cluster, heartbeat: Heartbeat) -> Iterator[None]:
    """Ends this process when another one is lost, or when any hangs."""
    is_over, exchange = threading.Event(), _HeartbeatExchange(cluster, heartbeat)
    threads = [
        threading.Thread(target=_probe_peers, args=(cluster, exchange, is_over), name="peer probes", daemon=True),
        threading.Thread(target=exchange.run, args=(is_over,), name="heartbeats", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
        heartbeat.is_leaving = True
    finally:
        is_over.set()
        if not heartbeat.is_leaving:  # after an error the others notice the loss themselves
            eager_context.context().abort_collective_ops(tf.errors.ABORTED, "the process ends")
        for thread in threads:
            thread.join()


def _probe_peers(cluster: Cluster, exchange: _HeartbeatExchange, is_over: threading.Event) -> None:
    """Ends this process when another one is gone, or when Python is blocked in another one."""
    watched = range(1, cluster.size) if cluster.index == 0 else [0]
    n_missed, n_before = 0, 0
    _dump_stack_if_blocked()  # before the first wait too, during which the main thread may already train
    while not is_over.wait(CHECK_SECONDS):
        _dump_stack_if_blocked()
        lost = _lost_process(watched)
        n_missed = n_missed + 1 if exchange.n_rounds == n_before else 0
        n_before = exchange.n_rounds
        if lost is not None and not is_over.is_set():
            _end(_describe_loss(cluster, lost))
        if n_missed > N_MISSED_EXCHANGES and not is_over.is_set():
            _end(_describe_blocked_peer(cluster))
    faulthandler.cancel_dump_traceback_later()


def _dump_stack_if_blocked() -> None:
    """Prints the stack unless it is called again in time, if Python is blocked; the dump itself runs no Python."""
    faulthandler.dump_traceback_later(N_MISSED_EXCHANGES * CHECK_SECONDS)


class _HeartbeatExchange:
    """Exchanges heartbeats every few seconds.

    Attributes:
        n_rounds: completed exchanges.
    """

    def __init__(self, cluster: Cluster, heartbeat: Heartbeat) -> None:
        self._cluster = cluster
        self._heartbeat = heartbeat
        self.n_rounds = 0

    def run(self, is_over: threading.Event) -> None:
        """Runs until all processes leave, or until one is gone, which the probes report."""
        all_gather, timeouts = _make_all_gather(self._cluster), Timeouts(self._cluster.size)
        heartbeats: list[list[int]] = []
        while not heartbeats or not all(is_leaving for *_, is_leaving in heartbeats):
            is_over.wait(CHECK_SECONDS)
            try:
                heartbeats = all_gather(dataclasses.astuple(self._heartbeat))
            except tf.errors.OpError:
                return
            self.n_rounds += 1
            hanging = timeouts.expired(heartbeats)
            if hanging is not None:
                _end(_describe_hang(self._cluster, hanging))


def _make_all_gather(cluster: Cluster) -> Callable[[tuple[int, ...]], list[list[int]]]:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec((1, None), tf.int32)])
    def gather(own: tf.Tensor) -> tf.Tensor:
        with tf.device("/device:CPU:0"):
            return collective_ops.all_gather_v2(own, cluster.size, HEARTBEAT_KEY, HEARTBEAT_KEY)

    def all_gather(own: tuple[int, ...]) -> list[list[int]]:
        gathered = gather(tf.constant([[cluster.index, *map(int, own)]])).numpy().tolist()
        return [heartbeat for _, *heartbeat in sorted(gathered)]  # they arrive in no particular order

    return all_gather


class Timeouts:
    """Counts the exchanges during which others waited for a process that made no progress."""

    def __init__(self, n_processes: int) -> None:
        self._before: list[tuple[int, int]] = [(-1, -1)] * n_processes
        self._n_rounds = [0] * n_processes

    def expired(self, heartbeats: Sequence[Sequence[int]]) -> int | None:
        """Returns the first process past its timeout; None: there is none.

        Args:
            heartbeats: the fields of each process's `Heartbeat`.
        """
        farthest = max(n_syncs for n_syncs, *_ in heartbeats)
        expired = None
        for index, (n_syncs, n_beats, timeout_seconds, _) in enumerate(heartbeats):
            is_silent = n_syncs < farthest and (n_syncs, n_beats) == self._before[index]
            self._before[index] = n_syncs, n_beats
            self._n_rounds[index] = self._n_rounds[index] + 1 if is_silent else 0
            if expired is None and 0 < timeout_seconds < self._n_rounds[index] * CHECK_SECONDS:
                expired = index
        return expired


def _describe_hang(cluster: Cluster, index: int) -> str:
    hangs = f"process {index} ({cluster.hosts[index]}): hangs: the others wait for it, and it makes no progress"
    if index == cluster.index:
        stack = traceback.format_stack(sys._current_frames()[threading.main_thread().ident])
        return f"{hangs}; it is this process, which ends here:\n{''.join(stack)}"
    return f"{hangs}, so this process ({cluster.index}) ends too; see the stack that it prints, then {RESTART}"


def _describe_blocked_peer(cluster: Cluster) -> str:
    others = [f"process {index} ({host})" for index, host in enumerate(cluster.hosts) if index != cluster.index]
    suspects = others[0] if len(others) == 1 else f"one of the {len(others)} other processes"
    return (
        f"{suspects}: hangs outside Python, so this process ({cluster.index}) ends too; see which process prints its "
        f"stack, kill it, then {RESTART}"
    )


@contextlib.contextmanager
def raise_peer_loss(cluster: Cluster) -> Iterator[None]:
    """Turns the error of a collective into one that names the lost process."""
    try:
        yield
    except tf.errors.OpError as error:
        others = [index for index in range(cluster.size) if index != cluster.index]
        # A process that fails in an orderly way still answers for some seconds.
        for pause_seconds in (0.0, 3.0, 6.0):
            time.sleep(pause_seconds)
            lost = _lost_process(others)
            if lost is not None:
                raise PeerLostError(_describe_loss(cluster, lost)) from error
        raise
