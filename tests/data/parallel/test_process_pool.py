"""Processes of the pool run functions of the standard library, which start at once."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import DataError
from data.parallel.process_pool import in_order, processes_for

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_few_tasks_are_begun_ahead(processes):
    begun = []
    tasks = (begun.append(number) or functools.partial(operator.neg, number) for number in itertools.count())
    results = in_order(tasks, processes)
    assert list(itertools.islice(results, 20)) == [-number for number in range(20)]
    assert len(begun) <= 20 + 3 * processes
    results.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_a_task_reaches_the_caller(processes):
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        list(in_order([functools.partial(math.sqrt, -1)], processes))


def test_a_killed_worker_is_an_error():
    with pytest.raises(DataError, match="^--processes 2: one of them was killed"):
        list(in_order([functools.partial(os._exit, 3)], 2))


def test_there_are_no_more_processes_than_tasks():
    assert (processes_for(0), processes_for(1)) == (1, 1)
    assert 1 <= processes_for(10**6) <= (os.cpu_count() or 1)


def test_processes_end_with_a_killed_parent():
    program = (
        "import functools, itertools, multiprocessing, os, time\n"
        "from data.parallel.process_pool import in_order\n"
        "if __name__ == '__main__':\n"
        "    tasks = itertools.chain([os.getpid], itertools.repeat(functools.partial(time.sleep, 0.1)))\n"
        "    for result in in_order(tasks, 2):\n"
        "        if result: print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        children = [int(word) for word in parent.stdout.readline().split()]
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    assert len(children) == 2
    ends_by = time.monotonic() + 20
    while any(map(is_running, children)) and time.monotonic() < ends_by:
        time.sleep(0.05)
    assert not any(map(is_running, children))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
