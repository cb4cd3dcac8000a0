"""What a run was made with: sources, git commit, packages, machine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Sacred imports pkg_resources, which warns
    from sacred.host_info import get_host_info

REPOSITORY = Path(__file__).resolve().parents[2]
GIT_SECONDS = 10.0
# They name another repository than that of the folder, as inside a hook.
LOCATING_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_CEILING_DIRECTORIES")


class GitError(Exception):
    """Git cannot tell what it is asked."""


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
        "repositories": [git_state(REPOSITORY)],
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


def git_state(folder: Path) -> dict[str, Any]:
    """Returns commit, branch, URL and changed files of a repository; if git cannot tell, the URL and its `error`."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != folder.resolve():
            raise GitError(f"the folder belongs to the repository {top}, and is none of its own")
        commit = _git(folder, "log", "-1", "--format=%H")
        branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
        changed = _git(folder, "status", "--porcelain").splitlines()
    except GitError as error:
        return {"url": str(folder), "error": str(error)}
    return {
        "url": _origin(folder) or str(folder),
        "commit": commit,
        "branch": branch,
        "dirty": bool(changed),
        "changed": [line[3:] for line in changed[:200]],
    }


def unknown_state(experiment: Mapping[str, Any]) -> str | None:
    """Returns a line that says why the state of the code is not in an experiment's record; None: it is."""
    (repository,) = experiment["repositories"]
    if "error" not in repository:
        return None
    return (
        f"{repository['url']}: git cannot tell the state of the code: {repository['error']}; the record holds digests "
        "of its files only"
    )


def _origin(folder: Path) -> str:
    try:
        return without_password(_git(folder, "config", "remote.origin.url"))
    except GitError:  # there is none
        return ""


def without_password(url: str) -> str:
    """Removes the user name and password from a URL."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def _git(folder: Path, *words: str) -> str:
    """Returns the output of git.

    Raises:
        GitError: there is no git, or it fails; the message is the first line of its reason.
    """
    environment = {name: value for name, value in os.environ.items() if name not in LOCATING_VARIABLES}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
            env=environment | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"git {words[0]} takes longer than {GIT_SECONDS:.0f} s") from None
    except OSError as error:
        raise GitError(f"git cannot be started ({error.strerror})") from None
    if answer.returncode != 0:
        reason = answer.stderr.strip() or f"git {words[0]} exits with status {answer.returncode}"
        raise GitError(reason.splitlines()[0].removeprefix("fatal: "))
    return answer.stdout.rstrip()


def _digest(path: Path) -> str:
    """Returns the digest by which Sacred names its copies of sources."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _host_size() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu_count": os.cpu_count(), "memory_gib": round(memory_bytes / 2**30, 1)}
