"""A model and a tokenizer for tests: scores are hashes of what stands before a token, and tokens are bytes.

`run_harness.py` imports it in an environment with lm-evaluation-harness; it needs NumPy alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

START_ID = 256


class Asked(Protocol):
    """`tasks.scorer.Continuations`."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Scores:
    """`tasks.scorer.TokenScores`."""

    log_probs: np.ndarray
    is_greedy: np.ndarray


def token_scores(ids: Sequence[int], n_scored: int) -> Scores:
    """Returns the scores of the last tokens of a text, each by all tokens up to it."""
    digest = hashlib.blake2b(np.array(ids[: len(ids) - n_scored], "<i4").tobytes(), digest_size=8)
    found = []
    for token in ids[len(ids) - n_scored :]:
        digest.update(np.array(token, "<i4").tobytes())
        found.append(int.from_bytes(digest.digest(), "little"))
    return Scores(np.array([-(each >> 11) / 2**50 for each in found]), np.array([each % 16 > 0 for each in found]))


@dataclass(frozen=True)
class HashScorer:
    """`tasks.scorer.Scorer`."""

    n_ctx: int

    def score(self, asked: Sequence[Asked], advance: Callable[[int], None]) -> list[list[Scores]]:
        found = []
        for each in asked:
            texts = [(each.context + choice)[-self.n_ctx - 1 :] for choice in each.choices]
            found.append([token_scores(text, len(choice)) for text, choice in zip(texts, each.choices, strict=True)])
            advance(1)
        return found


class Bytes:
    """A tokenizer whose tokens are bytes."""

    start_ids = ()  # texts begin with none

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("utf-8")) for text in texts]
