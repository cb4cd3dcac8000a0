"""Corrupted files of every kind: the check names each, and none crashes or hangs a reader."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

import inputs
from configs.errors import DataError
from data.check.scan import scan_dataset
from data.loading.reader import RecordRules, Records, parse_records, read_epoch
from data.tfrecord.records import read_examples, serialize_example
from data.tfrecord.shards import Shard, count_in_name, list_shards
from tests.data.corruption import CORRUPTIONS, EOS_ID, N_CTX, N_VOCAB, Expected, write_corrupted, write_good
from tests.test_inputs import run_config, use_of

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_PER_FILE = 10.0  # for each reader; without a hang each takes milliseconds
MEMORY_BYTES = 1 << 36  # of address space, which TensorFlow reserves generously; less than the huge lengths

few_and_many = pytest.mark.parametrize(
    "numbers",
    [range(40), pytest.param(range(40, 240), marks=[pytest.mark.slow, pytest.mark.processes])],
    ids=["40 files", "200 files"],
)


def write_corrupted_files(folder: Path, numbers: Iterable[int]) -> dict[str, Expected]:
    return {str(path): expected for path, expected in (write_corrupted(folder, number) for number in numbers)}


def show(ids) -> str:
    return " ".join(map(str, ids))


@few_and_many
def test_every_corrupted_file_and_record_is_named_and_no_other(tmp_path, numbers):
    expected = write_corrupted_files(tmp_path, numbers)
    assert len(numbers) >= len(CORRUPTIONS)
    for number in range(10):
        write_good(tmp_path / f"good{number}_20.tfrecords", 20, random.Random(number))
    report = scan_dataset([f"{tmp_path}/*.tfrecords"], N_CTX, N_VOCAB, EOS_ID, show)
    found = {errors.path: errors for errors in report.errors}
    assert found.keys() == expected.keys()
    wrong = {path: found[path].records for path in expected if found[path].records != expected[path].records}
    assert wrong == {}
    for path, (records, expected_message) in expected.items():
        messages = found[path].messages
        assert (
            (not messages) if expected_message is None else (len(messages) == 1 and expected_message in messages[0])
        ), (path, messages)
        assert all(line.startswith(f"{path}: ") for line in [*messages, *found[path].record_messages])
        for number, message in zip(records, found[path].record_messages, strict=False):
            assert re.match(rf"{re.escape(path)}: record {number}\b", message)


def test_random_bytes_with_a_valid_checksum_are_ids_or_an_error(tmp_path):
    draw, shard, valid = random.Random(1), Shard(f"{tmp_path}/a", 1), serialize_example([7, 8, 9, 10, 11])
    outcomes = {"ids": 0, "error": 0}
    for _ in range(1000):
        record = bytearray(valid)
        for _ in range(draw.choice([1, 1, 2, 5])):
            record[draw.randrange(len(record))] = draw.randrange(256)
        try:
            (read,) = parse_records([bytes(record)], [(shard, 0)], RULES["chunks"])
        except DataError as error:
            assert str(error).startswith(f"{tmp_path}/a: record 0")
            outcomes["error"] += 1
        else:
            ids = read.ids_L
            assert len(ids) == N_CTX + 1 and min(ids) >= 0 and max(ids) < N_VOCAB
            outcomes["ids"] += 1
    assert min(outcomes.values()) > 50


def test_a_missing_file_that_must_be_counted_is_named(tmp_path):
    (tmp_path / "a.tfrecords").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=f"^{tmp_path}/a.tfrecords: no such file; "):
        list_shards(f"{tmp_path}/*")


def test_json_files_beside_are_not_part_of_the_dataset(tmp_path):
    write_good(tmp_path / "a.tfrecords", 3, random.Random(1))
    (tmp_path / "a.manifest.json").write_text("{}")
    assert [shard.n_examples for shard in list_shards(f"{tmp_path}/*")] == [3]
    assert [shard.n_examples for shard in list_shards(f"{tmp_path}/*")] == [3]  # beside the counts, too


@few_and_many
def test_no_corrupted_file_crashes_or_hangs_a_reader(tmp_path, numbers):
    (tmp_path / "files").mkdir()
    paths = list(write_corrupted_files(tmp_path / "files", numbers))
    program = "import sys; from tests.data.test_corruption import read_all; read_all(sys.argv[1:])"
    with (tmp_path / "errors").open("w+") as errors:
        run = subprocess.run(
            [sys.executable, "-c", program, *paths], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True,
            timeout=60 + len(READERS) * 2 * len(paths),
        )  # fmt: skip
        errors.seek(0)
        assert run.returncode == 0, (run.stdout[-300:], errors.read()[-2000:])
    outcomes = [json.loads(line) for line in run.stdout.splitlines()]
    assert {(outcome["path"], outcome["reader"]) for outcome in outcomes} == set(itertools.product(paths, READERS))
    assert [outcome for outcome in outcomes if outcome["seconds"] > SECONDS_PER_FILE] == []
    assert [outcome for outcome in outcomes if not outcome["ended"].startswith(("DataError", "read"))] == []
    unnamed = [o for o in outcomes if o["ended"].startswith("DataError") and o["path"] not in o["ended"]]
    assert unnamed == []
    accepted = [o["path"] for o in outcomes if o["reader"] == "read_epoch" and o["ended"].startswith("read")]
    assert accepted == []


def read_all(paths: list[str]) -> None:
    """Gives each file to each reader, and prints a line with the outcome of each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for path, (name, reader) in itertools.product(paths, READERS.items()):
        begun = time.monotonic()
        try:
            ended = f"read {reader(path)}"
        except DataError as error:
            ended = f"DataError {error}"
        print(
            json.dumps({"path": path, "reader": name, "seconds": time.monotonic() - begun, "ended": ended}), flush=True
        )


RULES = {"chunks": RecordRules(N_CTX, N_VOCAB), "documents": RecordRules(None, N_VOCAB)}


def named(path: str) -> Shard:
    return Shard(path, count_in_name(path))


def numbers_of(path: str) -> np.ndarray:
    """Returns the numbers of all records of the file, and three more."""
    return np.arange(count_in_name(path) + 3)


def training(path: str, on_bad_record: str, datatype: str) -> int:
    """Reads the first batches, and those that are prefetched, as training does."""
    config = run_config((use_of("a", stitch=2, datatype=datatype),), "generic_text", batch_size=8)
    data = dataclasses.replace(config.data, on_bad_record=on_bad_record, max_bad_share=1.0)
    batches = inputs.training_batches(dataclasses.replace(config, data=data), [path])
    return sum(len(batch.problems) for batch in itertools.islice(batches, 3))


READERS: dict[str, Callable[[str], object]] = {
    "read_examples": lambda path: sum(1 for _ in read_examples(path)),
    "counting": lambda path: list_shards(path)[0].n_examples,
    "read_epoch": lambda path: sum(1 for _ in read_epoch([named(path)], RULES["chunks"])),
    "read_epoch of documents": lambda path: sum(1 for _ in read_epoch([named(path)], RULES["documents"])),
    "read": lambda path: len(Records([named(path)], RULES["chunks"]).read(numbers_of(path))),
    "try_read": lambda path: len(Records([named(path)], RULES["chunks"]).try_read(numbers_of(path))),
    "training, stop": lambda path: training(path, "stop", "chunks"),
    "training, skip": lambda path: training(path, "skip", "chunks"),
    "training on documents, stop": lambda path: training(path, "stop", "documents_random"),
    "training on documents, skip": lambda path: training(path, "skip", "documents_fixed"),
}
