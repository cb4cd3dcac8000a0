"""Tests of data/tokenization/bpe_training.py."""

from __future__ import annotations

import json

import pytest

from configs.errors import DataError
from data.tokenization.bpe_training import train_byte_level_bpe

TEXTS = [f"the quick brown fox number {n} jumps over the lazy dogs, {word}\n" * 3 for n, word in enumerate("äbcdefg")]


def test_the_vocabulary_is_special_tokens_then_bytes_then_merges():
    vocabulary = json.loads(train_byte_level_bpe(TEXTS, 300).to_json())["model"]["vocab"]
    by_id = sorted(vocabulary, key=vocabulary.get)
    assert by_id[:2] == ["<|endoftext|>", "<|padding|>"]
    assert all(len(token) == 1 for token in by_id[2:258])
    assert len(set(by_id[2:258])) == 256
    assert all(len(token) > 1 for token in by_id[258:])
    assert len(by_id) == 300


def test_a_merge_needs_two_occurrences():
    assert train_byte_level_bpe(["abcdef"], 300).n_vocab == 258
    assert "ab" in json.loads(train_byte_level_bpe(["ab ab"], 300).to_json())["model"]["vocab"]


def test_a_tokenizer_is_lossless_by_default():
    text = "ﬁne  Ⅳ text\r\n\ttail "
    assert train_byte_level_bpe(TEXTS, 300).decode(train_byte_level_bpe(TEXTS, 300).encode(text)) == text
    normalizing = train_byte_level_bpe(TEXTS, 300, nfkc=True)
    assert normalizing.decode(normalizing.encode(text)) == "fine  IV text\r\n\ttail "
    prefixing = train_byte_level_bpe(TEXTS, 300, add_prefix_space=True)
    assert prefixing.decode(prefixing.encode(text)) == " " + text


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(DataError) as error:
        train_byte_level_bpe(TEXTS, 257)
    assert str(error.value) == ("vocab_size 257: is too small for 256 bytes and 2 special tokens; give 258 or more")
