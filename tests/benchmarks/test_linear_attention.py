"""The benchmark of linear attention's memory."""

from __future__ import annotations

import pytest

from benchmarks.linear_attention import measured_growth


@pytest.mark.slow
@pytest.mark.processes
def test_memory_grows_with_the_sequence_and_not_faster() -> None:
    assert 4.0 < measured_growth(1024) <= 9.0
