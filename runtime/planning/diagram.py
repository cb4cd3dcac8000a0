"""Draws a plan: which dimensions are split over which mesh axes, the memory of a device, and what it sends."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from configs.layout import TENSORS, format_pairs
from runtime.planning.memory import Memory
from runtime.planning.plan import Plan, byte_unit, format_bytes
from storage.pictures import fit_text, without_glyph_warnings, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KIND_COLORS = {
    "parameters": "#2a6fb0",
    "optimizer": "#7fb2dd",
    "gradients": "#d1495b",
    "activations": "#edae49",
    "workspace": "#9a9a9a",
}
_UNSPLIT_COLOR = "#dcdcdc"
_AXIS_COLORS = ("#3c8d5a", "#8d5a97", "#1f8a8a", "#7a4b2a", "#c2578f", "#6b6b1e", "#33406b", "#4a4a4a")
_CELL_WIDTH = 0.94
_TITLE_PIXELS = 900


def draw_plan(plan: Plan, path: str) -> None:
    """Draws a plan into a PNG file.

    Args:
        plan: what to draw.
        path: the PNG file, local or `gs://`; it is replaced atomically.

    Raises:
        UserError: the file cannot be written.
    """
    write_png(build_figure(plan), path)


def build_figure(plan: Plan) -> Figure:
    """Returns the figure of `draw_plan`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow
    from matplotlib.figure import Figure

    n_axes = len({axis for axis, _ in plan.sent_bytes})
    inches = [5.0, 1.3 + 0.4 * len(plan.memories), *([0.9 + 0.4 * n_axes] if n_axes else [])]
    figure = Figure(figsize=(11, sum(inches)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    layout, memories, *sent = figure.subplots(len(inches), 1, height_ratios=inches)
    _draw_layout(layout, plan)
    _draw_memories(memories, plan)
    for axes in sent:
        _draw_sent(axes, plan)
    beside_bars = [text for axes in sent for text in axes.texts]
    for text in (*layout.texts, *beside_bars):
        text.set_in_layout(False)
    with without_glyph_warnings():
        figure.draw_without_rendering()  # only now is it known how wide a cell is
    for text in layout.texts:
        fit_text(text, layout.bbox.width / len(layout.get_xticks()) * _CELL_WIDTH)
    for text in beside_bars:
        fit_text(text, figure.bbox.width - text.get_window_extent().x0)
    return figure


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
    colors = _axis_colors(plan)
    for row, row_cells in enumerate(rows):
        for column, axis in enumerate(row_cells):
            if axis is not None:
                _draw_cell(axes, column, row, axis, colors.get(axis))
    axes.set_xlim(-0.5, len(dimensions) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(dimensions)), dimensions, rotation=25, ha="left")
    axes.set_yticks(range(len(rows)), [name.removeprefix("the ") for name in plan.tensors])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    mesh = format_pairs(plan.mesh_shape) or "one device"
    title = axes.set_title(f"{plan.name} on {mesh}", loc="left", fontweight="bold", parse_math=False)
    fit_text(title, _TITLE_PIXELS)


def _axis_colors(plan: Plan) -> dict[str, str]:
    return {axis: _AXIS_COLORS[number % len(_AXIS_COLORS)] for number, (axis, _) in enumerate(plan.mesh_shape)}


def _draw_cell(axes: Axes, column: int, row: int, axis: str, axis_color: str | None) -> None:
    axes.barh(row, _CELL_WIDTH, left=column - _CELL_WIDTH / 2, height=0.86, color=axis_color or _UNSPLIT_COLOR)
    label, text_color = (axis, "white") if axis else ("whole", "#6a6a6a")
    axes.text(column, row, label, ha="center", va="center", color=text_color, fontsize=8, parse_math=False)


def _draw_memories(axes: Axes, plan: Plan) -> None:
    unit, name = byte_unit(max(memory.total for memory in plan.memories.values()))
    kinds = [field.name for field in dataclasses.fields(Memory)]
    for row, memory in enumerate(plan.memories.values()):
        begin = 0.0
        for kind in kinds:
            size = getattr(memory, kind) / unit
            axes.barh(row, size, left=begin, height=0.6, color=_KIND_COLORS[kind], label=kind if row == 0 else None)
            begin += size
        axes.text(begin, row, f" {format_bytes(memory.total)}", va="center", fontsize=9)
    _style_bars(axes, list(plan.memories), f"peak memory of a device in a step ({name})")
    axes.margins(x=0.12)
    axes.legend(frameon=False, ncols=len(kinds), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _draw_sent(axes: Axes, plan: Plan) -> None:
    colors, sizes = _axis_colors(plan), dict(plan.mesh_shape)
    by_axis = {axis: _sent_over(plan, axis) for axis in colors if any(axis == sent for sent, _ in plan.sent_bytes)}
    unit, name = byte_unit(max(sum(kinds.values()) for kinds in by_axis.values()))
    for row, (axis, kinds) in enumerate(by_axis.items()):
        total = sum(kinds.values())
        axes.barh(row, total / unit, height=0.6, color=colors[axis])
        parts = [f"{format_bytes(sent)} {kind}" for kind, sent in kinds.items()]
        axes.text(total / unit, row, f" {' + '.join(parts)}", va="center", fontsize=9)
    names = [f"{_shorten(axis)} (of {sizes[axis]})" for axis in by_axis]
    _style_bars(axes, names, f"sent by a device in a step, by axis ({name})")
    axes.set_xlim(right=2 * max(sum(kinds.values()) for kinds in by_axis.values()) / unit)


def _shorten(axis: str) -> str:
    return axis if len(axis) <= 20 else f"{axis[:10]}…{axis[-9:]}"


def _sent_over(plan: Plan, axis: str) -> dict[str, float]:
    """Returns the bytes sent over an axis by kind of collective, the most first."""
    kinds = {kind: sent for (over, kind), sent in plan.sent_bytes.items() if over == axis}
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def _style_bars(axes: Axes, names: list[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
