"""Objects on a real server, over an unreliable network."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import buckets
from storage.buckets import NO_OBJECT, BucketError, ConflictError
from tests.storage.server import BROKEN_AFTER, BROKEN_BEFORE, Cloud, Faults, Request

A = "gs://trials/run/a"


def first(n: int, fault: int, part: str) -> Faults:
    """The first `n` requests whose path contains `part` meet a fault."""
    met = []

    def faults(request: Request) -> int | None:
        if part in request.path and len(met) < n:
            met.append(request)
            return fault
        return None

    return faults


def test_whole_objects(trials: Cloud) -> None:
    assert (buckets.stat(A), buckets.read(A), buckets.list_objects("gs://trials/run")) == (NO_OBJECT, b"", {})
    buckets.write(A, b"01234")
    buckets.write("gs://trials/run/deeper/b", b"")
    buckets.write("gs://trials/runs/other", b"x")
    state = buckets.stat(A)
    assert state.generation > 0 and state.size_bytes == 5 and abs(state.updated_seconds - time.time()) < 60
    assert [buckets.read(A, start) for start in (0, 3, 5, 9)] == [b"01234", b"34", b"", b""]
    assert buckets.list_objects("gs://trials/run/") == buckets.list_objects("gs://trials/run")
    assert list(buckets.list_objects("gs://trials/run")) == ["a", "deeper/b"]
    buckets.delete(A, state.generation + 1)
    assert buckets.stat(A) == state
    for _ in range(2):
        buckets.delete(A, state.generation)
        assert buckets.stat(A) == NO_OBJECT


def test_metadata_belongs_to_one_generation(trials: Cloud) -> None:
    generation = buckets.replace(A, b"first", 0)
    assert buckets.set_metadata(A, {"renewed": "1"}, generation)
    assert buckets.stat(A).metadata == (("renewed", "1"),)
    newer = buckets.replace(A, b"second", generation)
    assert not buckets.set_metadata(A, {"renewed": "2"}, generation)
    buckets.delete(A)
    assert not buckets.set_metadata(A, {"renewed": "2"}, newer)


def test_nobody_is_overwritten(trials: Cloud) -> None:
    generation = buckets.replace(A, b"mine", 0)
    for wrong in (0, generation - 1):
        with pytest.raises(ConflictError, match=f"{A}: another process has written to it"):
            buckets.replace(A, b"yours", wrong)
    assert buckets.read(A) == b"mine"
    newer = buckets.replace(A, b"mine again", generation)
    assert (newer != generation, buckets.read(A)) == (True, b"mine again")


@pytest.mark.parametrize("n_lost", [1, 3])
def test_a_lost_response_is_not_taken_for_another_writer(trials: Cloud, n_lost: int) -> None:
    trials.faults = first(n_lost, BROKEN_AFTER, "/upload/")
    generation = buckets.replace(A, b"mine", 0)
    assert generation == buckets.stat(A).generation
    assert buckets.read(A) == b"mine"


def test_appending_sends_only_new_content(trials: Cloud) -> None:
    state = buckets.stat(A)
    lines = [f"{number} {'x' * number}\n".encode() for number in range(20)]
    for line in lines:
        trials.requests.clear()
        state = buckets.append(A, line, state)
        asked = [request.method for request in trials.requests if "/o" in request.path]
        assert asked == ["POST", "POST", "GET", "GET", "DELETE"]
    assert trials.read("trials", "run/a") == b"".join(lines)
    assert trials.names("trials") == ["run/a"]


def test_content_of_another_writer_stays(trials: Cloud) -> None:
    mine = buckets.append(A, b"1\n", NO_OBJECT)
    yours = buckets.append(A, b"2\n", NO_OBJECT)
    mine = buckets.append(A, b"3\n", mine)
    buckets.append(A, b"4\n", yours)
    buckets.append(A, b"5\n", mine)
    assert sorted(trials.read("trials", "run/a").split()) == [b"1", b"2", b"3", b"4", b"5"]


def test_concurrent_appends_are_all_there(trials: Cloud) -> None:
    def append(writer: int) -> None:
        state = NO_OBJECT
        for number in range(6):
            state = buckets.append(A, b"%d %d\n" % (writer, number), state)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(append, range(3)))
    lines = [tuple(map(int, line.split())) for line in trials.read("trials", "run/a").splitlines()]
    assert sorted(lines) == [(writer, number) for writer in range(3) for number in range(6)]
    assert trials.names("trials") == ["run/a"]


@pytest.mark.parametrize("seed", range(2))
def test_over_a_bad_network_everything_arrives_once(trials: Cloud, seed: int) -> None:
    draw = random.Random(seed)
    trials.faults = lambda request: draw.choice([*[None] * 6, BROKEN_BEFORE, BROKEN_AFTER, 503, 429])
    state, generation = NO_OBJECT, 0
    for number in range(8):
        state = buckets.append(A, f"{number}\n".encode(), state)
        generation = buckets.replace("gs://trials/run/b", str(number).encode(), generation)
    trials.faults = lambda request: None
    assert trials.read("trials", "run/a") == b"".join(b"%d\n" % number for number in range(8))
    assert trials.read("trials", "run/b") == b"7"
    assert trials.names("trials") == ["run/a", "run/b"]


def test_a_network_failure_is_waited_for(trials: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    until = time.monotonic() + 1.5
    trials.faults = lambda request: BROKEN_BEFORE if time.monotonic() < until else None
    buckets.write(A, b"content")
    assert trials.read("trials", "run/a") == b"content"
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"{A} does not answer (") and message.endswith("; retrying")


QUESTIONS: dict[str, Callable[[str], object]] = {
    "check": buckets.check_access,
    "look": buckets.stat,
    "read": buckets.read,
    "write": lambda path: buckets.write(path, b"x"),
    "append": lambda path: buckets.append(path, b"x", NO_OBJECT),
    "names_in": buckets.list_objects,
    "delete": buckets.delete,
    "note": lambda path: buckets.set_metadata(path, {}, 1),
}


def refusals(path: str, questions: Iterable[str]) -> set[str]:
    """Returns the error message of each request."""
    messages = set()
    for question in questions:
        with pytest.raises(BucketError) as raised:
            QUESTIONS[question](path)
        messages.add(str(raised.value))
    return messages


def test_no_permission(trials: Cloud) -> None:
    trials.faults = lambda request: 403
    for message in refusals(A, QUESTIONS):
        assert message.startswith("gs://trials/run/") and ": your account has no permission: " in message
        assert message.endswith("; grant it the role Storage Object User for the bucket trials")


def test_no_bucket(trials: Cloud) -> None:
    assert refusals("gs://nowhere/run", ["check", "write", "names_in"]) == {
        "gs://nowhere/run: there is no bucket nowhere; create it, or give another path"
    }


@pytest.mark.parametrize("path", ["gs://", "gs:///run"])
def test_no_name_of_a_bucket(trials: Cloud, path: str) -> None:
    for message in refusals(path, QUESTIONS):
        assert message.endswith(": names no bucket; write it as gs://BUCKET/FOLDER")


def test_an_impossible_name_of_a_bucket(trials: Cloud) -> None:
    for message in refusals("gs://-a/run", QUESTIONS):
        assert message.startswith("gs://-a/") and ": cannot be used: " in message
        assert message.endswith("; give another path")


def test_nobody_answers(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "RETRY_SECONDS", 0.3)
    trials.faults = lambda request: BROKEN_BEFORE
    for message in refusals(A, QUESTIONS):
        assert message.startswith("gs://trials/run/") and ": does not answer: " in message
        assert message.endswith("; check the network and start again: what was written before is complete")


def test_invalid_credentials(trials: Cloud) -> None:
    trials.faults = lambda request: 401
    for message in refusals(A, QUESTIONS):
        assert ": there are no valid credentials for Google Cloud: " in message


def test_no_credentials(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    for message in refusals(A, QUESTIONS):
        assert message.startswith("gs://trials/run/")
        assert ": there are no valid credentials for Google Cloud: File /nowhere/key.json was not found" in message
        assert message.endswith("set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account")


def test_no_package(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("google.cloud.storage", "google.api_core", "google.auth"):
        monkeypatch.setitem(sys.modules, name, None)
    for message in refusals(A, QUESTIONS):
        assert message.startswith("gs://trials/run/") and message.endswith(
            ": the package google-cloud-storage is not installed; install the packages of requirements.txt"
        )
