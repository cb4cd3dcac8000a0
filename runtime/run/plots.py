"""Plots the learning curve."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING_SHARE = 1 / 25

_TRAIN_COLOR, _EVAL_COLOR, _REFERENCE_COLOR = "#2a6fb0", "#d1495b", "#7a7a7a"


def plot_loss(
    metrics: Sequence[dict[str, Any]], path: str, *, title: str, uniform_loss: float, tokens_per_step: int
) -> None:
    """Draws training and evaluation loss against steps and tokens into a PNG file.

    Skips points whose loss is not finite.

    Args:
        metrics: lines of `read_metrics`; those of split "train" and "eval" with a `loss` (nats a token) are drawn.
        path: the PNG file, local or `gs://`.
        title: name of the run.
        uniform_loss: the loss of a uniform guess, drawn for reference.
        tokens_per_step: tokens of one training step, for the upper axis.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # imported here because it is slow

    figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    label = f"uniform guess: {uniform_loss:.2f}"
    axes.axhline(uniform_loss, color=_REFERENCE_COLOR, linestyle=":", linewidth=1.4, label=label)
    _draw_train(axes, *loss_points(metrics, "train"))
    _draw_eval(axes, *loss_points(metrics, "eval"))
    _label_axes(axes, title, tokens_per_step)
    write_png(figure, path)


def loss_points(metrics: Sequence[dict[str, Any]], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [point] and finite losses [point] of one split, by step; the last value of a step counts."""
    losses = {line["step"]: line["loss"] for line in metrics if line["split"] == split and "loss" in line}
    points = sorted((step, loss) for step, loss in losses.items() if math.isfinite(loss))
    return np.array([step for step, _ in points]), np.array([loss for _, loss in points])


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the mean of values [point] over SMOOTHING_SHARE of the points around each.

    The window is centred, so that the line does not lag behind a falling loss. It is narrower at the beginning, where
    the loss falls steeply and the line starts at the first value, and one-sided at the end, where it should stay calm.
    """
    index = np.arange(len(values))
    before = np.minimum(round(SMOOTHING_SHARE * len(values) / 2), index)
    after = np.minimum(before, len(values) - 1 - index)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def format_tokens(count: float) -> str:
    """Returns a count of tokens in at most four digits: 12,500,000 is "12.5M"."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.4g}{suffix}"
    return f"{count:.4g}"


def _draw_train(axes: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    if len(steps) == 0:
        return
    axes.plot(steps, losses, color=_TRAIN_COLOR, alpha=0.35, linewidth=0.9)
    axes.plot(steps, smooth(losses), color=_TRAIN_COLOR, linewidth=2.0, label="training, smoothed")


def _draw_eval(axes: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    if len(steps) == 0:
        return
    label = f"evaluation, now {losses[-1]:.2f}"
    axes.plot(steps, losses, "o-", color=_EVAL_COLOR, markersize=6, linewidth=1.0, markeredgecolor="white", label=label)


def _label_axes(axes: Axes, title: str, tokens_per_step: int) -> None:
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.margins(x=0.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    tokens = axes.secondary_xaxis("top", functions=(lambda s: s * tokens_per_step, lambda t: t / tokens_per_step))
    tokens.set_xlabel("tokens seen")
    tokens.xaxis.set_major_formatter(lambda count, _position: format_tokens(count))
    tokens.spines["top"].set_visible(False)


def write_png(figure: Figure, path: str) -> None:
    """Writes a figure to a PNG file, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(png, format="png")
    write_bytes(path, png.getvalue())
