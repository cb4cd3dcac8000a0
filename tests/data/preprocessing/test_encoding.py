"""Tests of data/chunking.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.preprocessing.encoding import (
    BATCH_CHARACTERS,
    MOST_PROBLEMS,
    EncodedText,
    PackingStats,
    TextEncoder,
    batch_texts,
    join_documents,
    keep_documents,
    readable_texts,
    shuffle_examples,
)
from data.text.documents import Document
from data.train_tokenizer import train_byte_level_bpe

SEPARATOR, PADDING = 100, 101


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), max_size=12), st.integers(1, 9))
def test_examples_are_the_joined_documents_cut_without_loss(documents, example_tokens):
    account = PackingStats()
    arrays = [np.array(document, dtype=np.int32) for document in documents]
    examples = list(join_documents(arrays, example_tokens, SEPARATOR, PADDING, account))
    expected = [token for document in documents for token in [*document, SEPARATOR]]
    padding = -len(expected) % example_tokens
    assert [token for example in examples for token in example] == expected + [PADDING] * padding
    assert {len(example) for example in examples} <= {example_tokens}
    assert (account.separator_tokens, account.padding_tokens) == (len(documents), padding)
    assert account.examples == len(examples)


def encoded(*lengths: int) -> list[EncodedText]:
    return [EncodedText(np.arange(length, dtype=np.int32), 10 * length) for length in lengths]


def test_short_and_empty_documents_are_left_out_and_counted():
    account = PackingStats()
    kept = list(keep_documents(encoded(3, 0, 2, 5, 1), 3, account))
    assert [len(ids) for ids in kept] == [3, 5]
    assert (account.documents_kept, account.discarded_empty, account.discarded_short) == (2, 1, 2)
    assert (account.text_tokens, account.text_bytes) == (8, 80)


def test_without_a_minimum_only_empty_documents_are_left_out():
    account = PackingStats()
    assert [len(ids) for ids in keep_documents(encoded(1, 0, 2), 0, account)] == [1, 2]
    assert (account.discarded_empty, account.discarded_short) == (1, 0)


def test_undecodable_documents_are_counted_and_the_first_are_named():
    account = PackingStats()
    documents = [Document("good", "text"), *(Document(f"bad{n}", None, "not UTF-8") for n in range(30))]
    assert list(readable_texts(documents, account)) == ["text"]
    assert (account.documents_read, account.discarded_undecodable) == (31, 30)
    assert account.problems == [f"bad{n}: not UTF-8" for n in range(MOST_PROBLEMS)]


def test_an_account_that_does_not_add_up_is_noticed():
    PackingStats(
        documents_read=2, documents_kept=1, discarded_empty=1, text_tokens=7, separator_tokens=1, examples=2
    ).check(4)
    with pytest.raises(AssertionError):
        PackingStats(documents_read=2, documents_kept=1).check(4)
    with pytest.raises(AssertionError):
        PackingStats(text_tokens=7, examples=2).check(4)


def test_batches_hold_all_texts_in_order_and_are_bounded():
    half = "x" * (BATCH_CHARACTERS // 2)
    texts = ["a", half, half, "b", half * 3, "c"]
    assert list(batch_texts(texts)) == [["a", half], [half, "b"], [half * 3], ["c"]]
    assert list(batch_texts([])) == []


def test_text_is_cleaned_only_if_asked_for():
    tokenizer = train_byte_level_bpe(["a"], 258)
    text = "schÃ¶n , well @-@ known"
    for encoder, expected in [
        (TextEncoder(tokenizer), text),
        (TextEncoder(tokenizer, ftfy=True), "schön , well @-@ known"),
        (TextEncoder(tokenizer, wikitext_detokenize=True), "schÃ¶n, well-known"),
        (TextEncoder(tokenizer, ftfy=True, wikitext_detokenize=True), "schön, well-known"),
    ]:
        (result,) = encoder([text])
        assert tokenizer.decode(result.ids) == expected
        assert result.text_bytes == len(expected.encode("utf-8")) == len(result.ids)


@pytest.mark.parametrize("window", [1, 7, 100, 1000])
def test_shuffling_loses_nothing_and_is_the_same_each_time(window):
    examples = [np.array([n]) for n in range(100)]
    mixed = [int(example[0]) for example in shuffle_examples(examples, window)]
    assert sorted(mixed) == list(range(100))
    assert mixed == [int(example[0]) for example in shuffle_examples(examples, window)]
    assert all(place >= n - window for place, n in enumerate(mixed))


def test_shuffling_mixes():
    mixed = [int(example[0]) for example in shuffle_examples([np.array([n]) for n in range(1000)], 500)]
    assert np.abs(np.corrcoef(mixed[:500], range(500))[0, 1]) < 0.9
    assert sum(abs(a - b) == 1 for a, b in zip(mixed, mixed[1:], strict=False)) < 20
