"""Copies a run's folder to MongoDB, in Sacred's layout, for Omniboard and other viewers.

The folder is the source of truth. A push adds or replaces whatever is missing or out of date in the database, so pushes
are idempotent, and the next one completes an interrupted one. No document grows without bound, as it holds 16 MB at
most: metrics are downsampled (all lines are in the artifact `metrics.jsonl`), and long output keeps its beginning and
end. Non-finite values are left out of the metrics, because Omniboard draws them as 0; the artifact and `info.latest`
have them.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
import mimetypes
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gridfs
from bson import ObjectId
from gridfs.errors import FileExists
from pymongo import DESCENDING, MongoClient
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.uri_parser import parse_uri

from configs.errors import ConfigError
from tracking.mongodb.downsampling import DownsampledSeries
from tracking.record.metrics_tail import MetricsTail, parse_lines
from tracking.record.store import METRICS_FILE, Run, find_run, series_name

URL_VARIABLE = "MONGO_URL"
ENV_FILE = ".env"
DEFAULT_DATABASE = "sacred"
SACRED_FORMAT = "MongoObserver-0.7.0"
OUTPUT_BYTES = 256 * 1024
TIMEOUTS_MS = {"serverSelectionTimeoutMS": 3000, "connectTimeoutMS": 3000, "socketTimeoutMS": 30000}


def find_url(given: str | None, env_file: Path) -> str | None:
    """Returns the URL of the database from the command line, or MONGO_URL of the environment or an .env file; or None.

    Raises:
        ConfigError: it is not the URL of a MongoDB.
    """
    url = given or os.environ.get(URL_VARIABLE) or _read_env(env_file).get(URL_VARIABLE)
    if not url:
        return None
    url = url if "://" in url else f"mongodb://{url}"
    try:
        if not url.startswith("mongodb+srv://"):  # parsing would make a DNS lookup
            parse_uri(url)
    except (PyMongoError, ValueError) as error:
        raise ConfigError(
            f"{'--mongo' if given else URL_VARIABLE} {describe_url(url)}: is not the URL of a MongoDB: {error}; "
            "write it as mongodb://NAME:PASSWORD@HOST:27017/DATABASE"
        ) from error
    return url


def _read_env(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (re.fullmatch(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*?)\s*", line) for line in lines)
    return {pair.group(1): re.sub(r"^(['\"])(.*)\1$", r"\2", pair.group(2)) for pair in pairs if pair}


def describe_url(url: str) -> str:
    """Returns a URL that can be shown: without user name, password and options."""
    return re.sub(r"^[\w+]+://(?:.*@)?|\?.*$", "", url)


def connect(url: str) -> Database:
    """Returns the database of a URL; nothing is sent yet."""
    return MongoClient(url, **TIMEOUTS_MS).get_default_database(DEFAULT_DATABASE)


class MongoCopy:
    """The copy of one run, updated by each `push`."""

    def __init__(self, database: Database, store: Path, run_id: str) -> None:
        self._database = database
        self._store = store
        self._run_id = run_id
        self.reset()

    def reset(self) -> None:
        """Forgets what was sent, so that the next push checks and repairs everything."""
        self._mongo_id: int | None = None
        self._files: dict[tuple[str, str, float], ObjectId] = {}
        self._metrics = _MetricCopies(self._database.metrics, self._store / self._run_id)

    def push(self) -> int:
        """Updates the copy; returns the run's number in the database.

        Raises:
            PyMongoError: the database cannot be reached, or refuses the write.
            OSError: the folder cannot be read.
        """
        run = find_run(self._store, self._run_id)
        if self._mongo_id is None:
            self._mongo_id = self._find_or_insert(run)
        stored = {
            "info.metrics": self._metrics.push(self._mongo_id, run.uid),
            "artifacts": [self._store_artifact(run, path) for path in _artifacts(run)],
            "experiment.sources": [
                self._store_source(run, *source) for source in run.entry["experiment"].get("sources", [])
            ],
        }
        fields = _flat_entry(run) | stored
        if self._database.runs.update_one({"_id": self._mongo_id}, {"$set": fields}).matched_count == 0:
            self.reset()  # somebody has removed the run, or the database with it
            return self.push()
        return self._mongo_id

    def _find_or_insert(self, run: Run) -> int:
        """Returns the run's number in the database: the same as here, unless a run from elsewhere has it."""
        runs, uid = self._database.runs, run.uid
        mongo_id = run.id
        while (found := runs.find_one({"meta.uid": uid}, {"_id": 1})) is None:
            try:
                runs.insert_one({"_id": mongo_id, **_whole_entry(run)})
            except DuplicateKeyError:
                newest = runs.find_one({"_id": {"$type": "number"}}, {"_id": 1}, sort=[("_id", DESCENDING)])
                mongo_id = newest["_id"] + 1 if newest else mongo_id
        return found["_id"]

    def _store_artifact(self, run: Run, path: Path) -> dict[str, Any]:
        name = f"artifact://runs/{self._mongo_id}/{path.name}"
        return {"name": path.name, "file_id": self._store_file(run, name, path)}

    def _store_source(self, run: Run, name: str, place: str) -> list[Any]:
        filename = os.path.join(run.entry["experiment"]["base_dir"], name)
        return [name, self._store_file(run, filename, self._store / place)]

    def _store_file(self, run: Run, name: str, path: Path) -> ObjectId:
        """Stores a file in GridFS unless it is there; its id is a hash of run, name and content."""
        seen = (name, str(path), path.stat().st_mtime)
        if seen not in self._files:
            content = path.read_bytes()
            file_id = _object_id(run.uid, name, hashlib.sha256(content).hexdigest())
            _put(gridfs.GridFS(self._database), file_id, name, content)
            self._files[seen] = file_id
        return self._files[seen]


