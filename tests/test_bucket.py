"""The whole job in a bucket: config, data, tokenizer, checkpoints, metrics, pictures and samples, over TensorFlow's own
`gs://`; killed, cut off, and refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.tokenization.bpe_training import FILE_NAME
from tests.program import DATASET, ENVIRONMENT, PROGRESS, TINY, command, losses, run_process, write_project
from tests.storage.server import BROKEN_BEFORE, Cloud, Request, cloud

N_STEPS = 64
RUN = "gs://trials/runs/tiny"
STEPS = ("--steps_per_checkpoint", "16")
READ_FROM_BUCKET = {
    "path": "gs://trials/data/train/*.tfrecords",
    "eval_path": "gs://trials/data/eval/*.tfrecords",
    "tokenizer_path": f"gs://trials/data/{FILE_NAME}",
}
CONFIG = "gs://trials/configs/tiny.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder in which `runs/tiny` was trained without a break, and a cloud with its data and config."""

    folder: Path
    google: Cloud

    def command(self, *arguments: str) -> list[str]:
        """The program with the config in the bucket: of two, it takes the last."""
        return command("--model", CONFIG, *arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**ENVIRONMENT, **self.google.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env={**ENVIRONMENT, **self.google.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def killed(self, moment: str) -> None:
        """Trains, and kills the process when it is about to ask for what matches a pattern."""
        with self.started(*STEPS) as process:
            kill_at(self.google, process, moment)
            out, err = process.communicate(timeout=120)
            assert process.returncode == -9, out + err
        self.google.faults = lambda request: None

    def losses(self) -> list[tuple[int, float, float]]:
        """Of the run in the bucket, from a copy."""
        (self.folder / "copy").mkdir(exist_ok=True)
        copied = self.google.read("trials", "runs/tiny/metrics.jsonl")
        (self.folder / "copy" / "metrics.jsonl").write_bytes(copied)
        return losses(self.folder / "copy")


def kill_at(google: Cloud, process: subprocess.Popen[str], moment: str) -> None:
    def faults(request: Request) -> int | None:
        if re.search(moment, f"{request.method} {request.path}"):
            process.kill()
            return BROKEN_BEFORE
        return None

    google.faults = faults


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("project")
    with cloud(folder) as google:
        write_project(folder)
        local = run_process(folder, "--set", f"train_steps={N_STEPS}", *STEPS)
        assert local.returncode == 0, local.stderr
        google.client.create_bucket("trials")
        (data,) = (folder / "datasets" / "words").glob("n_ctx_*")
        google.upload("trials", "data", data)
        dataset = {name: value for name, value in DATASET.items() if name not in ("text", "eval_fraction", "id")}
        write_json(google, "configs/dataset_configs/words.json", dataset | READ_FROM_BUCKET)
        config = TINY | {"train_steps": N_STEPS, "model_path": RUN, "datasets": ["words"]}
        write_json(google, "configs/tiny.json", config)
        yield Place(folder, google)


@pytest.fixture
def fresh(place: Place) -> Iterator[Place]:
    """Without a run."""
    yield place
    place.google.faults = lambda request: None
    for name in place.google.names("trials", "runs/tiny/"):
        place.google.client.bucket("trials").blob(f"runs/tiny/{name}").delete()


def write_json(google: Cloud, name: str, content: object) -> None:
    google.write("trials", name, json.dumps(content).encode())


def check_whole(place: Place) -> None:
    """Checks that the run has come to its end as if nothing had been, and has left nothing else."""
    assert place.losses() == losses(place.folder / "runs/tiny")
    names = [name for name in place.google.names("trials", "runs/tiny/") if "tfevents" not in name]
    assert sorted(name for name in names if name) == sorted(
        [
            *("checkpoint", "config.json", "loss.png", "metrics.jsonl", "tokenizer.json"),
            *("eval_log.txt", "train_log.txt"),
            *[f"model.ckpt-{s}{e}" for s in (16, 32, 48, 64) for e in (".data-00000-of-00001", ".index")],
        ]
    )
    assert place.google.read("trials", "runs/tiny/loss.png").startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.processes
def test_training_resumes_exactly_when_killed_while_saving(fresh: Place) -> None:
    fresh.killed(r"POST .*model\.ckpt-32\.index.*rewriteTo")
    assert "runs/tiny/lock" in fresh.google.names("trials")
    resumed = fresh.run(*STEPS)
    assert resumed.returncode == 0, resumed.stderr
    assert f"restored {RUN}/model.ckpt-16" in resumed.stdout.splitlines()
    assert [line for line in resumed.stderr.splitlines() if not PROGRESS.fullmatch(line)] == []
    check_whole(fresh)


MOMENTS = [
    r"POST .*tiny%2Fmetrics\.jsonl/compose",
    r"DELETE .*\.part",
    r"PUT .*model\.ckpt-16\.data",
    r"DELETE .*model\.ckpt-32\.index.*tempstate",
    r"POST .*model\.ckpt-48\.data.*rewriteTo",
    r"POST .*model\.ckpt-64\.index.*rewriteTo",
    r"DELETE .*tiny%2Flock",
]


@pytest.mark.slow
@pytest.mark.processes
def test_training_resumes_exactly_when_killed_at_every_moment(fresh: Place) -> None:
    for moment in MOMENTS:
        fresh.killed(moment)
    done = fresh.run(*STEPS)
    assert done.returncode == 0 and "training is finished" in done.stdout, done.stderr
    fresh.google.client.bucket("trials").blob("runs/tiny/lock").delete()  # of the one that was killed as it ended
    check_whole(fresh)


@pytest.mark.slow
@pytest.mark.processes
def test_training_resumes_exactly_when_killed_at_random_moments(fresh: Place) -> None:
    draw = random.Random(5)
    for _ in range(6):
        with fresh.started(*STEPS) as process:
            fresh.google.requests.clear()
            n_requests = draw.randrange(10, 120)
            while len(fresh.google.requests) < n_requests and process.poll() is None:
                time.sleep(0.001)
            process.kill()
    done = fresh.run(*STEPS)
    assert done.returncode == 0, done.stderr
    assert fresh.losses() == losses(fresh.folder / "runs/tiny")


@pytest.mark.slow
@pytest.mark.processes
def test_a_network_that_fails_for_a_minute_is_waited_for(fresh: Place) -> None:
    with fresh.started(*STEPS) as process:
        ends = []

        def faults(request: Request) -> int | None:
            if not ends and "model.ckpt-32.data" in request.path:
                ends.append(time.monotonic() + 61)
            return BROKEN_BEFORE if ends and time.monotonic() < ends[0] else None

        fresh.google.faults = faults
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0 and ends, out + err
    check_whole(fresh)


@pytest.mark.slow
@pytest.mark.processes
def test_other_commands_read_and_write_in_the_bucket(fresh: Place) -> None:
    trained = fresh.run(*STEPS, "--set", "eval_steps=2", "--set", "predict_steps=16")
    assert trained.returncode == 0, trained.stderr
    noted = [line for line in trained.stderr.splitlines() if not PROGRESS.fullmatch(line)]
    assert [line.partition(":")[0] for line in noted] == [f"step {s}" for s in (16, 16, 32, 32, 48, 48, 64, 64)]
    samples = [name for name in fresh.google.names("trials", "runs/tiny/") if name.startswith("predictions")]
    assert samples == [f"predictions_nosacred_{step}.txt" for step in (16, 32, 48, 64)]
    assert b"SAMPLE 0" in fresh.google.read("trials", f"runs/tiny/{samples[0]}")
    checked = fresh.run("--check_dataset")
    assert checked.returncode == 0, checked.stderr
    assert "gs://trials/data/train/" in checked.stdout
    measured = fresh.run("--eval")
    assert measured.returncode == 0 and "step 64: held-out loss " in measured.stdout, measured.stderr
    assert (
        fresh.google.read("trials", "runs/tiny/metrics.jsonl").splitlines()[-1].startswith(b'{"step": 64, "split": "e')
    )
    written = fresh.run("--predict", "--seed", "1")
    assert f"written to {RUN}/predictions_nosacred_64.2.txt" in written.stdout, written.stderr
    other = fresh.run("--set", "n_head=4")
    assert (other.returncode, other.stderr) == (
        2,
        f"{RUN}/config.json: n_head = 2: the run was trained with it, but the config says 4; set n_head to that, "
        "or give another model_path\n",
    )
    new = fresh.run("--new", "--yes", "--set", "train_steps=2")
    assert new.returncode == 0 and f"deleted the run in {RUN}" in new.stdout, new.stderr
    assert [name for name in fresh.google.names("trials", "runs/tiny/") if name.startswith("model")] == [
        "model.ckpt-2.data-00000-of-00001",
        "model.ckpt-2.index",
    ]


@pytest.mark.slow
@pytest.mark.processes
def test_a_second_process_does_not_train_in_the_same_folder(fresh: Place) -> None:
    waiting = threading.Event()

    def faults(request: Request) -> int | None:
        if "model.ckpt-16.data" in request.path:
            waiting.wait(60)
        return None

    with fresh.started(*STEPS) as process:
        fresh.google.faults = faults
        while "runs/tiny/lock" not in fresh.google.names("trials"):
            time.sleep(0.05)
        second = fresh.run(*STEPS)
        assert second.returncode == 2
        assert second.stderr.startswith(f"model_path = {RUN}: another process trains here, process {process.pid} of")
        waiting.set()
        process.communicate(timeout=120)
        assert process.returncode == 0
    check_whole(fresh)


@pytest.mark.parametrize(
    ("part", "problem", "remedy"),
    [
        (
            "data%2Ftrain",
            "gs://trials/data/train/*.tfrecords: cannot be read (",
            "; check the path and its permissions\n",
        ),
        (
            "runs%2Fother%2Fcheckpoint",
            "gs://trials/runs/other/checkpoint: cannot be read: ",
            "; check the network and the permissions, and start again\n",
        ),
    ],
)
def test_unreadable_files_are_named(place: Place, part: str, problem: str, remedy: str) -> None:
    place.google.faults = lambda request: 403 if part in request.path else None
    result = place.run("--set", "model_path=gs://trials/runs/other")
    place.google.faults = lambda request: None
    assert result.returncode == 2 and place.google.names("trials", "runs/other") == []
    assert result.stderr.startswith(f"{problem}Error executing an HTTP request: HTTP response code 403")
    assert result.stderr.endswith(remedy)


def test_a_config_that_is_not_there_is_named(place: Place) -> None:
    result = place.run("--model", "gs://trials/configs/none.json")
    assert (result.returncode, result.stdout, result.stderr) == (
        2,
        "",
        "gs://trials/configs/none.json: cannot be read (No such object); check the path\n",
    )


def test_an_invalid_config_in_the_bucket_is_named_by_its_path(place: Place) -> None:
    write_json(place.google, "configs/wrong.json", TINY | {"n_haed": 3})
    result = place.run("--model", "gs://trials/configs/wrong.json")
    assert result.returncode == 2
    assert result.stderr == "gs://trials/configs/wrong.json: n_haed = 3: is not a known key; did you mean n_head?\n"
