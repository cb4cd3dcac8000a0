"""Samples as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runtime.predictions import cut_at, format_samples, sample_texts, write_predictions

EOS = 9


def decode(ids: Sequence[int]) -> str:
    return "".join("abcdefghi"[i] for i in ids)


@pytest.mark.parametrize(
    ("ids", "kept"),
    [([1, 2, 3], [1, 2, 3]), ([1, 9, 2, 9], [1]), ([9, 9], []), ([], []), (np.array([4, 9]), [4])],
)
def test_a_row_ends_before_its_first_eos(ids: Sequence[int], kept: list[int]) -> None:
    assert cut_at(ids, EOS) == kept


def test_the_prompt_stands_before_each_sample_or_is_left_out() -> None:
    prompt_S, written_BN = np.array([0, 1], np.int32), np.array([[2, 3, 4], [5, 9, 9]], np.int32)
    assert sample_texts(prompt_S, written_BN, EOS, decode, with_prompt=True) == ["abcde", "abf"]
    assert sample_texts(prompt_S, written_BN, EOS, decode, with_prompt=False) == ["cde", "f"]


def test_an_eos_in_the_prompt_is_not_shown_and_ends_no_sample() -> None:
    ids = sample_texts(np.array([0, EOS]), np.array([[2, EOS]]), EOS, lambda ids: repr(ids), with_prompt=True)
    assert ids == ["[0, 2]"]


def test_samples_stand_in_the_frame_of_gpt_neo(tmp_path: Path) -> None:
    line = "=" * 40
    framed = f"{line} SAMPLE 0 {line}\n\none\ntwo\n\n{line}{line}\n\n{line} SAMPLE 1 {line}\n\nälter\n\n{line}{line}\n"
    assert format_samples(["one\ntwo", "älter"]) == framed
    path = write_predictions(f"{tmp_path}/run", "exp7", 1234, ["one\ntwo", "älter"])
    assert path == f"{tmp_path}/run/predictions_exp7_1234.txt"
    assert Path(path).read_text(encoding="utf-8") == framed
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["predictions_exp7_1234.txt"]
