"""The watch over the processes of a run, so that none goes on when one is lost or hangs.

TensorFlow's collectives wait without end for a process that is gone. So the first process asks all others every few
seconds whether they are there, and all others ask the first: one that is lost ends the first, and that ends the others.

It is TensorFlow's server that answers, also where Python hangs. So the processes tell each other as often how many
meetings each of them has come to: one that is behind, and gives no sign of life in the time that it promised, hangs.
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
from runtime.cluster.spec import JOB, AbsenceError, Cluster

REPORT_KEY = 1  # of the group of all, below the keys of a mesh, as that of meetings
# A loss that two processes must notice, one after the other, is noticed by both within 60 s.
CHECK_SECONDS = 5.0  # between two rounds
ANSWER_SECONDS = 8.0  # for one answer
N_QUESTIONS = 2  # before a process is given up
N_MISSED_REPORTS = 6  # before it is known that Python stands still in one of the processes


@dataclasses.dataclass
class Heartbeat:
    """What a process tells the others about its main thread.

    Attributes:
        n_meetings: it has come to.
        n_signs: of life that it has given beside these.
        patience_seconds: in which it promises the next of either; 0: none is promised.
        is_leaving: whether it has nothing more to do with the others.
    """

    n_meetings: int = 0
    n_signs: int = 0
    patience_seconds: int = 0
    is_leaving: bool = False


def task_name(index: int) -> str:
    """TensorFlow's name of a process."""
    return f"/job:{JOB}/replica:0/task:{index}"


def answers(index: int, limit_seconds: float) -> bool:
    """Whether a process is there, and is the one that was there before."""
    try:
        eager_context.context().check_collective_ops_peer_health(task_name(index), int(limit_seconds * 1000))
    except tf.errors.OpError:
        return False
    return True


def _lost_process(watched: Iterable[int]) -> int | None:
    """The first of the processes that does not answer, even when asked again."""
    for index in watched:
        if not any(answers(index, ANSWER_SECONDS) for _ in range(N_QUESTIONS)):
            return index
    return None


def _describe_loss(cluster: Cluster, index: int) -> str:
    return (
        f"process {index} ({cluster.hosts[index]}): has ended, hangs or cannot be reached, so this process "
        f"({cluster.index}) ends too; see what it said last, and start all processes again: they go on from the last "
        "checkpoint"
    )


def _end(message: str) -> None:
    """Ends this process from beside its main thread, which waits for what never comes, and cannot be woken."""
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    time.sleep(1.0)  # the others learn of it by what this process still sends
    os._exit(AbsenceError.exit_status)


@contextlib.contextmanager
def watching(cluster: Cluster, pulse: Heartbeat) -> Iterator[None]:
    """Ends this process when another one is lost, or when any hangs."""
    is_over, reports = threading.Event(), _HeartbeatExchange(cluster, pulse)
    watches = [
        threading.Thread(target=_watch, args=(cluster, reports, is_over), name="watch over the cluster", daemon=True),
        threading.Thread(target=reports.exchange, args=(is_over,), name="reports to the cluster", daemon=True),
    ]
    for thread in watches:
        thread.start()
    try:
        yield
        pulse.is_leaving = True
    finally:
        is_over.set()
        if not pulse.is_leaving:  # an error: the others are not told, and notice
            eager_context.context().abort_collective_ops(tf.errors.ABORTED, "the process ends")
        for thread in watches:
            thread.join()


def _watch(cluster: Cluster, reports: _HeartbeatExchange, is_over: threading.Event) -> None:
    """Ends this process when another one is gone, or when Python stands still in another one."""
    watched = range(1, cluster.size) if cluster.index == 0 else [0]
    n_missed, n_before = 0, 0
    while not is_over.wait(CHECK_SECONDS):
        # Speaks up only if it is here that Python stands still, and needs none of it for that.
        faulthandler.dump_traceback_later(N_MISSED_REPORTS * CHECK_SECONDS)
        lost = _lost_process(watched)
        n_missed = n_missed + 1 if reports.n_rounds == n_before else 0
        n_before = reports.n_rounds
        if lost is not None and not is_over.is_set():
            _end(_describe_loss(cluster, lost))
        if n_missed > N_MISSED_REPORTS and not is_over.is_set():
            _end(_describe_standstill(cluster))
    faulthandler.cancel_dump_traceback_later()


