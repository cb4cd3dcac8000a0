"""Reads runs from MongoDB, in the form of those from a folder."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pymongo.database import Database
from pymongo.errors import PyMongoError

from configs.errors import DataError
from tracking.mongodb.mirror import reaching
from tracking.mongodb.upload import connect, describe_url
from tracking.record.store import Run
from tracking.record.validation import find_problem, without_none

# Fields that grow with a run, which lists do not need.
LEFT_OUT = dict.fromkeys(("captured_out", "info.metrics", "artifacts", "experiment.sources"), 0)
TIMES = ("start_time", "heartbeat", "stop_time")


def list_runs(url: str) -> list[Run]:
    """Lists the runs of a database by number.

    Raises:
        UserError: it cannot be read.
    """
    with _reading(url) as database:
        found = database.runs.find({"_id": {"$type": "number"}}, LEFT_OUT).sort("_id", 1)
        return [run for entry in found if isinstance(run := _run(entry), Run)]  # other programs may write there too


def find_run(url: str, run_id: str) -> Run:
    """Returns a run by its number in the database.

    Raises:
        DataError: there is no such run.
        UserError: the database cannot be read.
    """
    with _reading(url) as database:
        is_number = run_id.isdecimal() and int(run_id) < 2**63
        entry = database.runs.find_one({"_id": int(run_id)}, LEFT_OUT) if is_number else None
        if entry is None:
            n_runs = database.runs.count_documents({})
            raise DataError(
                f"run {run_id}: is not among the {n_runs} of MongoDB at {describe_url(url)}; list their numbers "
                "with --list --mongo URL"
            )
        run = _run(entry)
        if isinstance(run, str):
            raise DataError(f"run {run_id} of MongoDB at {describe_url(url)}: {run}; fix it, or choose another")
        return run


@contextlib.contextmanager
def _reading(url: str) -> Iterator[Database]:
    database = connect(url)
    with contextlib.closing(database.client), reaching(url, (PyMongoError,)):
        yield database


def _run(entry: Mapping[str, Any]) -> Run | str:
    """Returns the run of a document, which Sacred itself may have written; or why it cannot be read."""
    times = {key: _as_text(entry.get(key)) for key in TIMES}
    entry = without_none({"status": "RUNNING", **entry, **times})
    config, info = entry.get("config") or {}, entry.get("info") or {}
    if not (isinstance(config, Mapping) and isinstance(info, Mapping)):
        return "its config or info is not a mapping"
    info = without_none(info)
    return find_problem(entry, info) or Run(Path(str(int(entry["_id"]))), entry, config, info)


def _as_text(moment: Any) -> Any:
    return moment.isoformat() if isinstance(moment, datetime.datetime) else moment
