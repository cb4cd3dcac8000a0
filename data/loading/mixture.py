"""The datasets of a run as sources of training examples: chunks, or windows that are cut from documents.

Shape suffixes: R rows of one process.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.errors import DataError
from configs.schema import DatasetUse, RunConfig
from data.loading.counter_rng import random_bits, stream_state
from data.loading.position import BatchIndices
from data.loading.reader import RecordRules, Records, segments_of
from data.tfrecord.records import Record
from data.tfrecord.shards import Shard, list_shards, sort_shards

# A token of an example: its weight as a label, and the text that it belongs to, which sees no other of the example.
TOKEN = np.dtype([("id", np.int64), ("weight", np.float32), ("segment", np.int64)])


@dataclass(frozen=True)
class Example:
    """One example as it was read.

    Attributes:
        tokens: `TOKEN` [n_ctx + 1]; None: it is invalid and skipped.
        problems: one message for each record that was skipped.
    """

    tokens: np.ndarray | None
    problems: tuple[str, ...] = ()


# Reads examples of one dataset by their numbers, [R].
Source = Callable[[np.ndarray], Sequence[Example]]


@dataclass(frozen=True)
class Mixture:
    """The datasets that examples are drawn from.

    Attributes:
        weights: relative frequency of each dataset, by a unique name.
        sources: read the examples of each dataset, in the same order.
        examples_per_epoch: how many examples all datasets hold together; of documents, those that share none.
    """

    weights: Mapping[str, float]
    sources: tuple[Source, ...]
    examples_per_epoch: float

    def read(self, indices: BatchIndices) -> list[Example]:
        """Reads the examples of a batch, row by row."""
        examples = [Example(None)] * len(indices.datasets_R)
        for dataset in np.unique(indices.datasets_R):
            (rows,) = np.nonzero(indices.datasets_R == dataset)
            for row, example in zip(rows, self.sources[dataset](indices.examples_R[rows]), strict=True):
                examples[row] = example
        return examples


def mixture_of(config: RunConfig, patterns: Sequence[str]) -> Mixture:
    """Opens the datasets of a run; with `sequential_input` and without weights, all of their files as one dataset.

    Args:
        config: the run.
        patterns: one glob of tfrecords for each of `config.data.datasets`.

    Raises:
        DataError: a glob matches nothing, or a dataset holds no record.
    """
    records = records_of(config, patterns)
    if not _is_mixed(config):
        read = functools.partial(_read_chunks, *records, _may_skip(config))
        return Mixture({"all": 1.0}, (read,), records[0].n_records)
    weights: dict[str, float] = {}
    for use in config.data.datasets:
        weights[_unused_name(use.dataset.id, weights)] = use.weight or 1.0
    sources = tuple(_source(config, number, own) for number, own in enumerate(records))
    uses = zip(config.data.datasets, records, strict=True)
    return Mixture(weights, sources, sum(own.n_records / _records_per_example(config, use) for use, own in uses))


def _records_per_example(config: RunConfig, use: DatasetUse) -> int:
    return 1 if record_rules(config, use).n_ctx is not None else use.stitch


def _unused_name(dataset_id: str, used: Collection[str]) -> str:
    """Returns the id of a dataset, with a number if it is listed before."""
    numbered = (f"{dataset_id}.{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([dataset_id], numbered) if name not in used)


def _is_mixed(config: RunConfig) -> bool:
    """Whether each example's dataset is drawn; GPT-Neo's default mode never does that, whatever the weights."""
    uses = config.data.datasets
    has_weights = len(uses) > 1 and any(use.weight is not None for use in uses)
    return has_weights or config.data.input_fn == "generic_text"


def records_of(config: RunConfig, patterns: Sequence[str]) -> tuple[Records, ...]:
    """Opens the records of each dataset of `mixture_of`; arguments and errors as there."""
    seed = config.training.seed if config.data.shuffle_input_filenames else None
    if not _is_mixed(config):
        return (Records(*shards_as_one(config, zip(config.data.datasets, patterns, strict=True)), seed),)
    return tuple(
        Records(shards_of(use, pattern), record_rules(config, use), seed)
        for use, pattern in zip(config.data.datasets, patterns, strict=True)
    )


def shards_as_one(
    config: RunConfig, patterns: Iterable[tuple[DatasetUse, str]]
) -> tuple[tuple[Shard, ...], RecordRules]:
    """Returns the files of several datasets of chunks, in GPT-Neo's order, and the rules for their records."""
    shards = sort_shards(shard for use, pattern in patterns for shard in shards_of(use, pattern))
    return shards, RecordRules(config.model.n_ctx, config.model.n_vocab, config.data.eos_id)


