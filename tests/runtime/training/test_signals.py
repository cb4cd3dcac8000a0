"""Signals sent to the test process itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runtime.training.signals import SIGNALS, StopRequest, signals_as_interrupt, stopped_during, uninterrupted


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def handlers_before():
    """The handlers, which must be restored after the test."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_signals_are_those_of_terminals_and_job_schedulers() -> None:
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("context", [StopRequest, signals_as_interrupt, uninterrupted])
def test_an_ignored_signal_stays_ignored(number: int, context: Callable[[], AbstractContextManager[object]]) -> None:
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with context():
            send(number)
            assert signal.getsignal(number) == signal.SIG_IGN
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("number", SIGNALS)
def test_work_that_may_stop_anywhere_is_interrupted(handlers_before: list, number: int) -> None:
    with pytest.raises(KeyboardInterrupt), signals_as_interrupt():
        send(number)
    with uninterrupted():
        send(number)


def test_a_check_ends_work_in_every_process_once_one_has_a_signal() -> None:
    heard = []

    def all_reduce_max(number: int) -> int:
        heard.append(number)
        return max(number, signal.SIGTERM if len(heard) == 3 else 0)

    stop = StopRequest(all_reduce_max)

    def work(n_steps: int) -> None:
        for _ in range(n_steps):
            stop.check()

    assert stopped_during(work, 2) is None
    assert stopped_during(work, 5) == signal.SIGTERM
    assert heard == [0, 0, 0]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_only_recorded(handlers_before: list, number: int) -> None:
    with StopRequest() as stop:
        assert stop.signal_number is None
        send(number)
        assert stop.signal_number == number


def test_the_second_ctrl_c_stops_at_once(handlers_before: list) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        send(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        send(signal.SIGINT)


@pytest.mark.parametrize("number", [number for number in SIGNALS if number != signal.SIGINT])
def test_a_second_signal_changes_nothing(handlers_before: list, number: int) -> None:
    received = []
    previous = signal.signal(number, lambda number, frame: received.append(number))
    try:
        with StopRequest() as stop:
            send(number)
            send(number)
            assert (stop.signal_number, received) == (number, [])
        send(number)
        assert received == [number]
    finally:
        signal.signal(number, previous)


def test_the_first_signal_is_the_one_recorded(handlers_before: list) -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.signal_number == signal.SIGINT


def test_the_handlers_are_restored_without_a_signal(handlers_before: list) -> None:
    with StopRequest() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] != handlers_before
    assert stop.signal_number is None


def test_the_handlers_are_restored_after_an_error(handlers_before: list) -> None:
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError


# A lock of C that is taken twice: no signal ends the wait, as none ends a compilation.
DEAF = """
import ctypes, threading
from runtime.training.signals import StopRequest
with StopRequest():
    library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    threading.Timer(1.0, print, ["begun"], {"flush": True}).start()  # once the main thread waits
    library.pthread_mutex_lock(lock), library.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_compilation_is_answered_and_a_second_ctrl_c_ends_it(first: int) -> None:
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(first)
        name = signal.Signals(first).name
        line = f"{name}: heard; stops once a program is compiled; a second Ctrl-C ends at once\n"
        assert process.stderr.readline() == line
        process.send_signal(signal.SIGTERM)  # schedulers may send several
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
        assert process.stderr.read().startswith("ended by a second Ctrl-C; ")
