"""What a run was made with: its sources, their place in git, the packages, the machine."""

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
    warnings.simplefilter("ignore")  # Sacred imports pkg_resources, which warns whoever does
    from sacred.host_info import get_host_info

REPOSITORY = Path(__file__).resolve().parents[2]
GIT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What Sacred calls the experiment and the host; both as it writes them."""

    experiment: dict[str, Any]
    host: dict[str, Any]


def find_provenance(name: str, extra_sources: Sequence[str]) -> Provenance:
    """Looks at everything that a run called `name` is made with.

    Args:
        name: of the experiment.
        extra_sources: files outside the repository that it depends on, as a config of the user's own.
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
    """The project's own code and configs: the programs at the root, and its packages."""
    of_packages = (init.parent for init in REPOSITORY.glob("*/__init__.py"))
    found = [path for package in of_packages for path in package.rglob("*.py")]
    at_root = (*REPOSITORY.glob("*.py"), *REPOSITORY.glob("requirements*.txt"))
    return sorted({*at_root, *(REPOSITORY / "configs").rglob("*.json"), *found})


def installed_packages() -> list[str]:
    """Every package of the environment, as name==version."""
    return sorted({f"{package.name}=={package.version}" for package in distributions() if package.name})


def git_state(folder: Path) -> list[dict[str, Any]]:
    """Commit, branch and address of a repository, and what differs from the commit; empty if it is none."""
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
    """An address without the name and password of who uses it."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def _git(folder: Path, *words: str) -> str:
    """What git answers; nothing if there is no git, or no repository."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.rstrip() if answer.returncode == 0 else ""


def _digest(path: Path) -> str:
    """As Sacred's own, which names the copies of sources by it."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _host_size() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu_count": os.cpu_count(), "memory_gib": round(memory_bytes / 2**30, 1)}
