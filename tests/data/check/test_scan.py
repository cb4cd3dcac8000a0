"""The statistics of a scan, compared with those of the lists that were written."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data.check.plots import draw_reports
from data.check.report import BINS_PER_OCTAVE, BOUNDARY, DatasetReport, check_no_errors, format_report
from data.check.scan import scan_dataset
from data.preprocessing.manifest import checksum
from data.tfrecord.records import Record, write_examples

EOS_ID = 0
FIRST = [[7, 8, 0, 9], [5, 0, 0, 5]]
SECOND = [[3, 3, 3, 3], [40, 41, 42, 0], [4, 4, 4, 4]]


def decode(ids) -> str:
    return " ".join(str(number) for number in ids)


def figures(report: DatasetReport) -> tuple:
    names = ("n_files", "n_examples", "n_tokens", "n_documents", "min_id", "max_id", "first_example")
    return tuple(getattr(report, name) for name in names)


def lengths_of(documents) -> dict[int, int]:
    """Returns the number of documents in each bin that is not empty."""
    return dict(Counter(int(np.floor(np.log2(len(ids)) * BINS_PER_OCTAVE)) for ids in documents))


def filled(counts: np.ndarray) -> dict[int, int]:
    return {number: int(count) for number, count in enumerate(counts) if count}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.processes])])
def test_every_record_of_every_file_is_counted(tmp_path, processes):
    write_examples(str(tmp_path / "a_2_2.tfrecords"), FIRST)
    write_examples(str(tmp_path / "a_10_3.tfrecords"), SECOND)
    write_examples(str(tmp_path / "b.tfrecords"), [[6, 6, 6, 99]])
    patterns = [f"{tmp_path}/a_*.tfrecords", f"{tmp_path}/b.tfrecords"]
    report = scan_dataset(patterns, 3, 100, EOS_ID, decode, processes)
    assert figures(report) == (3, 6, 24, 3, 0, 99, f"7 8{BOUNDARY}9")
    assert report.boundary_example == f"7 8{BOUNDARY}9"
    ids = sum([*FIRST, *SECOND, [6, 6, 6, 99]], [])
    assert filled(report.counts_V) == dict(Counter(ids))
    documents = [list(part) for is_end, part in itertools.groupby(ids, lambda number: number == 0) if not is_end]
    assert filled(report.lengths_B) == lengths_of(documents)
    assert report.errors == ()


def test_each_record_of_documents_counts_as_one_document(tmp_path):
    documents = [[5], [6, 7, 8, 9, 10], [11, 12]]
    write_examples(str(tmp_path / "d_3.tfrecords"), documents)
    report = scan_dataset([f"{tmp_path}/*"], None, 13, EOS_ID, decode)
    assert figures(report) == (1, 3, 8, 3, 5, 12, "5")
    assert filled(report.lengths_B) == lengths_of(documents)


def test_weighted_tokens_and_segments_are_counted_over_the_records_that_have_them(tmp_path):
    two = Record(np.array(FIRST[0]), np.array([0, 1, 0.25, 0]), np.array([1, 1, 2, 0]))
    write_examples(str(tmp_path / "a_2.tfrecords"), [two, Record(np.array(FIRST[1]), np.array([0, 0, 2, 0]))])
    write_examples(
        str(tmp_path / "b_2.tfrecords"), [Record(np.array(SECOND[0]), None, np.array([1, 2, 3, 4])), SECOND[1]]
    )
    report = scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode)
    assert (report.n_weighted, report.n_segments, report.n_examples, report.errors) == (3, 6, 4, ())
    report = scan_dataset([f"{tmp_path}/a*"], 3, 9, EOS_ID, decode)  # the ids of the first record are not valid
    assert (report.n_weighted, report.n_segments, report.n_examples) == (1, None, 1)


def test_without_a_separator_documents_are_not_counted(tmp_path):
    write_examples(str(tmp_path / "a_2.tfrecords"), FIRST)
    report = scan_dataset([f"{tmp_path}/*"], 3, 13, None, decode)
    assert figures(report) == (1, 2, 8, None, 0, 9, "7 8 0 9")
    assert (filled(report.lengths_B), report.boundary_example) == ({}, None)


PAD_ID = 1


@pytest.mark.parametrize(
    ("examples", "documents"),
    [
        ([[5, 6, 0, 7], [7, 0, PAD_ID, PAD_ID]], [[5, 6], [7, 7]]),  # after the separator of the last document
        ([[5, 6, 0, 7], [7, 7, PAD_ID, PAD_ID], [8, 0, 9, 0]], [[5, 6], [7, 7, 7, 8], [9]]),
        ([[5, 0, 6, 0], [PAD_ID] * 4], [[5], [6]]),
        ([[5, PAD_ID, 6, 0], [PAD_ID, 7, 0, PAD_ID]], [[5, PAD_ID, 6], [PAD_ID, 7]]),  # inside a text it is text
    ],
)
def test_padding_is_no_document(tmp_path, examples, documents):
    write_examples(f"{tmp_path}/a_{len(examples)}.tfrecords", examples)
    report = scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode, padding_id=PAD_ID)
    assert filled(report.lengths_B) == lengths_of(documents) and report.n_documents == len(documents)
    assert report.n_tokens == 4 * len(examples)


@pytest.mark.parametrize("padding_id", [None, EOS_ID])
def test_separators_that_fill_up_an_example_are_no_documents(tmp_path, padding_id):
    write_examples(f"{tmp_path}/a_2.tfrecords", [[5, 6, 0, 7], [7, 0, 0, 0]])
    report = scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode, padding_id=padding_id)
    assert report.n_documents == 2 and filled(report.lengths_B) == lengths_of([[5, 6], [7, 7]])


def test_shuffled_examples_hold_as_many_documents_as_separators_after_text(tmp_path):
    write_examples(f"{tmp_path}/a_3.tfrecords", [[7, 0, PAD_ID, PAD_ID], [8, 8, 0, 5], [5, 0, 6, 7]])
    report = scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode, padding_id=PAD_ID)
    assert report.n_documents == 3


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=1400))
def test_documents_are_measured_over_examples_and_blocks(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("h") / f"a_{len(examples)}.tfrecords"
    write_examples(str(path), examples)
    ids = sum(examples, [])
    documents = [list(part) for is_end, part in itertools.groupby(ids, lambda number: number == 0) if not is_end]
    report = scan_dataset([str(path)], 4, 4, EOS_ID, decode)
    assert filled(report.lengths_B) == lengths_of(documents)
    n_ended = len(documents) - (ids[-1] != EOS_ID)
    assert (report.n_documents, report.n_tokens) == (n_ended or len(documents), len(ids))


@pytest.mark.parametrize(
    ("n_ctx", "n_vocab", "records", "problem"),
    [
        (2, 100, [0, 1, 2], "record 0 holds 4 ids, but n_ctx 2 needs 3"),
        (3, 42, [1], "record 1 holds the id 42, outside [0, 42)"),
    ],
)
def test_invalid_records_are_named_and_the_others_counted(tmp_path, n_ctx, n_vocab, records, problem):
    path = f"{tmp_path}/a_3.tfrecords"
    write_examples(path, SECOND)
    report = scan_dataset([path], n_ctx, n_vocab, EOS_ID, decode)
    (errors,) = report.errors
    assert (errors.path, errors.messages, errors.records) == (path, [], records)
    assert errors.record_messages[0].startswith(f"{path}: {problem}")
    assert report.n_examples == 3 - len(records)
    with pytest.raises(DataError) as error:
        check_no_errors(report.errors)
    assert str(error.value) == "\n".join(
        [*errors.record_messages, f"invalid records: {len(records)}; files with errors: 1"]
    )


def test_a_valid_dataset_passes(tmp_path):
    write_examples(str(tmp_path / "a_2.tfrecords"), FIRST)
    check_no_errors(scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode).errors)


def test_a_dataset_without_a_valid_record_gives_a_report(tmp_path):
    (tmp_path / "a_2.tfrecords").write_bytes(b"nothing of the kind")
    report = scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode)
    assert figures(report) == (1, 0, 0, 0, None, None, "")
    assert "smallest id                 -" in format_report(report)
    draw_reports({"none": report}, f"{tmp_path}/picture.png")


@pytest.mark.parametrize("pattern", ["none*", ""])
def test_a_glob_that_matches_no_file_is_an_error(tmp_path, pattern):
    with pytest.raises(DataError, match=f"^{tmp_path}/{pattern}".replace("*", r"\*") + ".*: "):
        scan_dataset([f"{tmp_path}/{pattern}"], 3, 100, EOS_ID, decode)


UNKNOWN_TOKENIZER = {"path": "t", "n_vocab": 100, "sha256": ""}


def write_with_manifest(folder: Path, examples, tokenizer=UNKNOWN_TOKENIZER) -> str:
    path = f"{folder}/m_0_0_{len(examples)}.tfrecords"
    write_examples(path, examples)
    n_bytes, digest = checksum(path)
    name = path.rpartition("/")[2]
    entry = {"name": name, "examples": len(examples), "tokens": 4 * len(examples), "documents": 1}
    entry |= {"bytes": n_bytes, "sha256": digest}
    values = {"format": 1, "name": "m", "example_tokens": 4, "tokenizer": tokenizer}
    values |= {"settings": {"separator": EOS_ID}, "input": {"files": 1, "bytes": 1}}
    values |= {"parts": {"train": {"account": {}, "files": [entry]}}}
    (folder / "m.manifest.json").write_text(json.dumps(values))
    return path


def messages_of(folder: Path) -> list[str]:
    report = scan_dataset([f"{folder}/*.tfrecords"], 3, 100, EOS_ID, decode)
    return [message for errors in report.errors for message in errors.messages]


def test_files_are_compared_with_their_manifest(tmp_path):
    path = write_with_manifest(tmp_path, SECOND)
    assert messages_of(tmp_path) == []
    write_examples(path, [[5, 5, 5, 5], *SECOND[1:]])
    assert messages_of(tmp_path) == [
        f"{path}: has another checksum than its manifest says; copy it again, or write the dataset again"
    ]
    write_examples(path, SECOND[:2])
    printed = messages_of(tmp_path)
    assert [message.split("; ")[0].removeprefix(f"{path}: ") for message in printed] == [
        "holds 2 examples, but its name says 3",
        "holds 2 examples, but its manifest says 3",
        f"has {Path(path).stat().st_size} bytes, but its manifest says {Path(path).stat().st_size // 2 * 3}",
    ]


def test_a_file_that_the_manifest_lists_must_exist(tmp_path):
    path = write_with_manifest(tmp_path, SECOND)
    Path(path).rename(tmp_path / "other_3.tfrecords")
    (message,) = messages_of(tmp_path)
    assert message.startswith(f"{path}: is missing, but its manifest lists it; ")


def test_a_broken_manifest_is_named_and_does_not_stop_the_scan(tmp_path):
    write_with_manifest(tmp_path, SECOND)
    (tmp_path / "m.manifest.json").write_text("{")
    (message,) = messages_of(tmp_path)
    assert message.startswith(f"{tmp_path}/m.manifest.json: is not a manifest")


def test_the_boundary_shown_has_text_on_both_sides(tmp_path):
    write_examples(str(tmp_path / "a_3.tfrecords"), [[0, 1, 1, 1], [1, 1, 0, 0], [2, 3, 0, 5]])
    report = scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode)
    assert report.first_example == f"{BOUNDARY}1 1 1"
    assert report.boundary_example == f"2 3{BOUNDARY}5"


@pytest.mark.parametrize(
    ("examples", "first", "boundary"),
    [
        ([[1, 0, PAD_ID, PAD_ID]], "1", None),
        ([[1, 2, 0, PAD_ID], [3, 0, 4, PAD_ID]], "1 2", f"3{BOUNDARY}4"),
        ([[1, 2, 3, 0], [PAD_ID] * 4], f"1 2 3{BOUNDARY}", None),
        ([[PAD_ID] * 4], "", None),
    ],
)
def test_no_document_is_shown_to_begin_in_padding(tmp_path, examples, first, boundary):
    write_examples(f"{tmp_path}/a_{len(examples)}.tfrecords", examples)
    report = scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode, padding_id=PAD_ID)
    assert (report.first_example, report.boundary_example) == (first, boundary)


def test_padding_is_shown_as_one_boundary(tmp_path):
    write_examples(str(tmp_path / "a_1.tfrecords"), [[1, 0, 0, 0]])
    assert scan_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode).first_example == f"1{BOUNDARY}"


def test_conversations_are_shown_by_their_turns(tmp_path):
    """Turns that count in the loss follow `>`, and the end of text ends a turn but no conversation."""
    one = Record(np.array([5, 0, 6, 7, 0, 8, 0, 1]), np.array([0, 0, 1, 1, 1, 0, 0, 0.0]), np.array([1] * 7 + [0]))
    two = Record(np.array([5, 0, 6, 0, 7, 0, 8, 0]), np.array([0, 0, 1, 1] * 2), np.repeat([1, 2], 4))
    write_examples(str(tmp_path / "a_2.tfrecords"), [one, two])
    report = scan_dataset([f"{tmp_path}/*"], 7, 9, EOS_ID, decode, padding_id=1)
    assert report.first_example == "  5 0\n> 6 7 0\n  8 0"
    assert report.boundary_example == f"  5 0\n> 6 0{BOUNDARY}  7 0\n> 8 0"
    assert report.n_documents == report.n_segments == 3
    assert filled(report.lengths_B) == lengths_of([range(7), range(4), range(4)])


def test_documents_that_are_segments_are_shown_without_weights(tmp_path):
    write_examples(str(tmp_path / "a_1.tfrecords"), [Record(np.array([5, 6, 7, 1]), None, np.array([1, 1, 2, 0]))])
    report = scan_dataset([f"{tmp_path}/*"], 3, 9, EOS_ID, decode, padding_id=1)
    assert report.first_example == f"5 6{BOUNDARY}7"
