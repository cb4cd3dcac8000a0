"""Evaluation tasks from the command line: at the end, while training, and with other weights."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from commands.options import idle_in_command
from configs.load import load_config
from configs.schema import TASK_KINDS, EvaluationConfig, TaskEntry
from main import main
from runtime.run.metrics import read_metrics
from tasks.load import load_task
from tasks.table import TASKS as TASKS_OF_TABLE
from tasks.task import KINDS, Task
from tests import tiny
from tests.program import ENVIRONMENT, TINY, command, run_process, write_project

N_STEPS = 12
TASKS = [
    {"name": "lambada", "limit": 3},
    {"name": "mine", "file": "mine.jsonl", "kind": "multiple_choice", "every_steps": 6},
    {"name": "talk", "file": "talk.jsonl", "kind": "dialogue"},
]
CHANGES = {
    "n_ctx": 32,
    "train_steps": N_STEPS,
    "eval_steps": 1,
    "eval_tasks": TASKS,
    "eval_tasks_dir": "sets",
    "eval_every_steps": 4,
    "predict_steps": 1,
    "predict_batch_size": 2,
    "predict_max_steps": 8,
    "predict_seed": 1,
    "never_end": True,
}
ACCURACIES = {f"mine/{name}" for name in ("acc", "acc_norm", "acc_bytes")}


def write_lines(path: Path, lines: Sequence[object]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_tasks(folder: Path) -> None:
    write_project(folder)
    write_lines(folder / "sets/lambada_openai.jsonl", [{"context": "the cat", "continuation": "sat"}] * 5)
    question = {"query": "one dog", "choices": ["saw a cat", "run"], "gold": 0}
    write_lines(folder / "mine.jsonl", [question, {**question, "gold": 1}])
    write_lines(folder / "talk.jsonl", [{"context": ["the cat", "sat"], "references": ["on a mat"]}] * 3)
    (folder / "tiny.json").write_text(json.dumps({**TINY, **CHANGES}))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated while it trained."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["--model", "tiny.json", "--steps_per_checkpoint", "6"]) == 0
    return folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def steps_of(metric: str, run: str) -> list[int]:
    return [line["step"] for line in read_metrics(run) if line["split"] == "eval" and metric in line]


@pytest.mark.slow
def test_each_task_is_evaluated_at_its_own_steps(here: Path) -> None:
    assert steps_of("loss", "runs/tiny") == steps_of("lambada_openai/acc", "runs/tiny") == [4, 8, 12]
    assert steps_of("talk/bleu_1", "runs/tiny") == [4, 8, 12]
    assert steps_of("mine/acc", "runs/tiny") == [6, 12]
    assert steps_of("samples/repetition_4", "runs/tiny") == steps_of("samples/distinct_1", "runs/tiny") == [6, 12]
    written = [(line["task"], line["current_step"]) for line in lines_of(here / "runs/tiny/eval_nosacred.jsonl")]
    expected = [("lambada_openai", 4), ("talk", 4), ("mine", 6), ("lambada_openai", 8), ("talk", 8)]
    assert written == [*expected, ("lambada_openai", 12), ("mine", 12), ("talk", 12)]
    assert lines_of(here / "runs/tiny/eval_nosacred.jsonl")[-1]["mean_words"] >= 0
    assert len((here / "runs/tiny/eval_log.txt").read_text().splitlines()) == 1 + 3


@pytest.mark.slow
def test_eval_gives_the_figures_of_training_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def last(metric: str) -> list[float]:
        return [line[metric] for line in read_metrics("runs/tiny") if metric in line][-2:]

    assert main(["--model", "tiny.json", "--eval", "--log_samples", "--sacred_id", "5"]) == 0
    for metric in ("lambada_openai/perplexity", "mine/acc", "talk/nist_4", "talk/entropy_2"):
        while_training, alone = last(metric)
        assert alone == pytest.approx(while_training, rel=1e-5), metric
    shown = capsys.readouterr().out
    table = shown[shown.index("task ") :]
    assert [line.split()[0] for line in table.splitlines()[1:] if line[0] != " "] == [
        *("lambada_openai", "mine", "talk"),
        *("step", "loss"),  # then the held-out loss, as GPT-Neo
    ]
    (perplexity,) = {line["lambada_openai/perplexity"] for line in read_metrics("runs/tiny")[-4:-3]}
    assert f"{perplexity:,.4f}" in table
    items = lines_of(here / "runs/tiny/samples_5_lambada_openai_12.jsonl")
    mean = sum(item["log_likelihood"] for item in items) / len(items)
    assert len(items) == 3 and math.exp(-mean) == pytest.approx(perplexity)
    assert sorted(path.name for path in (here / "runs/tiny").glob("*_5*")) == [
        "eval_5.jsonl",
        *(f"samples_5_{name}_12.jsonl" for name in ("lambada_openai", "mine", "talk")),
    ]


@pytest.mark.slow
def test_typed_names_are_evaluated_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n_lines = len(read_metrics("runs/tiny"))
    assert main(["--model", "tiny.json", "--eval", "--eval_tasks", "mine"]) == 0
    assert "held-out" not in capsys.readouterr().out
    (line,) = read_metrics("runs/tiny")[n_lines:]
    names = {name for name in line if "/" in name and not name.endswith("_stderr")}
    assert names == ACCURACIES and line["mine/acc"] == 0.5
    assert main(["--model", "tiny.json", "--eval", "--eval_tasks", "validation"]) == 0
    shown = capsys.readouterr().out
    assert "held-out" in shown and "figure" not in shown
    long = {**TASKS[1], "description": "the cat sat. " * 20}
    assert main(["--model", "tiny.json", "--eval", "--set", f"eval_tasks=[{json.dumps(long)}]"]) == 0
    assert "mine: 2 of 2 items have a context that is too long for n_ctx = 32, and lose its" in capsys.readouterr().out


@pytest.mark.slow
def test_other_weights_without_data_leave_the_run_alone(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "hf")
    assert main(["--model", "tiny.json", "--export", "--export_format", "hf", "--export_dir", folder]) == 0
    capsys.readouterr()
    before = (here / "runs/tiny/metrics.jsonl").read_bytes()
    (task,) = [task for task in TASKS if task["name"] == "mine"]
    settings = ["--set", f"eval_tasks=[{json.dumps(task)}]", "--set", f"model_path={tmp_path / 'out'}"]
    assert main(["--model", folder, "--eval", *settings, "--log_samples"]) == 0
    assert "mine  acc" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["samples_nosacred_mine_0.jsonl"]
    alone = lines_of(tmp_path / "out/samples_nosacred_mine_0.jsonl")
    assert main(["--model", "tiny.json", "--init_from", folder, "--eval", "--eval_tasks", "mine", "--log_samples"]) == 0
    beside = lines_of(here / "runs/tiny/samples_nosacred_mine_0.jsonl")
    assert [item["log_likelihoods"] for item in beside] == [
        pytest.approx(item["log_likelihoods"], abs=1e-4) for item in alone
    ]
    assert (here / "runs/tiny/metrics.jsonl").read_bytes() == before
    capsys.readouterr()
    settings[-1] = "model_path=mine.jsonl/out"
    assert main(["--model", folder, "--eval", *settings, "--log_samples"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mine.jsonl/out/samples_nosacred.jsonl: cannot be written: ")


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (["--eval_tasks", "lambda"], ["eval_tasks = lambda: is not in the table of tasks"]),
        (["--eval_tasks", "piqa"], ["sets/piqa.jsonl: is not there"]),
        (
            ["--eval_tasks", "picqa,nothing_near"],
            [
                "eval_tasks = picqa: is not in the table of tasks, and has no file; did you mean piqa?",
                "eval_tasks = nothing_near: is not in the table of tasks, and has no file; ",
            ],
        ),
        (["--eval_tasks", "talk", "--set", "num_beams=3"], ["eval_tasks = talk: samples its answers, and does not"]),
    ],
)
@pytest.mark.parametrize("command", [["--eval"], ["--set", "train_steps=50"]], ids=["eval", "train"])
def test_what_cannot_be_evaluated_is_said_before_anything_is_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    changes: list[str],
    lines: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    assert main(["--model", "tiny.json", *command, *changes]) == 2
    heard = capsys.readouterr().err.splitlines()
    assert len(heard) == len(lines)
    assert all(got.startswith(line) for got, line in zip(heard, lines, strict=True)), heard
    assert not (tmp_path / "runs").exists() and not (tmp_path / "datasets").exists()


def test_tasks_have_no_effect_elsewhere_and_that_is_said() -> None:
    options = {"typed": ["log_samples"], "overrides": ["--eval_tasks=talk", "temperature=0.5"]}
    config = dataclasses.replace(tiny.run_config(), evaluation=EvaluationConfig(eval_batch_size=1))
    assert idle_in_command("chat", **options, config=config) == (
        "--log_samples, --eval_tasks: no effect with --chat; leave out what has none"
    )
    said = "--set temperature: no effect with --eval; leave out what has none"
    assert idle_in_command("eval", **options, config=config) == said
    answering = TaskEntry(name="talk", file="talk.jsonl", kind="dialogue")
    config = dataclasses.replace(config, evaluation=EvaluationConfig(eval_batch_size=1, eval_tasks=(answering,)))
    assert idle_in_command("eval", **options, config=config) is None


PAGE = (Path(__file__).parents[1] / "docs/evaluation.md").read_text()


def test_the_page_shows_lines_that_are_read_and_names_every_task(tmp_path: Path) -> None:
    shown = re.findall(r"^\| `(\w+)` \| `(\{.*?\})`", PAGE, re.MULTILINE)
    assert {kind for kind, _ in shown} == set(TASK_KINDS) == set(KINDS)
    for kind, line in shown:
        (tmp_path / "mine.jsonl").write_text(line)
        assert len(load_task(Task("mine", kind, "mine.jsonl"), str(tmp_path)).items) == 1
    table = PAGE[PAGE.index("| task | what the model predicts |") :]
    named = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", table, re.MULTILINE)
    assert set(TASKS_OF_TABLE) <= set(", ".join(named).replace("`", "").split(", "))


def test_the_tasks_that_the_page_describes_are_those_of_a_config(tmp_path: Path) -> None:
    (block,) = re.findall(r'^"eval_tasks": (\[.*?^\])$', PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "tiny.json").write_text(json.dumps({**TINY, "eval_tasks": json.loads(block)}))
    entries = load_config(str(tmp_path / "tiny.json")).evaluation.eval_tasks
    assert [entry.name for entry in entries] == ["lambada_openai", "piqa", "riddles", "novel", "talk"]


FIRST_FIGURES = ("mine/acc", "book/bits_per_byte", "talk/bleu_1")
STOPPED = "stopped at step 5; the checkpoint is saved: run the same command again to resume"


def started_with_a_long_task(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    write_tasks(folder)
    tasks = [{**TASKS[1], "every_steps": 5}, {"name": "book", "file": "book.txt", "kind": "rolling"}, TASKS[2]]
    changes = {"eval_tasks": tasks, "eval_every_steps": 5, "train_steps": 10, "predict_steps": 0}
    (folder / "tiny.json").write_text(json.dumps({**TINY, **CHANGES, **changes}))
    (folder / "book.txt").write_text("the cat sat on a mat and saw one dog. " * 60_000)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(*arguments), cwd=folder, env=ENVIRONMENT, **pipes)


def lines_until(process: subprocess.Popen[str], text: str) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.slow
@pytest.mark.processes
def test_a_signal_ends_a_task_within_seconds_and_the_rest_is_done_on_resume(tmp_path: Path) -> None:
    process = started_with_a_long_task(tmp_path)
    lines_until(process, "step 5: mine:")
    time.sleep(3.0)  # the book is scored
    process.send_signal(signal.SIGTERM)
    sent_seconds = time.monotonic()
    out, _ = process.communicate()
    assert time.monotonic() - sent_seconds < 20.0
    assert (process.returncode, out.splitlines()[-1]) == (128 + signal.SIGTERM, STOPPED), out
    (tmp_path / "book.txt").write_text("the cat sat on a mat. " * 9)
    assert run_process(tmp_path).returncode == 0
    run = str(tmp_path / "runs/tiny")
    measured = [(line["step"], name) for line in read_metrics(run) for name in line if name in FIRST_FIGURES]
    assert measured == [(step, name) for step in (5, 10) for name in FIRST_FIGURES]
    assert not (tmp_path / "runs/tiny/interrupted.json").exists()


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_eval_with_the_table_of_what_is_finished(tmp_path: Path, number: int) -> None:
    process = started_with_a_long_task(tmp_path, "--set", "eval_tasks=[]")
    assert process.communicate() and process.returncode == 0
    process = subprocess.Popen(
        command("--eval"), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not (tmp_path / "runs/tiny/eval_nosacred.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(2.0)
    process.send_signal(number)
    sent_seconds = time.monotonic()
    out, _ = process.communicate()
    assert time.monotonic() - sent_seconds < 20.0 and process.returncode != 0
    assert "mine  acc" in out and "book" not in out[out.index("mine  acc") :], out
    assert "Traceback" not in out
