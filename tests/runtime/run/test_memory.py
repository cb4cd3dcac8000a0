"""Peak memory: of this process, and of no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from runtime.run.memory import memory_in_use

REPOSITORY = Path(__file__).parents[3]
FROM_A_LARGE_PROCESS = """
import subprocess, sys
large = bytearray(b"x" * 2**31)
show = "from runtime.run.memory import memory_in_use; print(memory_in_use([])['host_memory_gib'])"
subprocess.run([sys.executable, "-c", show], check=True)
"""


def test_a_large_array_raises_the_peak_for_good() -> None:
    before = memory_in_use(["/device:CPU:0"])["host_memory_gib"]
    large = np.ones(2**26)  # half a GiB, all of it touched
    during = memory_in_use(["/device:CPU:0"])
    del large
    assert set(during) == {"host_memory_gib"}
    assert max(before, 0.5) <= during["host_memory_gib"] < before + 1.0
    after = memory_in_use(["/device:CPU:0"])["host_memory_gib"]
    assert after > during["host_memory_gib"] - 0.01  # the kernel counts pages by batches of each core


def test_a_process_is_not_charged_for_the_one_that_started_it() -> None:
    command = [sys.executable, "-c", FROM_A_LARGE_PROCESS]
    found = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    assert 0.1 < float(found) < 1.5
