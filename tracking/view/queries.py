"""Tables of recorded runs, from a folder or from MongoDB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.errors import ConfigError, looked_from
from tracking.mongodb import runs
from tracking.mongodb.upload import describe_url
from tracking.record.store import Run, damaged_info, describe_unreadable, find_run, list_runs
from tracking.view.table import comparison, list_table


def all_runs(store: Path, mongo_url: str | None) -> str:
    """Returns a table of all runs of a folder or, if a URL is given, of a database.

    Raises:
        UserError: the database cannot be read.
    """
    if mongo_url:
        return _table(runs.list_runs(mongo_url), f"MongoDB at {describe_url(mongo_url)}")
    damaged = [line for run in list_runs(store) for line in damaged_info(run)]
    return "\n".join(
        [_table(list_runs(store), f"{store}{looked_from(str(store))}"), *describe_unreadable(store), *damaged]
    )


def _table(runs: Sequence[Run], place: object) -> str:
    return list_table(runs) if runs else f"no run is in {place}"


def compared(run_ids: Sequence[str], store: Path, mongo_url: str | None) -> str:
    """Returns a table that compares runs.

    Raises:
        UserError: a run is missing, or fewer than two are given.
    """
    chosen = list(dict.fromkeys(run_ids))
    if len(chosen) < 2:
        raise ConfigError(f"--compare {' '.join(run_ids)}: compares two runs or more; name another; see --list")
    if mongo_url:
        return comparison([runs.find_run(mongo_url, run_id) for run_id in chosen])
    found = [find_run(store, run_id) for run_id in chosen]
    return "\n".join([comparison(found), *(line for run in found for line in damaged_info(run))])
