"""Training throughput: tokens per second, time spent waiting for data, and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

SMOOTHING = 0.9  # weight of the past in the moving averages


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Exponential moving averages over recent steps.

    Attributes:
        tokens_per_second: over all processes.
        data_wait: fraction of the time that this process waits for data.
        mfu: model FLOPs utilisation, the fraction of the devices' peak spent on the model's own operations; None if the
            peak is unknown.
    """

    tokens_per_second: float
    data_wait: float
    mfu: float | None

    def metrics(self) -> dict[str, float]:
        """Returns the known values by metric name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


class ThroughputMeter:
    """Measures throughput from its creation on."""

    def __init__(self, peak_tokens_per_second: float | None, warn: Callable[[str], None]) -> None:
        """Starts the clock.

        Args:
            peak_tokens_per_second: at full utilisation; None if unknown.
            warn: takes a message if the steps are faster, so that this cannot be the peak.
        """
        self._peak_tokens_per_second = peak_tokens_per_second
        self._warn = warn
        self.restart()

    def restart(self) -> None:
        """Starts the clock and the averages again, after a pause."""
        self._last_seconds = time.perf_counter()
        self._waited_seconds = 0.0
        self._mean: tuple[float, float] | None = None

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time spent in the context as waiting."""
        start_seconds = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - start_seconds

    def update(self, n_tokens: int) -> Throughput:
        """Adds the tokens trained on since the last update; returns the new averages."""
        now_seconds = time.perf_counter()
        took_seconds = now_seconds - self._last_seconds
        latest = n_tokens / took_seconds, self._waited_seconds / took_seconds
        self._last_seconds, self._waited_seconds = now_seconds, 0.0
        self._mean = tuple(
            SMOOTHING * old + (1.0 - SMOOTHING) * new for old, new in zip(self._mean or latest, latest, strict=True)
        )
        tokens_per_second, data_wait = self._mean
        return Throughput(tokens_per_second, data_wait, self._mfu(tokens_per_second))

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Returns the share of the peak; None from the moment on when the peak turns out to be too low."""
        peak = self._peak_tokens_per_second
        if peak is not None and tokens_per_second > peak:
            self._warn(
                f"mfu is left out from here on: {tokens_per_second:,.0f} tokens/s are more than the {peak:,.0f} of the "
                "devices' peak, which was measured too low"
            )
            self._peak_tokens_per_second = peak = None
        return peak and tokens_per_second / peak
