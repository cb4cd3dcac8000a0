"""data/create_tfrecords.py with all that it reads and writes in a bucket, over TensorFlow's own `gs://`; killed."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.create_tfrecords import main
from data.preprocessing.pipeline import create_tfrecords
from data.preprocessing.settings import Settings
from data.tokenization.bpe_training import FILE_NAME, save_tokenizer, train_byte_level_bpe
from tests.program import ENVIRONMENT, REPOSITORY
from tests.storage.server import BROKEN_BEFORE, Cloud, Request

WORDS = ["token", "stream", "schöne", "Welt", "\n", "example", "<|endoftext|>", "of", "1979"]
OUT = "gs://trials/out"
FLAGS = ("--name", "t", "--chunk_size", "16", "--files_per", "30", "--processes", "1", "--eval_fraction", "0.2")
SECONDS = 200


@pytest.fixture
def texts(trials: Cloud, tmp_path: Path) -> Cloud:
    """Texts and a tokenizer, in the bucket and, the same, in a folder."""
    draw = random.Random(7)
    (tmp_path / "texts" / "deeper").mkdir(parents=True)
    for number in range(4):
        lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=20))}) for _ in range(60)]
        (tmp_path / "texts" / f"{number}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "texts" / "deeper" / "a.txt").write_text("token stream " * 400)
    save_tokenizer(train_byte_level_bpe([" ".join(WORDS)] * 5, 290), str(tmp_path / FILE_NAME))
    trials.upload("trials", "texts", tmp_path / "texts")
    trials.write("trials", FILE_NAME, (tmp_path / FILE_NAME).read_bytes())
    return trials


def command(program: str, *flags: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "data" / program), *flags]


def creation(*flags: str, output: str = OUT) -> list[str]:
    places = ("--input_dir", "gs://trials/texts/", "--output_dir", output, "--encoder_path", f"gs://trials/{FILE_NAME}")
    return command("create_tfrecords.py", *places, *FLAGS, *flags)


def run(texts: Cloud, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, **texts.environment}
    return subprocess.run(
        arguments, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
    )


@contextlib.contextmanager
def started(texts: Cloud, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(arguments, env={**ENVIRONMENT, **texts.environment}, text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def killed(texts: Cloud, moment: str) -> None:
    """Runs it, and kills it when it is about to ask for what matches a pattern."""
    with started(texts, creation()) as process:

        def faults(request: Request) -> int | None:
            if re.search(moment, f"{request.method} {request.path} {request.name}".rstrip()):
                process.kill()
                return BROKEN_BEFORE
            return None

        texts.faults = faults
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == -9, moment + out + err
    texts.faults = lambda request: None


def expected(tmp_path: Path) -> dict[str, bytes]:
    """What the same texts come to in a folder."""
    create_tfrecords(
        Settings(
            f"{tmp_path}/texts", 30, "t", f"{tmp_path}/out", f"{tmp_path}/{FILE_NAME}", 0, chunk_size=16, processes=1,
            eval_fraction=0.2,
        )
    )  # fmt: skip
    return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def check_whole(texts: Cloud, tmp_path: Path) -> None:
    """Checks that the bucket holds what the folder does, and nothing else but the tokenizer's other path."""
    in_folder = expected(tmp_path)
    names = [name for name in texts.names("trials", "out/") if name]
    assert sorted(names) == sorted(in_folder)
    for name, content in in_folder.items():
        there = texts.read("trials", f"out/{name}")
        if name.endswith(".tfrecords"):
            assert there == content
        else:
            assert json.loads(there) == json.loads(content.replace(f"{tmp_path}/".encode(), b"gs://trials/"))
    assert len(in_folder) > 8


@pytest.mark.slow
@pytest.mark.processes
def test_a_bucket_gives_the_same_files_as_a_folder(texts: Cloud, tmp_path: Path) -> None:
    done = run(texts, creation("--write_dataset_config", "gs://trials/configs/dataset_configs/t.json"))
    assert (done.returncode, done.stderr) == (0, "")
    check_whole(texts, tmp_path)
    config = json.loads(texts.read("trials", "configs/dataset_configs/t.json"))
    assert config["path"] == f"{OUT}/t_[0-9]*_[0-9]*_[0-9]*.tfrecords"
    assert (config["tokenizer_path"], config["tokenizer_is_pretrained"]) == (f"gs://trials/{FILE_NAME}", False)
    checked = run(texts, command("check_tfrecords.py", config["path"], "--encoder_path", config["tokenizer_path"]))
    assert checked.returncode == 0 and "token" in checked.stdout, checked.stderr
    spoil(texts, "out/t_1_0_30.tfrecords")
    places = ("--repair", "--repair_dir", "gs://trials/sound", "--picture", "gs://trials/p.png")
    repaired = run(texts, command("check_tfrecords.py", config["path"], *places))
    assert repaired.returncode == 0 and "29 wrong" not in repaired.stdout, repaired.stderr
    assert {"t_0_0_30.tfrecords", "t_1_0_29.tfrecords"} <= set(texts.names("trials", "sound/"))
    assert texts.read("trials", "p.png").startswith(b"\x89PNG")
    again = run(texts, creation())
    assert again.returncode == 2
    assert re.fullmatch(f"{OUT}/t_0_0_30.tfrecords: already exists; choose another --name .*\n", again.stderr)


