"""Throughput by a clock that the test sets."""

from __future__ import annotations

import pytest

from runtime.training import throughput
from runtime.training.throughput import Throughput, ThroughputMeter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the meter reads, in its only item."""
    seconds = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: seconds[0])
    return seconds


def test_the_first_update_gives_its_own_rates(clock: list[float]) -> None:
    meter = ThroughputMeter(1000.0, warn=pytest.fail)
    with meter.waiting_for_data():
        clock[0] += 0.5
    clock[0] += 1.5
    measured = meter.update(500)
    assert measured.tokens_per_second == pytest.approx(250.0)
    assert measured.data_wait == pytest.approx(0.25)
    assert measured.mfu == pytest.approx(0.25)


def test_later_updates_move_the_averages_by_a_tenth(clock: list[float]) -> None:
    meter = ThroughputMeter(None, warn=pytest.fail)
    with meter.waiting_for_data():
        clock[0] += 1.0
    meter.update(100)
    clock[0] += 2.0
    measured = meter.update(400)
    assert measured.tokens_per_second == pytest.approx(0.9 * 100.0 + 0.1 * 200.0)
    assert measured.data_wait == pytest.approx(0.9)  # waiting is counted from the last update on


def test_a_peak_that_is_outrun_is_no_peak(clock: list[float]) -> None:
    said: list[str] = []
    meter = ThroughputMeter(1000.0, said.append)
    shares = []
    for n_tokens in (900, 1100, 20_000, 10):
        clock[0] += 1.0
        shares.append(meter.update(n_tokens).mfu)
    meter.restart()
    clock[0] += 1.0
    assert (shares, meter.update(500).mfu) == ([pytest.approx(0.9), pytest.approx(0.92), None, None], None)
    assert said == [
        "mfu is left out from here on: 2,828 tokens/s are more than the 1,000 of the devices' peak, which was "
        "measured too low"
    ]


def test_a_restart_begins_the_averages_anew(clock: list[float]) -> None:
    meter = ThroughputMeter(None, warn=pytest.fail)
    clock[0] += 1.0
    meter.update(100)
    clock[0] += 1000.0  # an evaluation
    meter.restart()
    clock[0] += 1.0
    assert meter.update(300).tokens_per_second == pytest.approx(300.0)


def test_only_known_values_become_metrics() -> None:
    assert Throughput(2.0, 0.5, None).metrics() == {"tokens_per_second": 2.0, "data_wait": 0.5}
    assert Throughput(2.0, 0.5, 0.1).metrics() == {"tokens_per_second": 2.0, "data_wait": 0.5, "mfu": 0.1}
