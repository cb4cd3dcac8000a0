"""How a config would run on more and more devices of a kind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from configs.layout import Layout, MeshShape, format_pairs, resized
from configs.schema import RunConfig
from runtime.planning.cost import StepCost, StepTime, cost_of, step_time
from runtime.planning.flops import flops_of_token
from runtime.planning.machines import Machine
from runtime.planning.plan import aligned, format_bytes

DEVICE_COUNTS = (1, 8, 64, 512, 4096)


@dataclasses.dataclass(frozen=True)
class Scale:
    """A config on the devices of one mesh.

    Attributes:
        mesh_shape: the axes.
        batch_size: in sequences.
        cost: of a step, for one device.
        time: of a step.
        mfu: the share of the devices' peak that the model's own operations take (model FLOPs utilisation).
        fits: the step fits into the memory of a device.
    """

    mesh_shape: MeshShape
    batch_size: int
    cost: StepCost
    time: StepTime
    mfu: float
    fits: bool


def scales(config: RunConfig, machine: Machine, counts: Sequence[int] = DEVICE_COUNTS) -> Iterator[Scale]:
    """Yields the config on each number of devices, with its own layout.

    The axes after the first stay as they are as far as there are devices, and the first takes the rest. The batch stays
    until each row of devices has one sequence, and then grows.
    """
    layout = config.mesh.layout or (("batch", "all"),)
    for count in counts:
        mesh_shape = resized(config.mesh.mesh_shape or (("all", 1),), count)
        n_rows = math.prod(size for axis, size in mesh_shape if ("batch", axis) in layout)
        batch_size = n_rows * max(1, config.training.train_batch_size // n_rows)
        training = dataclasses.replace(config.training, train_batch_size=batch_size)
        yield _scale(dataclasses.replace(config, training=training), mesh_shape, layout, machine)


def _scale(config: RunConfig, mesh_shape: MeshShape, layout: Layout, machine: Machine) -> Scale:
    cost = cost_of(config, mesh_shape, layout)
    time = step_time(cost, mesh_shape, machine)
    flops = flops_of_token(config.model)
    n_tokens = config.training.train_batch_size * config.model.n_ctx
    own = n_tokens * (flops.forward + flops.backward) / math.prod(size for _, size in mesh_shape)
    return Scale(
        mesh_shape=mesh_shape,
        batch_size=config.training.train_batch_size,
        cost=cost,
        time=time,
        mfu=own / machine.flops_per_second / time.total,
        fits=cost.memory_bytes <= machine.memory_bytes,
    )


def format_scales(kind: str, found: Sequence[Scale]) -> str:
    """Returns the table of a config on devices of a kind."""
    axes = [axis for axis, _ in found[0].mesh_shape]
    head = [f"devices ({kind})", "mesh", "batch", "memory", *(f"sent over {axis}" for axis in axes)]
    rows = [[*head, "flops", "seconds", "MFU", "limited by"]]
    for scale in found:
        sent = [format_bytes(scale.cost.sent_bytes[axis]) for axis in axes]
        rows.append(
            [
                f"{math.prod(size for _, size in scale.mesh_shape):,}",
                format_pairs(scale.mesh_shape),
                f"{scale.batch_size:,}",
                format_bytes(scale.cost.memory_bytes),
                *sent,
                f"{scale.cost.flops / 1e12:,.4g} T",
                f"{scale.time.total:,.3g}",
                f"{scale.mfu:.0%}",
                scale.time.limit if scale.fits else "memory: does not fit",
            ]
        )
    return "\n".join(aligned(rows))
