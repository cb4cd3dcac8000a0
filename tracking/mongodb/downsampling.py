"""Downsamples a growing series to a bounded length: keeps every second point, then every fourth, and so on."""

from __future__ import annotations

import array

# In Sacred's layout a metric is one document of at most 16 MB, with 48 bytes a point; and browsers must draw it.
MAX_POINTS = 20_000


class DownsampledSeries:
    """One metric, downsampled to at most `max_points`.

    Attributes:
        every: one of so many points is kept.
        steps, values, times_seconds: of the kept points.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self.every = 1
        self.steps = array.array("q")
        self.values = array.array("d")
        self.times_seconds = array.array("d")
        self._max_points = max_points
        self._n_seen = 0

    def append(self, step: int, value: float, time_seconds: float) -> None:
        """Adds the next point, if it is one of those to keep."""
        if self._n_seen % self.every == 0:
            self.steps.append(step)
            self.values.append(value)
            self.times_seconds.append(time_seconds)
            if len(self.steps) > self._max_points:
                self._halve()
        self._n_seen += 1

    def _halve(self) -> None:
        self.every *= 2
        self.steps = self.steps[::2]
        self.values = self.values[::2]
        self.times_seconds = self.times_seconds[::2]

    def __len__(self) -> int:
        return len(self.steps)
