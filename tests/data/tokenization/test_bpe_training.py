"""Tests of data/tokenization/bpe_training.py."""

from __future__ import annotations

import json
import random
import re

import pytest

import data.tokenization.bpe_training
from configs.errors import DataError
from data.tokenization.bpe_training import cut_text, train_byte_level_bpe

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


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (257, "is too small for 256 bytes and 2 special tokens; give 258 or more"),
        (-1, "is too small for 256 bytes and 2 special tokens; give 258 or more"),
        (10**10, "is too large; give 16,777,216 or less"),
        (10**30, "is too large; give 16,777,216 or less"),
    ],
)
def test_a_vocabulary_of_a_size_that_cannot_be_is_refused(size, reason):
    with pytest.raises(DataError) as error:
        train_byte_level_bpe(TEXTS, size)
    assert str(error.value) == f"vocab_size {size}: {reason}"


@pytest.mark.parametrize("options", [{}, {"nfkc": True}, {"add_prefix_space": True}])
def test_one_long_text_gives_the_tokenizer_of_its_lines_in_pieces_of_bounded_length(monkeypatch, options):
    draw = random.Random(1)
    text = "".join(draw.choices(["the", "quick", " ", "  ", "\n", "brown fox,", "jumps, ", "12", "ä", " ﬁne"], k=5000))
    whole = train_byte_level_bpe([text], 400, **options).to_json()
    monkeypatch.setattr(data.tokenization.bpe_training, "PIECE_CHARACTERS", 300)
    assert train_byte_level_bpe([text], 400, **options).to_json() == whole
    parts = (text[start : start + 777] for start in range(0, len(text), 777))
    pieces = list(cut_text(parts, options.get("add_prefix_space", False)))
    assert "".join(pieces) == text and max(map(len, pieces)) < 700 and len(pieces) > 30
    assert train_byte_level_bpe(pieces, 400, **options).to_json() == whole


@pytest.mark.parametrize("letters", ["abcdefghijklmnopqrstuvwxyz", "0123456789", "!?#_-+", " \t", "漢字仮名", "éà"])
def test_a_very_long_word_is_cut_and_said(monkeypatch, letters):
    monkeypatch.setattr(data.tokenization.bpe_training, "MAX_WORD_CHARACTERS", 100)
    monkeypatch.setattr(data.tokenization.bpe_training, "_LONG_BLANK", re.compile(r"\s{101}"))
    lines: list[str] = []
    word = "".join(random.Random(1).choices(letters, k=301))
    given = [f"the {word} end", "the end, " * 60]
    trained = train_byte_level_bpe(given, 300, log=lines.append)
    assert lines[0].startswith("1 word(s) of more than 100 characters were cut to train the tokenizer, such as ")
    cut = word[:100], word[100:200], word[200:300], word[300:]
    if letters != " \t":  # blanks join those beside them
        by_hand = [f"the {cut[0]}", *cut[1:3], f"{cut[3]} end", given[1]]
        assert trained.to_json() == train_byte_level_bpe(by_hand, 300).to_json()
    lines.clear()
    train_byte_level_bpe([f"the {word[:90]} end"], 300, log=lines.append)
    assert lines == []
