"""Fills in afterwards what MongoDB has missed of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import ConfigError, UserError
from tracking.mongodb.mirror import TROUBLES, reason_of
from tracking.mongodb.upload import ENV_FILE, URL_VARIABLE, MongoCopy, connect, describe_url, find_url
from tracking.record.store import find_run


def sync(run_ids: Sequence[str], store: Path, given_url: str | None, say: Callable[[str], None]) -> None:
    """Brings the copies of runs up to date.

    Raises:
        UserError: a run is not there, or the database does not take it.
    """
    url = find_url(given_url, Path(ENV_FILE))
    if url is None:
        raise ConfigError(f"--sync: does not know which MongoDB; give --mongo URL, or set {URL_VARIABLE}")
    for run_id in run_ids:
        find_run(store, run_id)
    for run_id in run_ids:
        try:
            mongo_id = MongoCopy(connect(url), store, run_id).push()
        except TROUBLES as error:
            raise UserError(
                f"MongoDB at {describe_url(url)}: {reason_of(error)}; start it, or see who may write to it"
            ) from error
        say(f"run {run_id}: copied to MongoDB at {describe_url(url)} as run {mongo_id}")
