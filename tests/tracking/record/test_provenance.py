from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tracking.record.provenance import REPOSITORY, find_provenance, git_state, source_files, without_password


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
    assert git_state(tmp_path) == []
    git(tmp_path, "init", "-b", "trunk")
    git(tmp_path, "remote", "add", "origin", "https://me:secret@example.org/x.git")
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    (state,) = git_state(tmp_path)
    assert (state["url"], state["branch"], state["dirty"], state["changed"]) == (
        "https://example.org/x.git",
        "trunk",
        False,
        [],
    )
    assert len(state["commit"]) == 40
    (tmp_path / "a.txt").write_text("b")
    (state,) = git_state(tmp_path)
    assert (state["dirty"], state["changed"]) == (True, ["a.txt"])


def test_passwords_are_not_kept() -> None:
    assert without_password("https://token@host/x") == "https://host/x"
    assert without_password("https://host/a@b") == "https://host/a@b"
    assert without_password("git@host:x.git") == "git@host:x.git"
