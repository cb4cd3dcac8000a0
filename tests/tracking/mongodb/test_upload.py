"""Copies of runs in a real server of MongoDB's protocol."""

from __future__ import annotations

import dataclasses
import datetime
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import gridfs
import pytest

from configs.errors import ConfigError, DataError, UserError
from tests.tracking.experiments import TRAINER, Done, Experiments, MongoServer, meanwhile, run_many_at_once, until
from tracking import session
from tracking.mongodb import downsampling, mirror, upload
from tracking.mongodb.sync import sync
from tracking.mongodb.upload import MongoCopy, bson_safe, describe_url, find_url
from tracking.record import recorder
from tracking.record.store import find_run, series_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    with MongoServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def here(tmp_path: Path, server: MongoServer) -> Experiments:
    for name in ("runs", "metrics", "fs.files", "fs.chunks"):
        server.database()[name].delete_many({})
    return Experiments(tmp_path, mongo_url=server.url)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(upload.TIMEOUTS_MS, "serverSelectionTimeoutMS", 100)
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(mirror, "PUSH_SECONDS", 0.2)
    monkeypatch.setattr(recorder, "ARTIFACT_SECONDS", 0.1)


def assert_same(here: Experiments, server: MongoServer, mongo_id: int, run_id: str = "1") -> None:
    """Checks that the copy holds the whole folder, in Sacred's layout."""
    run, database = find_run(here.store, run_id), server.database()
    entry = database.runs.find_one({"_id": mongo_id})
    assert (entry["status"], entry["format"]) == (run.entry["status"], "MongoObserver-0.7.0")
    assert entry["start_time"] == run.time("start_time").replace(microsecond=entry["start_time"].microsecond)
    assert isinstance(entry["heartbeat"], datetime.datetime) and isinstance(entry["stop_time"], datetime.datetime)
    assert entry["captured_out"] == run.output(10**6)
    assert (entry["info"]["reason"], entry["info"]["step"]) == (run.info["reason"], run.info["step"])
    expected = series_of(run.lines())
    assert {metric["name"] for metric in entry["info"]["metrics"]} == set(expected)
    assert database.metrics.count_documents({"run_id": mongo_id}) == len(expected)
    for reference in entry["info"]["metrics"]:
        metric = database.metrics.find_one({"_id": upload.ObjectId(reference["id"])})
        series = expected[metric["name"]]
        # Omniboard would draw what is not finite as 0.
        finite = [place for place, value in enumerate(series.values) if math.isfinite(value)]
        assert (metric["run_id"], metric["steps"]) == (mongo_id, [series.steps[place] for place in finite])
        assert metric["values"] == [series.values[place] for place in finite]
        assert len(metric["timestamps"]) == len(finite)
    for artifact in entry["artifacts"]:
        stored = gridfs.GridFS(database).get(artifact["file_id"])
        assert stored.read() == (run.folder / artifact["name"]).read_bytes()
    assert {artifact["name"] for artifact in entry["artifacts"]} == {"metrics.jsonl", *(p.name for p in run.artifacts)}


def test_a_run_is_copied_while_it_runs_and_completely_at_the_end(here: Experiments, server: MongoServer) -> None:
    runs = server.database().runs

    def watch() -> None:
        until(lambda: runs.find_one({"status": "RUNNING"}) is not None)

    with meanwhile(watch):
        done = here.run("--seconds_per_step", "0.05", "--fail", "crash:13:1")
    assert done.messages[-1] == f"run 1: copied to MongoDB at {describe_url(server.url)} as run 1"
    assert_same(here, server, 1)
    entry = runs.find_one({"_id": 1})
    assert entry["config"] == {"lr": 0.1, "a,b": {"@c": float(2**70)}}
    ((name, file_id),) = entry["experiment"]["sources"]
    source = gridfs.GridFS(server.database()).get(file_id)
    assert (name, source.read()) == ("tests/tracking/trainer.py", TRAINER.read_bytes())


