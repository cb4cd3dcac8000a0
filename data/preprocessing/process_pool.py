"""Tasks in processes of their own, whose results come back in order."""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from configs.errors import DataError

WAITING_PER_PROCESS = 3

Result = TypeVar("Result")


def processes_for(n_shares: int) -> int:
    """Returns how many processes are worth starting for work of so many shares: at most one a core, at least one."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(n_cores, n_shares))


def in_order(tasks: Iterable[Callable[[], Result]], processes: int) -> Iterator[Result]:
    """Yields what becomes of each task, in order; 1 process is this one.

    Raises:
        DataError: a process was ended from outside.
    """
    if processes == 1:
        yield from (task() for task in tasks)
        return
    with pool_of(processes) as executor:
        yield from _collect(executor, iter(tasks), WAITING_PER_PROCESS * processes)


@contextmanager
def pool_of(
    processes: int, prepare: Callable[..., None] | None = None, *given: object
) -> Iterator[ProcessPoolExecutor]:
    """Starts processes that end with this one, after each has called `prepare` with what is given.

    Raises:
        DataError: a process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy TensorFlow's threads, which do not survive it
    executor = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(prepare, *given))
    try:
        yield executor
    except BrokenProcessPool:
        raise DataError(
            f"--processes {processes}: one of them was ended from outside, for want of memory perhaps; start again "
            "with fewer"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _collect(
    executor: ProcessPoolExecutor, remaining: Iterator[Callable[[], Result]], most_waiting: int
) -> Iterator[Result]:
    waiting: collections.deque[Future[Result]] = collections.deque()
    while True:
        for task in itertools.islice(remaining, most_waiting - len(waiting)):
            waiting.append(executor.submit(task))
        if not waiting:
            return
        yield waiting.popleft().result()


def _start(prepare: Callable[..., None] | None, *given: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, which ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*given)


def _end_with_parent() -> None:
    # The pool's queues stay open while any worker lives: nothing else tells them that their parent was killed.
    multiprocessing.parent_process().join()
    os._exit(1)
