"""Plots of a dataset: the lengths of its documents and the frequencies of its tokens."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from data.check.report import BINS_PER_OCTAVE, DatasetReport
from storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOR = "#2a6fb0"


def draw_reports(reports: Mapping[str, DatasetReport], path: str) -> None:
    """Draws reports into a PNG file, one per row.

    Args:
        reports: by title.
        path: the PNG file, local or `gs://`; its folder is created.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6 * len(reports)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(reports), 2, squeeze=False)
    for (left, right), (name, report) in zip(rows, reports.items(), strict=True):
        _draw_lengths(left, name, report)
        _draw_frequencies(right, report)
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(png, format="png")
    write_bytes(path, png.getvalue())


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


def _draw_lengths(axes: Axes, name: str, report: DatasetReport) -> None:
    edges, widths, heights = length_bars(report)
    axes.bar(edges, heights, widths, align="edge", color=_COLOR, edgecolor="white", linewidth=0.4)
    axes.set_title(name, loc="left", fontweight="bold", parse_math=False)
    axes.set(xlabel="tokens per document", ylabel="documents")
    _style_axes(axes, xscale="log" if len(edges) else "linear")


def _draw_frequencies(axes: Axes, report: DatasetReport) -> None:
    frequencies = frequencies_by_rank(report)
    axes.plot(np.arange(1, len(frequencies) + 1), frequencies, color=_COLOR, linewidth=1.8)
    used = f"{len(frequencies):,} of the ids up to {max(0, len(report.counts_V) - 1):,} are used"
    axes.set_title(used, loc="left", fontsize="medium")
    axes.set(xlabel="rank of the id", ylabel="fraction of the tokens")
    scale = "log" if len(frequencies) else "linear"
    _style_axes(axes, xscale=scale, yscale=scale)


def _style_axes(axes: Axes, **scales: str) -> None:
    axes.set(**scales)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