def shards_of(use: DatasetUse, pattern: str) -> tuple[Shard, ...]:
    """Returns the files of a dataset, which say whether it has segments."""
    return tuple(replace(shard, has_segments=use.dataset.has_segments) for shard in list_shards(pattern))


def record_rules(config: RunConfig, use: DatasetUse) -> RecordRules:
    """Returns the rules for the records of a dataset; documents, from which examples are cut, have any length."""
    has_documents = config.data.input_fn == "generic_text" and use.datatype != "chunks"
    return RecordRules(None if has_documents else config.model.n_ctx, config.model.n_vocab, config.data.eos_id)


def tokens_of(record: Record) -> np.ndarray:
    """Returns the tokens of a record, `TOKEN` [n_ctx + 1], of weight 1 and in segment 1 if it does not say."""
    tokens = np.empty(len(record.ids_L), TOKEN)
    tokens["id"] = record.ids_L
    tokens["weight"] = 1.0 if record.loss_weights_L is None else record.loss_weights_L
    tokens["segment"] = 1 if record.segments_L is None else record.segments_L
    return tokens


def _may_skip(config: RunConfig) -> bool:
    return config.data.on_bad_record == "skip"


def _source(config: RunConfig, number: int, records: Records) -> Source:
    use = config.data.datasets[number]
    if record_rules(config, use).n_ctx is not None:
        return functools.partial(_read_chunks, records, _may_skip(config))
    state = stream_state(config.training.seed, number + 1) if use.datatype == "documents_random" else None
    window = window_of(config, use, state)
    return lambda examples_R: [
        cut_documents(records, _may_skip(config), window, int(example)) for example in examples_R
    ]


def _read_chunks(records: Records, may_skip: bool, examples_R: np.ndarray) -> list[Example]:
    if not may_skip:
        return [Example(tokens_of(record)) for record in records.read(examples_R)]
    read = records.try_read(examples_R)
    return [Example(None, (str(one),)) if isinstance(one, DataError) else Example(tokens_of(one)) for one in read]


@dataclass(frozen=True)
class DocumentWindow:
    """How examples are cut from documents.

    Attributes:
        stitch: number of documents that are joined for an example.
        length: ids of an example.
        eos_id: the id between documents.
        state: of the random numbers that say where a window begins; None: at the beginning.
        has_segments: each document is a segment.
    """

    stitch: int
    length: int
    eos_id: int
    state: int | None
    has_segments: bool = False

    @property
    def end_of_document(self) -> np.ndarray:
        """The token that follows each document, `TOKEN` [1]."""
        return np.array([(self.eos_id, 1.0, 1)], TOKEN)

    def packed(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the tokens of an example, with a segment for each document if the dataset has segments."""
        if not self.has_segments:
            return tokens
        packed = tokens.copy()
        packed["segment"] = segments_of(tokens["id"], self.eos_id)
        return packed

    def start(self, example: int, n_ids: int) -> int:
        """Returns where the window of an example begins in its joined documents of `n_ids` ids."""
        if self.state is None:
            return 0
        (bits,) = random_bits(self.state, np.array([example]))
        return int(bits) % (n_ids - self.length + 1)


def window_of(config: RunConfig, use: DatasetUse, state: int | None = None) -> DocumentWindow:
    """Returns how the examples of a dataset of documents are cut."""
    return DocumentWindow(use.stitch, config.model.n_ctx + 1, config.data.eos_id, state, use.dataset.has_segments)


def cut_documents(records: Records, may_skip: bool, window: DocumentWindow, example: int) -> Example:
    """Cuts example j out of documents j * stitch, ..., (j + 1) * stitch - 1, joined by eos.

    If these are too short, the following documents are joined too; example j + 1 uses those again.

    Source: GPT-Neo's documents_random and documents_fixed, which fail on short documents and cannot resume.
    """
    read = records.try_read if may_skip else records.read
    first, n_read, joined, problems = example * window.stitch, 0, [], []
    while n_read < window.stitch or sum(map(len, joined)) - 1 < window.length:  # the last eos is cut off
        if not joined and n_read >= window.stitch + records.n_records:
            raise DataError(f"on_bad_record = skip: every record is invalid, the last one is {problems[-1]}")
        n_more = window.stitch if n_read == 0 else 1
        for record in read(np.arange(first + n_read, first + n_read + n_more)):
            if isinstance(record, DataError):
                problems.append(str(record))
            else:
                joined += [tokens_of(record), window.end_of_document]
        n_read += n_more
    text = np.concatenate(joined[:-1])
    start = window.start(example, len(text))
    return Example(window.packed(text[start : start + window.length]), tuple(problems))
