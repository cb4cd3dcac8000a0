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
from runtime.run.plots import SMOOTHING_SHARE, format_tokens, loss_points, plot_loss, smooth


def line(step: int, loss: float, split: str = "train") -> dict[str, object]:
    return {"step": step, "split": split, "loss": loss}


def test_points_are_finite_by_step_and_the_last_of_their_step() -> None:
    metrics = [line(20, 3.0), line(10, 4.0), line(30, math.nan), line(20, 2.5), line(20, 9.0, "eval")]
    metrics.append({"step": 40, "split": "train", "lr": 0.1})
    steps, losses = loss_points(metrics, "train")
    assert steps.tolist() == [10, 20] and losses.tolist() == [4.0, 2.5]
    assert [points.tolist() for points in loss_points(metrics, "eval")] == [[20], [9.0]]


def test_smoothing_is_the_mean_of_a_window() -> None:
    values = np.random.default_rng(0).normal(size=200)
    smoothed, reach = smooth(values), round(SMOOTHING_SHARE * 200 / 2)
    assert reach == 4
    assert smoothed[0] == pytest.approx(values[0])
    assert smoothed[2] == pytest.approx(values[0:5].mean())
    assert smoothed[100] == pytest.approx(values[96:105].mean())
    assert smoothed[199] == pytest.approx(values[195:200].mean())


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), max_size=80), st.floats(-5, 5), st.floats(-5, 5))
def test_smoothing_stays_within_its_values_and_keeps_lines(noise: list[float], slope: float, start: float) -> None:
    smoothed = smooth(np.array(noise))
    assert smoothed.shape == (len(noise),)
    if noise:
        assert min(noise) - 1e-9 <= smoothed.min() and smoothed.max() <= max(noise) + 1e-9
    straight = start + slope * np.arange(len(noise))
    until_the_end = len(noise) - round(SMOOTHING_SHARE * len(noise) / 2)
    np.testing.assert_allclose(smooth(straight)[:until_the_end], straight[:until_the_end], atol=1e-9)


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
        plot_loss(metrics, str(path), title="tiny", uniform_loss=5.545, tokens_per_step=64)
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[2] != pictures[1]
    assert pictures[0][:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", pictures[0][16:24]) == (1170, 702)
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_one_point_and_no_evaluation_can_be_drawn(tmp_path: Path) -> None:
    plot_loss([line(1, 5.0)], str(tmp_path / "loss.png"), title="tiny", uniform_loss=5.545, tokens_per_step=64)
    assert (tmp_path / "loss.png").stat().st_size > 5000


@pytest.mark.parametrize("title", ["a$\\b$", "$x", "\u65e5\u672c"])
def test_any_name_can_stand_over_the_picture_without_a_warning(tmp_path: Path, title: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_loss([line(1, 5.0)], str(tmp_path / "loss.png"), title=title, uniform_loss=5.545, tokens_per_step=64)
    assert (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("name", ["folder", "file/loss.png"])
def test_a_place_that_takes_no_picture_is_named_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        plot_loss([line(1, 5.0)], str(tmp_path / name), title="tiny", uniform_loss=5.545, tokens_per_step=64)
    assert str(error.value).startswith(f"{tmp_path / name}: cannot be written: ")
    assert str(error.value).endswith("; make room there, or give another path")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