def spoil(texts: Cloud, name: str) -> None:
    content = bytearray(texts.read("trials", name))
    content[50] ^= 1
    texts.write("trials", name, bytes(content))


@pytest.mark.slow
@pytest.mark.processes
def test_resumes_when_killed_while_moving_files(texts: Cloud, tmp_path: Path) -> None:
    killed(texts, r"POST .*out%2F\.t\.partial%2Ft_1_0_30\.tfrecords/rewriteTo/b/trials/o/out%2Ft_1_0_30")
    assert "out/.t.lock" in texts.names("trials")
    resumed = run(texts, creation())
    assert resumed.returncode == 0, resumed.stderr
    check_whole(texts, tmp_path)


MOMENTS = [
    r"POST .* out/\.t\.partial/start\.json$",
    r"PUT .*t_0_0\.partial",
    r"POST .*t_1_0\.partial.*rewriteTo",
    r"DELETE .*t_2_0\.partial",
    r"POST .* out/\.t\.partial/train/3\.json$",
    r"POST .*t_eval_0_0\.partial.*rewriteTo",
    r"POST .* out/\.t\.partial/plan\.json$",
    r"DELETE .*t\.partial%2Ft_2_0_30\.tfrecords",
    r"POST .* out/t\.manifest\.json$",
    r"DELETE .*t\.partial%2Fstart\.json",
    r"DELETE .*t\.partial%2Fplan\.json(\?|$)",
]


@pytest.mark.slow
@pytest.mark.processes
def test_resumes_when_killed_at_every_moment(texts: Cloud, tmp_path: Path) -> None:
    for moment in MOMENTS:
        killed(texts, moment)
    done = run(texts, creation())
    assert done.returncode == 0, done.stderr
    check_whole(texts, tmp_path)


@pytest.mark.slow
@pytest.mark.processes
def test_resumes_when_killed_at_random_moments(texts: Cloud, tmp_path: Path) -> None:
    draw = random.Random(5)
    for _ in range(8):
        with started(texts, creation()) as process:
            texts.requests.clear()
            n_requests = draw.randrange(5, 150)
            while len(texts.requests) < n_requests and process.poll() is None:
                time.sleep(0.001)
            process.kill()
    run(texts, creation())
    check_whole(texts, tmp_path)


@pytest.mark.slow
@pytest.mark.processes
def test_a_second_process_is_refused(texts: Cloud, tmp_path: Path) -> None:
    with started(texts, creation()) as process:
        seconds: list[subprocess.CompletedProcess[str]] = []

        def faults(request: Request) -> int | None:
            if "t_1_0.partial" in request.path and not seconds:
                texts.faults = lambda request: None
                seconds.append(run(texts, creation()))
            return None

        texts.faults = faults
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, out + err
    (second,) = seconds
    assert second.returncode == 2
    assert second.stderr.startswith(f"{OUT}/.t.partial: another process works there, process {process.pid} of ")
    assert second.stderr.endswith("; wait for it, or choose another --name\n")
    check_whole(texts, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"output_dir": "gs://nowhere/out"},
            "gs://nowhere/out: there is no bucket nowhere; create it, or give another",
        ),
        (
            {"output_dir": "s3://trials/out"},
            "--output_dir s3://trials/out: is neither a local path nor one of ",
        ),
        ({"input_dir": "gs://trials/none"}, "gs://trials/none: no file ending in .txt "),
        ({"write_dataset_config": "gs://nowhere/t.json"}, "gs://nowhere/t.json: there is no bucket nowhere; "),
        ({}, f"{OUT}/.t.lock: your account has no permission: "),
    ],
)
def test_a_place_that_cannot_be_used_is_named(texts, tmp_path, capsys, flags, message) -> None:
    texts.faults = lambda request: 403 if request.method in ("POST", "PUT") else None
    before = texts.names("trials")
    places = {"input_dir": "gs://trials/texts", "output_dir": OUT, "encoder_path": f"{tmp_path}/{FILE_NAME}"} | flags
    assert main([part for name, place in places.items() for part in (f"--{name}", place)] + list(FLAGS)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(message) and err.count("\n") == 1
    assert texts.names("trials") == before


READ_ALL = """
import sys
import numpy as np
from data.loading.reader import RecordRules, Records, prefetch
from data.tfrecord.shards import list_shards

records = Records(list_shards(sys.argv[1]), RecordRules(16, 290))
blocks = (np.arange(first, first + 7) for first in range(0, records.n_records - 7, 7))
print(sum(len(rows) for rows in prefetch(records.read, blocks, 8)))
"""


@pytest.mark.slow
@pytest.mark.processes
def test_each_byte_of_a_bucket_is_read_once(texts: Cloud, tmp_path: Path) -> None:
    files = [name for name in expected(tmp_path) if name.endswith(".tfrecords")]
    for name in files:
        texts.write("trials", f"out/{name}", (tmp_path / "out" / name).read_bytes())
    texts.requests.clear()
    arguments = [sys.executable, "-c", READ_ALL, f"{OUT}/*.tfrecords"]
    environment = {**ENVIRONMENT, **texts.environment, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and int(done.stdout) > 700, done.stderr
    fetched = [request.path for request in texts.requests if request.path.startswith("/trials/out")]
    assert sorted(fetched) == sorted(f"/trials/out%2F{name}" for name in files)
