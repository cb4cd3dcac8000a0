"""A data set as a picture: how long its documents are, and how often each token comes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from data.check.scan import BINS_PER_OCTAVE, DatasetReport
from storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOR = "#2a6fb0"


def draw_reports(reports: Mapping[str, DatasetReport], path: str) -> None:
    """Draws reports, one a row, into a PNG file.

    Args:
        reports: by what they are called.
        path: the PNG file, local or `gs://`; it is written beside and renamed, and its folder is made.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, for it takes long to import
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
    """Returns left edges, widths and heights of the histogram of document lengths, from the first bar to the last."""
    filled = np.flatnonzero(report.lengths_B)
    bins = np.arange(filled[0], filled[-1] + 1) if len(filled) else np.array([], dtype=np.int64)
    edges, ends = 2.0 ** (bins / BINS_PER_OCTAVE), 2.0 ** ((bins + 1) / BINS_PER_OCTAVE)
    return edges, ends - edges, report.lengths_B[bins]


def frequencies_by_rank(report: DatasetReport) -> np.ndarray:
    """Returns the share of each id that comes at all, the most frequent one first."""
    counts = np.sort(report.counts_V[report.counts_V > 0])[::-1]
    return counts / max(1, counts.sum())


def _draw_lengths(axes: Axes, name: str, report: DatasetReport) -> None:
    edges, widths, heights = length_bars(report)
    axes.bar(edges, heights, widths, align="edge", color=_COLOR, edgecolor="white", linewidth=0.4)
    axes.set_title(name, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel("documents")
    _finish(axes, "x" if len(edges) else "")


def _draw_frequencies(axes: Axes, report: DatasetReport) -> None:
    shares = frequencies_by_rank(report)
    axes.plot(np.arange(1, len(shares) + 1), shares, color=_COLOR, linewidth=1.8)
    used = f"{len(shares):,} of the ids up to {max(0, len(report.counts_V) - 1):,} are used"
    axes.set_title(used, loc="left", fontsize="medium")
    axes.set_xlabel("ids by rank")
    axes.set_ylabel("share of the tokens")
    _finish(axes, "xy" if len(shares) else "")


def _finish(axes: Axes, logarithmic: str) -> None:
    if "x" in logarithmic:
        axes.set_xscale("log")
    if "y" in logarithmic:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
