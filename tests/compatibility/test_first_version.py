"""What the first version wrote is still read: data, checkpoints, runs and experiments, with the same numbers.

`first_version/` is a small project of that time: texts, the tokenizer and tfrecords made from them twice (by a dataset
config's raw text, and by the two scripts), a run trained to step 20 of 30, and the experiment that recorded it.
`expected.json` holds what that version computed when it resumed the run, evaluated it and let it write.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import run_experiment
from data.check_tfrecords import main as check_tfrecords
from data.create_tfrecords import main as create_tfrecords
from main import main
from runtime.run.metrics import read_metrics

WRITTEN = Path(__file__).with_name("first_version")
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(WRITTEN, folder)
    for name, time_ns in EXPECTED["text_mtimes_ns"].items():  # by which a dataset knows that its texts have not changed
        os.utime(folder / "texts" / name, ns=(time_ns, time_ns))
    monkeypatch.chdir(folder)
    return folder


def test_a_run_resumes_with_the_same_losses(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny.json", "--set", "train_steps=30", "--steps_per_checkpoint", "10"]) == 0
    assert "is up to date" in capsys.readouterr().out  # nothing is prepared again
    lines = [line for line in read_metrics("runs/tiny") if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 31))
    resumed = [(line["step"], line["loss"]) for line in lines[20:]]
    np.testing.assert_allclose(resumed, EXPECTED["resumed_losses"], rtol=1e-5)


def test_a_checkpoint_gives_the_same_evaluation(project: Path) -> None:
    assert main(["--model", "tiny.json", "--eval"]) == 0
    measured = read_metrics("runs/tiny")[-1]
    assert (measured["split"], measured["step"], measured["tokens"]) == ("eval", 20, EXPECTED["eval"]["tokens"])
    np.testing.assert_allclose(measured["loss"], EXPECTED["eval"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(measured["bits_per_byte"], EXPECTED["eval"]["bits_per_byte"], rtol=1e-5)


def test_a_checkpoint_writes_the_same_text_without_its_data(project: Path) -> None:
    for folder in ("texts", "datasets"):
        shutil.rmtree(project / folder)
    assert main(["--model", "tiny.json", "--predict", "--prompt", "prompt.txt", "--output", "answer.jsonl"]) == 0
    assert json.loads((project / "answer.jsonl").read_text())["tokens"] == EXPECTED["answer"]


def test_tfrecords_and_their_manifest_are_sound(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_tfrecords(["tfrecords/*.tfrecords"]) == 0
    assert re.search(r"^examples +44$", capsys.readouterr().out, re.MULTILINE)


def test_the_same_command_writes_the_same_tfrecords(project: Path) -> None:
    flags = "--input_dir texts --name texts --chunk_size 16 --files_per 40 --output_dir again --eval_fraction 0.3"
    tokenizer = "tokenizers/byte-level-bpe.tokenizer.json"
    assert create_tfrecords([*flags.split(), "--encoder_path", tokenizer, "--processes", "1"]) == 0
    for path in sorted((project / "tfrecords").glob("*.tfrecords")):
        assert (project / "again" / path.name).read_bytes() == path.read_bytes()


def test_an_experiment_is_listed_compared_and_reported(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_experiment.main(["--list"]) == 0
    assert "COMPLETED" in capsys.readouterr().out
    shutil.copytree("experiments/1", "experiments/2")
    assert run_experiment.main(["--compare", "1", "2"]) == 0
    assert "3.47" in capsys.readouterr().out  # the held-out loss
    assert run_experiment.main(["--report", "1"]) == 0
    page = (project / "experiments" / "1" / "report.html").read_text()
    assert "skipped_fraction" in page and "skipped_share" not in page  # under the name that metrics have now
