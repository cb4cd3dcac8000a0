"""The cost of a training step, estimated before it runs: memory, floating-point operations and bytes sent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from configs.layout import TENSORS, Layout, MeshShape, format_pairs
from configs.schema import RECOMPUTATIONS, ModelConfig, RunConfig
from models.moe import routing_params
from models.variables import SlicedVariable
from runtime.mesh.placement import Placement
from runtime.planning.dry_run import DryStep, Transfer, build_dry_step
from runtime.planning.flops import TokenFlops, flops_of_token
from runtime.planning.memory import Memory, estimate_memory

# Resident memory, measured on CPUs (TensorFlow 2.21, Python 3.11) with models of almost no tensors: of the program and
# its libraries, and of graph, kernels and compiler for each node of the graph.
PROGRAM_BYTES = 675 << 20
NODE_BYTES = 43 << 10
# Bytes allocated for each byte of tensors, measured with benchmarks/plan.py: freed memory is fragmented, and more so by
# the tensors of microbatches, which come and go several times in a step.
FRAGMENTATION, MICROBATCH_FRAGMENTATION = 1.07, 1.15


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of a config on a mesh.

    Attributes:
        name: the config's name.
        mesh_shape: the axes; none on one device.
        layout: which dimension is split over which axis.
        tensors: the names in `configs.layout.TENSORS` that the model has.
        n_parameters: of the whole model.
        n_active_parameters: without the experts that a token does not use.
        n_trained_parameters: those that are trained; with lora_rank, of the adapters alone.
        microbatch_count: microbatches per step.
        memories: of one device, by variant of the config; the first is the config itself.
        flops: of one token.
        sent_bytes: by one device in a step, by axis and kind of collective.
        program_bytes: of a process with one device, besides tensors.
    """

    name: str
    mesh_shape: MeshShape
    layout: Layout
    tensors: tuple[str, ...]
    n_parameters: int
    n_active_parameters: int
    n_trained_parameters: int
    microbatch_count: int
    memories: Mapping[str, Memory]
    flops: TokenFlops
    sent_bytes: Mapping[tuple[str, str], float]
    program_bytes: int

    @property
    def memory(self) -> Memory:
        """Memory of the config itself."""
        return next(iter(self.memories.values()))


def make_plan(config: RunConfig, placement: Placement) -> Plan:
    """Builds the step for one processor without running it, and adds up its costs.

    Args:
        config: the run.
        placement: may be that of `dry_placement`, whose devices need not exist.
    """
    step = build_dry_step(config, placement)
    others = {name: build_dry_step(other, placement) for name, other in _variants(config)}
    parameters = [variable for variable in step.graph.all_variables if variable.is_parameter]
    n_parameters = sum(variable.shape.size for variable in parameters)
    return Plan(
        name=config.name,
        mesh_shape=tuple((dim.name, dim.size) for dim in placement.shape.dims),
        layout=placement.layout,
        tensors=tuple(_tensors_of(config.model)),
        n_parameters=n_parameters,
        n_active_parameters=n_parameters - _n_inactive_parameters(config.model, parameters),
        n_trained_parameters=sum(variable.shape.size for variable in step.graph.trainable_variables),
        microbatch_count=step.microbatch_count,
        memories={"as configured": estimate_memory(step)}
        | {name: estimate_memory(other) for name, other in others.items()},
        flops=flops_of_token(config.model),
        sent_bytes=total_sent(step.transfers),
        program_bytes=program_bytes(step),
    )


def _tensors_of(model: ModelConfig) -> list[str]:
    absent = set() if model.moe_layers else {"experts", "expert_hidden"}
    absent |= set() if model.lora_rank else {"lora_rank"}
    return [name for name, dimensions in TENSORS.items() if not absent & set(dimensions)]


def _variants(config: RunConfig) -> Iterable[tuple[str, RunConfig]]:
    """Yields variants that use less or more memory: with other recomputation, and with the smallest microbatches."""
    model, training = config.model, config.training
    for recompute in RECOMPUTATIONS:
        if recompute != model.recomputation:
            other = dataclasses.replace(model, recompute=recompute, recompute_grad=False)
            yield f"recompute = {recompute}", dataclasses.replace(config, model=other)
    if training.tokens_per_mb_per_replica != model.n_ctx:
        one_row = dataclasses.replace(training, tokens_per_mb_per_replica=model.n_ctx)
        yield f"tokens_per_mb_per_replica = {model.n_ctx}", dataclasses.replace(config, training=one_row)


