"""The program as a user sees it: real processes on a tiny model and a few small texts, and the errors when a command
line, a config or a file is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from configs.load import load_config
from data.tfrecord.records import read_examples, write_examples
from data.tokenization.tokenizer import load_tokenizer
from main import COMMANDS, main, parse_arguments
from runtime.run import lock
from runtime.run.metrics import read_metrics
from tests.program import (
    DATASET,
    ENVIRONMENT,
    N_STEPS,
    PROGRESS,
    REPOSITORY,
    TINY,
    command,
    count_lines,
    losses,
    run_process,
    write_project,
)


@dataclasses.dataclass(frozen=True)
class Project:
    """A folder in which `runs/tiny` was trained without a break."""

    folder: Path
    training: subprocess.CompletedProcess[str]

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    def tfrecords(self, part: str) -> Path:
        (path,) = (self.folder / "datasets" / "words").glob(f"*/{part}/*.tfrecords")
        return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return Project(folder, run_process(folder, "--steps_per_checkpoint", "100"))


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project as the working directory of this process."""
    monkeypatch.chdir(project.folder)
    return project


@pytest.fixture
def copied_run(here: Project) -> Iterator[str]:
    """A copy of the run that a test may spoil; its model path."""
    shutil.copytree(here.run, here.folder / "runs" / "copy", ignore=shutil.ignore_patterns("predictions_*"))
    yield "runs/copy"
    shutil.rmtree(here.folder / "runs" / "copy", ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Result:
    """What one call of `main` in this process gave."""

    status: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> Result:
    capsys.readouterr()
    try:
        status = main(["--model", "tiny.json", *arguments])
    except SystemExit as end:  # argparse's way of refusing
        status = end.code
    return Result(status, *capsys.readouterr())


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below, with its size and time of change; folders with zeros."""
    paths = sorted(folder.rglob("*"))
    states = {str(path.relative_to(folder)): path.stat() for path in paths}
    return {
        name: (state.st_size, state.st_mtime_ns) if (folder / name).is_file() else (0, 0)
        for name, state in states.items()
    }


# The commands.


def test_training_shows_a_few_lines_and_nothing_of_tensorflow(project: Project) -> None:
    training = project.training
    assert training.returncode == 0, training.stderr
    patterns = [
        r"mesh: one device \(nothing split\) on [CG]PU:0",
        r"peak of the devices: ([\d.]+ TFLOP/s|not known, .*)",
        r"words: preparing 12 files of raw text in datasets/words/n_ctx_16-[0-9a-f]{16}",
        r"words: trained a byte-level BPE tokenizer of 300 ids",
        r"words: train: \d+ documents, [\d,]+ bytes, [\d,]+ tokens, \d+ examples",
        r"words: eval: \d+ documents, [\d,]+ bytes, [\d,]+ tokens, \d+ examples",
        r"model: 8,320 parameters",
        r"trained to step 300; checkpoints, metrics and loss.png are in runs/tiny",
    ]
    lines = training.stdout.splitlines()
    assert len(lines) == len(patterns), training.stdout
    assert [line for line, pattern in zip(lines, patterns, strict=True) if not re.fullmatch(pattern, line)] == []
    progress = training.stderr.splitlines()
    assert [line for line in progress if not PROGRESS.fullmatch(line)] == []
    assert progress[0].startswith("step 1/300  loss 5.") and progress[-1].startswith("step 300/300  loss ")


LOGS = ("train_log.txt", "eval_log.txt")


def test_training_leaves_what_it_promises(project: Project) -> None:
    names = sorted(path.name for path in project.run.iterdir() if "tfevents" not in path.name)
    checkpoints = [f"model.ckpt-{s}{e}" for s in (100, 200, 300) for e in (".data-00000-of-00001", ".index")]
    assert names == sorted(
        ["checkpoint", "config.json", "lock", "loss.png", "metrics.jsonl", "tokenizer.json", *LOGS, *checkpoints]
    )
    assert (project.run / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = read_metrics(str(project.run))
    assert [line["step"] for line in lines] == list(range(1, N_STEPS + 1))
    # Without mfu, which is left out where the processors are busy.
    assert {tuple(key for key in line if key != "mfu") for line in lines} == {
        ("step", "split", "time", "loss", "grad_norm", "tokens", "lr")
        + ("tokens_per_second", "data_wait", "epoch", "data/skipped_fraction", "host_memory_gib")
    }
    assert all(0 < line.get("mfu", 1) <= 1 for line in lines)
    assert lines[0]["loss"] == pytest.approx(math.log(300), abs=0.1)
    assert lines[-1]["loss"] < lines[0]["loss"] - 2.5
    kept = load_config(str(project.run / "config.json"))
    assert kept == dataclasses.replace(load_config(str(project.folder / "tiny.json")), name=kept.name)


def stopped(folder: Path, n_lines: float, number: int | None) -> tuple[int, str]:
    """Resumes training and stops it after that many steps; returns the exit status and the last line of output."""
    process = subprocess.Popen(
        command("--steps_per_checkpoint", "16", "--set", "model_path=runs/broken"),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and count_lines(folder / "runs/broken/metrics.jsonl") < n_lines:
        time.sleep(0.002)
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate()
    assert [line for line in err.splitlines() if not PROGRESS.fullmatch(line)] == []
    return process.returncode, out.splitlines()[-1]


STOPPED = re.compile(r"stopped at step (\d+); the checkpoint is saved: run the same command again to resume")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=[pytest.mark.slow, pytest.mark.processes])],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_run_stopped_or_killed_anywhere_resumes_exactly(project: Project, number: int, status: int) -> None:
    shutil.rmtree(project.folder / "runs/broken", ignore_errors=True)
    asked = stopped(project.folder, 20, number)
    step = int(STOPPED.fullmatch(asked[1]).group(1))
    assert asked[0] == status and 20 <= step < 100
    assert stopped(project.folder, 100, signal.SIGKILL) == (
        -signal.SIGKILL,
        f"restored runs/broken/model.ckpt-{step}",
    )
    assert stopped(project.folder, math.inf, None)[0] == 0
    assert len(losses(project.run)) == N_STEPS
    assert losses(project.folder / "runs/broken") == losses(project.run)


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_killed_at_40_random_moments_of_saving_and_training_resumes_exactly(project: Project) -> None:
    """A checkpoint is due at every other step, so that one is being written most of the time."""
    run, draw = project.folder / "runs/killed", random.Random(9)
    shutil.rmtree(run, ignore_errors=True)
    arguments = ("--steps_per_checkpoint", "2", "--set", "model_path=runs/killed", "--set", "keep_checkpoints=3")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for _ in range(40):
        n_lines = count_lines(run / "metrics.jsonl") + draw.randrange(1, 8)
        process = subprocess.Popen(command(*arguments), cwd=project.folder, env=ENVIRONMENT, **pipes)
        while process.poll() is None and count_lines(run / "metrics.jsonl") < n_lines:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.02))
        process.kill()
        out, err = process.communicate()
        assert (process.returncode, [line for line in err.splitlines() if not PROGRESS.fullmatch(line)]) == (-9, [])
        assert "trying the checkpoint before it" not in out
    assert run_process(project.folder, *arguments).returncode == 0
    assert losses(run) == losses(project.run)
    assert not [path.name for path in run.iterdir() if "tempstate" in path.name or path.name.endswith(".part")]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_an_evaluation_within_seconds_and_it_is_done_on_resume(project: Project, number: int) -> None:
    folder, run = project.folder, project.folder / "runs" / "evaluated"
    shutil.rmtree(run, ignore_errors=True)
    if not (folder / "long_200000.tfrecords").exists():
        write_examples(str(folder / "long_200000.tfrecords"), ([7] * 17 for _ in range(200_000)))
    changes = [records_dataset(eval_path="long_200000.tfrecords"), "model_path=runs/evaluated", "train_steps=40"]
    arguments = [part for change in changes for part in ("--set", change)]
    arguments += ["--set", "eval_batch_size=1", "--steps_per_checkpoint", "20", "--set"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*arguments, "eval_steps=200000"), cwd=folder, env=ENVIRONMENT, **pipes)
    while process.poll() is None and not (run / "checkpoint").exists():
        time.sleep(0.01)
    time.sleep(4.0)  # the evaluation runs
    process.send_signal(number)
    sent_seconds = time.monotonic()
    out, _ = process.communicate()
    assert time.monotonic() - sent_seconds < 20.0
    assert (process.returncode, STOPPED.fullmatch(out.splitlines()[-1])[1]) == (128 + number, "20")
    assert run_process(folder, *arguments, "eval_steps=5").returncode == 0
    measured = [(line["step"], line["split"]) for line in read_metrics(str(run))]
    train = [(step, "train") for step in range(1, 41)]
    assert measured == [*train[:20], (20, "eval"), *train[20:], (40, "eval")]
    assert not (run / "interrupted.json").exists()


@pytest.mark.slow
@pytest.mark.processes
def test_a_disk_that_fails_at_a_checkpoint_ends_the_run_with_a_message(project: Project) -> None:
    """The checkpoint is larger than a file may be; what was there before stays."""
    arguments = ["--set", "model_path=runs/limited", "--set", "train_steps=40", "--steps_per_checkpoint", "20"]
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); import sys, main; sys.exit(main.main())"
    program = [sys.executable, "-c", limit, *command(*arguments)[2:]]
    # Without the cache of compiled programs that tests share, which holds larger files.
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY), "TF_XLA_FLAGS": ""}
    done = subprocess.run(program, cwd=project.folder, env=environment, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert last.startswith("runs/limited/model.ckpt-20: cannot be written: ") and "; make room there, or " in last


def test_evaluation_covers_all_held_out_data_on_any_mesh(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "--eval", "--set", f"model_path={copied_run}")
    assert (result.status, result.err) == (0, "")
    measured = read_metrics(copied_run)[-1]
    padding_id = 1
    labels = [ids[1:] for ids in read_examples(str(here.tfrecords("eval")))]
    n_tokens = sum(int((ids != padding_id).sum()) for ids in labels)
    assert n_tokens < 16 * len(labels)  # the end of the last example is filled up, and does not count
    assert (measured["step"], measured["split"], measured["tokens"]) == (N_STEPS, "eval", n_tokens)
    assert 1.0 < measured["loss"] < 3.0
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    below_uniform = math.log(300) - measured["loss"]
    assert result.out.splitlines()[-3:] == [
        f"restored {copied_run}/model.ckpt-300",
        f"step 300: held-out loss {measured['loss']:.4f}  perplexity {measured['perplexity']:.4f}  "
        f"tokens {n_tokens}  bits_per_byte {measured['bits_per_byte']:.4f}",
        f"loss {measured['loss']:.2f}, {below_uniform:.2f} below the uniform baseline (5.70)",
    ]
    # In another process, on a mesh, from a file whose name does not tell how many examples it holds.
    shutil.copy(here.tfrecords("eval"), here.folder / "uncounted.tfrecords")
    mesh = ["--cpu_devices", "4", "--set", "mesh_shape=x:2,y:2", "--set", "layout=batch:x,heads:y,vocab:y"]
    records = ["--set", records_dataset(eval_path="uncounted.tfrecords"), "--set", f"model_path={copied_run}"]
    process = run_process(here.folder, "--eval", *mesh, *records)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("mesh: x:2,y:2 (batch:x,heads:y,vocab:y) on CPU:0, CPU:1, CPU:2, CPU:3\n")
    assert read_metrics(copied_run)[-1]["loss"] == pytest.approx(measured["loss"], rel=1e-5)


def records_dataset(**changes: object) -> str:
    """An override that replaces the dataset by tfrecords, with the tokenizer of the run."""
    dataset = {"id": "records", "n_vocab": 300, "path": "datasets/words/*/train/*.tfrecords", "eos_id": 0}
    dataset |= {"tokenizer_path": "runs/tiny/tokenizer.json", "padding_id": 1}
    return f"datasets={json.dumps([dataset | changes])}"


def test_prediction_writes_the_same_text_for_the_same_seed(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (here.folder / "prompt.txt").write_text("the cat sat")
    arguments = ["--predict", "--prompt", "prompt.txt", "--sacred_id", "exp", "--n_samples", "3"]
    process = run_process(here.folder, *arguments, "--seed", "3")
    assert (process.returncode, process.stderr) == (0, "")
    written = (here.run / "predictions_exp_300.txt").read_text()
    assert process.stdout.splitlines()[1] == "restored runs/tiny/model.ckpt-300"
    assert process.stdout.endswith(f"{written}\nwritten to runs/tiny/predictions_exp_300.txt\n")
    samples = re.findall(r"={40} SAMPLE \d ={40}\n\n(.*?)\n\n={80}\n", written, re.DOTALL)
    assert len(set(samples)) == 3 and all(sample.startswith("the cat sat") for sample in samples)
    (here.run / "predictions_exp_300.txt").write_text("of the first prediction")
    assert call(capsys, *arguments, "--seed", "3").out.endswith("\nwritten to runs/tiny/predictions_exp_300.2.txt\n")
    assert (here.run / "predictions_exp_300.2.txt").read_text() == written
    assert (here.run / "predictions_exp_300.txt").read_text() == "of the first prediction"
    for path in here.run.glob("predictions_exp_*"):
        path.unlink()


def test_what_has_no_effect_and_what_has_changed_is_said(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model_path = ("--set", f"model_path={copied_run}")
    recorded = ("--sacred_id", "7")  # run_experiment.py gives it to every command
    result = call(
        capsys, "--eval", "--temperature", "0.5", "--set", "lr=1", "--export_dir", "x", *recorded, *model_path
    )
    idle = "--export_dir, --set lr, --temperature: no effect with --eval; leave out what has none\n"
    assert (result.status, result.err) == (0, idle)
    changes = ["lr=.02", "train_steps=302", "beta2=.9", "stop=[a,b]", "max_bad_share=.5"]
    result = call(capsys, *model_path, *[word for change in changes for word in ("--set", change)])
    read_as = '--set stop=[a,b]: read as ["a", "b"]; to keep the quotes, write --set \'stop=["a", "b"]\''
    assert result.err.splitlines()[:3] == [
        read_as,
        "--set stop: no effect in training without predict_steps; leave out what has none",
        "tiny: max_bad_share: no effect, since on_bad_record is stop",
    ]
    assert (
        "other settings than so far: train_steps 300 -> 302, lr 0.01 -> 0.02, lr_decay_end 300 -> 302, "
        'beta2 0.95 -> 0.9, stop [] -> ["a", "b"], max_bad_share 0.01 -> 0.5; learning rate at step 300: '
        "0.001 -> 0.002002\n"
    ) in result.out


# Weights that go out and come in.

MODEL_KEYS = ("n_head", "n_embd", "n_layer", "n_ctx", "n_vocab")


@pytest.fixture(scope="module")
def exported(project: Project) -> str:
    """The run as Hugging Face's library reads it."""
    process = run_process(project.folder, "--export", "--export_format", "hf", "--export_dir", "exported")
    assert (process.returncode, process.stderr) == (0, "")
    return "exported"


def test_weights_alone_are_a_run_without_optimiser_state(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here.folder / "weights_only"
    done = call(capsys, "--export", "--export_format", "weights", "--export_dir", "weights_only")
    assert (done.status, done.err, done.out.splitlines()[-1]) == (
        *(0, ""),
        "exported runs/tiny/model.ckpt-300 to weights_only",
    )
    names = ["checkpoint", "config.json", *(f"model.ckpt-300.{part}" for part in ("data-00000-of-00001", "index"))]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "tokenizer.json"]
    sizes = [(run / "model.ckpt-300.data-00000-of-00001").stat().st_size for run in (here.run, folder)]
    assert sizes[0] == pytest.approx(3 * sizes[1], rel=0.01)
    on = ["--predict", "--prompt_text", "the cat", "--seed", "5", "--set", "predict_max_steps=9"]
    texts = []
    for model in ("tiny.json", "weights_only"):
        assert main(["--model", model, *on]) == 0
        _, *lines, written = capsys.readouterr().out.partition("restored ")[2].splitlines()
        assert written.startswith("written to ")
        texts.append(lines)
    assert texts[0] == texts[1] != []
    assert main(["--model", "weights_only", "--set", "train_steps=301"]) == 2
    assert "/adam_m, which the optimiser needs" in capsys.readouterr().err


def test_exported_weights_come_back_without_the_model_being_said_again(
    here: Project, exported: str, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "--eval", "--set", f"model_path={copied_run}").status == 0
    loss = read_metrics(copied_run)[-1]["loss"]
    config = {key: value for key, value in TINY.items() if key not in MODEL_KEYS}
    (here.folder / "tuned.json").write_text(json.dumps(config | {"model_path": "runs/tuned", "embed_dropout": 0.0}))
    for weights in (exported, "runs/tiny", "runs/tiny/model.ckpt-300"):
        capsys.readouterr()
        assert main(["--model", "tuned.json", "--eval", "--init_from", weights]) == 0
        (measured,) = re.findall(r"step 0: held-out loss (\d\.\d{4}) ", capsys.readouterr().out)
        assert float(measured) == pytest.approx(loss, abs=1e-4)
    assert not (here.folder / "runs" / "tuned").exists()  # other weights are not part of a run


def test_a_run_starts_from_given_weights_and_then_resumes_by_itself(
    here: Project, exported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--init_from", exported, "--set", "model_path=runs/from", "--set", "lr_decay=null"]
    result = call(capsys, *arguments, "--set", "train_steps=3")
    assert result.status == 0 and f"loaded weights from {exported}\n" in result.out
    first = read_metrics("runs/from")[0]
    assert first["step"] == 1 and first["loss"] < read_metrics(str(here.run))[10]["loss"]
    result = call(capsys, *arguments, "--set", "train_steps=5")
    assert "restored runs/from/model.ckpt-3\n" in result.out and "loaded weights" not in result.out
    assert f"--init_from {exported}: ignored, since the run resumes from its own checkpoint\n" in result.out
    config = {key: value for key, value in TINY.items() if key not in MODEL_KEYS}
    (here.folder / "from.json").write_text(json.dumps(config | {"model_path": "runs/from"}))
    assert main(["--model", "from.json", "--eval"]) == 0  # the run knows the model that its config leaves out
    assert [line["step"] for line in read_metrics("runs/from") if line["split"] == "train"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("folder", ["run", "weights", "weights as initial ones"])
def test_a_folder_is_all_that_prediction_needs(
    here: Project,
    exported: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
) -> None:
    """Config, weights and tokenizer are in it, and it may have moved; the text is that of the run."""
    source, flag = (here.run, "--model") if folder == "run" else (here.folder / exported, "--model")
    shutil.copytree(source, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    flag = "--init_from" if folder == "weights as initial ones" else flag
    asked = ["--predict", "--prompt_text", "the cat sat", "--temperature", "0", "--max_new_tokens", "8"]
    assert main([flag, "moved", *asked, "--output", "moved.jsonl"]) == 0
    monkeypatch.chdir(here.folder)
    assert main(["--model", "tiny.json", *asked, "--output", "own.jsonl", "--sacred_id", "folder"]) == 0
    alone, own = json.loads((tmp_path / "moved.jsonl").read_text()), json.loads(Path("own.jsonl").read_text())
    assert (alone["tokens"], alone["text"]) == (own["tokens"], own["text"])
    assert len(own["tokens"]) > 0
    for path in (Path("own.jsonl"), *here.run.glob("predictions_folder_*")):
        path.unlink()
    capsys.readouterr()


def test_weights_of_others_are_no_settings_of_training(
    here: Project, exported: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(here.folder)
    assert main(["--model", exported]) == 2
    assert capsys.readouterr().err == (
        f"--model {exported}: holds weights, and no settings of training; give a model config, and --init_from "
        f"{exported}\n"
    )
    assert main(["--init_from", exported]) == 2
    assert capsys.readouterr().err.startswith(f"--init_from {exported}: holds weights, and no settings of training; ")
    assert main(["--model", f"{exported}/config.json"]) == 2
    assert capsys.readouterr().err.startswith(f"--model {exported}: holds weights, and no settings of training; ")
    for weights in (
        f"{exported}/model.safetensors",
        str(here.run / "model.ckpt-300"),
        "runs/tiny/model.ckpt-300.index",
    ):
        assert main(["--model", weights, "--predict"]) == 2
        assert capsys.readouterr().err.startswith(f"--model {weights}: names weights; give --init_from {weights} ")
    assert main(["--init_from", "nowhere", "--predict"]) == 2
    assert capsys.readouterr().err.startswith("nowhere: holds no weights; give a checkpoint")
    assert snapshot(here.folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "--plan",
        pytest.param("--auto_layout --set tokens_per_mb_per_replica=2048", marks=pytest.mark.slow),
    ],
)
def test_a_layout_of_a_shipped_config_asks_no_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small = "--set mesh_shape=x:4,y:2 --set n_layer=2 --set train_batch_size=8"
    small += ' --set attention_types=[[["global"],2]]'
    assert main(["--model", "gpt3_small_256", *arguments.split(), *small.split()]) == 0
    out = capsys.readouterr().out
    assert "mesh_shape" in out or "no plot: model_path = gs://neo-models/GPT3_SMALL: is a bucket;" in out
    assert list(tmp_path.iterdir()) == []


def test_a_saved_model_is_written(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, "--export", "--export_dir", "served")
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith("exported runs/tiny/model.ckpt-300 to served\n")
    assert (here.folder / "served" / "saved_model.pb").exists()


def test_a_plan_is_shown_and_drawn_before_anything_runs(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    mesh = ["--set", "mesh_shape=x:2,y:2", "--set", "layout=batch:x,heads:y", "--set", "model_path=runs/planned"]
    result = call(capsys, "--plan", *mesh)
    assert (result.status, result.err) == (0, "")
    n_parameters = 300 * 16 + 16 * 16 + 12 * 16 * 16 + 12 * 16  # tables, kernels, norms and biases
    assert result.out.startswith("tiny on x:2,y:2 (batch:x,heads:y)\n")
    assert re.search(rf"^parameters +{n_parameters:,}$", result.out, re.MULTILINE)
    assert result.out.endswith("plot written to runs/planned/plan.png\n")
    assert (here.folder / "runs" / "planned" / "plan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.processes
def test_a_layout_is_chosen_and_applied(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, "--auto_layout", "--set", "mesh_shape=x:2", "--set", "train_batch_size=4096")
    assert result.status == 0
    assert '"mesh_shape": "x:2", "layout": "batch:x"\n' in result.out
    arguments = ["--auto_layout", "--set", "mesh_shape=x:2", "--apply", "--cpu_devices", "2"]
    process = run_process(here.folder, *arguments, "--set", "model_path=runs/applied", "--set", "train_steps=2")
    assert process.returncode == 0, process.stderr
    (chosen,) = re.findall(r'^"mesh_shape": "x:2", "layout": "(.*)"$', process.stdout, re.MULTILINE)
    # Of so small a model it may be best to split nothing.
    assert f"mesh: x:2 ({chosen or 'nothing split'}) on CPU:0, CPU:1\n" in process.stdout


def test_an_axis_that_splits_nothing_is_said(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--auto_layout", "--set", "train_batch_size=4096", "--set")
    result = call(capsys, *arguments, "mesh_shape=x:2,unused:1009")
    assert (result.status, result.err) == (0, "")
    chosen = '"mesh_shape": "x:2,unused:1009", "layout": "batch:x"\n'
    unused = "unused: splits nothing, so its 1009 devices do the same work; give a size that divides a dimension\n"
    assert chosen + unused in result.out
    assert "splits nothing" not in call(capsys, *arguments, "mesh_shape=x:2,one:1").out


def test_check_dataset_counts_what_is_there(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(here.folder)
    result = call(capsys, "--check_dataset")
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith("\nplot written to runs/tiny/dataset.png\n")
    drawn = here.run / "dataset.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    drawn.unlink()
    assert {**snapshot(here.folder), "runs/tiny": None} == {**before, "runs/tiny": None}
    for part, name in (("train", "training"), ("eval", "evaluation")):
        examples = [ids.tolist() for ids in read_examples(str(here.tfrecords(part)))]
        ids = sum(examples, [])
        text = load_tokenizer("runs/tiny/tokenizer.json").decode(examples[0])
        pattern = f"{here.tfrecords(part).parent.relative_to(here.folder)}/*.tfrecords"
        figures = {"files": 1, "examples": len(examples), "tokens": len(ids), "documents": ids.count(0)}
        figures |= {"smallest id": min(ids), "largest id": max(ids)}
        table = "\n".join(f"{figure:<12} {value:>16,}" for figure, value in figures.items())
        assert f"\nwords, {name}: {pattern}\n{table}\nfirst example:\n{text}\n" in result.out


def test_a_finished_run_says_how_to_train_on(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(here.folder)
    result = call(capsys)
    assert result.status == 0
    assert result.out.splitlines()[-1] == "step 300 of 300: training is finished; raise train_steps to train on"
    assert snapshot(here.folder) == before


def test_checkpoints_evaluate_and_write_samples(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["eval_steps=2", "predict_steps=1", "train_steps=308", "lr_decay=null", f"model_path={copied_run}"]
    overrides = [text for key in keys for text in ("--set", key)]
    result = call(capsys, "--steps_per_checkpoint", "4", "--sacred_id", "mine", *overrides)
    assert result.status == 0
    lines = read_metrics(copied_run)[N_STEPS:]
    of_checkpoint = [
        *[("train", "loss")] * 4,
        ("eval", "loss"),
        ("eval", "samples/distinct_1"),
    ]  # too short for 4-grams
    assert [(line["split"], list(line)[3]) for line in lines] == of_checkpoint * 2
    assert [line["step"] for line in lines] == [*range(301, 305), 304, 304, *range(305, 309), 308, 308]
    assert [line["tokens"] for line in lines if line["split"] == "eval" and "loss" in line] == [2 * 4 * 16] * 2
    for step in (304, 308):
        path = f"{copied_run}/predictions_mine_{step}.txt"
        assert f"step {step}: samples in {path}  distinct_1 " in result.err
        assert Path(path).read_text().startswith(f"{'=' * 40} SAMPLE 0 {'=' * 40}\n\nIn the beginning")
        assert f"step {step}: held-out loss " in result.err


def test_a_run_that_diverges_keeps_its_last_checkpoint(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "--set", f"model_path={copied_run}", "--set", "lr=1e30", "--set", "train_steps=400")
    assert result.status == 2
    assert re.fullmatch(
        r"step 30\d, examples 12\d\d to 12\d\d \(datasets/words/\S+: records \d+ to \d+\): (loss|grad_norm) = "
        r"(nan|inf): training has diverged: the first tensor that is not finite is .+; the newest checkpoint is "
        r"that of step 300; lower lr, raise warmup_steps or set gradient_clipping, and run again",
        result.err.splitlines()[-1],
    )
    assert max(int(path.stem.split("-")[1]) for path in Path(copied_run).glob("*.index")) == 300


# Beginning anew.


def test_new_deletes_the_run_and_starts_at_step_0(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "--new", "--yes", "--set", "train_steps=3", "--set", f"model_path={copied_run}")
    assert result.status == 0
    assert f"deleted the run in {copied_run}\n" in result.out and "restored" not in result.out
    assert sorted(path.stem for path in Path(copied_run).glob("*.index")) == ["model.ckpt-3"]
    # The batches, too, begin again at the first; the noise and the first values are those of the same seed.
    begun = [line["loss"] for line in read_metrics(copied_run)]
    assert begun == pytest.approx([loss for _, loss, _ in losses(here.run)[:1]] + begun[1:], rel=1e-5)
    assert [line["step"] for line in read_metrics(copied_run)] == [1, 2, 3]


@pytest.mark.parametrize("answer", ["n", "", "yess"])
def test_new_asks_at_a_terminal(
    here: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    ours, theirs = pty.openpty()
    before = snapshot(here.folder)
    with open(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(ours, f"{answer}\n".encode())
        result = call(capsys, "--new")
    os.close(ours)
    assert result == Result(0, "Delete the run in runs/tiny? [y/n] ", "")
    assert snapshot(here.folder) == before


# What a person can get wrong. {main} stands for the repository, and the run in runs/tiny has to stay as it is.

WITHOUT_DATA = ["--set", "datasets=[]", "--set", "no_dataset=true"]


def dataset_with(**changes: object) -> str:
    return f"datasets={json.dumps([DATASET | changes])}"


REFUSALS: dict[str, tuple[list[str], str]] = {
    "unknown key": (
        ["--set", "warmup_step=3"],
        "--set: warmup_step = 3: is not a known key; did you mean warmup_steps?",
    ),
    "no pair": (["--set", "lr"], "--set: lr: is not a key=value pair; write key=value"),
    "wrong type": (
        ["--set", "lr=fast"],
        "--set: lr = fast: is not a number; give a number > 0",
    ),
    "two issues": (
        ["--set", "train_steps=0", "--set", "n_head=3"],
        "--set: train_steps = 0: is out of range; give an integer >= 1\n"
        "--set: n_head = 3: does not divide n_embd = 16; choose n_head and n_embd so that n_embd / n_head is "
        "whole, or give head_dim",
    ),
    "layout": (
        ["--set", "mesh_shape=x:2", "--set", "layout=batch:z"],
        "--set: layout = batch:z: batch:z names an axis that mesh_shape lacks; use x, or add z to mesh_shape",
    ),
    "temperature": (
        ["--predict", "--temperature", "-1"],
        "--temperature -1: is out of range; give a number >= 0",
    ),
    "top_p": (["--predict", "--top_p", "0"], "--top_p 0: is out of range; give a number in (0, 1]"),
    "top_k": (
        ["--predict", "--top_k", "301"],
        "--top_k 301: is more than n_vocab = 300; lower it; 0 turns it off",
    ),
    "seed": (
        ["--predict", "--seed", "x"],
        "--seed x: is not an integer; give an integer from 0 to 2147483647",
    ),
    "n_samples": (
        ["--predict", "--n_samples", "0"],
        "--n_samples 0: is out of range; give an integer >= 1",
    ),
    "a layout for no mesh": (
        ["--auto_layout"],
        "--auto_layout: the config has no mesh_shape; give one, such as --set mesh_shape=x:4,y:2, or "
        "--auto_layout_and_mesh_shape",
    ),
    "nothing to apply": (
        ["--apply"],
        "--apply: has nothing to apply; give --auto_layout or --auto_layout_and_mesh_shape too",
    ),
    "weights that are not there": (
        ["--init_from", "nowhere", "--set", "model_path=runs/other"],
        "nowhere: holds no weights; give a checkpoint (its path without .index), the folder of one, or a Hugging "
        "Face folder{start}",
    ),
    "other weights": (
        ["--init_from", "runs/tiny", "--set", "model_path=runs/other", "--set", "n_head=4", "--set", "n_ctx=32"],
        "--set: n_head = 4: the weights were made with 2 (runs/tiny/config.json); leave n_head out\n"
        "--set: n_ctx = 32: the weights were made with 16 (runs/tiny/config.json); leave n_ctx out",
    ),
    "weights of no use": (
        ["--check_dataset", "--init_from", "runs/tiny"],
        "--init_from: --check_dataset reads no weights; leave out one of them",
    ),
    "an export into a full folder": (
        ["--export", "--export_dir", "texts"],
        "{here}/texts: exists already; give a folder that is new or empty",
    ),
    "weights that are to be deleted": (
        ["--new", "--yes", "--init_from", "runs/tiny/model.ckpt-300"],
        "--init_from runs/tiny/model.ckpt-300: lies in the run that --new deletes; give another model_path, or "
        "leave --new out",
    ),
    "an export of nothing": (
        ["--export", "--set", "model_path=runs/other"],
        "model_path = runs/other: holds no checkpoint; train first, or give the model_path of a trained model{start}",
    ),
    "a masked model's text": (
        ["--predict", "--set", "mlm_training=true", "--set", "mlm_mask_id=2"],
        "tiny: mlm_training = true: a masked language model cannot generate text; give the config of a causal model",
    ),
    "tpu": (
        ["--tpu", "colab"],
        "--tpu colab: COLAB_TPU_ADDR is not set: this is not a Colab notebook with a TPU; choose a TPU as the "
        "notebook's runtime; if the TPU is part of the machine, give --tpu local",
    ),
    "wait_seconds": (
        ["--hosts", "127.0.0.1:2322,127.0.0.1:2323", "--host_index", "0", "--wait_seconds", "-3"],
        "--wait_seconds -3: is negative; give 0 or a number of seconds",
    ),
    "a mesh that divides nothing": (
        ["--auto_layout", "--set", "mesh_shape=x:1009"],
        "tiny on x:1009: no dimension can be split so, and all devices would do the same work; give a mesh_shape whose "
        "sizes divide train_batch_size = 4, or another batch",
    ),
    "a batch that the devices do not divide": (
        ["--cpu_devices", "4", "--set", "train_batch_size=6", "--set", dataset_with(id="unprepared")],
        "train_batch_size = 6: is split over 4 devices, which does not divide it; change train_batch_size or "
        "mesh_shape, or split something else than batch in layout",
    ),
    "nothing recomputed, and blocks": (
        ["--set", "recompute=none", "--set", "recompute_grad=true"],
        "--set: recompute = none: recompute_grad = true means block; keep one of the two",
    ),
    "steps_per_checkpoint": (
        ["--steps_per_checkpoint", "0"],
        "--steps_per_checkpoint 0: must be at least 1; give a number of steps",
    ),
    "sacred_id": (
        ["--predict", "--sacred_id", "../mine"],
        "--sacred_id ../mine: contains a slash; give a part of a file name",
    ),
    "two kinds of devices": (
        ["--gpu_ids", "device:GPU:0", "--cpu_devices", "2"],
        "--gpu_ids and --cpu_devices: cannot be combined; give one of them",
    ),
    "no processes": (
        ["--processes", "0"],
        "--processes 0: is out of range; give a number from 1 to 256",
    ),
    "processes that talk": (
        ["--processes", "2", "--chat"],
        "--processes 2: --chat runs in a single process; leave out --processes",
    ),
    "processes of two kinds": (
        ["--processes", "2", "--hosts", "a:1,b:2", "--host_index", "0"],
        "--processes 2: each process finds the others and its device itself; leave out --hosts, --gpu_ids, "
        "--cpu_devices and --tpu",
    ),
    "processes that would ask": (
        ["--processes", "2", "--new"],
        "--new: would ask in each of the 2 processes; give --yes too",
    ),
    "processes of a config that is wrong": (
        ["--processes", "2", "--set", "n_head=0"],
        "--set: n_head = 0: is out of range; give an integer >= 1",
    ),
    "no devices": (
        ["--cpu_devices", "0"],
        "--cpu_devices 0: must be at least 1; give the number of virtual CPU devices",
    ),
    "a device twice": (
        ["--eval", "--gpu_ids", "device:CPU:0", "device:CPU:0"],
        "--gpu_ids device:CPU:0 device:CPU:0: a device is named twice; name each once",
    ),
    "new and another command": (
        ["--new", "--predict"],
        "--new: starts training from the beginning; leave out --predict",
    ),
    "new in a script": (
        ["--new"],
        "--new: Delete the run in runs/tiny?: standard input is not a terminal; give --yes too",
    ),
    "new where no run is": (
        ["--new", "--yes", "--set", "model_path=texts"],
        "--new: model_path = texts: holds no run, so it is not deleted; delete it yourself, or give another model_path",
    ),
    "new with a wrong device": (
        ["--new", "--yes", "--gpu_ids", "device:GPU:99"],
        "--gpu_ids device:GPU:99: no such device; GPUs that TensorFlow sees: none; name one that is there, or "
        "leave --gpu_ids out to run on what is there",
    ),
    "new without data": (
        ["--new", "--yes", "--set", records_dataset(path="nowhere/*.tfrecords")],
        "nowhere/*.tfrecords: no file matches; check the path in the dataset config{start}",
    ),
    "nothing to train on": (
        WITHOUT_DATA,
        "no dataset: nothing to train on; give datasets in the model config, and a path in each dataset config",
    ),
    "nothing to check": (
        ["--check_dataset", *WITHOUT_DATA],
        "no dataset: nothing to check; give datasets in the model config",
    ),
    "nothing to evaluate on": (
        ["--eval", "--set", records_dataset()],
        "records: nothing to evaluate on; give eval_path in a dataset config, or name --eval_tasks",
    ),
    "no tokenizer": (
        ["--predict", *WITHOUT_DATA, "--set", "model_path=runs/untrained"],
        "datasets = []: prediction and evaluation tasks need a tokenizer; name a dataset with a tokenizer_path in the "
        "model config, or put tokenizer.json beside the weights",
    ),
    "tokenizer not there": (
        ["--set", records_dataset(tokenizer_path="nowhere.json")],
        "nowhere.json: no such tokenizer; give a tokenizers JSON file (data/train_tokenizer.py makes one), or a "
        "folder with vocab.json and merges.txt{start}",
    ),
    "special ids": (
        ["--set", records_dataset(eos_id=5)],
        "records: eos_id = 5: the tokenizer's <|endoftext|> is 0; set eos_id to 0",
    ),
    "no text": (
        ["--set", dataset_with(text="nowhere")],
        "nowhere: no file found; name a directory, a glob or a file that has text{start}",
    ),
    "no checkpoint to evaluate": (
        ["--eval", "--set", "model_path=runs/none"],
        "model_path = runs/none: holds no checkpoint; train first, or give the model_path of a trained model{start}",
    ),
    "no checkpoint to predict from": (
        ["--predict", "--set", "model_path=runs/none"],
        "model_path = runs/none: holds no checkpoint; train first, or give the model_path of a trained model{start}",
    ),
    "a deeper model": (
        ["--set", "n_layer=2"],
        "runs/tiny/config.json: n_layer = 1: the run was trained with it, but the config says 2; set n_layer to that, "
        "or give another model_path",
    ),
    "other heads, which no shape shows": (
        ["--eval", "--set", "n_head=1"],
        "runs/tiny/config.json: n_head = 2: the run was trained with it, but the config says 1; set n_head to that, "
        "or give another model_path",
    ),
    "a path that TensorFlow takes for a pattern": (
        ["--set", "model_path=runs/[a]"],
        "model_path = runs/[a]: holds [ ], which TensorFlow reads as a glob pattern; give a path without",
    ),
    "an end of text that is not the tokenizer's": (
        ["--check_dataset", "--set", "eos_id=5"],
        "tiny: eos_id = 5: the tokenizer's <|endoftext|> is 0; leave eos_id out of the model config",
    ),
    "a wider model": (
        ["--eval", "--set", "n_embd=32"],
        "runs/tiny/model.ckpt-300: variable gpt2/wte is [300, 16] there and [300, 32] in the config; give the "
        "config that was trained, or another model_path",
    ),
    "prompt not there": (
        ["--predict", "--prompt", "nowhere.txt"],
        "--prompt nowhere.txt: cannot be read: No such file or directory; give a text file{start}",
    ),
    "prompt a folder": (
        ["--predict", "--prompt", "texts"],
        "--prompt texts: cannot be read: Is a directory; give a text file{start}",
    ),
    "prompt not text": (
        ["--predict", "--prompt", "runs/tiny/loss.png"],
        "--prompt runs/tiny/loss.png: is not UTF-8 text: 'utf-8' codec can't decode byte 0x89 in position 0: invalid "
        "start byte; give a text file",
    ),
    "a file for a folder": (
        ["--set", "model_path=tiny.json"],
        "tiny.json/lock: cannot be written: File exists; make room there, or give another path",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_one_message_status_2_and_nothing_touched(here: Project, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, message = REFUSALS[case]
    before = snapshot(here.folder)
    result = call(capsys, *arguments)
    start = f" (relative paths start at {here.folder})"
    expected = message.replace("{here}", str(here.folder)).replace("{start}", start)
    assert (result.status, result.err) == (2, f"{expected}\n")
    assert snapshot(here.folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["more"], "unrecognized arguments: more"),
        (["--eval", "--predict"], "argument --predict: not allowed with argument --eval"),
        (["--steps_per_checkpoint", "many"], "argument --steps_per_checkpoint: 'many' is not an integer; give one"),
        (["--set"], "argument --set: expected one argument"),
    ],
)
def test_a_command_line_of_another_form(
    here: Project, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    before = snapshot(here.folder)
    result = call(capsys, *arguments)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("usage: main.py ") and result.err.endswith(f"\nmain.py: error: {message}\n")
    assert snapshot(here.folder) == before


@pytest.mark.parametrize("arguments", [(), ("--eval",), ("--export", "--export_dir", "exported")])
def test_weights_that_cannot_be_read_are_named_before_any_text_is_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    write_project(tmp_path)
    keys = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16, "n_positions": 16}
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps({**keys, "vocab_size": 300}))
    (tmp_path / "weights" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "model.json").write_text(json.dumps({key: TINY[key] for key in ("datasets", "train_batch_size")}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    steps = ("--set", "train_steps=1", "--set", "model_path=runs/tuned")
    assert main(["--model", "model.json", "--init_from", "weights", *steps, *arguments]) == 2
    assert "weights/pytorch_model.bin: is PyTorch's format, and PyTorch is not installed; " in capsys.readouterr().err
    assert not (tmp_path / "datasets").exists()


def test_the_help_text_has_an_example_of_each_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    examples = re.findall(r"^  python3 main.py (.*)$", text, re.MULTILINE)
    assert [parse_arguments(example.split()).command for example in examples] == list(COMMANDS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "nowhere.json",
            None,
            "nowhere.json: cannot be read (No such file or directory); check the path (relative paths start at {here})",
        ),
        (
            "torn.json",
            '{"n_head": 2,',
            "torn.json: line 1 column 14: is not JSON (Expecting property name enclosed in double quotes); correct "
            "the file there",
        ),
        ("list.json", "[]", 'list.json: holds no JSON object; write {"key": value, ...}'),
        (
            "quickstrat",
            None,
            f"{REPOSITORY}/configs/quickstrat.json: there is no config of this name; did you mean quickstart?"
            " (relative paths start at {here})",
        ),
        (
            "runs/gone",
            None,
            "runs/gone: there is no such file or folder; check the path (relative paths start at {here})",
        ),
        ("gone/", None, "gone/: there is no such file or folder; check the path (relative paths start at {here})"),
    ],
)
def test_a_config_that_cannot_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    assert main(["--model", name]) == 2
    assert capsys.readouterr() == ("", f"{message.replace('{here}', str(tmp_path))}\n")


@pytest.mark.parametrize("case", ["two issues", "tpu"])
def test_a_refusal_by_a_real_process(project: Project, case: str) -> None:
    arguments, message = REFUSALS[case]
    process = run_process(project.folder, *arguments)
    assert (process.returncode, process.stderr) == (2, f"{message}\n")


WRONG_RECORDS = {
    "length": (
        [[2] * 17, [2] * 16],
        0,
        "record 1 holds 16 ids, but n_ctx 16 needs 17; write the file again with --chunk_size 16; records of documents "
        "need input_fn = generic_text",
    ),
    "vocabulary": (
        [[2] * 17, [2] * 16 + [300]],
        0,
        "record 1 holds the id 300, outside [0, 300); raise n_vocab, or use the tokenizer and dataset config that "
        "the file was written with",
    ),
    "truncated": (
        [[2] * 17] * 2,
        9,
        "record 1 is truncated or damaged; copy the file again, or write it again with data/create_tfrecords.py",
    ),
    "count": (
        [[2] * 17] * 3,
        0,
        "holds 3 examples, but its name says 2; copy it again if it was cut short, or rename it so that it ends in "
        "_3.tfrecords",
    ),
}


@pytest.mark.parametrize("case", WRONG_RECORDS)
def test_a_wrong_record_is_named_and_nothing_is_written(
    here: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    examples, cut_bytes, problem = WRONG_RECORDS[case]
    path = tmp_path / "wrong_0_0_2.tfrecords"
    write_examples(str(path), examples)
    os.truncate(path, path.stat().st_size - cut_bytes)
    before = snapshot(here.folder)
    records = records_dataset(path=str(path), eval_path=str(path))
    for arguments in (["--set", "model_path=runs/other"], ["--eval"]):
        result = call(capsys, *arguments, "--set", records)
        assert (result.status, result.err) == (2, f"{path}: {problem}\n"), arguments
        assert snapshot(here.folder) == before
    result = call(capsys, "--check_dataset", "--set", records)
    assert result.status == 2 and result.err.startswith(f"{path}: {problem.split('; ')[0]}; ")
    (here.run / "dataset.png").unlink()


def test_a_torn_checkpoint_gives_way_to_the_one_before_it(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predict = ("--predict", "--seed", "1", "--set", f"model_path={copied_run}")
    os.truncate(f"{copied_run}/model.ckpt-300.data-00000-of-00001", 100)
    os.truncate(f"{copied_run}/config.json", 0)
    result = call(capsys, *predict)
    lines = result.out.splitlines()
    assert (result.status, result.err, lines[3]) == (0, "", f"restored {copied_run}/model.ckpt-200")
    assert lines[1] == f"{copied_run}/config.json: is damaged, so the config is not compared with it"
    assert lines[2].startswith(f"{copied_run}/model.ckpt-300.data-00000-of-00001: gpt2/")  # the first tensor
    assert ": cannot be read: " in lines[2]
    assert lines[2].endswith("; trying the checkpoint before it")
    Path(copied_run, "checkpoint").write_text('model_checkpoint_path: "model.ckpt-300"\n')  # the others stay for good
    assert f"restored {copied_run}/model.ckpt-200" in call(capsys, *predict).out
    for step in (100, 200):
        os.truncate(f"{copied_run}/model.ckpt-{step}.index", 0)
    before = snapshot(here.folder)
    for arguments in ((), ("--eval",), ("--predict",)):
        result = call(capsys, *arguments, "--set", f"model_path={copied_run}")
        assert (result.status, result.err) == (
            2,
            f"model_path = {copied_run}: holds no checkpoint that can be read; restore the files from a copy, or give "
            "another model_path\n",
        )
        assert result.out.count("trying the checkpoint before it") == 2  # of three
        assert snapshot(here.folder) == before


def test_another_tokenizer_is_refused(here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Path(copied_run, "tokenizer.json")
    other = json.loads(tokenizer.read_text())
    other["pre_tokenizer"]["add_prefix_space"] = not other["pre_tokenizer"]["add_prefix_space"]
    tokenizer.write_text(json.dumps(other))
    before = snapshot(here.folder)
    for arguments in (["--set", "train_steps=301"], ["--eval"]):
        result = call(capsys, *arguments, "--set", f"model_path={copied_run}")
        assert (result.status, result.err) == (
            2,
            f"{copied_run}/tokenizer.json: differs from the tokenizer of the dataset, which has changed since "
            "training started; give the tokenizer that the run was trained with, or another model_path\n",
        )
        assert snapshot(here.folder) == before


def test_a_trained_model_needs_none_of_its_data(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"id": "words", "n_vocab": 300, "text": "gone", "eos_id": 0, "padding_id": 1}
    run = ("--set", f"model_path={copied_run}", "--set", f"datasets={json.dumps([gone])}")
    asked = ("--predict", "--prompt", "texts/1.txt", "--seed", "1", "--temperature", "0")
    texts = []
    for changes, number in ((run[:2], ""), (run, ".2")):
        assert call(capsys, *asked, *changes).status == 0
        texts.append(Path(copied_run, f"predictions_nosacred_300{number}.txt").read_text())
    assert texts[0] == texts[1]
    assert call(capsys, "--export", "--export_format", "hf", "--export_dir", "exported_alone", *run).status == 0
    assert Path("exported_alone", "tokenizer.json").read_text() == Path(copied_run, "tokenizer.json").read_text()
    Path(copied_run, "tokenizer.json").write_text("{}")
    result = call(capsys, *asked, *run)
    assert result.status == 2 and result.err.startswith(f"{copied_run}/tokenizer.json: ")
    # After a power cut, the dataset's tokenizer is used; other damage is in tests/runtime/run/test_directory.py.
    Path(copied_run, "tokenizer.json").write_bytes(b"\0" * 4096)
    result = call(capsys, *asked, *run[:2])
    damaged = f"{copied_run}/tokenizer.json: is damaged, so the dataset's tokenizer is used"
    assert (result.status, result.err, damaged in result.out) == (0, "", True)
    assert Path(copied_run, "predictions_nosacred_300.3.txt").read_text() == texts[0]
    Path(copied_run, "tokenizer.json").unlink()
    result = call(capsys, *asked, *run)
    start = f" (relative paths start at {os.getcwd()})\n"
    assert (result.status, result.err) == (
        2,
        f"gone: no file found; name a directory, a glob or a file that has text{start}",
    )


def test_a_run_is_deleted_only_once_the_new_one_can_start(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(Path(copied_run))
    # The tfrecords of n_ctx 16 are not examples for a model of 8: found at the first batch.
    dataset = {"id": "words", "n_vocab": 300, "path": str(here.tfrecords("train")), "eos_id": 0, "padding_id": 1}
    dataset["tokenizer_path"] = f"{copied_run}/tokenizer.json"
    changes = ["n_ctx=8", f"model_path={copied_run}", f"datasets={json.dumps([dataset])}"]
    result = call(capsys, "--new", "--yes", *(part for change in changes for part in ("--set", change)))
    assert result.status == 2 and "n_ctx" in result.err
    assert snapshot(Path(copied_run)) == before


def test_a_second_process_on_one_run_is_refused(
    here: Project, copied_run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("--set", f"model_path={copied_run}", "--set", "train_steps=400")
    with lock.locked(copied_run):
        before = snapshot(Path(copied_run))
        result = call(capsys, *changes)
        assert snapshot(Path(copied_run)) == before
    assert (result.status, result.err) == (
        2,
        f"model_path = {copied_run}: another process trains here; wait for it, or give another model_path\n",
    )


def test_an_out_of_memory_error_says_what_helps(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, "--predict", "--rows", "10000000000")
    assert result.status == 2
    assert result.err == (
        "tiny: out of memory: the predict step does not fit; give fewer --rows, set cache_dtype to bfloat16, or "
        "split the model over more devices\n"
    )
