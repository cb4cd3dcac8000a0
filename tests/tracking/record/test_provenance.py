from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tracking.record.provenance import (
    REPOSITORY,
    find_provenance,
    git_state,
    source_files,
    unknown_state,
    without_password,
)


def test_provenance_is_complete() -> None:
    found = find_provenance("trial", [str(REPOSITORY / "configs" / "quickstart.json")])
    names = [name for name, _ in found.experiment["sources"]]
    assert {"main.py", "commands/dispatch.py", "models/kernels/entmax.py", "configs/quickstart.json"} <= {*names}
    assert len(names) == len(set(names)) and not any(name.startswith(("tests", ".")) for name in names)
    assert any(package.startswith("sacred==") for package in found.experiment["dependencies"])
    assert found.host["python_version"] == sys.version.split()[0] and found.host["memory_gib"] > 0


def test_sources_are_those_of_the_project() -> None:
    assert all(path.is_file() for path in source_files())


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_git_state_has_commit_and_changes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-b", "trunk")
    git(tmp_path, "remote", "add", "origin", "https://me:secret@example.org/x.git")
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    state = git_state(tmp_path)
    assert (state["url"], state["branch"], state["dirty"], state["changed"]) == (
        "https://example.org/x.git",
        "trunk",
        False,
        [],
    )
    assert len(state["commit"]) == 40
    (tmp_path / "a.txt").write_text("b")
    state = git_state(tmp_path)
    assert (state["dirty"], state["changed"]) == (True, ["a.txt"])


def another_owner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(folder, "init")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")


def no_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(folder, "init", "-b", "trunk")


def unpacked_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "")
    git(folder.parent, "init")
    git(folder.parent, "commit", "--allow-empty", "-m", "of another project")


def no_repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook of another repository names that one in the environment."""
    monkeypatch.setenv("GIT_DIR", str(REPOSITORY / ".git"))


def no_git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))


def torn_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(folder, "init")
    git(folder, "commit", "--allow-empty", "-m", "first")
    (folder / ".git" / "index").write_bytes(b"DIRC torn")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (another_owner, "detected dubious ownership in repository at "),
        (no_commit, "your current branch 'trunk' does not have any commits yet"),
        (unpacked_elsewhere, "the folder belongs to the repository "),
        (no_repository, "not a git repository "),
        (no_git, "git cannot be started (No such file or directory)"),
        (torn_index, ".git/index: index file smaller than expected"),
    ],
)
def test_what_git_cannot_tell_is_said_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, pytest.MonkeyPatch], None], reason: str
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    spoil(folder, monkeypatch)
    state = git_state(folder)
    assert state["url"] == str(folder) and state["error"].startswith(reason), state
    line = unknown_state({"repositories": [state]})
    assert line.startswith(f"{folder}: git cannot tell the state of the code: {reason}") and "\n" not in line


def test_passwords_are_not_kept() -> None:
    assert without_password("https://token@host/x") == "https://host/x"
    assert without_password("https://host/a@b") == "https://host/a@b"
    assert without_password("git@host:x.git") == "git@host:x.git"
