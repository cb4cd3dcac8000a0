"""Experiments on the small trainer, and a MongoDB server to copy them to."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from tracking.record.provenance import Provenance
from tracking.record.recorder import RunSpec
from tracking.record.store import Run, find_run, list_runs
from tracking.session import Experiment, record_and_supervise
from tracking.supervise.exit_policy import RestartPolicy
from tracking.supervise.supervisor import Job

TRAINER = Path(__file__).with_name("trainer.py")
QUICK = RestartPolicy(first_step_seconds=20.0, step_seconds=20.0, grace_seconds=5.0, backoff_seconds=0.01)
SOURCE = ["tests/tracking/trainer.py", "0" * 32]


@dataclasses.dataclass(frozen=True)
class Done:
    """The result of an experiment."""

    status: int
    run: Run
    messages: list[str]


@dataclasses.dataclass(frozen=True)
class Experiments:
    """A folder in which the trainer is run."""

    folder: Path
    policy: RestartPolicy = QUICK
    mongo_url: str | None = None
    recreate_command: tuple[str, ...] = ()

    @property
    def store(self) -> Path:
        return self.folder / "experiments"

    def run(self, *arguments: str, model: str = "model") -> Done:
        messages: list[str] = []
        job = functools.partial(Job, policy=self.policy, watches_steps=True, recreate_command=self.recreate_command)
        model_path = str(self.folder / model)
        spec = RunSpec("train", ("--folder", model_path, *arguments), {"lr": 0.1, "a.b": {"$c": 2**70}}, model_path)
        experiment = Experiment((sys.executable, str(TRAINER)), spec, job, self.store, self.mongo_url)
        status = record_and_supervise(experiment, provenance(), messages.append)
        (run_id,) = {line.split()[1].rstrip(":") for line in messages if line.startswith("run ")}
        return Done(status, find_run(self.store, run_id), messages)

    def lines(self, model: str = "model") -> list[bytes]:
        path = self.folder / model / "metrics.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []

    def runs(self) -> list[Run]:
        return list_runs(self.store)


def run_many_at_once(here: Experiments, n_runs: int) -> None:
    """Runs the trainer in folders m0, m1 ... under as many supervising processes."""
    make = multiprocessing.get_context("fork").Process
    processes = [make(target=here.run, kwargs={"model": f"m{number}"}) for number in range(n_runs)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * n_runs
    finally:
        for process in processes:
            process.kill()
            process.join()


def provenance() -> Provenance:
    base = TRAINER.parents[2]
    experiment = {"name": "trial", "base_dir": str(base), "sources": [SOURCE], "dependencies": [], "repositories": []}
    return Provenance({**experiment, "mainfile": "main.py"}, {"hostname": "here"})


@contextlib.contextmanager
def meanwhile(*steps: Callable[[], object]) -> Iterator[None]:
    """Runs steps in a thread while the body runs."""
    failures: list[BaseException] = []

    def do() -> None:
        try:
            for step in steps:
                step()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not failures, failures


def until(is_true: Callable[[], bool], limit_seconds: float = 20.0) -> None:
    end_seconds = time.monotonic() + limit_seconds
    while not is_true():
        assert time.monotonic() < end_seconds, "it never came"
        time.sleep(0.01)


def signal_self(number: int) -> None:
    os.kill(os.getpid(), number)


INTERRUPT = functools.partial(signal_self, signal.SIGINT)


class MongoServer:
    """A real server with a port and files of its own, which can be killed and started again.

    Attributes:
        url: its address.
        options: of the next start.
    """

    def __init__(self, folder: Path) -> None:
        self.options: tuple[str, ...] = ()
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"mongodb://127.0.0.1:{self._port}/trials"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        place = ["--host", "127.0.0.1", "--port", str(self._port), "--storage-path", str(self._folder / "mongo")]
        program = str(Path(sys.executable).with_name("secantusd-py"))
        log = (self._folder / "mongo.log").open("ab")
        self._process = subprocess.Popen([program, *place, *self.options], stdout=log, stderr=log)
        until(self._answers, 60)  # on a busy machine

    def _answers(self) -> bool:
        try:
            return bool(MongoClient(self.url, serverSelectionTimeoutMS=200).admin.command("ping"))
        except PyMongoError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ends it so that it writes down all it has; now and then it does not hear the first signal."""
        process = self._process
        assert process is not None

        def has_ended() -> bool:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            return process.returncode is not None

        until(has_ended, 60)
        self._process = None

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def database(self) -> Database:
        return MongoClient(self.url).get_default_database()

    def __enter__(self) -> MongoServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
