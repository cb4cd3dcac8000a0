"""Running tasks in other processes, with results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from configs.errors import DataError
from data.parallel.ordered_results import results_in_order

WAITING_PER_PROCESS = 3

Result = TypeVar("Result")


def core_count() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_for(n_tasks: int) -> int:
    """Returns how many processes to start for a number of tasks: at most one a core, at least one."""
    return max(1, min(core_count(), n_tasks))


def in_order(
    tasks: Iterable[Callable[[], Result]],
    processes: int,
    prepare: Callable[..., None] | None = None,
    *arguments: object,
) -> Iterator[Result]:
    """Yields the result of each task, in order. The processes end with this one.

    Args:
        tasks: a few are taken ahead of the results.
        processes: how many run the tasks; 1 means this one.
        prepare: is called in each other process first.
        arguments: the arguments of `prepare`.

    Raises:
        DataError: a process was killed.
    """
    if processes == 1:
        yield from (task() for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # TensorFlow's threads do not survive a fork
    executor = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(prepare, *arguments))
    try:
        yield from results_in_order(executor.submit, tasks, WAITING_PER_PROCESS * processes)
    except BrokenProcessPool:
        raise DataError(
            f"--processes {processes}: one of them was killed, perhaps for lack of memory; start again with fewer"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _start(prepare: Callable[..., None] | None, *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with_parent() -> None:
    # The pool's queues stay open while any worker lives, so nothing else shows that the parent was killed.
    multiprocessing.parent_process().join()
    os._exit(1)
