"""Tests of data/parts.py: files are the joined documents, and any of them can be the last one before a new start."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.preprocessing.encoding import PackingStats
from data.preprocessing.manifest import Part
from data.preprocessing.resume import Identity, Input, Unfinished
from data.preprocessing.shard_writer import Layout, PartWriter
from data.preprocessing.splits import TRAIN, Place
from data.tfrecord.records import read_examples

SEPARATOR, PADDING = 90, 91
LAYOUTS = st.builds(
    Layout,
    example_tokens=st.integers(1, 6),
    examples_per_file=st.integers(1, 3),
    separator=st.just(SEPARATOR),
    padding=st.just(PADDING),
    minimum_tokens=st.integers(0, 3),
)
PIECES = st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=3)


def unfinished(folder: str) -> Unfinished:
    here = Unfinished(folder, Identity({}, Input([("a", 1, 1)])))
    here.load(lambda line: None)
    return here


def write(folder: str, documents: list[list[list[int]]], layout: Layout) -> Part:
    writer = PartWriter(unfinished(folder), TRAIN, "a", layout)
    for number, pieces in enumerate(documents):
        if number < writer.start.overall:
            continue
        for n, piece in enumerate(pieces, start=1):
            place = Place(0, number, number)
            writer.add(place, np.array(piece, dtype=np.int32), 2 * len(piece), is_last=n == len(pieces))
    return writer.finish(Place(1, 0, len(documents)))


def stream_of(folder: str, part: Part) -> list[int]:
    return [int(i) for entry in part.files for example in read_examples(f"{folder}/{entry.name}") for i in example]


@given(st.lists(PIECES, max_size=5), LAYOUTS)
@settings(max_examples=12, deadline=None)
def test_files_are_the_joined_documents_and_any_of_them_can_be_gone_on_from(documents, layout):
    whole = [[i for piece in pieces for i in piece] for pieces in documents]
    kept = [ids for ids in whole if len(ids) >= max(1, layout.minimum_tokens)]
    expected = [i for ids in kept for i in [*ids, SEPARATOR]]
    with tempfile.TemporaryDirectory() as folder:
        part = write(folder, documents, layout)
        padding = -len(expected) % layout.example_tokens
        assert stream_of(folder, part) == expected + [PADDING] * padding
        n_empty = sum(not ids for ids in whole)
        assert part.account == PackingStats(
            documents_read=len(whole),
            documents_kept=len(kept),
            discarded_empty=n_empty,
            discarded_short=len(whole) - len(kept) - n_empty,
            text_bytes=2 * sum(map(len, kept)),
            text_tokens=sum(map(len, kept)),
            separator_tokens=len(kept),
            padding_tokens=padding,
            examples=(len(expected) + padding) // layout.example_tokens,
        )
        assert sum(entry.documents for entry in part.files) == len(kept)
        assert sum(entry.tokens for entry in part.files) == len(expected) + padding
        for last in range(len(part.files), 0, -1):
            Path(f"{folder}/{TRAIN}/{last - 1}.json").unlink()
            Path(f"{folder}/{part.files[last - 1].name}").unlink()
            assert write(folder, documents, layout) == part


def test_a_file_of_another_size_than_its_record_says_is_written_again(tmp_path):
    layout = Layout(3, 2, SEPARATOR, PADDING, 0)
    documents = [[[1, 2, 3, 4]], [[5]], [[6, 7, 8, 9, 1]]]
    part = write(str(tmp_path), documents, layout)
    first = tmp_path / part.files[0].name
    first.write_bytes(first.read_bytes()[:-1])
    assert write(str(tmp_path), documents, layout) == part
    assert stream_of(str(tmp_path), part)[:5] == [1, 2, 3, 4, SEPARATOR]


def test_a_record_of_other_input_is_not_gone_on_from(tmp_path):
    layout = Layout(3, 1, SEPARATOR, PADDING, 0)
    part = write(str(tmp_path), [[[1, 2]], [[5]], [[6]]], layout)
    record = tmp_path / TRAIN / "1.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"input": "other"}))
    assert len(unfinished(str(tmp_path)).finished(TRAIN)) == 1
    assert len(part.files) == 3


def test_documents_left_out_are_counted_by_their_reason(tmp_path):
    writer = PartWriter(unfinished(str(tmp_path)), TRAIN, "a", Layout(2, 1, SEPARATOR, PADDING, 0))
    writer.leave_out("undecodable", "b: no text")
    writer.leave_out("duplicate")
    account = writer.finish(Place(1, 0, 2)).account
    assert account == replace(
        PackingStats(), documents_read=2, discarded_undecodable=1, discarded_duplicate=1, problems=["b: no text"]
    )
