"""The command `--fetch_tasks`: downloads the published files of evaluation tasks."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

from commands.console import SECONDS_BETWEEN_LINES, say
from commands.options import Options
from configs.schema import RunConfig
from tasks.fetch import PUBLISHED
from tasks.fetch import fetch_tasks as fetch

BYTES_PER_MB = 1e6


def fetch_tasks(config: RunConfig, options: Options) -> int:
    """Downloads the files of the named tasks, or of all that are published, into `eval_tasks_dir`."""
    names = PUBLISHED if options.fetch_tasks is None else options.fetch_tasks
    shown = _Bar() if sys.stderr.isatty() else _Lines()
    for line in fetch(names, config.evaluation.eval_tasks_dir, shown.show):
        say(line)
    return 0


class _Bar:
    """A bar for each file."""

    def __init__(self) -> None:
        self._path, self._bar = "", tqdm(disable=True)

    def show(self, path: str, n_there: int, n_bytes: int) -> None:
        if path != self._path:
            settings = {"desc": os.path.basename(path), "unit": "B", "unit_scale": True, "leave": False}
            self._path, self._bar = path, tqdm(total=n_bytes or None, dynamic_ncols=True, **settings)
        self._bar.update(n_there - self._bar.n)
        if n_there == n_bytes:
            self._bar.close()


class _Lines:
    """A line now and then."""

    def __init__(self) -> None:
        self._shown_seconds = time.monotonic()

    def show(self, path: str, n_there: int, n_bytes: int) -> None:
        now_seconds = time.monotonic()
        if now_seconds - self._shown_seconds >= SECONDS_BETWEEN_LINES:
            of = f" of {n_bytes / BYTES_PER_MB:.1f}" if n_bytes else ""
            print(f"{path}: {n_there / BYTES_PER_MB:.1f}{of} MB", file=sys.stderr, flush=True)
            self._shown_seconds = now_seconds
