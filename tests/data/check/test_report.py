"""A report as text: statistics, excerpts and errors."""

from __future__ import annotations

import dataclasses

import numpy as np

from data.check.report import (
    BOUNDARY,
    MAX_FILES,
    MAX_MESSAGES,
    DatasetReport,
    FileErrors,
    format_errors,
    format_report,
)


def report_of(first_example: str, boundary_example: str | None = None) -> DatasetReport:
    nothing = np.array([], dtype=np.int64)
    return DatasetReport(2, 3_000, 3_072_000, 1_234, 0, 4095, first_example, boundary_example, nothing, nothing, ())


def test_the_report_shows_statistics_and_a_short_example_in_full():
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


def test_weighted_tokens_and_segments_are_shown_where_there_are_any():
    report = dataclasses.replace(report_of("a"), n_weighted=1_000_000, n_segments=0)
    assert format_report(report).splitlines()[2:6] == [
        "tokens              3,072,000",
        "weighted            1,000,000",
        "segments                    0",
        "documents               1,234",
    ]


def test_a_long_example_is_shortened_to_500_characters_at_each_end():
    text = "a" * 500 + "b" * 1500 + "c" * 500
    shown = f"{'a' * 500}\n[... 1,500 characters ...]\n{'c' * 500}"
    assert format_report(report_of(text)).split("first example:\n")[1] == shown
    with_boundary = format_report(report_of(text, f"x{BOUNDARY}y")).split("first example:\n")[1]
    assert with_boundary == f"{shown}\nfirst document boundary:\nx{BOUNDARY}y"


def test_a_boundary_in_the_first_example_is_not_shown_twice():
    assert format_report(report_of(f"x{BOUNDARY}y", f"x{BOUNDARY}y")).count(BOUNDARY) == 1


def test_many_invalid_records_are_listed_as_ranges():
    errors = FileErrors("a")
    for number in [1, 3, 4, 5, 9, *range(20, 100)]:
        errors.add_record(number, f"a: record {number} is wrong")
    assert format_errors([errors]).splitlines() == [
        *(f"a: record {number} is wrong" for number in (1, 3, 4, 5, 9)),
        "a: 85 invalid records: 1, 3-5, 9, 20-99",
        "invalid records: 85; files with errors: 1",
    ]


def test_the_printed_errors_are_limited():
    scattered = FileErrors("s")
    for number in range(0, 2000, 2):
        scattered.add_record(number, "s: wrong")
    all_errors = [scattered, *(FileErrors(f"f{number}", ["wrong"]) for number in range(1000))]
    lines = format_errors(all_errors).splitlines()
    assert lines[MAX_MESSAGES].endswith(", 96, 98, and 950 more")
    assert lines[-2] == f"... and {1001 - MAX_FILES} more files"
    assert lines[-1] == "invalid records: 1,000; files with errors: 1,001"
