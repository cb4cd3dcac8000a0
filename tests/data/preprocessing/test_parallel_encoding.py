"""Tests of data/preprocessing/parallel_encoding.py."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator

import pytest

import data.preprocessing.parallel_encoding
from configs.errors import DataError
from data.parallel.process_pool import WAITING_PER_PROCESS
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.parallel_encoding import BATCH_CHARACTERS, BATCH_TEXTS, batch_texts, encode_all
from data.tokenization.bpe_training import train_byte_level_bpe
from data.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_level_bpe(["token stream example"] * 5, 270)


TEXTS = ["token", None, "", "stream " * 50, "ä", None, "example"] * 20


def test_batches_hold_all_texts_in_order_and_are_bounded():
    half = "x" * (BATCH_CHARACTERS // 2)
    texts = ["a", half, half, "b", half * 3, "c"]
    batches = batch_texts(enumerate(texts))
    assert [[text for _, text in batch] for batch in batches] == [["a", half], [half, "b"], [half * 3], ["c"]]
    assert list(batch_texts([])) == []


@pytest.mark.parametrize("processes", [1, 3])
def test_ids_come_back_with_their_tags_in_order(tokenizer, monkeypatch, processes):
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 100)
    tagged = list(enumerate(TEXTS))
    encoded = [
        (tag, None if ids is None else ids.tolist(), count)
        for tag, ids, count in encode_all(tagged, TextEncoder(tokenizer), processes)
    ]
    assert encoded == [
        (n, None, 0) if text is None else (n, tokenizer.encode(text), len(text.encode()))
        for n, text in enumerate(TEXTS)
    ]


def read_ahead(tokenizer: Tokenizer, text: str, processes: int) -> int:
    """Returns how many texts are taken from an endless source before the first comes back."""
    n_taken = 0

    def endless() -> Iterator[tuple[int, str]]:
        nonlocal n_taken
        for n_taken in itertools.count(1):
            yield n_taken, text

    encoded = encode_all(endless(), TextEncoder(tokenizer), processes)
    assert next(encoded)[0] == 1
    encoded.close()
    return n_taken


def test_only_a_few_batches_are_read_ahead(tokenizer, monkeypatch):
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 10)
    assert read_ahead(tokenizer, "token", 2) == 2 * 2 * WAITING_PER_PROCESS + 1
    assert read_ahead(tokenizer, "token", 1) == 3  # a batch of two, and what did not fit


def test_texts_without_a_character_fill_a_batch_as_well(tokenizer):
    assert read_ahead(tokenizer, "", 1) == BATCH_TEXTS + 1


def test_a_killed_process_is_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 10)
    encoded = encode_all(((n, "token") for n in itertools.count()), TextEncoder(tokenizer), 2)
    next(encoded)
    for child in children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(DataError) as error:
        for _ in range(100_000):
            next(encoded)
    assert str(error.value) == (
        "--processes 2: one of them was killed, perhaps for lack of memory; start again with fewer"
    )


def children() -> list[int]:
    """Returns the ids of the processes that encode for this one."""
    return [process.pid for process in multiprocessing.active_children()]
