"""A series of bounded length that still shows all of a run: of a longer one every second point is kept, then every
fourth, and so on.
"""

from __future__ import annotations

import array

# In Sacred's layout one document of at most 16 MB holds a metric, at 48 bytes a point; and a browser draws it.
MAX_POINTS = 20_000


class ThinSeries:
    """Points of one metric, kept so that never more than a limit of them are.

    Attributes:
        every: of how many points that came one is kept.
        steps, values, times_seconds: of the points that are kept.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self.every = 1
        self.steps = array.array("q")
        self.values = array.array("d")
        self.times_seconds = array.array("d")
        self._max_points = max_points
        self._n_came = 0

    def append(self, step: int, value: float, time_seconds: float) -> None:
        """Takes the next point, and keeps it if it is one of those to keep."""
        if self._n_came % self.every == 0:
            self.steps.append(step)
            self.values.append(value)
            self.times_seconds.append(time_seconds)
            if len(self.steps) > self._max_points:
                self._thin_out()
        self._n_came += 1

    def _thin_out(self) -> None:
        self.every *= 2
        self.steps = self.steps[::2]
        self.values = self.values[::2]
        self.times_seconds = self.times_seconds[::2]

    def __len__(self) -> int:
        return len(self.steps)
