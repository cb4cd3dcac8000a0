"""The figures of a scan are compared with those of the lists that were written."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError, UserError
from data.check.plots import draw_reports, frequencies_by_rank, length_bars
from data.check.scan import (
    BINS_PER_OCTAVE,
    BORDER,
    FILES_SHOWN,
    MESSAGES_KEPT,
    DatasetReport,
    FileDamage,
    check_sound,
    describe_damages,
    format_report,
    inspect_dataset,
)
from data.preprocessing.manifest import checksum
from data.tfrecord.records import write_examples

EOS_ID = 0
FIRST = [[7, 8, 0, 9], [5, 0, 0, 5]]
SECOND = [[3, 3, 3, 3], [40, 41, 42, 0], [4, 4, 4, 4]]


def decode(ids) -> str:
    return " ".join(str(number) for number in ids)


def figures(report: DatasetReport) -> tuple:
    names = ("n_files", "n_examples", "n_tokens", "n_documents", "min_id", "max_id", "first_example")
    return tuple(getattr(report, name) for name in names)


def lengths_of(documents) -> dict[int, int]:
    """Documents in each bin that holds any."""
    return dict(Counter(int(np.floor(np.log2(len(ids)) * BINS_PER_OCTAVE)) for ids in documents))


def filled(counts: np.ndarray) -> dict[int, int]:
    return {number: int(count) for number, count in enumerate(counts) if count}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_record_of_every_file_is_counted(tmp_path, processes):
    write_examples(str(tmp_path / "a_2_2.tfrecords"), FIRST)
    write_examples(str(tmp_path / "a_10_3.tfrecords"), SECOND)
    write_examples(str(tmp_path / "b.tfrecords"), [[6, 6, 6, 99]])
    patterns = [f"{tmp_path}/a_*.tfrecords", f"{tmp_path}/b.tfrecords"]
    report = inspect_dataset(patterns, 3, 100, EOS_ID, decode, processes)
    assert figures(report) == (3, 6, 24, 4, 0, 99, f"7 8{BORDER}9")
    assert report.border_example == f"7 8{BORDER}9"
    ids = sum([*FIRST, *SECOND, [6, 6, 6, 99]], [])
    assert filled(report.counts_V) == dict(Counter(ids))
    documents = [list(part) for is_end, part in itertools.groupby(ids, lambda number: number == 0) if not is_end]
    assert filled(report.lengths_B) == lengths_of(documents)
    assert report.damages == ()


def test_where_records_are_documents_each_is_counted_as_one(tmp_path):
    documents = [[5], [6, 7, 8, 9, 10], [11, 12]]
    write_examples(str(tmp_path / "d_3.tfrecords"), documents)
    report = inspect_dataset([f"{tmp_path}/*"], None, 13, EOS_ID, decode)
    assert figures(report) == (1, 3, 8, 3, 5, 12, "5")
    assert filled(report.lengths_B) == lengths_of(documents)


def test_without_a_separator_nothing_is_said_of_documents(tmp_path):
    write_examples(str(tmp_path / "a_2.tfrecords"), FIRST)
    report = inspect_dataset([f"{tmp_path}/*"], 3, 13, None, decode)
    assert figures(report) == (1, 2, 8, None, 0, 9, "7 8 0 9")
    assert (filled(report.lengths_B), report.border_example) == ({}, None)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=1400))
def test_documents_are_measured_over_examples_and_blocks(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("h") / f"a_{len(examples)}.tfrecords"
    write_examples(str(path), examples)
    ids = sum(examples, [])
    documents = [list(part) for is_end, part in itertools.groupby(ids, lambda number: number == 0) if not is_end]
    report = inspect_dataset([str(path)], 4, 4, EOS_ID, decode)
    assert filled(report.lengths_B) == lengths_of(documents)
    assert (report.n_documents, report.n_tokens) == (ids.count(0), len(ids))


# What is wrong.


@pytest.mark.parametrize(
    ("n_ctx", "n_vocab", "records", "problem"),
    [
        (2, 100, [0, 1, 2], "record 0 holds 4 ids, but n_ctx 2 needs 3"),
        (3, 42, [1], "record 1 holds the id 42, outside [0, 42)"),
    ],
)
def test_wrong_records_are_named_and_the_others_counted(tmp_path, n_ctx, n_vocab, records, problem):
    path = f"{tmp_path}/a_3.tfrecords"
    write_examples(path, SECOND)
    report = inspect_dataset([path], n_ctx, n_vocab, EOS_ID, decode)
    (damage,) = report.damages
    assert (damage.path, damage.faults, damage.records) == (path, [], records)
    assert damage.messages[0].startswith(f"{path}: {problem}")
    assert report.n_examples == 3 - len(records)
    with pytest.raises(DataError) as error:
        check_sound(report.damages)
    assert str(error.value) == "\n".join(
        [*damage.messages, f"wrong: {len(records)} records; files in which anything is wrong: 1"]
    )


def test_a_sound_data_set_passes(tmp_path):
    write_examples(str(tmp_path / "a_2.tfrecords"), FIRST)
    check_sound(inspect_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode).damages)


def test_nothing_sound_at_all_is_a_report_too(tmp_path):
    (tmp_path / "a_2.tfrecords").write_bytes(b"nothing of the kind")
    report = inspect_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode)
    assert figures(report) == (1, 0, 0, 0, None, None, "")
    assert "smallest id                 -" in format_report(report)
    draw_reports({"none": report}, f"{tmp_path}/picture.png")


@pytest.mark.parametrize("pattern", ["none*", ""])
def test_a_glob_that_names_no_file_is_refused(tmp_path, pattern):
    with pytest.raises(DataError, match=f"^{tmp_path}/{pattern}".replace("*", r"\*") + ".*: "):
        inspect_dataset([f"{tmp_path}/{pattern}"], 3, 100, EOS_ID, decode)


def test_many_wrong_records_are_named_by_their_numbers():
    damage = FileDamage("a")
    for number in [1, 3, 4, 5, 9, *range(20, 100)]:
        damage.add(number, f"a: record {number} is wrong")
    assert describe_damages([damage]).splitlines() == [
        *(f"a: record {number} is wrong" for number in (1, 3, 4, 5, 9)),
        "a: 85 wrong records: 1, 3-5, 9, 20-99",
        "wrong: 85 records; files in which anything is wrong: 1",
    ]


def test_what_is_printed_is_bounded():
    scattered = FileDamage("s")
    for number in range(0, 2000, 2):
        scattered.add(number, "s: wrong")
    damages = [scattered, *(FileDamage(f"f{number}", ["wrong"]) for number in range(1000))]
    lines = describe_damages(damages).splitlines()
    assert lines[MESSAGES_KEPT].endswith(", 96, 98, and 950 more")
    assert lines[-2] == f"... and {1001 - FILES_SHOWN} more files"
    assert lines[-1] == "wrong: 1,000 records; files in which anything is wrong: 1,001"


# The manifest.


def write_with_manifest(folder: Path, examples) -> str:
    path = f"{folder}/m_0_0_{len(examples)}.tfrecords"
    write_examples(path, examples)
    n_bytes, digest = checksum(path)
    name = path.rpartition("/")[2]
    entry = {"name": name, "examples": len(examples), "tokens": 4 * len(examples), "documents": 1}
    entry |= {"bytes": n_bytes, "sha256": digest}
    values = {"format": 1, "name": "m", "example_tokens": 4, "tokenizer": {"path": "t", "n_vocab": 100, "sha256": ""}}
    values |= {"settings": {"separator": EOS_ID}, "input": {"files": 1, "bytes": 1}}
    values |= {"parts": {"train": {"account": {}, "files": [entry]}}}
    (folder / "m.manifest.json").write_text(json.dumps(values))
    return path


def faults_of(folder: Path) -> list[str]:
    report = inspect_dataset([f"{folder}/*.tfrecords"], 3, 100, EOS_ID, decode)
    return [fault for damage in report.damages for fault in damage.faults]


def test_files_are_compared_with_their_manifest(tmp_path):
    path = write_with_manifest(tmp_path, SECOND)
    assert faults_of(tmp_path) == []
    write_examples(path, [[5, 5, 5, 5], *SECOND[1:]])
    assert faults_of(tmp_path) == [
        f"{path}: has another checksum than its manifest says; copy it again, or write the data set again"
    ]
    write_examples(path, SECOND[:2])
    said = faults_of(tmp_path)
    assert [fault.split("; ")[0].removeprefix(f"{path}: ") for fault in said] == [
        "holds 2 examples, but its name says 3",
        "holds 2 examples, but its manifest says 3",
        f"has {Path(path).stat().st_size} bytes, but its manifest says {Path(path).stat().st_size // 2 * 3}",
    ]


def test_a_file_that_the_manifest_lists_must_be_there(tmp_path):
    path = write_with_manifest(tmp_path, SECOND)
    Path(path).rename(tmp_path / "other_3.tfrecords")
    (fault,) = faults_of(tmp_path)
    assert fault.startswith(f"{path}: is not there, but its manifest lists it; ")


def test_a_broken_manifest_is_named_and_ends_nothing(tmp_path):
    write_with_manifest(tmp_path, SECOND)
    (tmp_path / "m.manifest.json").write_text("{")
    (fault,) = faults_of(tmp_path)
    assert fault.startswith(f"{tmp_path}/m.manifest.json: is no manifest")


# For the screen, and the picture.


def report_of(first_example: str, border_example: str | None = None) -> DatasetReport:
    nothing = np.array([], dtype=np.int64)
    return DatasetReport(2, 3_000, 3_072_000, 1_234, 0, 4095, first_example, border_example, nothing, nothing, ())


def test_the_report_shows_figures_and_a_short_example_whole():
    assert format_report(report_of("def f():\n    return 1")).splitlines() == [
        "files                       2",
        "examples                3,000",
        "tokens              3,072,000",
        "documents               1,234",
        "smallest id                 0",
        "largest id              4,095",
        "first example:",
        "def f():",
        "    return 1",
    ]


def test_of_a_long_example_the_report_shows_500_characters_of_each_end():
    text = "a" * 500 + "b" * 1500 + "c" * 500
    shown = f"{'a' * 500}\n[... 1,500 characters ...]\n{'c' * 500}"
    assert format_report(report_of(text)).split("first example:\n")[1] == shown
    with_border = format_report(report_of(text, f"x{BORDER}y")).split("first example:\n")[1]
    assert with_border == f"{shown}\nfirst border between documents:\nx{BORDER}y"


def test_a_border_that_the_first_example_shows_is_not_shown_twice():
    assert format_report(report_of(f"x{BORDER}y", f"x{BORDER}y")).count(BORDER) == 1


def test_the_border_that_is_shown_has_text_on_both_sides(tmp_path):
    write_examples(str(tmp_path / "a_3.tfrecords"), [[0, 1, 1, 1], [1, 1, 0, 0], [2, 3, 0, 5]])
    report = inspect_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode)
    assert report.first_example == f"{BORDER}1 1 1"
    assert report.border_example == f"2 3{BORDER}5"


def test_padding_is_shown_as_one_border(tmp_path):
    write_examples(str(tmp_path / "a_1.tfrecords"), [[1, 0, 0, 0]])
    assert inspect_dataset([f"{tmp_path}/*"], 3, 100, EOS_ID, decode).first_example == f"1{BORDER}"


def test_the_picture_shows_what_was_counted(tmp_path):
    write_examples(str(tmp_path / "d_4.tfrecords"), [[5] * 3, [6] * 3, [7] * 16, [5]])
    report = inspect_dataset([f"{tmp_path}/*"], None, 13, EOS_ID, decode)
    edges, widths, heights = length_bars(report)
    assert (edges[0], heights[0], heights.sum()) == (1.0, 1, 4)
    (threes,) = [n for n in range(len(edges)) if edges[n] <= 3 < edges[n] + widths[n]]
    assert heights[threes] == 2 and edges[-1] == 16.0 and heights[-1] == 1
    np.testing.assert_allclose(frequencies_by_rank(report), [16 / 23, 4 / 23, 3 / 23])
    picture = tmp_path / "pictures" / "dataset.png"
    draw_reports({"training": report, "$evaluation": report}, str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in picture.parent.iterdir()] == ["dataset.png"]


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^{tmp_path}/file/p.png: cannot be written"):
        draw_reports({"a": report_of("")}, f"{tmp_path}/file/p.png")
