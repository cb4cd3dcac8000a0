"""The figures of a scan are compared with those of the lists that were written."""

from __future__ import annotations

import pytest

from configs.errors import DataError
from data.inspection import DatasetReport, format_report, inspect_dataset
from data.tfrecords import write_examples

EOS_ID = 0
FIRST = [[7, 8, 0, 9], [5, 0, 0, 5]]
SECOND = [[3, 3, 3, 3], [40, 41, 42, 0], [4, 4, 4, 4]]


def decode(ids) -> str:
    return " ".join(str(number) for number in ids)


def test_every_record_of_every_file_is_counted(tmp_path):
    write_examples(str(tmp_path / "a_2_2.tfrecords"), FIRST)
    write_examples(str(tmp_path / "a_10_3.tfrecords"), SECOND)
    write_examples(str(tmp_path / "b.tfrecords"), [[6, 6, 6, 99]])
    patterns = [f"{tmp_path}/a_*.tfrecords", f"{tmp_path}/b.tfrecords"]
    assert inspect_dataset(patterns, 3, 100, EOS_ID, decode) == DatasetReport(
        n_files=3, n_examples=6, n_tokens=24, n_documents=4, min_id=0, max_id=99, first_example="7 8 0 9"
    )


def test_where_records_are_documents_each_is_counted_as_one(tmp_path):
    write_examples(str(tmp_path / "d_3.tfrecords"), [[5], [6, 7, 8, 9, 10], [11, 12]])
    assert inspect_dataset([f"{tmp_path}/*"], None, 13, EOS_ID, decode) == DatasetReport(
        n_files=1, n_examples=3, n_tokens=8, n_documents=3, min_id=5, max_id=12, first_example="5"
    )


@pytest.mark.parametrize(
    ("n_ctx", "n_vocab", "problem"),
    [
        (2, 100, "record 0 holds 4 ids, but n_ctx 2 needs 3"),
        (3, 42, r"record 1 holds the id 42, outside \[0, 42\)"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, n_ctx, n_vocab, problem):
    write_examples(str(tmp_path / "a_3.tfrecords"), SECOND)
    with pytest.raises(DataError, match=f"^{tmp_path}/a_3.tfrecords: {problem}"):
        inspect_dataset([f"{tmp_path}/*"], n_ctx, n_vocab, EOS_ID, decode)


def test_the_report_shows_figures_and_a_short_example_whole():
    report = DatasetReport(2, 3_000, 3_072_000, 1_234, 0, 4095, "def f():\n    return 1")
    assert format_report(report).splitlines() == [
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
    report = DatasetReport(1, 1, 1, 1, 0, 0, text)
    assert format_report(report).split("first example:\n")[1] == f"{'a' * 500}\n[... 1,500 characters ...]\n{'c' * 500}"
