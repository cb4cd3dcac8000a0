"""A recorded run in the real Omniboard, seen in a browser, as in docker-compose.yml, with a server of
MongoDB's protocol that asks for passwords, and the user that may only read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo import MongoClient

from tests.browser import CHROMIUM, NEEDS_BROWSER, installed_packages
from tests.tracking.experiments import Experiments, MongoServer, until

REPOSITORY = Path(__file__).parents[2]
ROLE = re.compile(r'user: "(\w+)".*role: "(\w+)"')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    *NEEDS_BROWSER,
]


@pytest.fixture(scope="module")
def packages() -> Path:
    """Omniboard and the browser driver."""
    return installed_packages()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[MongoServer]:
    """A server that knows the two users of docker/mongo_users.js, their passwords being their names, and no others."""
    roles = dict(ROLE.findall((REPOSITORY / "docker" / "mongo_users.js").read_text()))
    assert set(roles) == {"neomesh", "omniboard"}
    with MongoServer(tmp_path) as server:
        for user, role in roles.items():
            server.database().command("createUser", user, pwd=user, roles=[{"role": role, "db": "trials"}])
        server.stop()
        server.options = ("--auth",)
        server.start()
        yield server


def address_of(server: MongoServer, user: str) -> str:
    return server.url.replace("://", f"://{user}:{user}@")


@contextlib.contextmanager
def omniboard(packages: Path, mongo_url: str, log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "MONGO_URI": mongo_url, "PORT": str(port)}
    with log.open("w") as file:
        program = ["node", str(packages / "omniboard" / "dist" / "start.js")]
        process = subprocess.Popen(program, env=environment, stdout=file, stderr=file)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/sacred/api/v1/Runs/count"), 60)
        yield f"http://127.0.0.1:{port}/sacred"
    finally:
        process.kill()
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_run_is_listed_its_loss_drawn_and_its_artifact_downloaded(
    tmp_path: Path, packages: Path, guarded: MongoServer
) -> None:
    done = Experiments(tmp_path, mongo_url=address_of(guarded, "neomesh")).run(
        "--steps", "60", "--steps_per_checkpoint", "30"
    )
    assert done.messages[-1].startswith("run 1: copied to MongoDB"), done.messages
    seen_folder = tmp_path / "seen"
    seen_folder.mkdir()
    with omniboard(packages, address_of(guarded, "omniboard"), tmp_path / "omniboard.log") as address:
        command = ["node", str(Path(__file__).with_name("omniboard_walk.js")), address, str(CHROMIUM)]
        environment = {**os.environ, "NODE_PATH": str(packages)}
        walk = subprocess.run(
            [*command, str(seen_folder), "metrics.jsonl"], env=environment, capture_output=True, text=True, timeout=400
        )
        assert walk.returncode == 0, walk.stderr[-2000:] + (tmp_path / "omniboard.log").read_text()[-2000:]
    seen = json.loads(walk.stdout)
    assert "trial" in seen["listed"] and "COMPLETED" in seen["listed"]
    points = seen["points"]
    assert set(points) == {"train.loss", "train.start", "eval.loss"}
    assert points["train.loss"] > 15 and points["eval.loss"] >= 2  # points that lie on one line are joined
    assert (seen_folder / "metrics.jsonl").read_bytes() == (done.run.folder / "metrics.jsonl").read_bytes()


def test_the_user_of_omniboard_cannot_write(tmp_path: Path, guarded: MongoServer) -> None:
    Experiments(tmp_path, mongo_url=address_of(guarded, "neomesh")).run("--steps", "2")
    runs = MongoClient(address_of(guarded, "omniboard")).get_default_database().runs
    assert runs.count_documents({}) == 1
    with pytest.raises(Exception, match="not authorized"):
        runs.delete_one({"_id": 1})
    assert runs.count_documents({}) == 1