def _n_inactive_parameters(model: ModelConfig, parameters: Iterable[SlicedVariable]) -> int:
    """Returns the number of parameters in experts that a token does not use."""
    if not model.moe_layers:
        return 0
    n_experts, n_used = model.moe_params.moe_num_experts, routing_params(model, is_training=True).n_choices
    shapes = [variable.model_shape for variable in parameters]
    shapes = [shape for shape in shapes if shape.dimension_names[:1] == ["experts"]]
    return sum(shape.size * (n_experts - n_used) // n_experts for shape in shapes)


def total_sent(transfers: Iterable[Transfer]) -> dict[tuple[str, str], float]:
    """Returns the bytes that one processor sends in a step, by mesh axis and kind of collective."""
    totals: dict[tuple[str, str], float] = {}
    for transfer in transfers:
        key = (transfer.axis, transfer.kind)
        totals[key] = totals.get(key, 0.0) + transfer.sent_bytes
    return totals


def program_bytes(step: DryStep) -> int:
    """Returns the resident memory of a process that runs a step on one device, besides its tensors."""
    return PROGRAM_BYTES + NODE_BYTES * step.n_graph_nodes


def allocated_bytes(memory: Memory, microbatch_count: int) -> float:
    """Returns the bytes that the allocator takes for the tensors of a step."""
    return (FRAGMENTATION if microbatch_count == 1 else MICROBATCH_FRAGMENTATION) * memory.total


def resident_bytes(plan: Plan) -> int:
    """Returns the peak resident memory of a process that trains on one CPU device, as the system counts it."""
    return plan.program_bytes + math.ceil(allocated_bytes(plan.memory, plan.microbatch_count))


def byte_unit(count: float) -> tuple[int, str]:
    """Returns the greatest binary unit that a size reaches, and its name."""
    for exponent, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(count) >= 1 << exponent:
            return 1 << exponent, name
    return 1, "B"


def format_bytes(count: float) -> str:
    """Returns a size in binary units with about three digits: 1,610,612,736 is "1.50 GiB"."""
    unit, name = byte_unit(count)
    return f"{count / unit:,.{2 if unit > 1 and abs(count) < 100 * unit else 0}f} {name}"


def format_plan(plan: Plan) -> str:
    """Returns the plan as a table."""
    return "\n".join([*_model_lines(plan), "", *_memory_lines(plan), "", *_sent_lines(plan)])


def _model_lines(plan: Plan) -> list[str]:
    mesh, layout = format_pairs(plan.mesh_shape) or "one device", format_pairs(plan.layout) or "nothing split"
    idle = "" if plan.n_active_parameters == plan.n_parameters else f", {plan.n_active_parameters:,} active per token"
    trained = plan.n_trained_parameters
    frozen = "" if trained == plan.n_parameters else f", {trained:,} trained"
    flops = plan.flops
    parts = [f"{_giga(flops.forward)} forward", f"{_giga(flops.backward)} backward"]
    if flops.recomputed:
        parts.append(f"{_giga(flops.recomputed)} recomputed")
    return [
        f"{plan.name} on {mesh} ({layout})",
        f"parameters     {plan.n_parameters:,}{idle}{frozen}",
        f"microbatches   {plan.microbatch_count}",
        f"flops per token  {_giga(flops.total)} = {' + '.join(parts)}",
    ]


def _giga(count: float) -> str:
    return f"{count / 1e9:,.4g} G"


def _memory_lines(plan: Plan) -> list[str]:
    kinds = [field.name for field in dataclasses.fields(Memory)]
    rows = [["memory per device", *kinds, "total"]]
    for name, memory in plan.memories.items():
        rows.append([name, *(format_bytes(getattr(memory, kind)) for kind in kinds), format_bytes(memory.total)])
    cpu_process = f"a CPU process with one device: about {format_bytes(resident_bytes(plan))} resident, "
    return [*aligned(rows), f"{cpu_process}{format_bytes(plan.program_bytes)} for the program"]


def _sent_lines(plan: Plan) -> list[str]:
    if not plan.sent_bytes:
        return ["nothing is sent between devices"]
    sizes = dict(plan.mesh_shape)
    rows = [["sent by a device per step", "axis", "size", "bytes"]]
    for (axis, kind), sent in sorted(plan.sent_bytes.items()):
        rows.append([kind, axis, str(sizes[axis]), format_bytes(sent)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats rows of cells as lines: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return ["  ".join(cells) for cells in padded]
