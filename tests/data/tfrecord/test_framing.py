"""Frames are compared with what TensorFlow has written, in intact and damaged files."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tfrecord.framing import WINDOW_BYTES, Frame, walk_frames
from meshtf import tf


def write(path, records) -> list[int]:
    """Writes records and returns where they begin."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return list(itertools.accumulate((16 + len(record) for record in records), initial=0))[:-1]


def valid(starts) -> list[Frame]:
    return [Frame(start, True) for start in starts]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 10**5).map(bytes)), max_size=30))
def test_every_record_is_found(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("frames") / "a"
    starts = write(path, records)
    assert list(walk_frames(str(path))) == valid(starts)


def test_records_across_windows_are_found(tmp_path):
    starts = write(tmp_path / "a", [bytes(WINDOW_BYTES - 30), b"1", b"2" * 50, bytes(3 * WINDOW_BYTES), b"", b"3"])
    assert list(walk_frames(f"{tmp_path}/a")) == valid(starts)


@pytest.mark.parametrize("size", [20, WINDOW_BYTES - 17, WINDOW_BYTES, 2 * WINDOW_BYTES + 5])
def test_after_a_damaged_header_the_next_one_is_found_however_far(tmp_path, size):
    starts = write(tmp_path / "a", [b"first", random.Random(1).randbytes(size), b"third", b"fourth"])
    content = bytearray((tmp_path / "a").read_bytes())
    content[starts[1] + 2] ^= 16
    (tmp_path / "a").write_bytes(content)
    found = list(walk_frames(f"{tmp_path}/a"))
    assert found == [Frame(start, start != starts[1]) for start in starts]


def test_a_length_beyond_the_end_of_the_file_is_damage(tmp_path):
    starts = write(tmp_path / "a", [b"first", b"x" * 100, b"third"])
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[: starts[1]] + content[starts[1] : starts[1] + 20])
    assert list(walk_frames(f"{tmp_path}/a")) == [Frame(0, True), Frame(starts[1], False)]


@pytest.mark.parametrize("content", [b"\0", bytes(10**6), struct.pack("<QI", 0, 0) * 1000, b"\x1f\x8b" * 5000])
def test_a_file_without_a_record_is_one_damaged_frame(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert list(walk_frames(f"{tmp_path}/a")) == [Frame(0, False)]


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / "a").touch()
    assert list(walk_frames(f"{tmp_path}/a")) == []
