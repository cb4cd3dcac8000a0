"""How fast the devices of a run could compute at most: what model flops utilisation is measured against."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence

from configs.schema import ModelConfig
from meshtf import tf
from runtime.planning.flops import flops_of_token

TERA = 1e12
# Of one device, in 10^12 operations a second, from its maker's data sheet, without sparsity: of bfloat16 products, and
# of float32 ones as TensorFlow makes them, by way of TensorFloat-32 where there is that. The first that fits counts.
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
# Of one chip, by the beginning of TPU_ACCELERATOR_TYPE; its float32 products are made of bfloat16 ones.
TPU_PEAKS = {"v2": 45.0, "v3": 123.0, "v4": 275.0, "v5lite": 197.0, "v5e": 197.0, "v5p": 459.0, "v6e": 918.0}
TPU_VARIABLE = "TPU_ACCELERATOR_TYPE"
MEASURING_SECONDS = 0.2
PRODUCT_SIZES = {"CPU": 1536, "GPU": 8192}


def known_gpu_peak(name: str, precision: str) -> float | None:
    """Operations a second of a GPU by its maker's name; None: it is not in the table."""
    for pattern, bfloat16, float32 in GPU_PEAKS:
        if re.search(rf"\b({pattern})\b", name):
            return TERA * (bfloat16 if precision == "bfloat16" else float32)
    return None


def tpu_peak(n_cores: int, cores_of_chip: int) -> float | None:
    """Operations a second of so many cores of a TPU; None: its machine does not say of which kind they are."""
    accelerator = os.environ.get(TPU_VARIABLE, "")
    for kind, peak in TPU_PEAKS.items():
        if re.match(rf"{kind}(pod)?-", accelerator):
            return TERA * peak * n_cores / cores_of_chip
    return None


def own_peak(devices: Sequence[str], precision: str) -> float:
    """Operations a second of this process's devices together: GPUs as their maker says, or else as measured now.

    Args:
        devices: as "/device:GPU:0"; CPUs of one process are one CPU.
        precision: "float32" or "bfloat16", that of the activations.
    """
    gpus = [device for device in devices if ":GPU:" in device]
    if not gpus:
        return measured_peak(devices[0], precision)
    return sum(known_gpu_peak(_gpu_name(gpu), precision) or measured_peak(gpu, precision) for gpu in gpus)


def _gpu_name(device: str) -> str:
    number = int(device.rpartition(":")[2])
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[number])
    return str(details.get("device_name", ""))


def measured_peak(device: str, precision: str) -> float:
    """Operations a second in the fastest of some large matrix products, in float32 or in the precision of the run:
    where bfloat16 is only imitated, float32 is what the device can do.
    """
    size = PRODUCT_SIZES[device.split(":")[-2]]
    seconds = min(_fastest_seconds(_product(device, size, dtype)) for dtype in {"float32", precision})
    return 2.0 * size**3 / seconds


def _product(device: str, size: int, dtype: str) -> Callable[[], object]:
    """Multiplies two matrices, and waits for it."""
    with tf.device(device):
        matrix = tf.fill([size, size], tf.cast(1.0 / size, dtype))

    @tf.function(autograph=False)
    def multiply() -> tf.Tensor:
        return tf.matmul(matrix, matrix)[0, 0]

    def run() -> object:
        with tf.device(device):
            return multiply().numpy()

    return run


def _fastest_seconds(action: Callable[[], object]) -> float:
    """Of one call, of those that fit into the time, and at least two after the first, which prepares."""
    action()
    fastest, n_calls, end_seconds = float("inf"), 0, time.perf_counter() + MEASURING_SECONDS
    while n_calls < 2 or time.perf_counter() < end_seconds:
        start_seconds = time.perf_counter()
        action()
        fastest, n_calls = min(fastest, time.perf_counter() - start_seconds), n_calls + 1
    return fastest


def peak_tokens_per_second(model: ModelConfig, peak: float) -> float:
    """Tokens a second of devices that do nothing but the model's own operations, at their peak.

    Of these what is computed once more to save memory is none, and attention counts the positions that are seen, not
    the whole square; so the share of it that a run reaches is at most that of the source.

    Source: Chowdhery et al. 2022, PaLM, appendix B (model flops utilisation).
    """
    flops = flops_of_token(model)
    return peak / (flops.forward + flops.backward)