def test_copying_is_idempotent(here: Experiments, server: MongoServer) -> None:
    here.run()
    collections = ("runs", "metrics", "fs.files", "fs.chunks")
    before = [list(server.database()[name].find()) for name in collections]
    sync(["1"], here.store, server.url, lambda text: None)
    after = [list(server.database()[name].find()) for name in collections]
    assert repr(before) == repr(after)


def test_fields_of_other_programs_are_kept(here: Experiments, server: MongoServer) -> None:
    here.run()
    server.database().runs.update_one({"_id": 1}, {"$set": {"omniboard": {"tags": ["good"]}, "meta.comment": "note"}})
    sync(["1"], here.store, server.url, lambda text: None)
    entry = server.database().runs.find_one({"_id": 1})
    assert (entry["omniboard"], entry["meta"]["comment"]) == ({"tags": ["good"]}, "note")


def test_a_copy_that_was_damaged_is_repaired(here: Experiments, server: MongoServer) -> None:
    here.run()
    database = server.database()
    database.metrics.update_one({"name": "train.loss"}, {"$pop": {"steps": 1, "values": 1}})
    database.metrics.delete_one({"name": "eval.loss"})
    database["fs.files"].delete_one({"filename": "artifact://runs/1/loss.png"})
    sync(["1"], here.store, server.url, lambda text: None)
    assert_same(here, server, 1)


@pytest.mark.usefixtures("impatient")
def test_what_is_damaged_while_it_runs_is_repaired_at_the_end(here: Experiments, server: MongoServer) -> None:
    database = server.database()

    def spoil() -> None:
        until(lambda: database["fs.files"].find_one({"filename": "artifact://runs/1/predictions_1_5.txt"}) is not None)
        database["fs.files"].delete_many({})

    with meanwhile(spoil):
        here.run("--steps", "80", "--seconds_per_step", "0.02")
    assert_same(here, server, 1)


def write_lines(path: Path, steps: range, value: float, mode: str = "a") -> None:
    with path.open(mode) as file:
        for step in steps:
            file.write(f'{{"step": {step}, "split": "train", "time": {step + value}, "loss": {value}}}\n')


@pytest.fixture
def copied(here: Experiments, server: MongoServer) -> tuple[MongoCopy, Path]:
    """A copy that stands at step 5 of a run, and the run's metrics."""
    path = here.run("--steps", "5").run.folder / "metrics.jsonl"
    write_lines(path, range(1, 6), 1.0, "w")
    copy = MongoCopy(server.database(), here.store, "1")
    copy.push()
    return copy, path


def test_points_are_appended_to_the_known_series(
    here: Experiments, server: MongoServer, copied: tuple[MongoCopy, Path]
) -> None:
    copy, path = copied
    metrics = server.database().metrics
    write_lines(path, range(6, 9), 2.0)
    copy.push()
    assert metrics.find_one({"name": "train.loss"})["steps"] == list(range(1, 9))
    change = {"$pop": {"steps": 1, "values": 1, "timestamps": 1}, "$inc": {"n_points": -1}}
    metrics.update_one({"name": "train.loss"}, change)  # as a server does that loses what it last took
    write_lines(path, range(9, 11), 3.0)
    copy.push()
    assert_same(here, server, 1)


def test_repeated_steps_replace_earlier_ones(
    here: Experiments, server: MongoServer, copied: tuple[MongoCopy, Path]
) -> None:
    copy, path = copied
    with path.open("a") as file:
        file.write('{"step": 5, "split": "eval", "time": 1, "loss": 2.0}\n')  # and not again
    copy.push()
    write_lines(path, range(1, 3), 4.0, "w")
    copy.push()
    write_lines(path, range(3, 7), 5.0)
    copy.push()
    assert_same(here, server, 1)


def test_a_run_deleted_from_the_database_is_copied_again(
    here: Experiments, server: MongoServer, copied: tuple[MongoCopy, Path]
) -> None:
    for name in ("runs", "metrics", "fs.files", "fs.chunks"):
        server.database()[name].delete_many({})
    assert copied[0].push() == 1
    assert_same(here, server, 1)


