"""Signals to this very process."""

from __future__ import annotations

import os
import signal

import pytest

from runtime.training.signals import SIGNALS, StopRequest


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def handlers_before():
    """The handlers, which must be the same again after the test."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_it_is_ctrl_c_and_the_request_to_terminate() -> None:
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM}


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_nothing_else_happens(handlers_before: list, number: int) -> None:
    with StopRequest() as stop:
        assert stop.signal_number is None
        send(number)
        assert stop.signal_number == number


def test_the_second_ctrl_c_stops_at_once(handlers_before: list) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        send(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        send(signal.SIGINT)


def test_a_second_request_to_terminate_changes_nothing(handlers_before: list) -> None:
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


def test_the_first_signal_is_the_one_that_is_told(handlers_before: list) -> None:
    with StopRequest() as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.signal_number == signal.SIGINT


def test_without_a_signal_the_handlers_are_given_back(handlers_before: list) -> None:
    with StopRequest() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] != handlers_before
    assert stop.signal_number is None


def test_an_error_inside_gives_them_back_too(handlers_before: list) -> None:
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
