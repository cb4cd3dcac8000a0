"""The benchmark of the chat quickstart: its trigram model against the formula, and which tokens it measures."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chat_quickstart import (
    absolute_discount,
    kneser_ney,
    kneser_ney_perplexity,
    plain_text,
    records_of,
    weighted_trigrams,
)
from configs.schema import DatasetConfig
from data.preprocessing.prepare import prepare_dataset
from data.tfrecord.records import Record
from data.tokenization.tokenizer import load_tokenizer

N_VOCAB = 7


def by_the_formula(train: list[tuple[int, ...]], asked: tuple[int, ...]) -> float:
    """Interpolated Kneser-Ney of Chen and Goodman 1998, equations 13 to 18, counted with dictionaries."""
    counts = Counter(train)
    probability = 1 / N_VOCAB
    levels = [counts]
    for _ in range(2):
        levels.append(Counter(gram[1:] for gram in levels[-1]))
    for order, grams in enumerate(reversed(levels)):
        frequencies = Counter(grams.values())
        n1, n2 = frequencies[1], frequencies[2]
        discount = max(n1 / (n1 + 2 * n2) if n1 else 0, 0.1)
        gram = asked[2 - order :]
        followers = {each: count for each, count in grams.items() if each[:-1] == gram[:-1]}
        if followers:
            total = sum(followers.values())
            own = max(grams.get(gram, 0) - discount, 0) / total
            probability = own + discount * len(followers) / total * probability
    return probability


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    draw = np.random.default_rng(0)
    return np.minimum(draw.geometric(0.4, (200, 3)) - 1, N_VOCAB - 1)


def test_the_trigram_model_is_the_formulas(train: np.ndarray) -> None:
    asked = np.array(np.unravel_index(np.arange(N_VOCAB**3), (N_VOCAB,) * 3)).T
    grams = [tuple(map(int, row)) for row in train]
    expected = [by_the_formula(grams, tuple(map(int, row))) for row in asked]
    np.testing.assert_allclose(kneser_ney(train, N_VOCAB)(asked), expected, rtol=1e-12)


def test_probabilities_after_any_context_add_up_to_one(train: np.ndarray) -> None:
    contexts = defaultdict(float)
    asked = np.array(np.unravel_index(np.arange(N_VOCAB**3), (N_VOCAB,) * 3)).T
    for row, probability in zip(asked, kneser_ney(train, N_VOCAB)(asked), strict=True):
        contexts[tuple(row[:2])] += probability
    np.testing.assert_allclose(list(contexts.values()), 1)


def test_perplexity_is_that_of_the_last_ids(train: np.ndarray) -> None:
    held_out = train[:5]
    expected = np.exp(-np.mean(np.log(kneser_ney(train, N_VOCAB)(held_out))))
    assert kneser_ney_perplexity(train, held_out, N_VOCAB) == pytest.approx(expected)


def test_discounts_are_estimated_from_the_counts_of_counts() -> None:
    assert absolute_discount(np.array([1, 1, 1, 2, 5])) == 3 / 5
    assert absolute_discount(np.array([4, 5])) == 0.1


def test_the_tokens_that_count_are_measured_after_their_own_segment() -> None:
    record = Record(np.array([3, 4, 5, 3, 4, 6, 1]), np.array([0, 0, 0.5, 0, 1, 1, 0]), np.array([1, 1, 1, 2, 2, 2, 0]))
    assert weighted_trigrams(iter([record]), 9).tolist() == [[3, 4, 5], [9, 3, 4], [3, 4, 6]]


def test_plain_text_holds_each_token_of_the_conversations_to_train_on_once(tmp_path: Path) -> None:
    chats = [[f"chat {n} begins", *[f"answer {n}"] * (1 + n % 3)] for n in range(30)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(turns) + "\n" for turns in chats))
    dataset = DatasetConfig(
        id="a", n_vocab=270, dialogue=(f"{tmp_path}/chats.jsonl",), cache_dir=f"{tmp_path}/cache", eval_fraction=0.3
    )
    prepared = prepare_dataset(dataset, 63, lambda line: None)
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    records = list(plain_text(dataclasses.replace(dataset, eos_id=0), tokenizer, 7))
    assert all(len(record.ids_L) == 7 and set(record.segments_L) == {1} for record in records)
    turns = tokenizer.decode(np.concatenate([record.ids_L for record in records]).tolist()).split("<|endoftext|>")[:-1]
    held_out = "".join(tokenizer.decode(record.ids_L) for record in records_of(prepared.eval_pattern))
    expected = [turn for chat in chats if chat[0] not in held_out for turn in chat]
    assert turns == expected[: len(turns)] and len(turns) > 20
    assert sum(map(len, map(tokenizer.encode, expected))) + len(expected) - 7 * len(records) in range(7)
