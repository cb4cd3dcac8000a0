"""Downsamples a growing series to a bounded length: keeps every second point, then every fourth, and so on."""

from __future__ import annotations

from tracking.record.store import Series

# In Sacred's layout a metric is one document of at most 16 MB, with 48 bytes a point; and browsers must draw it.
MAX_POINTS = 20_000


class DownsampledSeries(Series):
    """One metric, downsampled to at most `max_points`.

    Attributes:
        every: the distance between kept points; 1: all are kept.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        super().__init__()
        self.every = 1
        self._max_points = max_points
        self._n_seen = 0

    def append(self, step: int, value: float, time_seconds: float) -> None:
        """Adds the next point, if it is one of those to keep."""
        if self._n_seen % self.every == 0:
            super().append(step, value, time_seconds)
            if len(self) > self._max_points:
                self._halve()
        self._n_seen += 1

    def _halve(self) -> None:
        self.every *= 2
        for points in (self.steps, self.values, self.times_seconds):
            del points[1::2]

    def __len__(self) -> int:
        return len(self.steps)
