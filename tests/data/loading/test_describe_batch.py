"""The records that a message names are those that the batch was read from."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from data.loading.describe_batch import describe_batch
from data.tfrecord.records import read_examples, write_examples
from inputs import training_batches
from tests.test_inputs import run_config, use_of, write_numbered


def named_records(text: str) -> list[tuple[str, int]]:
    """Returns the files and record numbers of a description, in its order."""
    found = []
    for path, words in re.findall(r"(\S+\.tfrecords): records? ([\d, to]+)", text):
        for part in words.rstrip("; ").split(", "):
            first, _, last = part.partition(" to ")
            found += [(path, number) for number in range(int(first), int(last or first) + 1)]
    return found


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("locate")
    for name, first, n_examples in (("x_1", 0, 5), ("x_2", 5, 20), ("x_3", 25, 1)):
        write_numbered(folder / "a", name, first, n_examples)
    write_numbered(folder / "b", "y_1", 100, 17)
    return [f"{folder}/{name}/*.tfrecords" for name in "ab"]


@pytest.mark.parametrize("input_fn", ["sequential_input", "generic_text"])
def test_every_example_of_a_batch_is_named(patterns: list[str], input_fn: str) -> None:
    config = run_config((use_of("a"), use_of("b", weight=3.0)), input_fn, shuffle=True, batch_size=7)
    before, given = 0, None
    for batch in itertools.islice(training_batches(config, patterns), 9):
        named = named_records(describe_batch(config, patterns, before, given))
        read = [int(list(read_examples(path))[number][0]) for path, number in named]
        assert set(read) == set(batch.tokens_BS[:, 0].tolist())
        before, given = batch.next_example, batch.examples_per_dataset


def test_all_documents_of_an_example_are_named(tmp_path: Path) -> None:
    write_examples(str(tmp_path / "d_9.tfrecords"), [np.full(8, 10 + k) for k in range(9)])
    config = run_config((use_of("d", stitch=3, datatype="documents_fixed"),), "generic_text", batch_size=2)
    described = describe_batch(config, [f"{tmp_path}/*.tfrecords"], 0, None)
    assert described == f"{tmp_path}/d_9.tfrecords: records 0 to 5"


def test_at_most_four_files_are_named(tmp_path: Path) -> None:
    for number in range(7):
        write_numbered(tmp_path, f"x_{number}", number, 1)
    config = run_config(batch_size=7)
    described = describe_batch(config, [f"{tmp_path}/*.tfrecords"], 0, None)
    assert described.count("record 0") == 4 and described.endswith("; and 3 more files")
    more = dataclasses.replace(config, training=dataclasses.replace(config.training, train_batch_size=1))
    assert describe_batch(more, [f"{tmp_path}/*.tfrecords"], 3, None) == f"{tmp_path}/x_3_1.tfrecords: record 0"
