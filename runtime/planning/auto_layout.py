"""Chooses a mesh and a layout for a model: plans all candidates, and takes the fastest that fits into memory.

mesh-TensorFlow's own `auto_mtf` minimises memory alone, with an integer program that needs `ortools`, over operations
that it knows; it would run a small model in eight identical copies on a mesh of eight, since all of them fit. Here a
layout gives each mesh axis a role from a short table of dimensions worth splitting together, so that all layouts can
be tried; their costs come from the same plan that `--plan` shows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence

from configs.errors import DeviceError
from configs.layout import Layout, MeshShape, find_layout_issues, format_pairs
from configs.schema import MeshConfig, RunConfig
from runtime.planning.dry_run import build_dry_step, dry_placement
from runtime.planning.flops import flops_of_processor
from runtime.planning.memory import estimate_memory
from runtime.planning.plan import allocated_bytes, format_bytes

# The roles of an axis: dimensions that are worth splitting over one axis together.
ROLES: tuple[tuple[str, ...], ...] = (
    ("batch",),
    ("batch", "experts"),
    ("heads", "kv_heads", "intermediate_expanded", "vocab", "expert_hidden"),
    ("heads", "kv_heads", "intermediate_expanded", "vocab", "experts"),
    ("embd", "memory_length"),
    ("experts",),
    (),
)
AXIS_NAMES = "xyz"
MAX_AXES = 2


@dataclasses.dataclass(frozen=True)
class Machine:
    """Speed and memory of one device of a mesh, in round figures: only their ratios matter.

    Attributes:
        memory_bytes: for a step's tensors.
        flops_per_second: in large matrix products.
        bytes_per_second: to a neighbour.
        transfer_seconds: latency of a collective.
    """

    memory_bytes: float
    flops_per_second: float
    bytes_per_second: float
    transfer_seconds: float


MACHINES = {
    "TPU": Machine(16 << 30, 5e13, 7e10, 5e-6),  # a core of a TPU v3
    "GPU": Machine(80 << 30, 2e14, 2e11, 1e-5),  # of a server whose GPUs are linked
    "CPU": Machine(4 << 30, 1e11, 5e9, 5e-5),  # a few cores of a server
}


def machine_of(devices: Sequence[str]) -> Machine:
    """Returns the machine of devices such as "/device:CPU:0"; the CPU devices of a process share its memory."""
    kind = devices[0].split(":")[-2]
    if kind != "CPU":
        return MACHINES[kind]
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    return dataclasses.replace(MACHINES[kind], memory_bytes=memory_bytes)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a layout on one device, per step."""

    seconds: float
    memory_bytes: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and a layout, and their cost."""

    mesh_shape: MeshShape
    layout: Layout
    cost: Cost


def auto_layout(config: RunConfig, mesh_shape: MeshShape, machine: Machine = MACHINES["TPU"]) -> Layout:
    """Returns the layout that trains fastest on a mesh, among those that fit into memory.

    Args:
        config: the run; its own mesh and layout are ignored.
        mesh_shape: the axes.
        machine: speed and memory of one device.

    Raises:
        DeviceError: no layout fits.
    """
    return _fastest(config, [mesh_shape], machine).layout


def auto_layout_and_mesh_shape(
    config: RunConfig, n_devices: int, machine: Machine = MACHINES["TPU"]
) -> tuple[MeshShape, Layout]:
    """Returns the mesh of `n_devices` and the layout that train fastest, among those that fit into memory.

    Args:
        config: the run; its own mesh and layout are ignored.
        n_devices: devices to use.
        machine: speed and memory of one device.

    Raises:
        DeviceError: no layout on any mesh fits.
    """
    candidate = _fastest(config, list(mesh_shapes(n_devices)), machine)
    return candidate.mesh_shape, candidate.layout


def _fastest(config: RunConfig, shapes: Sequence[MeshShape], machine: Machine) -> Candidate:
    candidates = [
        Candidate(shape, layout, cost_of(config, shape, layout, machine))
        for shape in shapes
        for layout in candidate_layouts(config, shape)
    ]
    smallest = min(candidates, key=lambda candidate: candidate.cost.memory_bytes)
    fitting = [candidate for candidate in candidates if candidate.cost.memory_bytes <= machine.memory_bytes]
    if not fitting:
        raise DeviceError(
            f"{config.name} on {format_pairs(smallest.mesh_shape)}: needs at least "
            f"{format_bytes(smallest.cost.memory_bytes)} per device, which has {format_bytes(machine.memory_bytes)}; "
            "use more devices, set recompute_grad, or lower tokens_per_mb_per_replica"
        )
    return min(fitting, key=lambda candidate: candidate.cost.seconds)


def mesh_shapes(n_devices: int) -> Iterator[MeshShape]:
    """Yields every mesh of `n_devices` with at most MAX_AXES axes, the larger first since their order does not matter.

    Axes of size 1 are left out, except on the mesh of a single device.
    """
    yield (("x", n_devices),)
    for n_axes in range(2, MAX_AXES + 1):
        for sizes in itertools.combinations_with_replacement(reversed(_divisors(n_devices)), n_axes):
            if math.prod(sizes) == n_devices:
                yield tuple(zip(AXIS_NAMES, sizes, strict=False))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(2, number + 1) if number % divisor == 0]


def candidate_layouts(config: RunConfig, mesh_shape: MeshShape) -> list[Layout]:
    """Returns every valid layout that gives each axis one of ROLES, without duplicates.

    Processors along an axis that splits nothing repeat each other's work: such layouts come only if there is no other.
    """
    sizes = _dimension_sizes(config)
    layouts = []
    for roles in itertools.product(ROLES, repeat=len(mesh_shape)):
        layout = tuple(
            (dimension, axis)
            for (axis, n_processors), role in zip(mesh_shape, roles, strict=True)
            for dimension in role
            if dimension in sizes and sizes[dimension][1] % n_processors == 0
        )
        is_new = set(layout) not in [set(other) for other in layouts]
        if is_new and _splits_each_once(layout) and not any(find_layout_issues(mesh_shape, layout, sizes)):
            layouts.append(layout)
    axes = {axis for axis, _ in mesh_shape}
    return [layout for layout in layouts if {axis for _, axis in layout} == axes] or layouts


def _splits_each_once(layout: Layout) -> bool:
    return len({dimension for dimension, _ in layout}) == len(layout)


def _dimension_sizes(config: RunConfig) -> dict[str, tuple[str, int]]:
    """Returns the config key and the size of each dimension of the model."""
    model = config.model
    sizes = {
        "batch": ("train_batch_size", math.gcd(*(size for _, size in config.training.batch_sizes))),
        "sequence": ("n_ctx", model.n_ctx),
        "memory_length": ("n_ctx", model.n_ctx),
        "embd": ("n_embd", model.n_embd),
        "heads": ("n_head", model.n_head),
        "intermediate_expanded": ("n_inner" if model.n_inner else "4 n_embd", model.feed_forward_width),
        "vocab": ("n_vocab", model.n_vocab),
    }
    if model.kv_heads != model.n_head:
        sizes["kv_heads"] = ("n_kv_head", model.kv_heads)
    if model.moe_layers:
        sizes["experts"] = ("moe_num_experts", model.moe_params.moe_num_experts)
        sizes["expert_hidden"] = ("moe_hidden_size", model.moe_params.moe_hidden_size)
    return sizes


def cost_of(config: RunConfig, mesh_shape: MeshShape, layout: Layout, machine: Machine) -> Cost:
    """Estimates the cost of a step; for repeating layers, extrapolates from two models of fewer layers.

    Args:
        config: the run.
        mesh_shape: the axes.
        layout: one without issues by `find_layout_issues`.
        machine: speed and memory of one device.
    """
    period, n_layer = _period(config), config.model.n_layer
    if 3 * period > n_layer:
        return _planned_cost(config, mesh_shape, layout, machine)
    once, twice = (
        _planned_cost(_first_layers(config, count), mesh_shape, layout, machine) for count in (period, 2 * period)
    )
    n_repeats = n_layer / period - 1
    return Cost(
        once.seconds + n_repeats * (twice.seconds - once.seconds),
        once.memory_bytes + n_repeats * (twice.memory_bytes - once.memory_bytes),
    )


def _planned_cost(config: RunConfig, mesh_shape: MeshShape, layout: Layout, machine: Machine) -> Cost:
    n_devices = math.prod(size for _, size in mesh_shape)
    step = build_dry_step(config, dry_placement(MeshConfig(mesh_shape=mesh_shape, layout=layout), n_devices))
    sent_bytes = sum(transfer.sent_bytes for transfer in step.transfers)
    seconds = flops_of_processor(step) / machine.flops_per_second + sent_bytes / machine.bytes_per_second
    seconds += len(step.transfers) * machine.transfer_seconds
    return Cost(seconds, allocated_bytes(estimate_memory(step), step.microbatch_count))


def _period(config: RunConfig) -> int:
    """Returns the number of layers after which their kinds repeat; the number of all layers if they do not."""
    kinds = [(kind, index in config.model.moe_layers) for index, kind in enumerate(config.model.attention_types)]
    periods = (count for count in range(1, len(kinds)) if len(kinds) % count == 0)
    return next((count for count in periods if kinds == kinds[:count] * (len(kinds) // count)), len(kinds))


def _first_layers(config: RunConfig, count: int) -> RunConfig:
    model = config.model
    shorter = dataclasses.replace(
        model,
        n_layer=count,
        attention_types=model.attention_types[:count],
        moe_layers=tuple(index for index in model.moe_layers if index < count),
    )
    return dataclasses.replace(config, model=shorter)
