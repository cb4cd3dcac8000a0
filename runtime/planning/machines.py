"""Speed, memory and links of the devices that a step is planned for."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

from configs.layout import MeshShape

TERA, GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Machine:
    """One device among others of its kind.

    Attributes:
        memory_bytes: for a step's tensors.
        flops_per_second: in large matrix products.
        bytes_per_second: to a neighbour, in each direction at once.
        transfer_seconds: latency of a collective.
        memory_bytes_per_second: read or written.
        n_linked: how many devices are joined by such links: those of a server, or of a TPU's pod.
        network_bytes_per_second: of one device to another that is not so linked.
    """

    memory_bytes: float
    flops_per_second: float
    bytes_per_second: float
    transfer_seconds: float
    memory_bytes_per_second: float = math.inf
    n_linked: int = 1 << 30
    network_bytes_per_second: float = math.inf


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """A device by its data sheet: decimal units, dense products, one direction of a link."""

    memory_gb: float
    bfloat16_tflops: float
    float32_tflops: float
    memory_gb_per_second: float
    link_gb_per_second: float
    n_linked: int
    network_gb_per_second: float


# In round figures, of which only the ratios matter: for a search without a kind of device.
MACHINES = {
    "TPU": Machine(16 << 30, 5e13, 7e10, 5e-6),  # a core of a TPU v3
    "GPU": Machine(80 << 30, 2e14, 2e11, 1e-5),  # of a server whose GPUs are linked
    "CPU": Machine(4 << 30, 1e11, 5e9, 5e-5),  # a few cores of a server
}
# NVIDIA's data sheets of the 80 and 141 GB SXM modules, in servers of 8 with a network adapter for each GPU (200 Gb/s
# for an A100, 400 for the others); Google Cloud's page of each TPU, by chip. A ring along one side of a TPU's torus
# uses two ports of a chip, which has four (v5e) or six. float32 products as TensorFlow computes them: TF32 on GPUs,
# bfloat16 on TPUs.
DEVICE_KINDS = {
    "A100": DeviceKind(80, 312, 156, 2039, 300, 8, 25),
    "H100": DeviceKind(80, 989, 494, 3350, 450, 8, 50),
    "H200": DeviceKind(141, 989, 494, 4800, 450, 8, 50),
    "v4": DeviceKind(32, 275, 275, 1228, 100, 4096, 6.25),
    "v5e": DeviceKind(16, 197, 197, 819, 100, 256, 3.125),
    "v5p": DeviceKind(95, 459, 459, 2765, 200, 8960, 6.25),
}
TRANSFER_SECONDS = 1e-5


def machine_of_kind(kind: str, precision: str) -> Machine:
    """Returns a device of `DEVICE_KINDS` with the speed of its products in a precision."""
    device = DEVICE_KINDS[kind]
    tflops = device.bfloat16_tflops if precision == "bfloat16" else device.float32_tflops
    return Machine(
        memory_bytes=GIGA * device.memory_gb,
        flops_per_second=TERA * tflops,
        bytes_per_second=GIGA * device.link_gb_per_second,
        transfer_seconds=TRANSFER_SECONDS,
        memory_bytes_per_second=GIGA * device.memory_gb_per_second,
        n_linked=device.n_linked,
        network_bytes_per_second=GIGA * device.network_gb_per_second,
    )


def machine_of(devices: Sequence[str]) -> Machine:
    """Returns the machine of devices such as "/device:CPU:0"; the CPU devices of a process share its memory."""
    kind = devices[0].split(":")[-2]
    if kind != "CPU":
        return MACHINES[kind]
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    return dataclasses.replace(MACHINES[kind], memory_bytes=memory_bytes)


def axis_speeds(mesh_shape: MeshShape, machine: Machine) -> dict[str, float]:
    """Returns the bytes per second that a device sends around each axis.

    Neighbours along the last axis are neighbours in the list of devices. Where a ring leaves the linked devices, all of
    its members there share their network adapters, as the rings of NCCL do.
    """
    speeds, stride = {}, 1
    for axis, size in reversed(mesh_shape):
        members = max(1, machine.n_linked // stride)  # of a ring, among linked devices
        shared = members * machine.network_bytes_per_second
        speeds[axis] = machine.bytes_per_second if size <= members else min(machine.bytes_per_second, shared)
        stride *= size
    return speeds
