"""Plots the learning curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.run.token_count import TokenCount
from storage.pictures import fit_text, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING_SHARE = 1 / 25

_TRAIN_COLOR, _EVAL_COLOR, _LOWEST_COLOR, _REFERENCE_COLOR = "#2a6fb0", "#d1495b", "#2c7a4b", "#7a7a7a"
_TITLE_PIXELS = 1000


def plot_loss(
    metrics: Sequence[dict[str, Any]], path: str, *, title: str, uniform_loss: float, token_count: TokenCount
) -> None:
    """Draws training and evaluation loss against steps and tokens into a PNG file.

    Skips points whose loss is not finite.

    Args:
        metrics: lines of `read_metrics`; those of split "train" and "eval" with a `loss` (nats a token) are drawn.
        path: the PNG file, local or `gs://`.
        title: name of the run.
        uniform_loss: the loss of a uniform guess, drawn for reference.
        token_count: the tokens of the run's steps, for the upper axis.

    Raises:
        UserError: the file cannot be written.
    """
    write_png(build_figure(metrics, title, uniform_loss, token_count), path)


def build_figure(metrics: Sequence[dict[str, Any]], title: str, uniform_loss: float, token_count: TokenCount) -> Figure:
    """Returns the figure of `plot_loss`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    label = f"uniform guess: {uniform_loss:.2f}"
    axes.axhline(uniform_loss, color=_REFERENCE_COLOR, linestyle=":", linewidth=1.4, label=label)
    _draw_train(axes, *loss_points(metrics, "train"))
    _draw_eval(axes, *loss_points(metrics, "eval"))
    _label_axes(axes, title, token_count)
    return figure


def loss_points(metrics: Sequence[dict[str, Any]], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [point] and finite losses [point] of one split, by step; the last value of a step counts."""
    losses = {line["step"]: line["loss"] for line in metrics if line["split"] == split and "loss" in line}
    points = sorted((step, loss) for step, loss in losses.items() if math.isfinite(loss))
    return np.array([step for step, _ in points]), np.array([loss for _, loss in points])


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each of the values [point] and those before it, `smoothing_points` of them.

    The window trails, so that what is drawn does not change when training goes on; it is shorter at the beginning.
    """
    index = np.arange(len(values))
    starts = np.maximum(index + 1 - smoothing_points(len(values)), 0)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + 1] - sums[starts]) / (index + 1 - starts)


def smoothing_points(n_points: int) -> int:
    """Returns the length of the window over which a curve of `n_points` is smoothed: SMOOTHING_SHARE of them."""
    return max(1, round(SMOOTHING_SHARE * n_points))


def format_tokens(count: float) -> str:
    """Returns a count of tokens in at most four digits: 12,500,000 is "12.5M"."""
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= unit:
            return f"{count / unit:.4g}{suffix}"
    return f"{count:.4g}"


def _draw_train(axes: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    if len(steps) == 0:
        return
    n_points = smoothing_points(len(losses))
    if n_points == 1:
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, losses, color=_TRAIN_COLOR, linewidth=2.0, marker=marker, label="training")
        return
    axes.plot(steps, losses, color=_TRAIN_COLOR, alpha=0.35, linewidth=0.9)
    label = f"training, mean of the last {n_points} points"
    axes.plot(steps, smooth(losses), color=_TRAIN_COLOR, linewidth=2.0, label=label)


def _draw_eval(axes: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    if len(steps) == 0:
        return
    label = f"evaluation, now {losses[-1]:.2f}"
    axes.plot(steps, losses, "o-", color=_EVAL_COLOR, markersize=6, linewidth=1.0, markeredgecolor="white", label=label)
    best = int(np.argmin(losses))
    lowest = f"lowest evaluation, {losses[best]:.2f} at step {steps[best]:,}"
    axes.plot(steps[best], losses[best], "*", color=_LOWEST_COLOR, markersize=15, markeredgecolor="white", label=lowest)


def _label_axes(axes: Axes, title: str, token_count: TokenCount) -> None:
    fit_text(axes.set_title(title, loc="left", fontweight="bold", parse_math=False), _TITLE_PIXELS)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter(lambda step, _position: f"{step:,.0f}")
    axes.set_ylabel("loss (nats a token)")
    steps = [step for line in axes.lines[1:] for step in line.get_xdata()]  # the first line is that of the guess
    axes.set_xlim(0, 1.02 * max(steps, default=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    tokens = axes.secondary_xaxis("top", functions=(token_count.before, token_count.step_of))
    tokens.set_xlabel("tokens seen")
    tokens.xaxis.set_major_formatter(lambda count, _position: format_tokens(count))
    tokens.spines["top"].set_visible(False)
