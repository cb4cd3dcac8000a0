"""Repetition and variety of generated texts, against counts by hand."""

from __future__ import annotations

import pytest

from tasks.text_quality import measure_texts, repeated_share


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([], None),
        ([7, 7, 7], None),
        ([1, 2, 3, 4], 0.0),
        ([7] * 7, 3 / 4),  # four 4-grams, all the same
        ([1, 2, 3, 1, 2, 3, 1, 2], 2 / 5),  # 1231 2312 3123 1231 2312
    ],
)
def test_the_share_of_repeated_ngrams(ids: list[int], share: float | None) -> None:
    assert repeated_share(ids) == (None if share is None else pytest.approx(share))


def test_texts_are_measured_together() -> None:
    measured = measure_texts(["a b a", "a c", ""], [[7] * 7, [1, 2, 3, 4], [9]])
    assert measured == pytest.approx({"repetition_4": (3 / 4 + 0) / 2, "distinct_1": 3 / 5, "distinct_2": 3 / 3})


def test_nothing_is_measured_of_texts_without_words() -> None:
    assert measure_texts(["", " "], [[], [5]]) == {}
