"""The position in the data: which examples come next after a number of examples, so that a run resumes exactly.

Examples are numbered over the whole run. Each example's dataset is drawn by the weights, from a generator that is
indexed by the example's number; within its dataset, it is the first example that the dataset has not given yet. So the
position is the number of examples plus the count of each dataset. From there a run continues exactly, even with other
weights, another batch size or another number of processes.

Shape suffixes: B batch, D datasets, R rows of one process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from configs.schema import TrainingConfig
from data.loading.counter_rng import stream_state, uniform

CHOICES_AT_ONCE = 1 << 20
MIXING_STREAM = 0  # the random stream that chooses datasets; dataset d cuts its documents with stream d + 1


@dataclass(frozen=True)
class BatchIndices:
    """The examples that one process reads for one batch.

    Attributes:
        first_example: number of the first of them in the run.
        datasets_R: index of each row's dataset.
        examples_R: number of each row's example within its dataset.
        next_example: number of the example after the batch.
        examples_per_dataset: how many examples each dataset has given, including this batch.
    """

    first_example: int
    datasets_R: np.ndarray
    examples_R: np.ndarray
    next_example: int
    examples_per_dataset: Mapping[str, int]


def batches_from_position(
    weights: Mapping[str, float],
    training: TrainingConfig,
    start_example: int,
    examples_per_dataset: Mapping[str, int] | None,
    own_rows: Callable[[int], range],
    start_step: int = 0,
) -> Iterator[BatchIndices]:
    """Yields the examples of each batch from a position in the data on, without end.

    Args:
        weights: relative frequency of each dataset, by name.
        training: batch size and seed.
        start_example: number of examples that training has read so far.
        examples_per_dataset: how many of them each dataset gave, 0 for one that is not named; None: computed from the
            weights, if they have never changed.
        own_rows: the rows that this process reads of a batch of some size.
        start_step: number of updates that training has made, by which `batch_size_warmup` gives the sizes.
    """
    weights_D = np.array(list(weights.values()))
    if examples_per_dataset is None:
        counts_D = count_choices(weights_D, training.seed, start_example)
    else:
        counts_D = np.array([examples_per_dataset.get(name, 0) for name in weights], dtype=np.int64)
    first = start_example
    for step in itertools.count(start_step):
        size = training.batch_size_at(step)
        rows = slice(own_rows(size).start, own_rows(size).stop)
        datasets_B = choose_datasets(weights_D, training.seed, np.arange(first, first + size))
        examples_B = np.empty(size, dtype=np.int64)
        for dataset, count in enumerate(np.bincount(datasets_B, minlength=len(counts_D))):
            examples_B[datasets_B == dataset] = counts_D[dataset] + np.arange(count)
            counts_D[dataset] += count
        counts = dict(zip(weights, counts_D.tolist(), strict=True))
        yield BatchIndices(first + rows.start, datasets_B[rows], examples_B[rows], first + size, counts)
        first += size


def choose_datasets(weights_D: np.ndarray, seed: int, examples: np.ndarray) -> np.ndarray:
    """Draws the dataset of each numbered example, with probability proportional to the weights."""
    cumulative_D = np.cumsum(weights_D) / np.sum(weights_D)
    samples = uniform(stream_state(seed, MIXING_STREAM), examples)
    return np.minimum(np.searchsorted(cumulative_D, samples, side="right"), len(weights_D) - 1)


def count_choices(weights_D: np.ndarray, seed: int, n_examples: int) -> np.ndarray:
    """Returns how many of the first examples each dataset gave, [D]; takes about 25 ns per example."""
    if len(weights_D) == 1:
        return np.array([n_examples], dtype=np.int64)
    counts_D = np.zeros(len(weights_D), dtype=np.int64)
    for first in range(0, n_examples, CHOICES_AT_ONCE):
        examples = np.arange(first, min(first + CHOICES_AT_ONCE, n_examples))
        counts_D += np.bincount(choose_datasets(weights_D, seed, examples), minlength=len(weights_D))
    return counts_D
