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
    Record,
    decode_record,
    find_record_issue,
    find_shards,
    parse_examples,
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


@st.composite
def records_of(draw, length: int) -> Record:
    """Draws any valid record of a length."""
    ids = draw(st.lists(st.integers(0, 2**40), min_size=length, max_size=length))
    weights = draw(st.none() | st.lists(st.floats(0, 100, width=32), min_size=length, max_size=length))
    begins = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)), dtype=np.int64)
    n_text, has_segments = draw(st.integers(0, length)), draw(st.booleans())
    segments = np.where(np.arange(length) < n_text, 1 + np.cumsum(begins) - begins[0], 0) if has_segments else None
    return Record(np.array(ids), weights if weights is None else np.array(weights, dtype=np.float32), segments)


def lists_of(record: Record) -> list:
    arrays = (record.ids_L, record.loss_weights_L, record.segments_L)
    return [array if array is None else array.tolist() for array in arrays]


@settings(max_examples=50, deadline=None)
@given(st.lists(records_of(5), min_size=1, max_size=4), st.sampled_from([5, None]))
def test_records_that_are_parsed_together_or_alone_come_back(records, length):
    serialized = [serialize_example(record) for record in records]
    together = parse_examples(serialized, length)
    alone = [decode_record(one, "a", index) for index, one in enumerate(serialized)]
    assert [lists_of(record) for record in together] == [lists_of(record) for record in records]
    assert [lists_of(record) for record in alone] == [lists_of(record) for record in records]
    assert [find_record_issue(record) for record in records] == [None] * len(records)
    for record in (*together, *alone):
        dtypes = [
            array.dtype for array in (record.ids_L, record.loss_weights_L, record.segments_L) if array is not None
        ]
        assert {np.dtype(np.int64)} <= set(dtypes) <= {np.dtype(np.int64), np.dtype(np.float32)}


def test_parsing_another_length_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError):
        parse_examples([serialize_example([1, 2, 3])], 4)


@pytest.mark.parametrize(("feature", "kind"), [("loss_weights", "int64_list"), ("segments", "float_list")])
def test_a_feature_of_another_type_is_named(feature, kind):
    values = {"int64_list": tf.train.Int64List(value=[1]), "float_list": tf.train.FloatList(value=[1.0])}[kind]
    features = tf.train.Example.FromString(serialize_example([1])).features
    features.feature[feature].CopyFrom(tf.train.Feature(**{kind: values}))
    expected = {"loss_weights": "float_list", "segments": "int64_list"}[feature]
    with pytest.raises(DataError, match=f"^a: record 3: feature '{feature}' is {kind}, not {expected}; write the file"):
        decode_record(tf.train.Example(features=features).SerializeToString(), "a", 3)


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
