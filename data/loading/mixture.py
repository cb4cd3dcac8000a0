"""What is read for training: which dataset each example comes from, which of its examples it is, and its ids.

The dataset of an example is a draw by the weights; its number in the dataset is how many the dataset has given before.
Those counts are all there is of a state: with them a run goes on exactly, also with other weights.

Shape suffixes: B batch, D datasets, R rows of one process.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import DataError
from configs.schema import DatasetUse, RunConfig, TrainingConfig
from data.loading.counter_rng import draws, stream_state, uniform
from data.loading.reader import RecordRules, Records
from data.tfrecord.shards import list_shards, sort_shards

DRAWS_AT_ONCE = 1 << 20
MIXING_DRAWS = 0  # the stream of draws that chooses datasets; dataset d cuts its documents with stream d + 1


@dataclass(frozen=True)
class Example:
    """One example as it was read.

    Attributes:
        ids: [n_ctx + 1]; None: it cannot be used, and is left out.
        problems: of records that were left out, a message each.
    """

    ids: np.ndarray | None
    problems: tuple[str, ...] = ()


# From the number of an example of one dataset to the example.
Source = Callable[[np.ndarray], Sequence[Example]]


@dataclass(frozen=True)
class Mixture:
    """Datasets, as they are drawn from.

    Attributes:
        names: of each, for the counts.
        weights_D: how often each is drawn.
        sources: of each.
    """

    names: tuple[str, ...]
    weights_D: np.ndarray
    sources: tuple[Source, ...]

    def examples_per_dataset(self, seed: int, n_examples: int) -> dict[str, int]:
        """How many of the first examples each dataset gave, if the weights were always these."""
        counts_D = count_choices(self.weights_D, seed, n_examples)
        return dict(zip(self.names, counts_D.tolist(), strict=True))


def mixture_of(config: RunConfig, patterns: Sequence[str]) -> Mixture:
    """The datasets of a run, or, with `sequential_input` and without weights, all of their files as one.

    Args:
        config: the run.
        patterns: one glob of tfrecords for each of `config.data.datasets`.

    Raises:
        DataError: a glob matches nothing, or a dataset holds no record.
    """
    records = records_of(config, patterns)
    if not _is_mixed(config):
        return Mixture(("all",), np.ones(1), (functools.partial(_chunks, *records, _may_skip(config)),))
    uses = config.data.datasets
    sources = tuple(_source(config, number, own) for number, own in enumerate(records))
    ids = [use.dataset.id for use in uses]
    names = [f"{name}.{ids[:number].count(name)}" if name in ids[:number] else name for number, name in enumerate(ids)]
    return Mixture(tuple(names), np.array([use.weight or 1.0 for use in uses]), sources)


def _is_mixed(config: RunConfig) -> bool:
    """Whether the dataset of each example is drawn: GPT-Neo's default mode never did that, whatever the weights."""
    uses = config.data.datasets
    has_weights = len(uses) > 1 and any(use.weight is not None for use in uses)
    return has_weights or config.data.input_fn == "generic_text"


def records_of(config: RunConfig, patterns: Sequence[str]) -> tuple[Records, ...]:
    """The records of each dataset of `mixture_of`; arguments and errors as there."""
    seed = config.training.seed if config.data.shuffle_input_filenames else None
    if not _is_mixed(config):
        shards = sort_shards(shard for pattern in patterns for shard in list_shards(pattern))
        return (Records(shards, RecordRules(config.model.n_ctx, config.model.n_vocab), seed),)
    return tuple(
        Records(list_shards(pattern), record_rules(config, use), seed)
        for use, pattern in zip(config.data.datasets, patterns, strict=True)
    )


def record_rules(config: RunConfig, use: DatasetUse) -> RecordRules:
    """What the records of a dataset must obey: where documents are cut, they are of any length."""
    has_documents = config.data.input_fn == "generic_text" and use.datatype != "chunks"
    return RecordRules(None if has_documents else config.model.n_ctx, config.model.n_vocab)


def _may_skip(config: RunConfig) -> bool:
    return config.data.on_bad_record == "skip"


def _source(config: RunConfig, number: int, records: Records) -> Source:
    use = config.data.datasets[number]
    if record_rules(config, use).n_ctx is not None:
        return functools.partial(_chunks, records, _may_skip(config))
    state = stream_state(config.training.seed, number + 1) if use.datatype == "documents_random" else None
    cut = DocumentWindow(use.stitch, config.model.n_ctx + 1, config.data.eos_id, state)
    return lambda examples_R: [cut_documents(records, _may_skip(config), cut, int(example)) for example in examples_R]


def _chunks(records: Records, may_skip: bool, examples_R: np.ndarray) -> list[Example]:
    if not may_skip:
        return [Example(ids) for ids in records.read(examples_R)]
    read = records.read_sound(examples_R)
    return [Example(None, (str(ids),)) if isinstance(ids, DataError) else Example(ids) for ids in read]


# Documents.


