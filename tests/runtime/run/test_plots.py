"""The points of the learning curve, and their smoothing."""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from runtime.run.plots import build_figure, format_tokens, loss_points, plot_loss, smooth, smoothing_points
from runtime.run.token_count import TokenCount
from tests.pictures import check_texts, words_of

TOKENS = TokenCount((0,), (64,))  # in each step


def line(step: int, loss: float, split: str = "train") -> dict[str, object]:
    return {"step": step, "split": split, "loss": loss}


def test_points_are_finite_by_step_and_the_last_of_their_step() -> None:
    metrics = [line(20, 3.0), line(10, 4.0), line(30, math.nan), line(20, 2.5), line(20, 9.0, "eval")]
    metrics.append({"step": 40, "split": "train", "lr": 0.1})
    steps, losses = loss_points(metrics, "train")
    assert steps.tolist() == [10, 20] and losses.tolist() == [4.0, 2.5]
    assert [points.tolist() for points in loss_points(metrics, "eval")] == [[20], [9.0]]


def test_smoothing_is_the_mean_of_the_last_points() -> None:
    values = np.random.default_rng(0).normal(size=200)
    smoothed, n_points = smooth(values), smoothing_points(200)
    assert n_points == 8
    for place in (0, 2, 7, 8, 100, 199):
        assert smoothed[place] == pytest.approx(values[max(0, place - 7) : place + 1].mean())


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), max_size=80), st.floats(-100, 100))
def test_smoothing_stays_within_its_values_and_does_not_know_the_future(noise: list[float], last: float) -> None:
    smoothed = smooth(np.array(noise))
    assert smoothed.shape == (len(noise),)
    if noise:
        assert min(noise) - 1e-9 <= smoothed.min() and smoothed.max() <= max(noise) + 1e-9
    if smoothing_points(len(noise)) == smoothing_points(len(noise) + 1):
        np.testing.assert_array_equal(smooth(np.array([*noise, last]))[:-1], smoothed)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (12_500, "12.5k"), (12_500_000, "12.5M"), (3e9, "3B"), (1.2e12, "1.2T")]
)
def test_token_counts(count: float, text: str) -> None:
    assert format_tokens(count) == text


def test_the_file_is_a_png_of_its_metrics_alone(tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    pictures = []
    for losses in ([5.0, 4.0], [5.0, 4.5], [5.0, 4.0]):
        metrics = [line(10 * (i + 1), loss) for i, loss in enumerate(losses)] + [line(20, 4.2, "eval")]
        plot_loss(metrics, str(path), title="tiny", uniform_loss=5.545, token_count=TOKENS)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[2] != pictures[1]
    assert pictures[0][:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", pictures[0][16:24]) == (1170, 702)
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


RUNS = {
    "nothing": [],
    "one point": [line(1, 5.0)],
    "two points": [line(1, 5.0), line(2, 4.0)],
    "evaluation alone": [line(10, 5.0, "eval")],
    "a long run": [line(10**6 * n, 3 + 5 / n, split) for n in range(1, 200) for split in ("train", "eval")],
}


@pytest.mark.parametrize("title", ["tiny", "n" * 300])
@pytest.mark.parametrize("metrics", RUNS.values(), ids=RUNS)
def test_no_two_texts_meet(metrics: list[dict[str, object]], title: str) -> None:
    figure = build_figure(metrics, title, uniform_loss=5.545, token_count=TokenCount((0,), (524_288,)))
    check_texts(figure)
    steps = [label.get_text().replace(",", "") for label in figure.axes[0].get_xticklabels()]
    assert len(set(steps)) == len(steps) and all(step.isdecimal() for step in steps)


def test_the_lowest_evaluation_is_marked() -> None:
    evaluated = {600: 4.0, 1200: 3.5, 1800: 3.75}
    metrics = [line(10 * n, 5.0) for n in range(1, 181)] + [
        line(step, loss, "eval") for step, loss in evaluated.items()
    ]
    figure = build_figure(metrics, "tiny", uniform_loss=5.545, token_count=TOKENS)
    (mark,) = (curve for curve in figure.axes[0].lines if curve.get_marker() == "*")
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([1200], [3.5])
    assert {"evaluation, now 3.75", "lowest evaluation, 3.50 at step 1,200"} <= set(words_of(figure))
    assert "training, mean of the last 7 points" in words_of(figure)


@pytest.mark.parametrize("title", ["a$\\b$", "$x", "\u65e5\u672c"])
def test_any_name_can_stand_over_the_picture_without_a_warning(tmp_path: Path, title: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_loss(
            [line(1, 5.0)],
            str(tmp_path / "loss.png"),
            title=title,
            uniform_loss=5.545,
            token_count=TOKENS,
        )
    assert (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("name", ["folder", "file/loss.png"])
def test_a_place_that_takes_no_picture_is_named_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        plot_loss([line(1, 5.0)], str(tmp_path / name), title="tiny", uniform_loss=5.545, token_count=TOKENS)
    assert str(error.value).startswith(f"{tmp_path / name}: cannot be written: ")
    assert str(error.value).endswith("; make room there, or give another path")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
