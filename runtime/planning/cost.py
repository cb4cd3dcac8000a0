"""What a training step costs one device, and an estimate of its time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from configs.layout import Layout, MeshShape
from configs.schema import RunConfig
from meshtf import mtf
from runtime.planning.dry_run import DryStep, build_dry_step, dry_placement
from runtime.planning.flops import flops_of_processor
from runtime.planning.machines import Machine, axis_speeds
from runtime.planning.memory import ALIASES, ELEMENTWISE, estimate_memory
from runtime.planning.plan import allocated_bytes
from runtime.training.grad_accumulation import MicrobatchLoop


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one device does in a step.

    Attributes:
        flops: of its matrix products.
        moved_bytes: read from its memory or written there, at least.
        memory_bytes: allocated at the peak.
        n_transfers: collectives.
        sent_bytes: to others, by axis.
    """

    flops: float
    moved_bytes: float
    memory_bytes: float
    n_transfers: float
    sent_bytes: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The seconds of a step by a roofline: products and memory traffic overlap, sending overlaps with neither.

    Source: Williams et al. 2009, Roofline: An Insightful Visual Performance Model for Multicore Architectures. Our
    steps run collectives in one order, so each waits for the products before it.

    Attributes:
        products: seconds of matrix products at their peak.
        memory: seconds of reading and writing memory.
        links: seconds of sending, by axis.
        latency: seconds until collectives begin to send.
    """

    products: float
    memory: float
    links: Mapping[str, float]
    latency: float

    @property
    def total(self) -> float:
        """All seconds."""
        return max(self.products, self.memory) + sum(self.links.values()) + self.latency

    @property
    def limit(self) -> str:
        """What takes longest."""
        axes = {f"sending over {axis}": seconds for axis, seconds in self.links.items()}
        parts = {"products": self.products, "memory traffic": self.memory, "latency": self.latency, **axes}
        return max(parts, key=parts.__getitem__)


def step_time(cost: StepCost, mesh_shape: MeshShape, machine: Machine) -> StepTime:
    """Returns the estimated time of a step on devices of a kind."""
    speeds = axis_speeds(mesh_shape, machine)
    return StepTime(
        products=cost.flops / machine.flops_per_second,
        memory=cost.moved_bytes / machine.memory_bytes_per_second,
        links={axis: sent / speeds[axis] for axis, sent in cost.sent_bytes.items()},
        latency=cost.n_transfers * machine.transfer_seconds,
    )


def cost_of(config: RunConfig, mesh_shape: MeshShape, layout: Layout) -> StepCost:
    """Returns the cost of a step; for repeating layers, extrapolates from two models of fewer layers.

    Args:
        config: the run; its own mesh and layout are ignored.
        mesh_shape: the axes.
        layout: one without issues by `find_layout_issues`.
    """
    period, n_layer = _period(config), config.model.n_layer
    if 3 * period > n_layer:
        return planned_cost(config, mesh_shape, layout)
    once, twice = (planned_cost(_first_layers(config, count), mesh_shape, layout) for count in (period, 2 * period))
    n_repeats = n_layer / period - 1
    numbers = {
        field.name: _extended(getattr(once, field.name), getattr(twice, field.name), n_repeats)
        for field in dataclasses.fields(StepCost)
        if field.name != "sent_bytes"
    }
    sent = {axis: _extended(once.sent_bytes[axis], twice.sent_bytes[axis], n_repeats) for axis in once.sent_bytes}
    return StepCost(**numbers, sent_bytes=sent)


def _extended(once: float, twice: float, n_repeats: float) -> float:
    return once + n_repeats * (twice - once)


def planned_cost(config: RunConfig, mesh_shape: MeshShape, layout: Layout) -> StepCost:
    """Returns the cost of a step of all layers, see `cost_of`."""
    n_devices = math.prod(size for _, size in mesh_shape)
    mesh = dataclasses.replace(config.mesh, mesh_shape=mesh_shape, layout=layout)
    step = build_dry_step(config, dry_placement(mesh, n_devices))
    memory = estimate_memory(step)
    sent = {
        axis: sum(transfer.sent_bytes for transfer in step.transfers if transfer.axis == axis) for axis, _ in mesh_shape
    }
    return StepCost(
        flops=flops_of_processor(step),
        moved_bytes=_moved_bytes(step.graph.operations, step),
        memory_bytes=allocated_bytes(memory, step.microbatch_count),
        n_transfers=len(step.transfers),
        sent_bytes=sent,
    )


def _moved_bytes(operations: Iterable[mtf.Operation], step: DryStep) -> float:
    """Counts what operations read and write, but for elementwise ones, which compilers join to their neighbours."""
    moved = 0.0
    for operation in operations:
        if isinstance(operation, MicrobatchLoop):
            moved += operation.microbatch_count * _moved_bytes(operation.operations, step)
        elif not isinstance(operation, (*ALIASES, *ELEMENTWISE, mtf.Variable)):
            moved += sum(map(step.slice_bytes, [*operation.inputs, *operation.outputs]))
    return moved


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
