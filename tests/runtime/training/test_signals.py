"""Signals sent to the test process itself."""

from __future__ import annotations

import os
import signal

import pytest

from runtime.training.signals import SIGNALS, StopRequest


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def handlers_before():
    """The handlers, which must be restored after the test."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_signals_are_ctrl_c_and_sigterm() -> None:
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM}


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


def test_a_second_sigterm_changes_nothing(handlers_before: list) -> None:
    received = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with StopRequest() as stop:
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            assert (stop.signal_number, received) == (signal.SIGTERM, [])
        send(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


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
