"""Completes the copies of runs in MongoDB afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import ConfigError
from tracking.mongodb.mirror import MONGO_ERRORS, reaching
from tracking.mongodb.upload import ENV_FILE, URL_VARIABLE, MongoCopy, connect, describe_url, find_url
from tracking.record.store import find_run


def sync(run_ids: Sequence[str], store: Path, given_url: str | None, say: Callable[[str], None]) -> None:
    """Updates the copies of runs.

    Raises:
        UserError: a run is missing, or the database cannot be written.
    """
    url = find_url(given_url, Path(ENV_FILE))
    if url is None:
        raise ConfigError(f"--sync: no MongoDB is given; give --mongo URL, or set {URL_VARIABLE}")
    for run_id in run_ids:
        find_run(store, run_id)
    for run_id in run_ids:
        with reaching(url, MONGO_ERRORS):
            mongo_id = MongoCopy(connect(url), store, run_id).push()
        say(f"run {run_id}: copied to MongoDB at {describe_url(url)} as run {mongo_id}")
