"""Results of threads or processes in the order of their tasks, a limited number of tasks ahead."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def results_in_order(submit: Callable[[Task], Future[Result]], tasks: Iterable[Task], n_ahead: int) -> Iterator[Result]:
    """Yields the result of each task, while up to `n_ahead` tasks are submitted; cancels them when it is closed."""
    remaining, pending = iter(tasks), collections.deque()
    try:
        while True:
            for task in itertools.islice(remaining, n_ahead - len(pending)):
                pending.append(submit(task))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
