"""The generation benchmark: errors of its command line, and its arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.first_token import has_text
from benchmarks.generate import N_NEW, figures_of, main


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns the last line of the errors of a benchmark that exits with status 2."""
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    try:
        status = main()
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flag", ["--repeats", "--batch_sizes"])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", ""])
def test_counts_below_1_are_refused(
    flag: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(monkeypatch, capsys, f"{flag}={value}")
    assert f"argument {flag}: {value!r} is not an integer >= 1; give a whole number above 0" in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not a program"),
        ("#!/bin/sh\nexit 3\n", "is not a working Python"),
        ("not a program at all", "is not a working Python"),
        (f"#!/bin/sh\nexec '{sys.executable}' -I -S \"$@\"\n", "lacks torch and transformers"),
    ],
)
def test_a_python_without_hugging_face_is_refused(
    content: str | None,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    python = tmp_path / "python"
    if content is not None:
        python.write_text(content)
        python.chmod(0o755)
    message = refused(monkeypatch, capsys, "--hugging_face", str(python))
    assert message.startswith(f"--hugging_face {python}: {problem}; `make parity` makes")


def test_speeds_and_ratios_are_medians_of_the_repeats() -> None:
    turns = [(1.0, 6.0, 0.5), (2.0, 8.0, 0.25), (4.0, 40.0, 0.125)]
    figures = figures_of(turns, "greedy", 8, 1.0, 2)
    assert figures.ratios == (6.0, 4.0, 10.0) and figures.ratio == 6.0
    assert (figures.ours, figures.theirs, figures.ceiling) == (8 * N_NEW / 2, 8 * N_NEW / 8, 8 * N_NEW / 0.25)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\n", False),
        (b"data: [DONE]\n", False),
        (b'data: {"choices": []}\n', False),
        (b'data: {"choices": [{"index": 0, "text": ""}]}\n', False),
        (b'data: {"choices": [{"index": 0, "text": " a"}]}\n', True),
    ],
)
def test_lines_of_a_stream_with_text_are_recognized(line: bytes, expected: bool) -> None:
    assert has_text(line) == expected