def _put(files: gridfs.GridFS, file_id: ObjectId, name: str, content: bytes) -> None:
    if files.exists(file_id):
        return
    content_type, _ = mimetypes.guess_type(name)
    described = {"_id": file_id, "filename": name, "content_type": content_type or "text/plain"}
    try:
        files.put(content, **described)
    except FileExists:  # partly: an earlier copy was interrupted
        files.delete(file_id)
        files.put(content, **described)


def _object_id(*parts: str) -> ObjectId:
    return ObjectId(hashlib.sha256("\0".join(parts).encode()).digest()[:12])


def _artifacts(run: Run) -> Iterator[Path]:
    yield from (path for path in run.artifacts if path.exists())
    if run.time("stop_time") is not None and (run.folder / METRICS_FILE).exists():
        yield run.folder / METRICS_FILE


def _whole_entry(run: Run) -> dict[str, Any]:
    """Returns the document of a run, in Sacred's layout."""
    entry = {**run.entry, **{key: run.time(key) for key in ("start_time", "heartbeat", "stop_time")}}
    if entry["stop_time"] is None:
        del entry["stop_time"]
    entry |= {"format": SACRED_FORMAT, "config": run.config, "info": run.info, "artifacts": []}
    entry |= {"captured_out": run.output(OUTPUT_BYTES), "experiment": {**entry["experiment"], "sources": []}}
    return bson_safe(entry)


def _flat_entry(run: Run) -> dict[str, Any]:
    """Returns the document field by field, so that an update keeps the tags and notes of Omniboard."""
    entry = _whole_entry(run)
    nested = {key: entry.pop(key) for key in ("info", "experiment")}
    del entry["artifacts"], nested["experiment"]["sources"]
    entry.pop("meta", None)
    return entry | {f"{name}.{key}": value for name, part in nested.items() for key, value in part.items()}


def bson_safe(value: Any) -> Any:
    """Replaces `.` and leading `$` in keys, as Sacred does, for older versions of MongoDB."""
    if isinstance(value, Mapping):
        return {re.sub(r"^\$", "@", str(key)).replace(".", ","): bson_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bson_safe(item) for item in value]
    is_too_large = isinstance(value, int) and not -(2**63) <= value < 2**63
    return float(value) if is_too_large else value


@dataclasses.dataclass
class _MetricCopy:
    """One metric, and how much of it the database holds.

    Attributes:
        series: the downsampled series.
        every: of the series that was sent; 0: none was sent.
        n_sent: points sent.
    """

    series: DownsampledSeries = dataclasses.field(default_factory=DownsampledSeries)
    every: int = 0
    n_sent: int = 0


class _MetricCopies:
    """The metrics of one run: new points are appended, or the whole series is replaced where appending fails."""

    def __init__(self, collection: Any, folder: Path) -> None:
        self._collection = collection
        self._tail = MetricsTail(str(folder / METRICS_FILE), skips_existing=False)
        self._copies: dict[str, _MetricCopy] = {}
        self._may_have_stale = True

    def push(self, mongo_id: int, uid: str) -> list[dict[str, str]]:
        """Updates the metrics; returns their list for the run's document."""
        self._read_new()
        for name, copy in self._copies.items():
            self._push_one(mongo_id, _object_id(uid, name), name, copy)
        ids = {name: _object_id(uid, name) for name in self._copies}
        if self._may_have_stale:  # measured after the checkpoint from which the run resumed, and not again since
            self._collection.delete_many({"run_id": mongo_id, "_id": {"$nin": list(ids.values())}})
            self._may_have_stale = False
        return [{"name": name, "id": str(document_id)} for name, document_id in ids.items()]

    def _read_new(self) -> None:
        new = self._tail.read_new()
        if new.replaces_all:
            self._copies, self._may_have_stale = {}, True
        for line in parse_lines(new.lines):
            for name, value in line.values.items():
                if not math.isfinite(value):
                    continue
                copy = self._copies.setdefault(series_name(line.split, name), _MetricCopy())
                copy.series.append(line.step, value, line.time_seconds)

    def _push_one(self, mongo_id: int, document_id: ObjectId, name: str, copy: _MetricCopy) -> None:
        n_points, every = len(copy.series), copy.series.every
        if copy.every == every and copy.n_sent == n_points:
            return
        if copy.every != every or not self._append(document_id, copy):
            whole = {"run_id": mongo_id, "name": name, **_points(copy.series, 0), "every": every, "n_points": n_points}
            self._collection.replace_one({"_id": document_id}, whole, upsert=True)
        copy.every, copy.n_sent = every, n_points

    def _append(self, document_id: ObjectId, copy: _MetricCopy) -> bool:
        """Appends new points if the database holds the earlier ones; returns whether it does."""
        expected = {"_id": document_id, "every": copy.every, "n_points": copy.n_sent}
        new = {key: {"$each": points} for key, points in _points(copy.series, copy.n_sent).items()}
        change = {"$push": new, "$set": {"n_points": len(copy.series)}}
        return self._collection.update_one(expected, change).matched_count == 1


def _points(series: DownsampledSeries, start: int) -> dict[str, list[Any]]:
    moments = (datetime.datetime.fromtimestamp(t, datetime.timezone.utc) for t in series.times_seconds[start:])
    return {
        "steps": series.steps[start:].tolist(),
        "values": series.values[start:].tolist(),
        "timestamps": list(moments),
    }
