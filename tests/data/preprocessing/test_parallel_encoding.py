"""Tests of data/tokenizing.py."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

import data.preprocessing.parallel_encoding
from configs.errors import DataError
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.parallel_encoding import BATCH_TEXTS, Tagged, encode_all, encode_batch
from data.preprocessing.process_pool import WAITING_PER_PROCESS
from data.tokenization.tokenizer import Tokenizer
from data.train_tokenizer import train_byte_level_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_level_bpe(["token stream example"] * 5, 270)


TEXTS = ["token", None, "", "stream " * 50, "ä", None, "example"] * 20


def test_a_batch_is_the_ids_of_its_texts_one_after_another(tokenizer):
    batch = encode_batch(TextEncoder(tokenizer), ["token", "", "ä"])
    assert [(ids.tolist(), count) for ids, count in batch.texts()] == [
        (tokenizer.encode("token"), 5),
        ([], 0),
        (tokenizer.encode("ä"), 2),
    ]
    assert (batch.ids.dtype, batch.ends.dtype) == (np.int32, np.int64)
    assert list(encode_batch(TextEncoder(tokenizer), []).texts()) == []


@pytest.mark.parametrize("processes", [1, 3])
def test_ids_come_back_with_their_tags_in_order(tokenizer, monkeypatch, processes):
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 100)
    tagged = [Tagged(n, text) for n, text in enumerate(TEXTS)]
    encoded = [
        (tag, None if ids is None else ids.tolist(), count)
        for tag, ids, count in encode_all(tagged, TextEncoder(tokenizer), processes)
    ]
    assert encoded == [
        (n, None, 0) if text is None else (n, tokenizer.encode(text), len(text.encode()))
        for n, text in enumerate(TEXTS)
    ]


def read_ahead(tokenizer: Tokenizer, text: str, processes: int) -> int:
    """Says how many texts are taken from an endless source before the first comes back."""
    taken = 0

    def endless() -> Iterator[Tagged[int]]:
        nonlocal taken
        for taken in itertools.count(1):
            yield Tagged(taken, text)

    encoded = encode_all(endless(), TextEncoder(tokenizer), processes)
    assert next(encoded)[0] == 1
    encoded.close()
    return taken


def test_no_more_is_read_ahead_than_a_few_batches(tokenizer, monkeypatch):
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 10)
    assert read_ahead(tokenizer, "token", 2) == 2 * 2 * WAITING_PER_PROCESS + 1
    assert read_ahead(tokenizer, "token", 1) == 3  # a batch of two, and what did not fit


def test_texts_without_a_character_fill_a_batch_as_well(tokenizer):
    assert read_ahead(tokenizer, "", 1) == BATCH_TEXTS + 1


def test_a_process_that_is_ended_from_outside_is_told(tokenizer, monkeypatch):
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 10)
    encoded = encode_all((Tagged(n, "token") for n in itertools.count()), TextEncoder(tokenizer), 2)
    next(encoded)
    for child in children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(DataError) as error:
        for _ in range(100_000):
            next(encoded)
    assert str(error.value) == (
        "--processes 2: one of them was ended from outside, for want of memory perhaps; start again with fewer"
    )


def children() -> list[int]:
    """The processes that encode for this one."""
    processes = multiprocessing.active_children()
    return [process.pid for process in processes]
