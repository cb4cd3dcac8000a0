"""Plots of a dataset: the lengths of its documents and the frequencies of its tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data.check.report import BINS_PER_OCTAVE, DatasetReport
from storage.pictures import fit_text, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 100  # a PNG file of matplotlib has at most 65,535 lines of pixels
MAX_POWERS = 8  # on an axis

_COLOR, _SOFT_COLOR = "#2a6fb0", "#6a6a6a"
_WIDTH, _ROW_HEIGHT, _DPI = 11.0, 3.8, 120  # inches
_TITLE_TOP, _SUBTITLE_TOP, _AXES_TOP, _AXES_BOTTOM = 0.12, 0.38, 0.98, 0.72  # inches from the edges of a row
_LEFT, _AXES_WIDTH, _RIGHT_AXES = 0.95, 4.2, 6.55  # inches


def draw_reports(reports: Mapping[str, DatasetReport], path: str) -> None:
    """Draws reports into a PNG file, one per row, the first `MAX_ROWS` of them.

    Args:
        reports: by title; what follows its first line is smaller.
        path: the PNG file, local or `gs://`; its folder is created.

    Raises:
        UserError: the file cannot be written.
    """
    write_png(build_figure(reports), path)


def build_figure(reports: Mapping[str, DatasetReport]) -> Figure:
    """Returns the figure of `draw_reports`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow
    from matplotlib.figure import Figure

    drawn = list(reports.items())[:MAX_ROWS]
    more = f"and {len(reports) - len(drawn)} more, which are not drawn" if len(drawn) < len(reports) else ""
    figure = Figure(figsize=(_WIDTH, _ROW_HEIGHT * len(drawn) + 0.4 * bool(more)), dpi=_DPI)
    FigureCanvasAgg(figure)
    for row, (title, report) in enumerate(drawn):
        _draw_row(figure, row, title, report)
    if more:
        figure.text(0.15 / _WIDTH, 0.15 / figure.get_figheight(), more, color=_SOFT_COLOR)
    return figure


def _draw_row(figure: Figure, row: int, title: str, report: DatasetReport) -> None:
    height, top = figure.get_figheight(), row * _ROW_HEIGHT
    name, _, more = title.partition("\n")
    for text, inches, style in (
        (name, _TITLE_TOP, {"fontsize": 11, "fontweight": "bold"}),
        (more, _SUBTITLE_TOP, {"fontsize": 9, "color": _SOFT_COLOR}),
    ):
        drawn = figure.text(0.15 / _WIDTH, 1 - (top + inches) / height, text, va="top", parse_math=False, **style)
        fit_text(drawn, (_WIDTH - 0.3) * _DPI)
    bottom = 1 - (top + _ROW_HEIGHT - _AXES_BOTTOM) / height
    size = _AXES_WIDTH / _WIDTH, (_ROW_HEIGHT - _AXES_TOP - _AXES_BOTTOM) / height
    _draw_lengths(figure.add_axes((_LEFT / _WIDTH, bottom, *size)), report)
    _draw_frequencies(figure.add_axes((_RIGHT_AXES / _WIDTH, bottom, *size)), report)


def length_bars(report: DatasetReport) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns left edges, widths and heights of the histogram of document lengths."""
    filled = np.flatnonzero(report.lengths_B)
    bins = np.arange(filled[0], filled[-1] + 1) if len(filled) else np.array([], dtype=np.int64)
    edges, ends = 2.0 ** (bins / BINS_PER_OCTAVE), 2.0 ** ((bins + 1) / BINS_PER_OCTAVE)
    return edges, ends - edges, report.lengths_B[bins]


def frequencies_by_rank(report: DatasetReport) -> np.ndarray:
    """Returns the relative frequency of each id that occurs, in descending order."""
    counts = np.sort(report.counts_V[report.counts_V > 0])[::-1]
    return counts / max(1, counts.sum())


def log_ticks(low: float, high: float) -> Sequence[float]:
    """Returns round numbers within a range of positive ones: powers of ten, and multiples of them if these are few."""
    bases = (1, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 500 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [base * 10.0**power for power in powers[:: math.ceil(len(powers) / MAX_POWERS)] for base in bases]
    return [tick for tick in ticks if low <= tick <= high]


def _draw_lengths(axes: Axes, report: DatasetReport) -> None:
    edges, widths, heights = length_bars(report)
    documents = "unknown, as no id parts them" if report.n_documents is None else f"{report.n_documents:,}"
    _style_axes(axes, f"documents: {documents}", "tokens per document", "documents")
    if len(edges) == 0:
        _say_empty(axes)
        return
    axes.bar(edges, heights, widths, align="edge", color=_COLOR, edgecolor="white", linewidth=0.4)
    _set_log_axis(axes, "x", edges[0] / 1.5, (edges[-1] + widths[-1]) * 1.5)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda count, _position: _brief(count))


def _draw_frequencies(axes: Axes, report: DatasetReport) -> None:
    frequencies = frequencies_by_rank(report)
    used = f"{len(frequencies):,} of the ids up to {max(0, len(report.counts_V) - 1):,} are used"
    _style_axes(axes, used, "rank of the id", "share of the tokens")
    if len(frequencies) == 0:
        _say_empty(axes)
        return
    ranks = np.arange(1, len(frequencies) + 1)
    axes.plot(ranks, frequencies, color=_COLOR, linewidth=1.8, marker="o" if len(ranks) < 10 else None)
    _set_log_axis(axes, "x", 0.8, len(ranks) * 1.25)
    _set_log_axis(axes, "y", frequencies[-1] / 1.5, min(1.2, frequencies[0] * 1.5))


def _set_log_axis(axes: Axes, name: str, low: float, high: float) -> None:
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis, ticks = getattr(axes, f"{name}axis"), log_ticks(low, high)
    axis.set_ticks([], minor=True)
    axis.set_ticks(ticks, [_brief(tick) for tick in ticks])


def _brief(number: float) -> str:
    """Returns a round number in a few letters: 2,000,000 is "2M"."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= unit:
            return f"{number / unit:g}{suffix}"
    return f"{number:,.0f}" if number >= 1 else f"{number:g}"


def _say_empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=_SOFT_COLOR)
    axes.set(xticks=[], yticks=[])


def _style_axes(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
