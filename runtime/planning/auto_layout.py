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
from collections.abc import Iterator, Sequence

from configs.errors import DeviceError
from configs.layout import Layout, MeshShape, find_layout_issues, format_pairs
from configs.schema import RunConfig
from runtime.planning.cost import cost_of, step_time
from runtime.planning.machines import MACHINES, Machine
from runtime.planning.plan import format_bytes

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
class Candidate:
    """A mesh and a layout, the least seconds of a step, and the bytes that it takes on a device."""

    mesh_shape: MeshShape
    layout: Layout
    seconds: float
    memory_bytes: float


def auto_layout(config: RunConfig, mesh_shape: MeshShape, machine: Machine = MACHINES["TPU"]) -> Layout:
    """Returns the layout that trains fastest on a mesh, among those that fit into memory.

    Args:
        config: the run; its own mesh and layout are ignored.
        mesh_shape: the axes.
        machine: speed and memory of one device.

    Raises:
        DeviceError: no layout fits, or none splits anything.
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
        DeviceError: no layout on any mesh fits, or none splits anything.
    """
    candidate = _fastest(config, list(mesh_shapes(n_devices)), machine)
    return candidate.mesh_shape, candidate.layout


def _fastest(config: RunConfig, shapes: Sequence[MeshShape], machine: Machine) -> Candidate:
    candidates = [_candidate(config, shape, layout, machine) for shape, layout in candidate_layouts(config, shapes)]
    smallest = min(candidates, key=lambda candidate: candidate.memory_bytes)
    fitting = [candidate for candidate in candidates if candidate.memory_bytes <= machine.memory_bytes]
    if not fitting:
        raise DeviceError(
            f"{config.name} on {format_pairs(smallest.mesh_shape)}: needs at least "
            f"{format_bytes(smallest.memory_bytes)} per device, which has {format_bytes(machine.memory_bytes)}; "
            "use more devices, set recompute, or lower tokens_per_mb_per_replica"
        )
    fastest = min(fitting, key=lambda candidate: candidate.seconds)
    if not fastest.layout and math.prod(size for _, size in fastest.mesh_shape) > 1:
        batch = config.training.train_batch_size
        raise DeviceError(
            f"{config.name} on {format_pairs(fastest.mesh_shape)}: no dimension can be split so, and all devices would "
            f"do the same work; give a mesh_shape whose sizes divide train_batch_size = {batch}, or another batch"
        )
    return fastest


def _candidate(config: RunConfig, mesh_shape: MeshShape, layout: Layout, machine: Machine) -> Candidate:
    cost = cost_of(config, mesh_shape, layout)
    return Candidate(mesh_shape, layout, step_time(cost, mesh_shape, machine).total, cost.memory_bytes)


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


def candidate_layouts(config: RunConfig, shapes: Sequence[MeshShape]) -> list[tuple[MeshShape, Layout]]:
    """Returns pairs of a mesh and a valid layout for it that gives each axis one of ROLES, without duplicates.

    Processors along an axis that splits nothing repeat each other's work, so only the layouts come that split the work
    over the most processors.
    """
    layouts = [(shape, layout) for shape in shapes for layout in _valid_layouts(config, shape)]
    most = max(_n_sharing(shape, layout) for shape, layout in layouts)
    return [(shape, layout) for shape, layout in layouts if _n_sharing(shape, layout) == most]


def _n_sharing(mesh_shape: MeshShape, layout: Layout) -> int:
    """Returns over how many processors the work is split."""
    axes = {axis for _, axis in layout}
    return math.prod(size for axis, size in mesh_shape if axis in axes)


def _valid_layouts(config: RunConfig, mesh_shape: MeshShape) -> list[Layout]:
    sizes = dimension_sizes(config)
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
    return layouts


def _splits_each_once(layout: Layout) -> bool:
    return len({dimension for dimension, _ in layout}) == len(layout)


def dimension_sizes(config: RunConfig) -> dict[str, tuple[str, int]]:
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
