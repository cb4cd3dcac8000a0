"""What a run uses of its machine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

from meshtf import tf

GIB = 2.0**30
# What the operating system counts the peak in.
PEAK_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def memory_in_use(devices: Sequence[str]) -> dict[str, float]:
    """Peaks of this process so far in GiB, by the metric's name: of the host's memory, and of the fullest of its GPUs.

    Args:
        devices: of the run, as `/device:GPU:0`.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT_BYTES / GIB
    gpus = [device.removeprefix("/device:") for device in devices if ":GPU:" in device and "/job:" not in device]
    if not gpus:
        return {"host_memory_gib": peak}
    fullest = max(tf.config.experimental.get_memory_info(gpu)["peak"] for gpu in gpus) / GIB
    return {"host_memory_gib": peak, "device_memory_gib": fullest}