class _HeartbeatExchange:
    """What the processes tell each other about their main threads, every few seconds.

    Attributes:
        n_rounds: how often all have told all.
    """

    def __init__(self, cluster: Cluster, pulse: Heartbeat) -> None:
        self._cluster = cluster
        self._pulse = pulse
        self.n_rounds = 0

    def exchange(self, is_over: threading.Event) -> None:
        """Goes on until all leave, so that nobody waits for one that has left; or until one is gone, which is for the
        watch to say.
        """
        tell_all, patience = _make_report(self._cluster), Timeouts(self._cluster.size)
        reports: list[list[int]] = []
        while not reports or not all(is_leaving for *_, is_leaving in reports):
            is_over.wait(CHECK_SECONDS)
            try:
                reports = tell_all(dataclasses.astuple(self._pulse))
            except tf.errors.OpError:
                return
            self.n_rounds += 1
            hanging = patience.broken_by(reports)
            if hanging is not None:
                _end(_describe_hang(self._cluster, hanging))


def _make_report(cluster: Cluster) -> Callable[[tuple[int, ...]], list[list[int]]]:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec((1, None), tf.int32)])
    def gather(own: tf.Tensor) -> tf.Tensor:
        with tf.device("/device:CPU:0"):
            return collective_ops.all_gather_v2(own, cluster.size, REPORT_KEY, REPORT_KEY)

    def tell_all(own: tuple[int, ...]) -> list[list[int]]:
        gathered = gather(tf.constant([[cluster.index, *map(int, own)]])).numpy().tolist()
        return [report for _, *report in sorted(gathered)]  # they do not come in the order of the processes

    return tell_all


class Timeouts:
    """Counts for how many rounds of reports the others have waited for a process without a sign of its life."""

    def __init__(self, n_processes: int) -> None:
        self._before: list[tuple[int, int]] = [(-1, -1)] * n_processes
        self._n_rounds = [0] * n_processes

    def broken_by(self, reports: Sequence[Sequence[int]]) -> int | None:
        """The process, if any, that others have waited for too long; the fields of `Heartbeat` of each."""
        farthest = max(n_meetings for n_meetings, *_ in reports)
        broken = None
        for index, (n_meetings, n_signs, patience_seconds, _) in enumerate(reports):
            is_silent = n_meetings < farthest and (n_meetings, n_signs) == self._before[index]
            self._before[index] = n_meetings, n_signs
            self._n_rounds[index] = self._n_rounds[index] + 1 if is_silent else 0
            if broken is None and 0 < patience_seconds < self._n_rounds[index] * CHECK_SECONDS:
                broken = index
        return broken


def _describe_hang(cluster: Cluster, index: int) -> str:
    hangs = f"process {index} ({cluster.hosts[index]}): hangs: others wait for it, and it shows no life"
    if index == cluster.index:
        stack = traceback.format_stack(sys._current_frames()[threading.main_thread().ident])
        return f"{hangs}; it is this process, and it ends from here:\n{''.join(stack)}"
    return (
        f"{hangs}, so this process ({cluster.index}) ends too; see where it says that it hangs, and start all "
        "processes again: they go on from the last checkpoint"
    )


def _describe_standstill(cluster: Cluster) -> str:
    others = [f"process {index} ({host})" for index, host in enumerate(cluster.hosts) if index != cluster.index]
    suspects = others[0] if len(others) == 1 else f"one of the {len(others)} other processes"
    return (
        f"{suspects}: hangs so that no Python runs in it, so this process ({cluster.index}) ends too; see which "
        "shows where it hangs, end it, and start all processes again: they go on from the last checkpoint"
    )


@contextlib.contextmanager
def loss_told(cluster: Cluster) -> Iterator[None]:
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
                raise AbsenceError(_describe_loss(cluster, lost)) from error
        raise
