"""Tests of examples/ and of the documentation site: what users copy runs as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import yaml

from configs.load import load_config
from docs.draw_rooms import PICTURE, draw
from main import config_overrides, parse_arguments
from runtime.run.metrics import read_metrics
from tests.program import ENVIRONMENT, REPOSITORY
from tests.test_docs import commands

EXAMPLES = REPOSITORY / "examples"
PYTHON_DIRECTORY = Path(sys.executable).parent  # the examples call python3


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tracked files of the project, as a user's clone has them."""
    folder = tmp_path / "clone"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def run(clone: Path, *words: str) -> str:
    environment = {**ENVIRONMENT, "PATH": f"{PYTHON_DIRECTORY}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=clone, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr[-3000:]}"
    return done.stdout


def check_command_line(words: list[str]) -> None:
    parsed = parse_arguments(words[words.index("main.py") + 1 :])
    load_config(parsed.model, config_overrides(parsed))


def test_the_picture_of_the_rooms_is_up_to_date() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run `make docs`"


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(clone: Path) -> None:
    run(clone, str(PYTHON_DIRECTORY / "zensical"), "build", "--clean", "--strict")
    pages = list((clone / "site").rglob("*.html"))
    assert len(pages) > len(list((clone / "docs").glob("*.md")))  # and the page for what is not found
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)\b[^>]*(?:src|href)=\"(https?:[^\"]+)", page.read_text("utf-8"))
        assert loaded == []


def test_kubernetes_starts_the_processes_that_it_names() -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (line,) = container["args"]
    words = shlex.split(line.replace('"$JOB_COMPLETION_INDEX"', "1"))
    check_command_line(words)
    hosts = words[words.index("--hosts") + 1].split(",")
    name, port = job["metadata"]["name"], container["ports"][0]["containerPort"]
    assert hosts == [f"{name}-{index}.{pod['subdomain']}:{port}" for index in range(job["spec"]["completions"])]
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["ports"][0]["port"] == port


@pytest.mark.parametrize("script", ["two_processes.sh", "train.sbatch"])
def test_scripts_are_bash_and_their_commands_are_known(script: str) -> None:
    path = EXAMPLES / script
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"(?:run=\(|srun )(python3 main\.py[^)#]*?)(?:\"\$@\"\)|\n\n|$)", text, re.DOTALL)
    check_command_line(shlex.split(line))


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_train(clone: Path) -> None:
    run(clone, "bash", "examples/two_processes.sh", "--set", "train_steps=20")
    assert [line["step"] for line in read_metrics(str(clone / "runs" / "two_processes"))][-1] == 20


@pytest.mark.slow
@pytest.mark.processes
def test_own_text_from_text_to_sample_in_six_lines(clone: Path) -> None:
    section = (clone / "docs" / "getting-started.md").read_text().split("in six lines")[1].split("\n## ")[0]
    lines = list(commands(section))
    assert len(lines) == 6
    for words in lines:
        run(clone, "bash", "-c", shlex.join(words).replace("'docs/*.md'", "docs/*.md"))
    text = (clone / "runs" / "books").glob("predictions_*.txt")
    assert len(next(text).read_text()) > 200


@pytest.mark.slow
@pytest.mark.processes
def test_the_modules_are_a_library(clone: Path) -> None:
    losses = [
        float(loss) for loss in re.findall(r"loss ([\d.]+)", run(clone, "python3", "examples/train_and_sample.py"))
    ]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.processes
def test_the_notebook_runs(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{PYTHON_DIRECTORY}:{os.environ['PATH']}")  # whose python3 the notebook calls
    notebook = nbformat.read(clone / "examples" / "quickstart.ipynb", as_version=4)
    (cell,) = (cell for cell in notebook.cells if "STEPS = 1800" in cell.source)
    cell.source = cell.source.replace("STEPS = 1800", "STEPS = 40")
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(clone / "examples")}})
    client.execute()
    printed = json.dumps([output for cell in notebook.cells for output in cell.get("outputs", [])])
    assert "step 40: held-out loss" in printed and "SAMPLE 1" in printed and "image/png" in printed
