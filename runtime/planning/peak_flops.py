"""Peak speed of the devices of a run, which model FLOPs utilisation (MFU) is measured against."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import time
from collections.abc import Callable, Sequence

from configs.schema import ModelConfig
from meshtf import tf
from runtime.planning.flops import flops_of_token

TERA = 1e12
# TFLOP/s of one device from its data sheet, without sparsity: for bfloat16 products, and for float32 products as
# TensorFlow computes them, with TensorFloat-32 where the device has it. The first pattern that matches counts.
GPU_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 1125.0),
    ("GH200|H200 NVL|H100 NVL", 835.0, 417.0),
    ("H100 PCIe", 756.0, 378.0),
    ("H200|H100|H800", 989.0, 494.0),
    ("A100|A800", 312.0, 156.0),
    ("A30", 165.0, 82.0),
    ("L40S", 362.0, 183.0),
    ("L40", 181.0, 90.0),
    ("L4", 121.0, 60.0),
    ("A40", 149.7, 74.8),
    ("A10G", 70.0, 35.0),
    ("A10", 125.0, 62.5),
    ("V100", 15.7, 15.7),
    ("T4", 8.1, 8.1),
)
# TFLOP/s of one chip, by the prefix of TPU_ACCELERATOR_TYPE; float32 products use the bfloat16 units.
TPU_PEAKS = {"v2": 45.0, "v3": 123.0, "v4": 275.0, "v5lite": 197.0, "v5e": 197.0, "v5p": 459.0, "v6e": 918.0}
TPU_VARIABLE = "TPU_ACCELERATOR_TYPE"
QUIET_CALLS = 5  # the fastest of so many counts
MEASURING_SECONDS = 3.0  # at most
MAX_WAITING = 0.05  # share of the time that threads of a quiet call wait for a processor
WAITING_FILES = "/proc/self/task/*/schedstat"  # Linux: of each thread the nanoseconds it ran, and waited to run
PRODUCT_SIZES = {"CPU": 1536, "GPU": 8192}


def known_gpu_peak(name: str, precision: str) -> float | None:
    """Returns the FLOP/s of a GPU by its product name; None if it is not in the table."""
    for pattern, bfloat16, float32 in GPU_PEAKS:
        if re.search(rf"\b({pattern})\b", name):
            return TERA * (bfloat16 if precision == "bfloat16" else float32)
    return None


def tpu_peak(n_cores: int, cores_of_chip: int) -> float | None:
    """Returns the FLOP/s of `n_cores` cores of a TPU; None if its host does not name their kind."""
    accelerator = os.environ.get(TPU_VARIABLE, "")
    for kind, peak in TPU_PEAKS.items():
        if re.match(rf"{kind}(pod)?-", accelerator):
            return TERA * peak * n_cores / cores_of_chip
    return None


def own_peak(devices: Sequence[str], precision: str, max_waiting: float = MAX_WAITING) -> float | None:
    """Returns the FLOP/s of this process's devices together: from the data sheet for known GPUs, or else measured.

    Args:
        devices: such as "/device:GPU:0"; all CPU devices of a process count as one CPU.
        precision: "float32" or "bfloat16", the dtype of the activations.
        max_waiting: as of `measured_peak`.

    Returns:
        None if it cannot be measured, as other programs use the processors.
    """
    gpus = [device for device in devices if ":GPU:" in device]
    if not gpus:
        return measured_peak(devices[0], precision, max_waiting)
    peaks = [known_gpu_peak(_gpu_name(gpu), precision) or measured_peak(gpu, precision, max_waiting) for gpu in gpus]
    return None if None in peaks else sum(peaks)


def _gpu_name(device: str) -> str:
    number = int(device.rpartition(":")[2])
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[number])
    return str(details.get("device_name", ""))


def measured_peak(device: str, precision: str, max_waiting: float = MAX_WAITING) -> float | None:
    """Measures the FLOP/s of large matrix products, in float32 and in the precision of the run; returns the higher.

    Where bfloat16 is emulated, float32 is faster.

    Args:
        device: such as "/device:CPU:0".
        precision: "float32" or "bfloat16".
        max_waiting: the share of its time that a product may wait for processors that other programs use.

    Returns:
        None if every product had to wait for longer: the peak would be too low, and the utilisation too high.
    """
    size = PRODUCT_SIZES[device.split(":")[-2]]
    seconds = [_fastest_seconds(_product(device, size, dtype), max_waiting) for dtype in {"float32", precision}]
    return None if None in seconds else 2.0 * size**3 / min(seconds)


def _product(device: str, size: int, dtype: str) -> Callable[[], object]:
    """Returns a function that multiplies two matrices, and waits for the result."""
    with tf.device(device):
        matrix = tf.fill([size, size], tf.cast(1.0 / size, dtype))

    @tf.function(autograph=False)
    def multiply() -> tf.Tensor:
        return tf.matmul(matrix, matrix)[0, 0]

    def run() -> object:
        with tf.device(device):
            return multiply().numpy()

    return run


def _fastest_seconds(action: Callable[[], object], max_waiting: float) -> float | None:
    """Returns the seconds of the fastest of QUIET_CALLS calls that did not wait; None if there was no such call."""
    action()
    quiet, end_seconds = [], time.perf_counter() + MEASURING_SECONDS
    while len(quiet) < QUIET_CALLS and time.perf_counter() < end_seconds:
        waited_before, start_seconds = _waited_seconds(), time.perf_counter()
        action()
        seconds = time.perf_counter() - start_seconds
        if _waited_seconds() - waited_before <= max_waiting * seconds * (os.cpu_count() or 1):
            quiet.append(seconds)
    return min(quiet, default=None)


def _waited_seconds() -> float:
    """Returns how long the threads of this process have waited for a processor; 0 where the system does not tell."""
    waited_nanoseconds = 0
    for path in glob.glob(WAITING_FILES):
        with contextlib.suppress(OSError, ValueError, IndexError), open(path) as file:  # a thread may have ended
            waited_nanoseconds += int(file.read().split()[1])
    return waited_nanoseconds / 1e9


def peak_tokens_per_second(model: ModelConfig, peak: float) -> float:
    """Returns the tokens per second of devices that run only the model's own operations, at their peak.

    Recomputation does not count as the model's own, and attention counts visible positions only, not the whole square;
    so the MFU of a run is at most that of the source.

    Source: Chowdhery et al. 2022, PaLM, appendix B (model flops utilisation).
    """
    flops = flops_of_token(model)
    return peak / (flops.forward + flops.backward)
