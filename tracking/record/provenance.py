"""What a run was made with: sources, git commit, packages, machine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import warnings
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Sacred imports pkg_resources, which warns
    from sacred.host_info import get_host_info

REPOSITORY = Path(__file__).resolve().parents[2]
GIT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The experiment and the host, as Sacred records them."""

    experiment: dict[str, Any]
    host: dict[str, Any]


def find_provenance(name: str, extra_sources: Sequence[str]) -> Provenance:
    """Collects what a run is made with.

    Args:
        name: of the experiment.
        extra_sources: files outside the repository that it depends on, such as the user's own config.
    """
    paths = [*source_files(), *(Path(source).resolve() for source in extra_sources)]
    experiment = {
        "name": name,
        "base_dir": str(REPOSITORY),
        "mainfile": "main.py",
        "sources": [[os.path.relpath(path, REPOSITORY), _digest(path)] for path in dict.fromkeys(paths)],
        "dependencies": installed_packages(),
        "repositories": git_state(REPOSITORY),
    }
    return Provenance(experiment, {**get_host_info(), **_host_size()})


def source_files() -> list[Path]:
    """Returns the project's code and configs: the programs at the root and the packages."""
    of_packages = (init.parent for init in REPOSITORY.glob("*/__init__.py"))
    found = [path for package in of_packages for path in package.rglob("*.py")]
    at_root = (*REPOSITORY.glob("*.py"), *REPOSITORY.glob("requirements*.txt"))
    return sorted({*at_root, *(REPOSITORY / "configs").rglob("*.json"), *found})


def installed_packages() -> list[str]:
    """Returns the packages of the environment, as name==version."""
    return sorted({f"{package.name}=={package.version}" for package in distributions() if package.name})


def git_state(folder: Path) -> list[dict[str, Any]]:
    """Returns commit, branch, URL and changed files of a repository; empty if the folder is not one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return []
    changed = _git(folder, "status", "--porcelain").splitlines()
    return [
        {
            "url": without_password(_git(folder, "config", "remote.origin.url")) or str(folder),
            "commit": commit,
            "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(changed),
            "changed": [line[3:] for line in changed[:200]],
        }
    ]


def without_password(url: str) -> str:
    """Removes the user name and password from a URL."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def _git(folder: Path, *words: str) -> str:
    """Returns the output of git; empty if there is no git or no repository."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.rstrip() if answer.returncode == 0 else ""


def _digest(path: Path) -> str:
    """Returns the digest by which Sacred names its copies of sources."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _host_size() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu_count": os.cpu_count(), "memory_gib": round(memory_bytes / 2**30, 1)}
