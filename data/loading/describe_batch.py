"""Names the files and records that a training batch was read from, for messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from configs.schema import RunConfig
from data.loading.mixture import mixture_of, record_rules, records_of
from data.loading.position import BatchIndices, batches_from_position

MAX_FILES = 4  # named in one message


def describe_batch(
    config: RunConfig,
    patterns: Sequence[str],
    start_example: int,
    examples_per_dataset: Mapping[str, int] | None,
    start_step: int = 0,
) -> str:
    """Names the records of one batch, of all processes together, by file; see `inputs.training_batches`."""
    weights, training = mixture_of(config, patterns).weights, config.training
    indices = next(batches_from_position(weights, training, start_example, examples_per_dataset, range, start_step))
    by_file: dict[str, list[int]] = {}
    for path, record in _records_of_batch(config, patterns, indices):
        by_file.setdefault(path, []).append(record)
    named = [f"{path}: {_format_ranges(numbers)}" for path, numbers in itertools.islice(by_file.items(), MAX_FILES)]
    more = [f"and {len(by_file) - MAX_FILES} more files"] if len(by_file) > MAX_FILES else []
    return "; ".join([*named, *more])


def _records_of_batch(config: RunConfig, patterns: Sequence[str], indices: BatchIndices) -> Iterator[tuple[str, int]]:
    """Yields the file and number of each record; of an example cut from documents, those of all its documents."""
    datasets = records_of(config, patterns)
    for dataset, example in zip(indices.datasets_R.tolist(), indices.examples_R.tolist(), strict=True):
        use = config.data.datasets[dataset]
        count = use.stitch if record_rules(config, use).n_ctx is None else 1
        for shard, record in datasets[dataset].locations(np.arange(example * count, (example + 1) * count)):
            yield shard.path, record


def _format_ranges(numbers: Sequence[int]) -> str:
    """Lists numbers, consecutive ones as a range."""
    ordered = np.unique(numbers)
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
    ranges = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"record{'s' * (len(ordered) > 1)} {', '.join(ranges)}"
