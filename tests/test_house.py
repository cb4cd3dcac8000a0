"""The rules of the house: layers, requirements, and the commands that the documents show."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("configs", "data", "models", "runtime", "serving", "storage", "tasks", "tracking", "commands")
LAYERS = {"configs": 0, "meshtf": 0, "storage": 0, "data": 1, "models": 1, "tracking": 1, "inputs": 2, "tasks": 2}
LAYERS |= {"runtime": 2, "serving": 3, "commands": 4, "main": 5, "run_experiment": 6}
TENSORFLOW = {"tensorflow", "mesh_tensorflow"}


def modules() -> list[Path]:
    """Returns the Python files that are run or imported by users: the rooms and the root."""
    in_rooms = (path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
    return sorted([*in_rooms, *REPOSITORY.glob("*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def top(name: str) -> str:
    return name.partition(".")[0]


def imported_names(path: Path) -> Iterator[str]:
    """Yields the full names that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module if node.level == 0 else "a relative import"


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


RUN_REQUIREMENTS = [each for name in ("", "-serve", "-tasks") for each in requirements(f"requirements{name}.txt")]
ALL_REQUIREMENTS = [*RUN_REQUIREMENTS, *requirements("requirements-dev.txt")]


def test_the_import_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    check = subprocess.run([tool, "--no-logo", "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    own, inner = top(module_name(path)), {top(name) for name in imported_names(path)} & set(LAYERS)
    upward = sorted(name for name in inner if LAYERS[name] > LAYERS[own])
    sideward = sorted(name for name in inner if LAYERS[name] == LAYERS[own] != 0 and name != own)
    assert (upward, sideward) == ([], [])


@pytest.mark.parametrize("path", [path for path in modules() if path.name != "meshtf.py"], ids=module_name)
def test_meshtf_is_the_one_door(path: Path) -> None:
    assert not {top(name) for name in imported_names(path)} & TENSORFLOW


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.py")), ids=module_name)
def test_configs_need_the_standard_library_only(path: Path) -> None:
    assert {top(name) for name in imported_names(path)} <= {*sys.stdlib_module_names, "configs"}


def test_what_is_imported_is_required() -> None:
    files = [file for requirement in RUN_REQUIREMENTS for file in distribution(requirement.name).files]
    provided = {file.parts[0].removesuffix(".py") for file in files}
    imported = {top(name) for path in modules() for name in imported_names(path)}
    assert imported - {*sys.stdlib_module_names, *LAYERS} <= provided


@pytest.mark.parametrize("requirement", ALL_REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_requirements_have_two_bounds_and_hold_here(requirement: Requirement) -> None:
    operators = {bound.operator for bound in requirement.specifier}
    assert operators == {"=="} or operators == {">=", "<"}
    assert version(requirement.name) in requirement.specifier


def test_no_module_for_odds_and_ends() -> None:
    stems = {path.stem for path in modules()} | {path.parent.name for path in modules()}
    assert not stems & {"utils", "util", "helpers", "common", "misc"}


def test_there_are_no_star_imports_and_no_reexports() -> None:
    starred = [module_name(p) for p in modules() if re.search(r"^\s*from .* import \*", p.read_text("utf-8"), re.M)]
    filled = [module_name(path) for path in modules() if path.name == "__init__.py" and path.read_text("utf-8").strip()]
    assert (starred, filled) == ([], [])


def test_importing_does_nothing_else(tmp_path: Path) -> None:
    program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    names = [module_name(path) for path in modules()]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # as a newcomer's: this process may have set it for itself
    run = subprocess.run([sys.executable, "-c", program, *names], cwd=tmp_path, env=environment, capture_output=True)
    assert (run.returncode, run.stdout, run.stderr, list(tmp_path.iterdir())) == (0, b"", b"", [])


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_promised_make_targets_exist(document: str) -> None:
    promised = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", (REPOSITORY / document).read_text(), re.M))
    assert promised and promised <= make_targets()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_linked_files_exist(document: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (REPOSITORY / document).read_text())
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_quickstart_runs_the_four_commands_and_shows_them() -> None:
    recipe = (REPOSITORY / "Makefile").read_text().split("\nquickstart:")[1].split("\n\n")[0].splitlines()[1:]
    assert [line.removeprefix("\t$(PY) main.py --model quickstart").split() for line in recipe] == [
        ["--check_dataset"],
        ["--steps_per_checkpoint", "300"],
        ["--eval"],
        ["--predict", "--prompt", "$(PROMPT)"],
    ]
    (prompt,) = re.findall(r"^PROMPT := (.*)$", (REPOSITORY / "Makefile").read_text(), re.M)
    assert (REPOSITORY / prompt).read_text().startswith('"""')


def test_a_wrong_python_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((REPOSITORY / "Makefile").read_text())
    (tmp_path / "requirements.txt").write_text("")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("make", "sh", "head"):
        found = next(Path(folder) / tool for folder in os.environ["PATH"].split(":") if (Path(folder) / tool).exists())
        (tools / tool).symlink_to(found)
    (tools / "python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    (tools / "python3").chmod(0o755)
    run = subprocess.run(["make", "quickstart"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines()[:3] == [
        "No usable Python found: Neomesh needs Python 3.10 to 3.13 with its venv module.",
        "python3 is: Python 3.9.2.",
        "Install one (on Debian and Ubuntu: apt install python3-venv), or name one: "
        "make PYTHON=/path/to/python3.12 quickstart",
    ]
    assert not (tmp_path / ".venv").exists()
