"""The format of tfrecord files, by hand."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError, UserError
from data.tfrecord.random_access import IndexedFile
from data.tfrecord.records import (
    find_shards,
    parse_example,
    read_examples,
    serialize_example,
    staging_folder,
    write_examples,
)
from data.tfrecord.shards import Shard
from meshtf import tf

REPOSITORY = Path(__file__).resolve().parents[3]


def read_frames(path: Path) -> list[bytes]:
    """Reads TFRecord framing by hand: length (8), its checksum (4), data, its checksum (4)."""
    content, frames = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        frames.append(content[12 : 12 + length])
        content = content[12 + length + 4 :]
    return frames


def test_a_record_is_an_example_with_one_int64_feature_called_text(tmp_path):
    path = tmp_path / "a_0_0_2.tfrecords"
    assert write_examples(str(path), [[1, 2, 300], np.array([0, 50256, 2**31], dtype=np.int64)]) == 2
    first, second = (tf.train.Example.FromString(frame).features.feature for frame in read_frames(path))
    assert list(first) == ["text"]
    assert list(first["text"].int64_list.value) == [1, 2, 300]
    assert list(second["text"].int64_list.value) == [0, 50256, 2**31]
    assert os.listdir(tmp_path) == ["a_0_0_2.tfrecords"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**62), max_size=20))
def test_serialized_ids_come_back(ids):
    assert list(tf.train.Example.FromString(serialize_example(ids)).features.feature["text"].int64_list.value) == ids


def test_reading_gives_what_was_written(tmp_path):
    examples = np.random.default_rng(0).integers(0, 50257, (7, 5))
    path = str(tmp_path / "a.tfrecords")
    write_examples(path, examples)
    read = list(read_examples(path))
    assert all(ids.dtype == np.int64 for ids in read)
    np.testing.assert_array_equal(read, examples)


def test_parsing_in_a_pipeline_takes_single_records_and_batches():
    records = [serialize_example([1, 2, 3]), serialize_example([4, 5, 6])]
    dataset = tf.data.Dataset.from_tensor_slices(records)
    single = list(dataset.map(lambda record: parse_example(record, 3)).as_numpy_iterator())
    batched = list(dataset.batch(2).map(lambda batch: parse_example(batch, 3)).as_numpy_iterator())
    np.testing.assert_array_equal(single, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(batched, [[[1, 2, 3], [4, 5, 6]]])


def test_parsing_another_length_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_example(serialize_example([1, 2, 3]), 4)


def test_a_missing_file_is_named(tmp_path):
    path = str(tmp_path / "none.tfrecords")
    with pytest.raises(DataError) as error:
        list(read_examples(path))
    assert str(error.value) == f"{path}: no such file; check the path"


@pytest.mark.parametrize("cut_bytes", [1, 5, 20])
def test_a_truncated_file_is_named_with_its_record(tmp_path, cut_bytes):
    path = tmp_path / "a.tfrecords"
    write_examples(str(path), [[1, 2, 3]] * 4)
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    with pytest.raises(DataError) as error:
        list(read_examples(str(path)))
    assert str(error.value).startswith(f"{path}: record 3 is truncated or damaged; ")


@pytest.mark.parametrize("compression", [gzip, zlib, bz2, lzma])
def test_a_compressed_file_is_named_as_such(tmp_path, compression):
    path = tmp_path / "a_4.tfrecords"
    write_examples(str(path), [[1, 2, 3]] * 4)
    path.write_bytes(compression.compress(path.read_bytes()))
    name = {"bz2": "bzip2", "lzma": "xz"}.get(compression.__name__, compression.__name__)
    refusal = f"^{path}: is compressed with {name}; unpack it, and give the file inside$"
    with pytest.raises(DataError, match=refusal):
        list(read_examples(str(path)))
    with pytest.raises(DataError, match=refusal):
        IndexedFile(Shard(str(path), 4)).read(2)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.tfrecords"
    write_examples(str(path), [[1, 2, 3]] * 4)
    content = bytearray(path.read_bytes())
    content[len(content) // 4 + 14] ^= 1  # in the data of record 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="record 1 is truncated or damaged"):
        list(read_examples(str(path)))


def float_feature() -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=[1.0]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"no protocol buffer", "record 1 is not a tf.train.Example"),
        (tf.train.Example().SerializeToString(), "record 1 has no feature 'text', only none"),
        (
            tf.train.Example(features=tf.train.Features(feature={"ids": float_feature()})).SerializeToString(),
            "record 1 has no feature 'text', only ['ids']",
        ),
        (
            tf.train.Example(features=tf.train.Features(feature={"text": float_feature()})).SerializeToString(),
            "record 1: feature 'text' is float_list, not int64_list",
        ),
    ],
)
def test_a_foreign_record_is_named(tmp_path, record, message):
    path = str(tmp_path / "a.tfrecords")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(serialize_example([1]))
        writer.write(record)
    with pytest.raises(DataError) as error:
        list(read_examples(path))
    assert str(error.value).startswith(f"{path}: {message}")
    assert str(error.value).endswith("; write the file with data/create_tfrecords.py")


def test_only_the_shards_of_one_name_are_found(tmp_path):
    for name in (
        "a_0_0_1.tfrecords",
        "a_1_0_12.tfrecords",
        "a_b_0_0_1.tfrecords",
        "a_2_0.partial",
        "ba_0_0_1.tfrecords",
    ):
        (tmp_path / name).touch()
    assert find_shards(str(tmp_path), "a") == [f"{tmp_path}/a_0_0_1.tfrecords", f"{tmp_path}/a_1_0_12.tfrecords"]
    assert find_shards(str(tmp_path / "missing"), "a") == []


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        write_examples(f"{tmp_path}/file/a.tfrecords", [[1]])
    assert str(error.value).startswith(f"{tmp_path}/file/a.tfrecords: cannot be written: ")
    assert str(error.value).endswith("; make room there, or give another path")
    with pytest.raises(UserError, match=f"{tmp_path}/none/a.tfrecords: cannot be written: "):
        write_examples(f"{tmp_path}/none/a.tfrecords", [[1]])


def failing_examples():
    yield np.array([1])
    yield np.array([2])
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_only_finished_files(tmp_path):
    write_examples(str(tmp_path / "a.tfrecords"), [[1]])
    with pytest.raises(KeyboardInterrupt):
        write_examples(str(tmp_path / "b.tfrecords"), failing_examples())
    assert os.listdir(tmp_path) == ["a.tfrecords"]


def test_a_killed_write_leaves_no_half_written_file_under_its_final_name(tmp_path):
    script = (
        "import itertools, os, signal, sys\n"
        "from data.tfrecord.records import write_examples\n"
        "def examples():\n"
        "    yield from itertools.repeat([1] * 9, 25)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_examples(sys.argv[1] + '/a.tfrecords', itertools.repeat([1] * 9, 10))\n"
        "write_examples(sys.argv[1] + '/b.tfrecords', examples())\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(read_examples(str(tmp_path / "a.tfrecords")))) == 10
    assert set(os.listdir(tmp_path)) == {"a.tfrecords", "b.tfrecords.partial"}


def test_a_staging_folder_is_empty_at_first_and_removed_at_the_end(tmp_path):
    left_behind = tmp_path / ".a.partial" / "a_0_0_1.tfrecords"
    left_behind.parent.mkdir()
    left_behind.touch()
    with staging_folder(str(tmp_path), "a") as folder:
        assert os.listdir(folder) == []
        write_examples(f"{folder}/a_0_0_1.tfrecords", [np.array([1])])
        assert find_shards(str(tmp_path), "a") == []
    assert os.listdir(tmp_path) == []
