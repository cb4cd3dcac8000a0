"""A run that diverges, in real processes: its message, and what it leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshtf import tf
from runtime.checkpoint.reader import latest_checkpoint
from runtime.run.metrics import read_metrics
from tests.program import run_process, write_project

SETTINGS = ("--set", "log_weights=true", "--steps_per_checkpoint", "2", "--set", "model_path=runs/diverging")
MESSAGE = re.compile(
    r"step (\d+), examples (\d+) to (\d+) \(datasets/words/\S+\.tfrecords: records? [\d, to]+\): (?:loss|grad_norm) = "
    r"(?:nan|inf|-inf): training has diverged: (.*); (.*); lower lr, raise warmup_steps or set "
    r"gradient_clipping, and run again"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_project(tmp_path)
    return tmp_path


def test_the_error_names_step_records_and_tensors(project: Path) -> None:
    ended = run_process(project, *SETTINGS, "--set", "lr=1e30")
    assert ended.returncode == 2, ended.stderr[-2000:]
    step, first, last, why, kept = MESSAGE.fullmatch(ended.stderr.splitlines()[-1]).groups()
    assert (int(step), int(first), int(last)) == (2, 4, 7)
    assert re.search("gpt2/|every variable", why) and kept == "there is no checkpoint yet"
    assert latest_checkpoint(str(project / "runs/diverging")) is None


@pytest.mark.slow
@pytest.mark.processes
def test_training_resumes_from_the_last_good_checkpoint(project: Path) -> None:
    assert run_process(project, *SETTINGS, "--set", "train_steps=4").returncode == 0
    ended = run_process(project, *SETTINGS, "--set", "lr=1e30")
    *_, kept = MESSAGE.fullmatch(ended.stderr.splitlines()[-1]).groups()
    run = project / "runs/diverging"
    assert (ended.returncode, kept) == (2, "the newest checkpoint is that of step 4")
    assert latest_checkpoint(str(run)) == str(run / "model.ckpt-4")
    assert run_process(project, *SETTINGS, "--set", "train_steps=8").returncode == 0
    assert [line["step"] for line in read_metrics(str(run)) if line["split"] == "train"] == list(range(1, 9))
    assert histograms_of(run)["weights/h0/attn/q"] == [2, 4, 6, 8]


def histograms_of(run: Path) -> dict[str, list[int]]:
    """The steps of each histogram, by name."""
    steps: dict[str, list[int]] = {}
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.HasField("histo"):
                    steps.setdefault(value.tag, []).append(event.step)
    return steps
