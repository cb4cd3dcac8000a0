"""Tests of data/preprocessing/encoding.py; cutting long texts is tested in tests/data/test_create_tfrecords.py."""

from __future__ import annotations

import numpy as np

from data.preprocessing.encoding import TextEncoder
from data.tokenization.bpe_training import train_byte_level_bpe


def test_a_batch_is_the_ids_of_its_texts_one_after_another():
    tokenizer = train_byte_level_bpe(["token stream example"] * 5, 270)
    batch = TextEncoder(tokenizer)(["token", "", "ä"])
    assert [(ids.tolist(), count) for ids, count in batch.texts()] == [
        (tokenizer.encode("token"), 5),
        ([], 0),
        (tokenizer.encode("ä"), 2),
    ]
    assert (batch.ids.dtype, batch.ends.dtype) == (np.int32, np.int64)
    assert list(TextEncoder(tokenizer)([]).texts()) == []


def test_text_is_cleaned_only_if_asked_for():
    tokenizer = train_byte_level_bpe(["a"], 258)
    text = "schÃ¶n , well @-@ known"
    for encoder, expected in [
        (TextEncoder(tokenizer), text),
        (TextEncoder(tokenizer, ftfy=True), "schön , well @-@ known"),
        (TextEncoder(tokenizer, wikitext_detokenize=True), "schÃ¶n, well-known"),
        (TextEncoder(tokenizer, ftfy=True, wikitext_detokenize=True), "schön, well-known"),
    ]:
        ((ids, text_bytes),) = encoder([text]).texts()
        assert tokenizer.decode(ids) == expected
        assert text_bytes == len(expected.encode("utf-8")) == len(ids)
