"""What tasks ask of a model, whatever it is: token ids of texts, and log-probabilities of continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Continuations:
    """What is asked: alternatives after one context.

    Attributes:
        context: token ids, at least one; that of eos stands for the start of a document.
        choices: the token ids of each alternative, 1 to n_ctx.
    """

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]


class Tokenizer(Protocol):
    """The tokenizer of the model."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Returns the ids of each text, without special tokens."""


class TokenScores(Protocol):
    """The scores of the tokens of one choice."""

    @property
    def log_probs(self) -> np.ndarray:
        """Log-probabilities in nats, float [tokens]."""

    @property
    def is_greedy(self) -> np.ndarray:
        """Whether each token is the argmax, of equal logits the first, bool [tokens]."""


class Scorer(Protocol):
    """A model that scores continuations."""

    @property
    def n_ctx(self) -> int:
        """The most tokens that the model reads."""

    def score(self, asked: Sequence[Continuations], advance: Callable[[int], None]) -> Sequence[Sequence[TokenScores]]:
        """Returns for each of `asked` the scores of each of its choices.

        A context that does not fit is cut on its left: the last n_ctx + 1 tokens of context and choice count.

        Args:
            asked: in any order; the scores do not depend on it.
            advance: is called with a number n when n of `asked` are done.
        """
