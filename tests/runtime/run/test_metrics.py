"""metrics.jsonl through crashes and resumes, and the event files beside it."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.errors import DataError, UserError
from meshtf import tf
from runtime.run.metrics import MetricsWriter, read_metrics

REPOSITORY = Path(__file__).parents[3]

ENDLESS_RUN = """
import sys
from runtime.run.metrics import MetricsWriter
with MetricsWriter(sys.argv[1], resume_step=0) as metrics:
    for step in range(1, 1_000_000):
        metrics.write("train", step, {"loss": 1 / step, "note": 0.5})
        print(step, flush=True)
"""


def steps_of(model_path: Path, split: str = "train") -> list[int]:
    return [line["step"] for line in read_metrics(str(model_path)) if line["split"] == split]


def write_steps(model_path: Path, steps: range, resume_step: int | None = None) -> None:
    with MetricsWriter(str(model_path), resume_step) as metrics:
        for step in steps:
            metrics.write("train", step, {"loss": 10.0 - step})


def test_one_json_object_a_line(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as metrics:
        metrics.write("train", np.int64(10), {"loss": np.float32(2.5), "tokens": 4096})
        metrics.write("eval", 10, {"perplexity": 12.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(1.7e9 < line.pop("time") < 1e11 for line in lines)
    assert lines == [
        {"step": 10, "split": "train", "loss": 2.5, "tokens": 4096},
        {"step": 10, "split": "eval", "perplexity": 12.25},
    ]


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as metrics:
        metrics.write("train", 1, {"loss": 3.0})
        assert steps_of(tmp_path) == [1]


def test_non_finite_values_stay_valid_json_and_come_back(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as metrics:
        metrics.write("train", 1, {"a": math.nan, "b": np.float32("inf"), "c": -math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["a"], line["b"], line["c"]) == ("nan", "inf", "-inf")
    (back,) = read_metrics(str(tmp_path))
    assert math.isnan(back["a"]) and back["b"] == math.inf and back["c"] == -math.inf


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path / "nothing")) == []


@pytest.mark.parametrize(
    "torn", ['{"step": 4, "spl', '{"step": 4, "split": "train", "loss": 1.0}', "\0" * 40, "\0\0\n", "\0\n{"]
)
def test_torn_last_line_is_ignored_and_then_removed(tmp_path: Path, torn: str) -> None:
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + torn)
    assert steps_of(tmp_path) == [1, 2, 3]
    write_steps(tmp_path, range(4, 6))
    assert path.read_text().startswith(whole)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


DAMAGED_LINES = (
    "[1, 2]",
    '{"step": 2}',
    '{"step": "a", "split": "train"}',
    '{"step": 2, "split": "train", "loss": "low"}',
    '{"step": 2, "split": "train", "loss": NaN}',
    '{"step": 2, "split": "train", "loss": [1]}',
    "[" * 100_000,
    "",
    "\0" * 512,
    '{"step": 2, "spl{"step": 2, "split": "train"}',
    "\udcff\udcfe",
)


@pytest.mark.parametrize("damaged", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
@pytest.mark.parametrize("resume_step", [None, 1])
def test_a_damaged_line_is_named_and_left_out_and_the_file_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: str, resume_step: int | None
) -> None:
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    first, _, third = path.read_text().splitlines(keepends=True)
    path.write_bytes(os.fsencode(first + damaged + "\n" + third))
    before = path.read_bytes()
    assert steps_of(tmp_path) == [1, 3]
    assert path.read_bytes() == before
    MetricsWriter(str(tmp_path), resume_step).close()
    aside = tmp_path / "metrics.damaged.jsonl"
    message = f"{path}: line 2: damaged, and left out; the file as it was is kept as {aside}\n"
    assert capsys.readouterr() == (message, "")
    assert aside.read_bytes() == before
    assert path.read_text() == first + (third if resume_step is None else "")
    MetricsWriter(str(tmp_path), resume_step).close()
    assert capsys.readouterr() == ("", "")


def test_many_damaged_lines_are_one_line_and_zeros_before_a_line_cost_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + "\0" * 4096 + second + "x\n" * 7 + third)
    MetricsWriter(str(tmp_path)).close()
    assert capsys.readouterr().out.startswith(f"{path}: line 3, 4, 5, 6, 7 and 2 more: damaged, and left out; ")
    assert path.read_text() == first + second + third


@pytest.mark.parametrize("change", ["folder removed", "removed", "rotated", "replaced", "emptied"])
def test_what_is_measured_goes_into_the_file_that_is_there(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "run"
    path, other = folder / "metrics.jsonl", tmp_path / "other"
    with MetricsWriter(str(folder)) as metrics:
        metrics.write("train", 1, {"loss": 1.0})
        metrics.write("eval", 1, {"loss": 1.0})
        if change == "folder removed":
            shutil.rmtree(folder)
        elif change == "removed":
            path.unlink()
        elif change == "rotated":
            path.rename(other)
        elif change == "replaced":
            other.write_bytes(path.read_bytes())
            other.replace(path)
        else:
            os.truncate(path, 0)
        metrics.write("train", 2, {"loss": 2.0})
        metrics.write("eval", 2, {"loss": 2.0})
    assert steps_of(folder) == steps_of(folder, "eval") == ([1, 2] if change == "replaced" else [2])
    earlier = [] if change == "folder removed" else [(1, "loss", 1.0)]
    assert events_of(folder) == events_of(folder / "eval") == [*earlier, (2, "loss", 2.0)]


def test_an_event_file_that_was_removed_is_begun_again(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path), resume_step=0) as metrics:
        metrics.write("train", 1, {"loss": 1.0})
        next(tmp_path.glob("events.out.tfevents.*")).unlink()
        metrics.write("train", 2, {"loss": 2.0})
    assert events_of(tmp_path) == [(2, "loss", 2.0)]


def test_resuming_drops_the_lines_after_the_checkpoint(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as metrics:
        for step in range(10, 60, 10):
            metrics.write("train", step, {"loss": 1.0})
            metrics.write("eval", step, {"loss": 2.0})
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    write_steps(tmp_path, range(40, 60, 10), resume_step=30)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:6] == before[:6]
    assert steps_of(tmp_path) == [10, 20, 30, 40, 50]
    assert steps_of(tmp_path, "eval") == [10, 20, 30]
    assert not list(tmp_path.glob("*.part"))


def test_opening_without_a_resume_step_keeps_every_byte(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    MetricsWriter(str(tmp_path)).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_kill_9_and_resume_give_the_steps_of_an_uninterrupted_run(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_RUN, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    reported_step = next(int(line) for line in run.stdout if int(line) >= 200)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run.stdout.close()
    survived = steps_of(tmp_path)
    assert survived == list(range(1, len(survived) + 1)) and len(survived) >= reported_step
    write_steps(tmp_path, range(151, 301), resume_step=150)
    assert steps_of(tmp_path) == list(range(1, 301))


def events_of(folder: Path) -> list[tuple[int, str, float]]:
    (path,) = folder.glob("events.out.tfevents.*")
    events = tf.compat.v1.train.summary_iterator(str(path))
    return [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]


def test_tensorboard_scalars_are_in_the_folders_of_gpt_neo(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path)) as metrics:
        metrics.write("train", 10, {"loss": 2.5, "lr": 0.125})
        with tf.Graph().as_default():  # a training loop writes with its own graph open
            metrics.write("train", 20, {"loss": 1.5})
            metrics.write("eval", 20, {"loss": 1.75})
    assert events_of(tmp_path) == [(10, "loss", 2.5), (10, "lr", 0.125), (20, "loss", 1.5)]
    assert events_of(tmp_path / "eval") == [(20, "loss", 1.75)]


def test_histograms_hold_every_finite_number_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1.0, 3.0, (50, 20)).astype(np.float32)
    with MetricsWriter(str(tmp_path)) as metrics:
        metrics.write("train", 10, {"loss": 2.5})
        metrics.write_histogram(10, "weights/a", values)
        metrics.write_histogram(10, "weights/b", np.array([[np.nan, 2.0], [np.inf, -1.0]]))
        metrics.write_histogram(10, "weights/c", np.full(7, 0.25))
        metrics.write_histogram(10, "weights/d", np.array([np.nan]))
    (path,) = tmp_path.glob("events.out.tfevents.*")
    events = tf.compat.v1.train.summary_iterator(str(path))
    found = {v.tag: v.histo for event in events if event.step == 10 for v in event.summary.value if v.HasField("histo")}
    assert [histogram.num for histogram in found.values()] == [1000, 2, 7, 0]
    assert all(sum(histogram.bucket) == histogram.num for histogram in found.values())
    assert (found["weights/b"].min, found["weights/b"].max, found["weights/b"].sum) == (-1.0, 2.0, 1.0)
    below = np.cumsum(found["weights/a"].bucket)
    for count, limit in list(zip(below, found["weights/a"].bucket_limit, strict=True))[:-1]:
        assert count == (values < limit).sum()
    assert [line for line in read_metrics(str(tmp_path)) if "weights/a" in line] == []


def test_tensorboard_learns_the_step_at_which_a_run_resumes(tmp_path: Path) -> None:
    write_steps(tmp_path, range(31, 32), resume_step=30)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    events = list(tf.compat.v1.train.summary_iterator(str(path)))
    starts = [event.step for event in events if event.session_log.status == tf.compat.v1.SessionLog.START]
    assert starts == [31]


@pytest.mark.parametrize("resume_step", [None, 30])
def test_every_writer_has_an_event_file_of_its_own(tmp_path: Path, resume_step: int | None) -> None:
    for _ in range(3):
        write_steps(tmp_path, range(31, 32), resume_step)
    paths = sorted(tmp_path.glob("events.out.tfevents.*"))
    assert len(paths) == 3
    assert all(next(tf.compat.v1.train.summary_iterator(str(path))).file_version == "brain.Event:2" for path in paths)


def test_a_folder_in_place_of_the_metrics_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    for use in (read_metrics, MetricsWriter):
        with pytest.raises(DataError) as error:
            use(str(tmp_path))
        assert str(error.value).startswith(f"{path}: cannot be read: ")
        assert str(error.value).endswith("; move it away, or give another model_path")


def test_a_file_in_place_of_the_folder_of_events_is_named(tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("")
    with MetricsWriter(str(tmp_path)) as metrics, pytest.raises(UserError) as error:
        metrics.write("eval", 1, {"loss": 3.0})
    assert str(error.value).startswith(f"{tmp_path / 'eval'}: cannot be written: ")


def test_a_file_in_place_of_the_model_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError) as error:
        MetricsWriter(str(tmp_path / "run"))
    assert str(error.value).startswith(f"{tmp_path / 'run' / 'metrics.jsonl'}: cannot be written: ")


@pytest.fixture
def limit_file_sizes() -> Iterator[Callable[[int], None]]:
    """Limits the size of files in bytes; a longer one fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def written_until_full(model_path: Path, values: dict[str, float]) -> str:
    with pytest.raises(UserError) as error, MetricsWriter(str(model_path)) as metrics:
        for step in range(1, 10):
            metrics.write("train", step, values)
    return str(error.value)


def test_a_full_disk_is_an_error_of_the_user_that_names_the_file(
    tmp_path: Path, limit_file_sizes: Callable[[int], None]
) -> None:
    limit_file_sizes(300)
    message = written_until_full(tmp_path, {"loss": 1.0})
    assert message.startswith(f"{tmp_path / 'metrics.jsonl'}: cannot be written: ")
    assert message.endswith("; make room there, or give another path")
    limit_file_sizes(10**9)
    assert steps_of(tmp_path) == list(range(1, 1 + len(steps_of(tmp_path)))) != []


def test_a_full_disk_is_reported_for_event_files_too(tmp_path: Path, limit_file_sizes: Callable[[int], None]) -> None:
    limit_file_sizes(550)
    values = dict.fromkeys(string.ascii_letters, 1)  # 480 bytes as text, 620 as events
    message = written_until_full(tmp_path, values)
    assert message.startswith(f"{tmp_path}/: cannot be written: ")
