"""Draws a plan: which tensor dimension is split over which mesh axis, and the memory of a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs.layout import TENSORS, format_pairs
from runtime.planning.memory import Memory
from runtime.planning.plan import Plan, format_bytes
from runtime.run.plots import write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KIND_COLORS = {
    "parameters": "#2a6fb0",
    "optimizer": "#7fb2dd",
    "gradients": "#d1495b",
    "activations": "#edae49",
    "workspace": "#9a9a9a",
}
_UNSPLIT_COLOR = "#dcdcdc"
_AXIS_COLORS = ("#2a6fb0", "#d1495b", "#3c8d5a", "#8d5a97", "#b0762a", "#4a4a4a")


def draw_plan(plan: Plan, path: str) -> None:
    """Draws a plan into a PNG file.

    Args:
        plan: what to draw.
        path: the PNG file, local or `gs://`; it is replaced atomically.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # imported here because it is slow

    figure = Figure(figsize=(11, 7.5), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 1 + 0.4 * len(plan.memories)])
    _draw_layout(above, plan)
    _draw_memories(below, plan)
    write_png(figure, path)


def cells(plan: Plan) -> tuple[list[str], list[list[str | None]]]:
    """Returns the cells of the upper half.

    Returns:
        The dimensions of the columns, and a row for each of the model's tensors: of each dimension the axis it is split
        over, "" where it is whole, None where the tensor lacks it.
    """
    rules = dict(plan.layout)
    tensors = [TENSORS[name] for name in plan.tensors]
    dimensions = list(dict.fromkeys(dimension for tensor in tensors for dimension in tensor))
    rows = [
        [rules.get(dimension, "") if dimension in tensor else None for dimension in dimensions] for tensor in tensors
    ]
    return dimensions, rows


def _draw_layout(axes: Axes, plan: Plan) -> None:
    dimensions, rows = cells(plan)
    names = [axis for axis, _ in plan.mesh_shape]
    for row, row_cells in enumerate(rows):
        for column, axis in enumerate(row_cells):
            _draw_cell(axes, column, row, axis, names)
    axes.set_xlim(-0.5, len(dimensions) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(dimensions)), dimensions, rotation=25, ha="left")
    axes.set_yticks(range(len(rows)), [name.removeprefix("the ") for name in plan.tensors])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    mesh = format_pairs(plan.mesh_shape) or "one device"
    axes.set_title(f"{plan.name} on {mesh}", loc="left", fontweight="bold", parse_math=False)


def _draw_cell(axes: Axes, column: int, row: int, axis: str | None, names: Sequence[str]) -> None:
    if axis is None:
        return
    color = _AXIS_COLORS[names.index(axis) % len(_AXIS_COLORS)] if axis else _UNSPLIT_COLOR
    axes.barh(row, 0.94, left=column - 0.47, height=0.86, color=color)
    label, text_color = (axis, "white") if axis else ("whole", "#6a6a6a")
    axes.text(column, row, label, ha="center", va="center", color=text_color, fontsize=8, parse_math=False)


def _draw_memories(axes: Axes, plan: Plan) -> None:
    kinds = [field.name for field in dataclasses.fields(Memory)]
    for row, memory in enumerate(plan.memories.values()):
        begin = 0
        for kind in kinds:
            size = getattr(memory, kind)
            axes.barh(row, size, left=begin, height=0.6, color=_KIND_COLORS[kind], label=kind if row == 0 else None)
            begin += size
        axes.text(begin, row, f" {format_bytes(memory.total)}", va="center", fontsize=9)
    axes.set_yticks(range(len(plan.memories)), plan.memories)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("peak memory of a device in a step")
    axes.xaxis.set_major_formatter(lambda size, _position: format_bytes(size))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(kinds), loc="lower center", bbox_to_anchor=(0.5, 1.0))
