"""Memory that this very process takes."""

from __future__ import annotations

import numpy as np

from runtime.run.usage import memory_in_use


def test_a_large_array_shows_in_the_peak_and_stays_there() -> None:
    before = memory_in_use(["/device:CPU:0"])["host_memory_gib"]
    large = np.ones(2**26)  # half a GiB, all of it touched
    during = memory_in_use(["/device:CPU:0"])
    del large
    assert set(during) == {"host_memory_gib"}
    assert max(before, 0.5) <= during["host_memory_gib"] < before + 1.0
    assert memory_in_use(["/device:CPU:0"])["host_memory_gib"] >= during["host_memory_gib"]
