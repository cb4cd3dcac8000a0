"""How many tokens a run has seen after a number of steps, whatever the sizes of its batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from configs.schema import RunConfig


@dataclasses.dataclass(frozen=True)
class TokenCount:
    """The tokens of training steps, those that are no labels included.

    Attributes:
        firsts: the first steps of each size of batch, rising from 0.
        tokens_per_step: the tokens of each step from there on.
    """

    firsts: tuple[int, ...]
    tokens_per_step: tuple[int, ...]

    @staticmethod
    def of(config: RunConfig) -> TokenCount:
        """Returns the count of a run."""
        firsts, sizes = zip(*config.training.batch_sizes, strict=True)
        return TokenCount(firsts, tuple(size * config.model.n_ctx for size in sizes))

    def before(self, steps: np.ndarray) -> np.ndarray:
        """Returns the tokens of all steps before each of these, which need not be whole."""
        return _along(steps, self.firsts, self._tokens_at_firsts(), self.tokens_per_step)

    def step_of(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the step at which this many tokens have been seen, the inverse of `before`."""
        return _along(tokens, self._tokens_at_firsts(), self.firsts, [1.0 / own for own in self.tokens_per_step])

    def _tokens_at_firsts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.diff(self.firsts) * self.tokens_per_step[:-1])])


def _along(x: np.ndarray, starts: Sequence[float], values: Sequence[float], slopes: Sequence[float]) -> np.ndarray:
    """Returns the values of a line of straight pieces, whose first and last go on without end."""
    piece = np.maximum(np.searchsorted(starts, x, side="right") - 1, 0)
    return np.take(values, piece) + np.take(slopes, piece) * (np.asarray(x) - np.take(starts, piece))
