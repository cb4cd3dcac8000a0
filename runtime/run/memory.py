"""The memory that a run takes."""

from __future__ import annotations

import re
import resource
from collections.abc import Sequence
from pathlib import Path

from meshtf import tf

GIB = 2.0**30
STATUS_FILE = Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def peak_resident_bytes() -> int:
    """Returns the peak resident memory of this process.

    On Linux, not from `getrusage`, whose peak begins with that of the process that started this one.
    """
    if STATUS_FILE.exists():
        return int(_PEAK.search(STATUS_FILE.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


def memory_in_use(devices: Sequence[str]) -> dict[str, float]:
    """Returns the peak memory of this process in GiB, by metric name: host memory, and that of its fullest GPU.

    Args:
        devices: those of the run, such as `/device:GPU:0`.
    """
    host = {"host_memory_gib": peak_resident_bytes() / GIB}
    gpus = [device.removeprefix("/device:") for device in devices if ":GPU:" in device and "/job:" not in device]
    if not gpus:
        return host
    fullest = max(tf.config.experimental.get_memory_info(gpu)["peak"] for gpu in gpus) / GIB
    return {**host, "device_memory_gib": fullest}
