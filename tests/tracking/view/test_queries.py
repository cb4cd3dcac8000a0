"""The program's commands that show runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import run_experiment
from tests.tracking.experiments import until
from tests.tracking.runs_on_disk import write_run
from tests.tracking.view.test_report import write_samples

PROGRAM = Path(run_experiment.__file__)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_run(tmp_path / "store", 3, {"lr": 0.1}, info={"model_path": str(tmp_path / "model")})
    write_run(tmp_path / "store", 4, {"lr": 0.2})
    return tmp_path / "store"


def test_runs_are_listed_and_compared(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_experiment.main(["--list", "--store", str(store)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "---", "3", "4"]
    assert run_experiment.main(["--compare", "4", "3", "4", "--store", str(store)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["lr", "0.2", "0.1"]
    assert run_experiment.main(["--list", "--store", str(store / "none")]) == 0
    assert capsys.readouterr().out == f"no run is in {store / 'none'}\n"
    assert run_experiment.main(["--list", "--store", "none"]) == 0
    assert capsys.readouterr().out == f"no run is in none (relative paths start at {Path.cwd()})\n"


def test_a_report_is_written_and_its_path_printed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_experiment.main(["--report", "3", "--store", str(store)]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("<!doctype html>")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2 + 3],
    "zeros within": lambda content: content[:9] + b"\0" * 9 + content[18:],
    "zeros": lambda content: b"\0" * len(content),
    "not text": lambda content: b"\xff\xfe" + content,
    "deep": lambda content: b"[" * 100_000,
}
LEFT_OUT = "damaged, and left out"
NO_INFO = "is not a JSON object; the run is shown without step, reason and last values"
NO_OBJECT = "is not a JSON object; fix it, or remove the folder"
# What is said of each damaged file by --report, after its path.
SAID: dict[str, dict[str, str]] = {
    "metrics.jsonl": {"empty": "is empty", "cut": f"line 2: {LEFT_OUT}", "folder": "cannot be read: Is a directory; "},
    "info.json": dict.fromkeys([*DAMAGE, "folder"], NO_INFO),
    "predictions_4_5.txt": {"empty": "is empty", "folder": "cannot be read: Is a directory; is left out"},
    "predictions_4_6.jsonl": {"empty": "is empty", "folder": "cannot be read: Is a directory; is left out"},
    "cout.txt": {},
}
SAID["metrics.jsonl"] = {**dict.fromkeys(DAMAGE, f"line 1: {LEFT_OUT}"), **SAID["metrics.jsonl"]}


@pytest.mark.parametrize("name", [*SAID, "run.json", "config.json"])
@pytest.mark.parametrize("how", [*DAMAGE, "folder"])
def test_a_damaged_file_of_a_record_is_named_and_costs_itself_alone(
    store: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    lines = [{"step": step, "split": "train", "time": step, "loss": 1.0} for step in (1, 2)]
    (store / "4" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    artifacts = {
        "predictions_4_5.txt": "once upon a time there was",
        "predictions_4_6.jsonl": '{"prompt": "", "text": ""}',
    }
    for each, text in {**artifacts, "cout.txt": "step 1 of 2 and then the end"}.items():
        (store / "4" / each).write_text(text)
    entry = json.loads((store / "4" / "run.json").read_text())
    (store / "4" / "run.json").write_text(json.dumps({**entry, "artifacts": list(artifacts)}))
    path = store / "4" / name
    content = path.read_bytes()
    path.unlink()
    path.mkdir() if how == "folder" else path.write_bytes(DAMAGE[how](content))
    statuses, heard = [], []
    for arguments in (["--list"], ["--compare", "3", "4"], ["--report", "4"]):
        statuses.append(run_experiment.main([*arguments, "--store", str(store)]))
        heard.append(capsys.readouterr())
    assert statuses[0] == 0 and "\n  3  trial" in heard[0].out
    if name not in SAID:
        assert statuses[1:] == [2, 2] and f"{path.parent}: {name} is not a JSON object; is left out" in heard[0].out
        assert [each.err for each in heard] == ["", *[f"run 4 in {store}: {name} {NO_OBJECT}\n"] * 2]
        return
    said = SAID[name].get(how)
    assert statuses == [0, 0, 0] and heard[2].out == f"{store}/4/report.html\n"
    assert heard[2].err.startswith(f"{path}: {said}") if said else not heard[2].err
    for shown in heard[:2]:
        assert (f"{path}: {NO_INFO}" in shown.out) == (name == "info.json")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--compare", "3"], "--compare 3: compares two runs or more; name another; see --list"),
        (["--compare", "3", "3"], "--compare 3 3: compares two runs or more; name another; see --list"),
        (["--compare", "3", "5"], "run 5: is not in STORE; the nearest is 4; give another folder with --store"),
        (["--report", "x"], "run x: is not in STORE; the nearest is 4; give another folder with --store"),
        (["--tensorboard", "5"], "run 5: is not in STORE; the nearest is 4; give another folder with --store"),
        (["--list", "--report", "3"], "--list: cannot be combined with --report; give one of them"),
        (["--list", "--model", "tiny"], "--list: cannot be combined with flags of main.py; leave out --model"),
        (
            ["--report", "3", "--mongo", "h"],
            "--mongo: --report reads the folder of the run, not MongoDB; leave it",
        ),
        (["--list", "--mongo", "h:x"], "--mongo h:x: is not the URL of a MongoDB: "),
    ],
)
def test_what_cannot_be_shown(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_experiment.main([*arguments, "--store", str(store)]) == 2
    heard = capsys.readouterr()
    assert heard.out == "" and heard.err.startswith(message.replace("STORE", str(store)))
    assert len(heard.err.splitlines()) == 1


def test_a_reader_that_leaves_early_ends_it_without_a_word(store: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--list", "--store", str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 128 + signal.SIGPIPE)


@pytest.fixture
def board(store: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """TensorBoard over run 3, and its address."""
    (store.parent / "model").mkdir()
    command = [sys.executable, str(PROGRAM), "--tensorboard", "3", "--store", str(store)]
    environment = {"TMPDIR": str(store.parent), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stderr.readline()
        assert line.startswith("TensorBoard shows run 3 at http://127.0.0.1:"), line
        yield process, line.split(" at ")[1].split()[0]
    finally:
        process.kill()
        process.wait()


def ask(address: str, what: str) -> Any:
    with urllib.request.urlopen(f"{address}data/plugin/text/{what}", timeout=20) as answer:
        return json.load(answer)


@pytest.mark.slow
@pytest.mark.processes
def test_tensorboard_shows_config_and_samples_as_they_come(
    store: Path, board: tuple[subprocess.Popen[str], str]
) -> None:
    process, address = board
    until(lambda: ask(address, "tags") == {"3 trial/texts": ["config"]})
    (config,) = ask(address, "text?run=3%20trial/texts&tag=config")
    assert config["step"] == 0 and '"lr": 0.1' in config["text"]
    run = write_run(store.parent / "other", 3, {})
    for step in (20, 40):
        write_samples(run, step, ["<b>a</b> & b"])
        (run.folder / f"predictions_3_{step}.txt").rename(store / "3" / f"predictions_3_{step}.txt")
    entry = json.loads((store / "3" / "run.json").read_text())
    entry["artifacts"] = ["predictions_3_20.txt", "predictions_3_40.txt"]
    (store / "run.json.part").write_text(json.dumps(entry))
    (store / "run.json.part").replace(store / "3" / "run.json")
    until(lambda: "sample 0" in ask(address, "tags").get("3 trial/texts", []), 60)
    samples = ask(address, "text?run=3%20trial/texts&tag=sample%200")
    assert [sample["step"] for sample in samples] == [20, 40]
    assert "&lt;b&gt;a&lt;/b&gt; &amp; b" in samples[0]["text"]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert [path.name for path in store.parent.iterdir() if path.name.startswith("tensorboard_")] == []
    with pytest.raises(OSError):
        ask(address, "tags")
