"""Scores of given texts: log P(continuation | context) under a loaded model, for reranking and evaluation tasks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from configs.schema import RunConfig
from runtime.generation.engine import Step, padded_length
from runtime.generation.programs import build_scores
from runtime.mesh.placement import Placement

DEFAULT_ROWS = 16  # texts that are scored at once

# The token ids of a context and of its continuation.
Pair = tuple[Sequence[int], Sequence[int]]


class TextBatches:
    """Runs a program over texts of any lengths, each in a batch with others of about its length.

    Rows are padded on their right, which no earlier position sees. A program is built for each of the lengths of
    `padded_length` that occurs.
    """

    def __init__(self, n_rows: int, n_ctx: int, build: Callable[[int], Step]) -> None:
        """Takes the function that builds the program for a length: from int32 [batch, sequence] to one such output."""
        self._n_rows, self._n_ctx, self._build = n_rows, n_ctx, functools.lru_cache(maxsize=None)(build)
        self._build(padded_length(1, n_ctx))  # building a program makes the model's variables

    def outputs(self, *inputs: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Returns the output for each text, [tokens of the text].

        Args:
            inputs: for each input of the program the ids of all texts, each 1 to n_ctx.
        """
        lengths = [len(text) for text in inputs[0]]
        by_length, found = np.argsort(lengths, kind="stable"), {}
        for start in range(0, len(lengths), self._n_rows):
            batch = by_length[start : start + self._n_rows]
            padded = padded_length(lengths[batch[-1]], self._n_ctx)
            arrays = [self._padded([texts[index] for index in batch], padded) for texts in inputs]
            (output,) = self._build(padded)(*arrays).values()
            found |= {index: output[row, : lengths[index]] for row, index in enumerate(batch)}
        return [found[index] for index in range(len(lengths))]

    def _padded(self, texts: Sequence[Sequence[int]], length: int) -> np.ndarray:
        padded = np.zeros((self._n_rows, length), np.int32)
        for row, text in enumerate(texts):
            padded[row, : len(text)] = text
        return padded


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores continuations of contexts with the current weights of a model.

    Attributes:
        n_ctx: the most tokens that the model reads.
        eos_id: stands for an empty context, as at the start of a document.
        batches: runs the program of `build_scores`.
    """

    n_ctx: int
    eos_id: int
    batches: TextBatches

    def log_probs(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Returns the log-probability of each token of each continuation, in nats; their sum is log P.

        A context that does not fit before its continuation is cut on its left.

        Args:
            pairs: contexts and continuations of 1 to n_ctx tokens.
        """
        assert all(1 <= len(continuation) <= self.n_ctx for _, continuation in pairs), "a continuation does not fit"
        texts = [[*(context or (self.eos_id,)), *continuation][-self.n_ctx - 1 :] for context, continuation in pairs]
        outputs = self.batches.outputs([text[:-1] for text in texts], [text[1:] for text in texts])
        return [output[-len(continuation) :] for output, (_, continuation) in zip(outputs, pairs, strict=True)]


def build_scorer(
    config: RunConfig,
    placement: Placement,
    synchronized: Callable[[Step], Step] = lambda step: step,
    n_rows: int = DEFAULT_ROWS,
) -> Scorer:
    """Builds the scorer of a run's model.

    This makes the model's variables if nothing else has, so it must be done before weights are restored.

    Args:
        config: the run.
        placement: the devices and the layout.
        synchronized: see `ProcessGroup.synchronized`.
        n_rows: how many texts are scored at once.
    """
    batches = TextBatches(
        n_rows, config.model.n_ctx, lambda length: synchronized(build_scores(config, placement, n_rows, length))
    )
    return Scorer(config.model.n_ctx, config.data.eos_id, batches)
