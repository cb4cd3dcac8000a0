"""Where the examples of a training batch lie: in which files, and which of their records."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from configs.schema import RunConfig
from data.loading.mixture import BatchIndices, assignments, mixture_of, record_rules, records_of

MAX_FILES = 4  # named in one message


def describe_batch(
    config: RunConfig, patterns: Sequence[str], start_example: int, examples_per_dataset: Mapping[str, int] | None
) -> str:
    """The records of one batch, of all processes together, file by file; arguments as of `inputs.training_batches`."""
    mixture = mixture_of(config, patterns)
    if examples_per_dataset is None:
        examples_per_dataset = mixture.examples_per_dataset(config.training.seed, start_example)
    rows = range(config.training.train_batch_size)
    assignment = next(assignments(mixture, config.training, start_example, examples_per_dataset, rows))
    by_file: dict[str, list[int]] = {}
    for path, record in _records_of_batch(config, patterns, assignment):
        by_file.setdefault(path, []).append(record)
    named = [f"{path}: {_ranges(numbers)}" for path, numbers in itertools.islice(by_file.items(), MAX_FILES)]
    more = [f"and {len(by_file) - MAX_FILES} files more"] if len(by_file) > MAX_FILES else []
    return "; ".join([*named, *more])


def _records_of_batch(
    config: RunConfig, patterns: Sequence[str], assignment: BatchIndices
) -> Iterator[tuple[str, int]]:
    """The file and number of each record; of an example that is cut from documents, those of all its documents."""
    datasets = records_of(config, patterns)
    for dataset, example in zip(assignment.datasets_R.tolist(), assignment.examples_R.tolist(), strict=True):
        stitch = _records_of_example(config, dataset)
        for shard, record in datasets[dataset].places(np.arange(example * stitch, (example + 1) * stitch)):
            yield shard.path, record


def _records_of_example(config: RunConfig, dataset: int) -> int:
    if config.data.input_fn == "sequential_input":
        return 1
    use = config.data.datasets[dataset]
    return 1 if record_rules(config, use).n_ctx is not None else use.stitch


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in a few words: those that follow each other as one range."""
    ordered = sorted(set(numbers))
    places = range(len(ordered))
    ends = [place for place in places if place + 1 == len(ordered) or ordered[place + 1] != ordered[place] + 1]
    starts = [0, *(place + 1 for place in ends[:-1])]
    words = [
        str(ordered[start]) if start == end else f"{ordered[start]} to {ordered[end]}"
        for start, end in zip(starts, ends, strict=True)
    ]
    return f"record{'s' * (len(ordered) > 1)} {', '.join(words)}"
