"""Chooses the devices of this machine that a run uses."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from configs.errors import DeviceError
from meshtf import tf


def choose_devices(gpu_ids: Sequence[str] | None, n_cpu_devices: int | None) -> tuple[str, ...]:
    """Returns the devices to run on; call it before TensorFlow runs anything.

    Args:
        gpu_ids: such as `device:GPU:0` or `0`; None: every visible GPU, or else the CPU.
        n_cpu_devices: how many virtual CPU devices to create instead; None: none.

    Raises:
        DeviceError: a device does not exist.
    """
    if n_cpu_devices is not None:
        return _virtual_cpu_devices(n_cpu_devices)
    visible = [
        f"/device:{device.device_type}:{index}" for index, device in enumerate(tf.config.list_physical_devices("GPU"))
    ]
    if gpu_ids is None:
        return tuple(visible) or ("/device:CPU:0",)
    named = (f"device:GPU:{name}" if name.isdigit() else name.strip().lstrip("/") for name in gpu_ids)
    wanted = tuple(f"/{name}" for name in named)
    for name in wanted:
        if name not in [*visible, "/device:CPU:0"]:
            there = ", ".join(device.lstrip("/") for device in visible) or "none"
            raise DeviceError(
                f"--gpu_ids {name.lstrip('/')}: no such device; GPUs that TensorFlow sees: {there}; "
                "name one that is there, or leave --gpu_ids out to run on what is there"
            )
    if len(set(wanted)) < len(wanted):
        raise DeviceError(f"--gpu_ids {' '.join(gpu_ids)}: a device is named twice; name each once")
    return wanted


@functools.cache  # they can be created only once, before TensorFlow runs anything
def _virtual_cpu_devices(count: int) -> tuple[str, ...]:
    if count < 1:
        raise DeviceError(f"--cpu_devices {count}: must be at least 1; give the number of virtual CPU devices")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return tuple(f"/device:CPU:{index}" for index in range(count))