@dataclass(frozen=True)
class DocumentWindow:
    """How examples are cut from documents.

    Attributes:
        stitch: documents that are joined for an example.
        length: ids of an example.
        eos_id: what documents are joined by.
        state: of the draws that say where; None: at the beginning.
    """

    stitch: int
    length: int
    eos_id: int
    state: int | None


def cut_documents(records: Records, may_skip: bool, cut: DocumentWindow, example: int) -> Example:
    """Cuts example j out of documents j * stitch, ..., (j + 1) * stitch - 1, joined by eos.

    Where these are too short, the documents after them are joined too; example j + 1 takes those again. The place of
    the cut is draw j, or the beginning.

    Source: GPT-Neo's documents_random and documents_fixed, which fail on short documents and cannot resume.
    """
    read = records.read_sound if may_skip else records.read
    first, n_read, documents, problems = example * cut.stitch, 0, [], []
    while n_read < cut.stitch or _joined_length(documents) < cut.length:
        if not documents and n_read >= cut.stitch + records.n_records:
            raise DataError(f"on_bad_record = skip: no record can be used; the last is {problems[-1]}")
        n_more = cut.stitch if n_read == 0 else 1
        for ids in read(np.arange(first + n_read, first + n_read + n_more)):
            (problems if isinstance(ids, DataError) else documents).append(ids)
        n_read += n_more
    text = _join(documents, cut.eos_id)
    begin = 0 if cut.state is None else _draw(cut.state, example) % (len(text) - cut.length + 1)
    return Example(text[begin : begin + cut.length], tuple(map(str, problems)))


def _draw(state: int, number: int) -> int:
    (draw,) = draws(state, np.array([number]))
    return int(draw)


def _joined_length(documents: Sequence[np.ndarray]) -> int:
    return sum(len(ids) for ids in documents) + len(documents) - 1


def _join(documents: Sequence[np.ndarray], eos_id: int) -> np.ndarray:
    pieces = [piece for ids in documents for piece in (ids, [eos_id])]
    return np.concatenate(pieces[:-1])


# Which example of which dataset.


@dataclass(frozen=True)
class BatchIndices:
    """What one process reads for one batch.

    Attributes:
        first: number of the first of its examples among those of the run.
        datasets_R: the dataset of each of its rows.
        examples_R: and which example of that dataset it is.
        next_example: number of the example after the batch.
        examples_per_dataset: how many examples each dataset has given, with the batch.
    """

    first: int
    datasets_R: np.ndarray
    examples_R: np.ndarray
    next_example: int
    examples_per_dataset: Mapping[str, int]


def assignments(
    mixture: Mixture,
    training: TrainingConfig,
    start_example: int,
    examples_per_dataset: Mapping[str, int],
    own_rows: range,
) -> Iterator[BatchIndices]:
    """What is read for each batch, without end; arguments as of `inputs.training_batches`."""
    size, rows = training.train_batch_size, slice(own_rows.start, own_rows.stop)
    counts_D = np.array([examples_per_dataset.get(name, 0) for name in mixture.names], dtype=np.int64)
    for first in itertools.count(start_example, size):
        datasets_B = choose_datasets(mixture.weights_D, training.seed, np.arange(first, first + size))
        examples_B = np.empty(size, dtype=np.int64)
        for number, count in enumerate(np.bincount(datasets_B, minlength=len(counts_D))):
            examples_B[datasets_B == number] = counts_D[number] + np.arange(count)
            counts_D[number] += count
        after = dict(zip(mixture.names, counts_D.tolist(), strict=True))
        yield BatchIndices(first + own_rows.start, datasets_B[rows], examples_B[rows], first + size, after)


def read_examples(mixture: Mixture, assignment: BatchIndices) -> list[Example]:
    """Reads what is assigned, row by row."""
    rows = [Example(None)] * len(assignment.datasets_R)
    for number in np.unique(assignment.datasets_R):
        (places,) = np.nonzero(assignment.datasets_R == number)
        for place, example in zip(places, mixture.sources[number](assignment.examples_R[places]), strict=True):
            rows[place] = example
    return rows


def choose_datasets(weights_D: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
    """Draws the dataset of each numbered example, with chances in proportion to the weights."""
    shares_D = np.cumsum(weights_D) / np.sum(weights_D)
    positions = uniform(stream_state(seed, MIXING_DRAWS), numbers)
    return np.minimum(np.searchsorted(shares_D, positions, side="right"), len(weights_D) - 1)


def count_choices(weights_D: np.ndarray, seed: int, n_examples: int) -> np.ndarray:
    """Returns how many of the first examples each dataset gave, [D]; about 25 ns an example."""
    if len(weights_D) == 1:
        return np.array([n_examples], dtype=np.int64)
    counts_D = np.zeros(len(weights_D), dtype=np.int64)
    for first in range(0, n_examples, DRAWS_AT_ONCE):
        numbers = np.arange(first, min(first + DRAWS_AT_ONCE, n_examples))
        counts_D += np.bincount(choose_datasets(weights_D, seed, numbers), minlength=len(weights_D))
    return counts_D
