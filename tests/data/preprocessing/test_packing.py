"""Tests of data/preprocessing/packing.py."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.preprocessing.packing
from configs.errors import DataError
from data.preprocessing.packing import (
    MAX_PROBLEMS,
    DocumentPacker,
    ExamplePacker,
    PackingStats,
    ResumePoint,
    ShardLayout,
    ShuffleBuffer,
)
from data.preprocessing.splits import DocumentPosition

SEPARATOR, PADDING = 100, 101


def pack(documents: Iterable[list[int]], example_tokens: int, minimum_tokens: int = 0) -> tuple[list, PackingStats]:
    packer = ExamplePacker(ShardLayout("a", example_tokens, 9, SEPARATOR, PADDING, minimum_tokens), ResumePoint(), 0)
    examples, position = [], DocumentPosition()
    for document in documents:
        examples += packer.add(position, np.array(document, dtype=np.int32), 10 * len(document), is_last=True)
        position = position.following()
    return [*examples, *packer.finish(position)], packer.stats


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), max_size=12), st.integers(1, 9))
def test_examples_are_the_joined_documents_cut_without_loss(documents, example_tokens):
    examples, stats = pack(documents, example_tokens)
    expected = [token for document in documents for token in [*document, SEPARATOR]]
    padding = -len(expected) % example_tokens
    assert [token for example in examples for token in example] == expected + [PADDING] * padding
    assert {len(example) for example in examples} <= {example_tokens}
    assert (stats.separator_tokens, stats.padding_tokens) == (len(documents), padding)
    assert stats.examples == len(examples)


def documents_of(*lengths: int) -> list[list[int]]:
    return [list(range(length)) for length in lengths]


def kept_lengths(examples: list[np.ndarray]) -> list[int]:
    """Returns the tokens before each separator, of examples of one token."""
    ids = [int(example[0]) for example in examples]
    ends = [n for n, token in enumerate(ids) if token == SEPARATOR]
    return [end - start - 1 for start, end in zip([-1, *ends], ends, strict=False)]


def test_short_and_empty_documents_are_left_out_and_counted():
    examples, stats = pack(documents_of(3, 0, 2, 5, 1), 1, minimum_tokens=3)
    assert kept_lengths(examples) == [3, 5]
    assert (stats.documents_kept, stats.discarded_empty, stats.discarded_short) == (2, 1, 2)
    assert (stats.text_tokens, stats.text_bytes) == (8, 80)


def test_without_a_minimum_only_empty_documents_are_left_out():
    examples, stats = pack(documents_of(1, 0, 2), 1)
    assert kept_lengths(examples) == [1, 2]
    assert (stats.discarded_empty, stats.discarded_short) == (1, 0)


def test_undecodable_documents_are_counted_and_the_first_are_named():
    packer = ExamplePacker(ShardLayout("a", 3, 9, SEPARATOR, PADDING), ResumePoint(), 0)
    list(packer.add(DocumentPosition(), np.array([1]), 1, is_last=True))
    for n in range(30):
        packer.stats.discard("undecodable", f"bad{n}: not UTF-8")
    stats = packer.stats
    assert (stats.documents_read, stats.discarded_undecodable) == (31, 30)
    assert stats.problems == [f"bad{n}: not UTF-8" for n in range(MAX_PROBLEMS)]


def test_a_document_too_long_for_a_record_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(data.preprocessing.packing, "MAX_DOCUMENT_TOKENS", 4)
    packer = DocumentPacker(ShardLayout("a", None, 9, SEPARATOR, PADDING), ResumePoint())
    (example,) = packer.add(DocumentPosition(0, 0, 0), np.arange(4), 4, is_last=True)
    assert example.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="^document 7: has more than 4 tokens, too many for one record; write chunks "):
        for _ in range(2):
            list(packer.add(DocumentPosition(1, 2, 7), np.arange(3), 3, is_last=False))


def test_stats_that_do_not_add_up_are_noticed():
    PackingStats(
        documents_read=2, documents_kept=1, discarded_empty=1, text_tokens=7, separator_tokens=1, examples=2
    ).check(4)
    with pytest.raises(AssertionError):
        PackingStats(documents_read=2, documents_kept=1).check(4)
    with pytest.raises(AssertionError):
        PackingStats(text_tokens=7, examples=2).check(4)


def shuffled(examples: list[np.ndarray], size: int) -> list[int]:
    buffer = ShuffleBuffer(size)
    mixed = [drawn for example in examples for drawn in buffer.push(example)]
    return [int(example[0]) for example in [*mixed, *buffer.drain()]]


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_shuffling_loses_nothing_and_is_the_same_each_time(size):
    examples = [np.array([n]) for n in range(100)]
    mixed = shuffled(examples, size)
    assert sorted(mixed) == list(range(100))
    assert mixed == shuffled(examples, size)
    assert all(place >= n - size for place, n in enumerate(mixed))


def test_shuffling_mixes():
    mixed = shuffled([np.array([n]) for n in range(1000)], 500)
    assert np.abs(np.corrcoef(mixed[:500], range(500))[0, 1]) < 0.9
    assert sum(abs(a - b) == 1 for a, b in zip(mixed, mixed[1:], strict=False)) < 20


def test_a_buffer_of_no_size_changes_nothing():
    assert shuffled([np.array([n]) for n in range(100)], 0) == list(range(100))
