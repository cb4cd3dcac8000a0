"""Tests of data/preprocessing/shard_writer.py: files are the packed documents, and writing resumes after any file."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.manifest import Split
from data.preprocessing.packing import PackingStats, ShardLayout
from data.preprocessing.parallel_encoding import encode_all
from data.preprocessing.pipeline import Encode, write_splits
from data.preprocessing.resume import Fingerprint, ResumeFolder
from data.preprocessing.shard_writer import ShardWriter
from data.preprocessing.splits import TRAIN, DocumentOptions, DocumentPosition, TextPiece
from data.text.files import find_files
from data.tfrecord.records import read_examples
from data.tokenization.bpe_training import train_byte_level_bpe

REPOSITORY = Path(__file__).resolve().parents[3]
SEPARATOR, PADDING = 90, 91
LAYOUTS = st.builds(
    ShardLayout,
    prefix=st.just("a"),
    example_tokens=st.integers(1, 6),
    examples_per_file=st.integers(1, 3),
    separator=st.just(SEPARATOR),
    padding=st.just(PADDING),
    minimum_tokens=st.integers(0, 3),
)
PIECES = st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=3)


def resume_folder(folder: str) -> ResumeFolder:
    return ResumeFolder(folder, Fingerprint({}, [("a", 1, 1)]), lambda line: None)


def write(folder: str, documents: list[list[list[int]]], layout: ShardLayout) -> Split:
    writer = ShardWriter(resume_folder(folder), TRAIN, layout)
    for number, pieces in enumerate(documents):
        if number < writer.start.overall:
            continue
        for n, piece in enumerate(pieces, start=1):
            position = DocumentPosition(0, number, number)
            writer.add(position, np.array(piece, dtype=np.int32), 2 * len(piece), is_last=n == len(pieces))
    return writer.finish(DocumentPosition(1, 0, len(documents)))


def finished_files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*.tfrecords"))


def stream_of(folder: str, split: Split) -> list[int]:
    return [int(i) for entry in split.files for example in read_examples(f"{folder}/{entry.name}") for i in example]


def written_again(folder: str, documents: list[list[list[int]]], layout: ShardLayout, split: Split) -> Iterator[Split]:
    """Yields what is written after each of the files, with those after it removed."""
    for last in range(len(split.files), 0, -1):
        Path(f"{folder}/{TRAIN}/{last - 1}.json").unlink()
        Path(f"{folder}/{split.files[last - 1].name}").unlink()
        yield write(folder, documents, layout)


def stats_of(whole: list[list[int]], kept: list[list[int]], **others: int) -> PackingStats:
    n_empty = sum(not ids for ids in whole)
    return PackingStats(
        documents_read=len(whole),
        documents_kept=len(kept),
        discarded_empty=n_empty,
        discarded_short=len(whole) - len(kept) - n_empty,
        text_bytes=2 * sum(map(len, kept)),
        text_tokens=sum(map(len, kept)),
        **others,
    )


@given(st.lists(PIECES, max_size=5), LAYOUTS)
@settings(max_examples=12, deadline=None)
def test_files_are_the_packed_documents_and_writing_resumes_after_any_of_them(documents, layout):
    whole = [[i for piece in pieces for i in piece] for pieces in documents]
    kept = [ids for ids in whole if len(ids) >= max(1, layout.minimum_tokens)]
    expected = [i for ids in kept for i in [*ids, SEPARATOR]]
    with tempfile.TemporaryDirectory() as folder:
        split = write(folder, documents, layout)
        padding = -len(expected) % layout.example_tokens
        assert stream_of(folder, split) == expected + [PADDING] * padding
        n_examples = (len(expected) + padding) // layout.example_tokens
        added = {"separator_tokens": len(kept), "padding_tokens": padding, "examples": n_examples}
        assert split.stats == stats_of(whole, kept, **added)
        assert sum(entry.documents for entry in split.files) == len(kept)
        assert sum(entry.tokens for entry in split.files) == len(expected) + padding
        assert all(again == split for again in written_again(folder, documents, layout, split))


@given(st.lists(PIECES, max_size=5), LAYOUTS)
@settings(max_examples=12, deadline=None)
def test_records_of_documents_are_their_ids_alone_and_writing_resumes_after_any_file(documents, layout):
    layout = replace(layout, example_tokens=None)
    whole = [[i for piece in pieces for i in piece] for pieces in documents]
    kept = [ids for ids in whole if len(ids) >= max(1, layout.minimum_tokens)]
    with tempfile.TemporaryDirectory() as folder:
        split = write(folder, documents, layout)
        records = [ids.tolist() for entry in split.files for ids in read_examples(f"{folder}/{entry.name}")]
        assert records == kept
        assert split.stats == stats_of(whole, kept, examples=len(kept))
        assert [entry.documents for entry in split.files] == [entry.examples for entry in split.files]
        assert sum(entry.tokens for entry in split.files) == sum(map(len, kept))
        assert all(again == split for again in written_again(folder, documents, layout, split))


@given(st.lists(PIECES, max_size=5), LAYOUTS, st.integers(1, 6))
@settings(max_examples=12, deadline=None)
def test_shuffled_files_hold_all_examples_and_writing_resumes_after_any_of_them(documents, layout, shuffle_examples):
    shuffling = replace(layout, shuffle_examples=shuffle_examples)
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as folder:
        in_order, split = write(plain, documents, layout), write(folder, documents, shuffling)
        assert split.stats == in_order.stats
        assert [entry.examples for entry in split.files] == [entry.examples for entry in in_order.files]
        length = layout.example_tokens
        ids, expected = (np.reshape(stream_of(*made), (-1, length)) for made in ((folder, split), (plain, in_order)))
        assert sorted(ids.tolist()) == sorted(expected.tolist())
        for again in written_again(folder, documents, shuffling, split):
            assert again.stats == split.stats
            assert [entry.sha256 for entry in again.files] == [entry.sha256 for entry in split.files]


def test_files_carry_number_process_and_count_in_their_names(tmp_path):
    layout, folder = ShardLayout("a", 2, 3, SEPARATOR, PADDING), tmp_path / "missing" / "out"
    split = write(str(folder), [[[n]] for n in range(7)], layout)
    names = [entry.name for entry in split.files]
    assert names == ["a_0_0_3.tfrecords", "a_1_0_3.tfrecords", "a_2_0_1.tfrecords"]
    assert sorted(path.name for path in folder.glob("a*")) == names
    assert stream_of(str(folder), split)[::2] == list(range(7))


def test_no_documents_give_no_file(tmp_path):
    assert write(str(tmp_path), [], ShardLayout("a", 2, 3, SEPARATOR, PADDING)).files == ()
    assert [path.name for path in tmp_path.iterdir()] == ["start.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        resume_folder(f"{tmp_path}/file/out")
    assert str(error.value).startswith(f"{tmp_path}/file/out: cannot be written: ")
    assert str(error.value).endswith("; make room there, or give another path")


def test_an_interrupted_run_leaves_finished_files_and_is_resumed_after_them(tmp_path):
    layout, folder = ShardLayout("a", 2, 2, SEPARATOR, PADDING), str(tmp_path / "out")
    (tmp_path / "text.jsonl").write_text("".join(f'"{letter}"\n' for letter in "abcdefg"))
    files = find_files([str(tmp_path / "text.jsonl")])
    encoder = TextEncoder(train_byte_level_bpe(["a"], 258))

    def run(encode: Encode | None = None) -> Split:
        return write_splits(files, DocumentOptions(), encoder, {TRAIN: layout}, resume_folder(folder), encode)[TRAIN]

    def interrupted(pieces: Iterable[tuple[TextPiece, str | None]]) -> Iterator[tuple[TextPiece, np.ndarray, int]]:
        yield from itertools.islice(encode_all(pieces, encoder, 1), 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
    assert finished_files(folder) == ["a_0_0_2.tfrecords", "a_1_0_2.tfrecords"]
    assert [len(list(read_examples(f"{folder}/{name}"))) for name in finished_files(folder)] == [2, 2]
    split = run()
    assert finished_files(folder) == [entry.name for entry in split.files]
    assert stream_of(folder, split)[::2] == [encoder.tokenizer.encode(letter)[0] for letter in "abcdefg"]


def test_a_killed_run_leaves_no_half_written_file_under_its_final_name(tmp_path):
    script = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from data.preprocessing.packing import ShardLayout\n"
        "from data.preprocessing.shard_writer import ShardWriter\n"
        "from data.preprocessing.splits import DocumentPosition\n"
        "from tests.data.preprocessing.test_shard_writer import resume_folder\n"
        "writer = ShardWriter(resume_folder(sys.argv[1]), 'train', ShardLayout('a', 10, 10, 90, 91))\n"
        "for number in range(25):\n"
        "    writer.add(DocumentPosition(0, number, number), np.ones(9, np.int32), 9, is_last=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert finished_files(str(tmp_path)) == ["a_0_0_10.tfrecords", "a_1_0_10.tfrecords"]
    assert [len(list(read_examples(str(path)))) for path in sorted(tmp_path.glob("*.tfrecords"))] == [10, 10]
    assert {path.name for path in tmp_path.glob("a_2*")} == {"a_2_0.partial"}


def test_a_file_of_another_size_than_its_record_says_is_written_again(tmp_path):
    layout = ShardLayout("a", 3, 2, SEPARATOR, PADDING, 0)
    documents = [[[1, 2, 3, 4]], [[5]], [[6, 7, 8, 9, 1]]]
    split = write(str(tmp_path), documents, layout)
    first = tmp_path / split.files[0].name
    first.write_bytes(first.read_bytes()[:-1])
    assert write(str(tmp_path), documents, layout) == split
    assert stream_of(str(tmp_path), split)[:5] == [1, 2, 3, 4, SEPARATOR]


def test_a_record_of_other_input_is_not_resumed(tmp_path):
    layout = ShardLayout("a", 3, 1, SEPARATOR, PADDING, 0)
    split = write(str(tmp_path), [[[1, 2]], [[5]], [[6]]], layout)
    record = tmp_path / TRAIN / "1.json"
    values = json.loads(record.read_text())
    record.write_text(json.dumps(values | {"input": "other"}))
    assert len(resume_folder(str(tmp_path)).finished(TRAIN)) == 1
    assert len(split.files) == 3


def test_documents_left_out_are_counted_by_their_reason(tmp_path):
    writer = ShardWriter(resume_folder(str(tmp_path)), TRAIN, ShardLayout("a", 2, 1, SEPARATOR, PADDING, 0))
    writer.discard("undecodable", "b: no text")
    writer.discard("duplicate")
    stats = writer.finish(DocumentPosition(1, 0, 2)).stats
    assert stats == replace(
        PackingStats(), documents_read=2, discarded_undecodable=1, discarded_duplicate=1, problems=["b: no text"]
    )