def test_runs_from_elsewhere_keep_their_numbers(here: Experiments, server: MongoServer, tmp_path: Path) -> None:
    server.database().runs.insert_one({"_id": upload.ObjectId(), "status": "of another program"})
    elsewhere = dataclasses.replace(here, folder=tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    assert here.run().messages[-1].endswith(" as run 1") and elsewhere.run().messages[-1].endswith(" as run 2")
    assert_same(here, server, 1)
    assert_same(elsewhere, server, 2)


def test_runs_at_once(here: Experiments, server: MongoServer) -> None:
    run_many_at_once(here, 10)
    for number in range(1, 11):
        assert_same(here, server, number, str(number))


@pytest.mark.slow
@pytest.mark.processes
def test_a_long_run_stays_under_the_limit_of_a_document(here: Experiments, server: MongoServer) -> None:
    done = here.run("--steps", "7")
    line = '{"step": %d, "split": "train", "time": %d.5, "loss": %d}\n'
    points = 400_000  # of which Sacred's one document would take 19 MB
    (done.run.folder / "metrics.jsonl").write_text("".join(line % (i, 1_700_000_000 + i, i) for i in range(points)))
    (done.run.folder / "cout.txt").write_text("x" * 20_000_000)
    sync(["1"], here.store, server.url, lambda text: None)
    metric = server.database().metrics.find_one({"name": "train.loss"})
    assert metric["steps"] == list(range(0, points, 32)) == metric["values"]
    entry = server.database().runs.find_one({"_id": 1})
    assert len(entry["captured_out"]) < 300_000
    (whole,) = [artifact for artifact in entry["artifacts"] if artifact["name"] == "metrics.jsonl"]
    stored = gridfs.GridFS(server.database()).get(whole["file_id"])
    assert stored.read() == (done.run.folder / "metrics.jsonl").read_bytes()


def test_downsampling_does_not_depend_on_how_points_arrive(here: Experiments, server: MongoServer) -> None:
    """Appends in parts or all at once, over several halvings."""
    done = here.run("--steps", "1")
    path = done.run.folder / "metrics.jsonl"
    path.write_text("")
    copy = MongoCopy(server.database(), here.store, "1")
    for start in range(0, 45_000, 9_000):
        with path.open("a") as file:
            for i in range(start, start + 9_000):
                file.write(f'{{"step": {i}, "split": "train", "time": 1, "loss": {i}}}\n')
        copy.push()
        every = server.database().metrics.find_one({"name": "train.loss"})["every"]
        metric = server.database().metrics.find_one({"name": "train.loss"})
        assert metric["steps"] == list(range(0, start + 9_000, every))
        assert len(metric["steps"]) <= downsampling.MAX_POINTS
    assert every == 4


@pytest.mark.usefixtures("impatient")
def test_database_starts_after_the_run(tmp_path: Path) -> None:
    late = MongoServer(tmp_path)
    here = Experiments(tmp_path, mongo_url=late.url)
    with meanwhile(lambda: until(lambda: len(here.lines()) > 20), late.start):
        done = here.run("--steps", "120", "--seconds_per_step", "0.02")
    try:
        messages = [line for line in done.messages if "MongoDB" in line]
        assert messages[0].endswith("; the run continues without it"), messages
        assert messages[1].endswith(" is back; the copy is completed") and messages[2].endswith(" as run 1")
        assert_same(here, late, 1)
    finally:
        late.kill()


@pytest.mark.usefixtures("impatient")
def test_database_is_absent_and_synced_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LAST_COPY_SECONDS", 0.5)
    late = MongoServer(tmp_path)
    here = Experiments(tmp_path, mongo_url=late.url)
    done = here.run()
    place = describe_url(late.url)
    assert (done.status, done.run.status) == (0, "COMPLETED")
    assert done.messages[-1] == (
        f"run 1: the copy in MongoDB at {place} is incomplete; complete it with run_experiment.py --sync 1 "
        f"--store {here.store}"
    )
    with pytest.raises(
        UserError, match=f"MongoDB at {place}: .*Connection refused.*; start it, or check its permissions"
    ):
        sync(["1"], here.store, late.url, lambda text: None)
    with late:
        sync(["1"], here.store, late.url, lambda text: None)
        assert_same(here, late, 1)


def outage(tmp_path: Path, away_seconds: float, steps: int) -> None:
    """The server is killed in the middle and started again on its files."""
    with MongoServer(tmp_path) as server:
        here = Experiments(tmp_path, mongo_url=server.url)
        metrics = server.database().metrics

        def break_and_repair() -> None:
            until(lambda: metrics.count_documents({}) > 0)
            server.kill()
            time.sleep(away_seconds)
            assert len(here.lines()) < steps, "it was over before"
            server.start()

        with meanwhile(break_and_repair):
            done = here.run("--steps", str(steps), "--seconds_per_step", "0.02")
        assert_same(here, server, 1)
    assert_never_paused(done, steps)


def assert_never_paused(done: Done, steps: int) -> None:
    times = series_of(done.run.lines())["train.loss"].times_seconds
    assert done.status == 0 and len(times) == steps
    assert max(after - before for before, after in zip(times, times[1:], strict=False)) < 1.0


@pytest.mark.usefixtures("impatient")
def test_database_restarts_during_the_run(tmp_path: Path) -> None:
    outage(tmp_path, 0.5, 120)


@pytest.mark.usefixtures("impatient")
def test_database_does_not_answer_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over a network that drops every packet: connections stay open without data."""
    monkeypatch.setitem(upload.TIMEOUTS_MS, "socketTimeoutMS", 200)
    with MongoServer(tmp_path) as server:
        here = Experiments(tmp_path, mongo_url=server.url)
        metrics = server.database().metrics

        def stop_and_go_on() -> None:
            until(lambda: metrics.count_documents({}) > 0)
            server.send(signal.SIGSTOP)
            time.sleep(2.0)
            server.send(signal.SIGCONT)

        with meanwhile(stop_and_go_on):
            done = here.run("--steps", "150", "--seconds_per_step", "0.02")
        assert any(line.endswith("; the run continues without it") for line in done.messages)
        assert_same(here, server, 1)
    assert_never_paused(done, 150)


@pytest.mark.slow
@pytest.mark.processes
def test_database_is_gone_for_half_a_minute(tmp_path: Path) -> None:
    outage(tmp_path, 30.0, 2000)


def test_the_address_comes_from_the_command_line_the_environment_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MONGO_URL", raising=False)
    env_file = tmp_path / ".env"
    assert find_url(None, env_file) is None
    env_file.write_text("# a comment\nOTHER=1\nexport MONGO_URL = 'mongodb://file/db'\n")
    assert find_url(None, env_file) == "mongodb://file/db"
    monkeypatch.setenv("MONGO_URL", "mongodb://environment/db")
    assert find_url(None, env_file) == "mongodb://environment/db"
    assert find_url("here:27018", env_file) == "mongodb://here:27018"


@pytest.mark.parametrize("url", ["http://x", "mongodb://", "mongodb://a:b:c@host", "mongodb://host:port"])
def test_no_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--mongo .*: is not the URL of a MongoDB: .*; write it as mongodb://NAME"):
        find_url(url, tmp_path / ".env")


def test_passwords_are_not_shown() -> None:
    assert describe_url("mongodb://me:secret@host:1/db?authSource=admin") == "host:1/db"
    assert describe_url("mongodb+srv://me:se@cret@host/db") == "host/db"
    assert describe_url("mongodb://host") == "host"


def test_sync_reports_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGO_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--sync: no MongoDB is given; give --mongo URL, or set MONGO_URL"):
        sync(["1"], tmp_path, None, lambda text: None)
    with pytest.raises(DataError, match="run 1: is not in .*; no run is in"):
        sync(["1"], tmp_path, "mongodb://host", lambda text: None)


def test_keys_that_mongodb_does_not_take() -> None:
    assert bson_safe({"a.b": [{"$c": 1}], 3: 2**64, "d": -(2**63)}) == {"a,b": [{"@c": 1}], "3": 2.0**64, "d": -(2**63)}
