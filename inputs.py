"""Token ids on their way from tfrecords to the model: batches, causal or masked, and prompts.

Everything is a function of the config, the files, and the number of an example, so that a run goes on exactly where it
stopped. Nothing here knows the model.

Shape suffixes: B batch, S sequence (n_ctx), L ids of an example (n_ctx + 1), D datasets.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from configs.errors import DataError
from configs.schema import MAX_SEED, DataConfig, DatasetUse, RunConfig
from data.loading.batch import Batch, SkippedRecords
from data.loading.counter_rng import stream_state, uniform
from data.loading.masking import MaskingDraws, MaskingRules, example_ids, mask_tokens
from data.loading.mixture import BatchIndices, Mixture, assignments, mixture_of, read_examples, record_rules
from data.loading.reader import RecordRules, ahead, read_once
from data.tfrecord.shards import list_shards, sort_shards

BATCHES_AHEAD = 8
FEW_ROWS = 1000  # fewer than these say nothing of a share
MASKING_DRAWS = range(1 << 32, (1 << 32) + 3)  # the streams of `MaskingDraws`, beyond any number of datasets
EVALUATION_SEED = MAX_SEED + 1  # masks held-out text, the same in every run; no training has it


# From records [batch, n_ctx + 1] and the number of the first to tokens, labels, and whether each label counts.
Lesson = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def training_batches(
    config: RunConfig,
    patterns: Sequence[str],
    start_example: int = 0,
    examples_per_dataset: Mapping[str, int] | None = None,
    own_rows: range | None = None,
) -> Iterator[Batch]:
    """Yields full batches, or a part of each, without end, from any example on.

    `sequential_input` without weights reads the chunks of all datasets in GPT-Neo's order: their files together,
    sorted, shuffled by the seed and, after the first epoch, by the epoch; a batch may span two epochs. With weights,
    and with `generic_text`, the dataset of each example is drawn by them; the j-th example of a dataset of chunks is
    chunk j, that of `documents_random` is cut by `cut_documents`. Masking is drawn anew in every epoch.

    Args:
        config: the run; `training.train_batch_size` examples make a batch.
        patterns: one glob of tfrecords for each of `config.data.datasets`.
        start_example: number of examples that training has taken so far, >= 0.
        examples_per_dataset: how many of them each dataset gave, from `Batch`; None: computed from the weights, if
            they have never changed.
        own_rows: the rows of each batch that are yielded, the part of one process of many, which reads nothing else;
            None: all.

    Raises:
        DataError: a glob matches nothing, or a file or record is wrong; the message names it.
    """
    mixture = mixture_of(config, patterns)
    every_row = range(config.training.train_batch_size)
    own_rows = own_rows or every_row
    if examples_per_dataset is None:
        examples_per_dataset = mixture.examples_per_dataset(config.training.seed, start_example)
    to_read = assignments(mixture, config.training, start_example, examples_per_dataset, own_rows)
    read = functools.partial(_read_batch, mixture, _lesson(config, config.training.seed), config.model.n_ctx + 1)
    batches = _within_bounds(ahead(read, to_read, BATCHES_AHEAD), config.data)
    # Of a part nothing can be said: another part may hold labels.
    return map(_check_labels, batches) if own_rows == every_row else batches


def evaluation_batches(
    config: RunConfig, patterns: Sequence[str | None], max_batches: int | None = None
) -> Iterator[Batch]:
    """Yields every held-out example once, always in the same order, that of the files, and masked at the same places.

    The last batch is filled up with rows of weight 0, so that sums over `weights_BS` are exact.

    Args:
        config: the run; `evaluation.eval_batch_size` rows make a batch.
        patterns: one glob of tfrecords for each of `config.data.datasets`; None where one holds nothing out.
        max_batches: end after so many; None: at the end of the data.

    Raises:
        DataError: nothing is held out, a glob matches nothing, or a file or record is wrong; the message names it.
    """
    uses = [(use, pattern) for use, pattern in zip(config.data.datasets, patterns, strict=True) if pattern]
    if not uses:
        names = ", ".join(use.dataset.id for use in config.data.datasets) or "no dataset"
        raise DataError(f"{names}: nothing to evaluate on; give eval_path in a dataset config")
    rows = _EVALUATION_ROWS[config.data.input_fn](config, uses)
    lesson = _lesson(config, EVALUATION_SEED)
    return itertools.islice(_full_batches(rows, config.evaluation.eval_batch_size, lesson), max_batches)


# Batches.


def _full_batches(rows: Iterator[np.ndarray], batch_size: int, lesson: Lesson) -> Iterator[Batch]:
    """Batches of rows that end, the last one filled up."""
    position = 0
    while examples := list(itertools.islice(rows, batch_size)):
        taught = lesson(np.stack(examples), position)
        position += len(examples)
        yield Batch(*_arrays(taught, batch_size), position, None)


def _arrays(taught: tuple[np.ndarray, np.ndarray, np.ndarray], n_rows: int) -> tuple[np.ndarray, ...]:
    tokens_BS, labels_BS, counts_BS = taught
    return (
        _fill_up(tokens_BS, n_rows, np.int32),
        _fill_up(labels_BS, n_rows, np.int32),
        _fill_up(counts_BS, n_rows, np.float32),
    )


def _read_batch(mixture: Mixture, lesson: Lesson, length: int, assignment: BatchIndices) -> Batch:
    examples = read_examples(mixture, assignment)
    is_read_B = np.array([example.ids is not None for example in examples])
    nothing = np.zeros(length, dtype=np.int64)
    ids_BL = np.stack([nothing if example.ids is None else example.ids for example in examples])
    tokens_BS, labels_BS, counts_BS = lesson(ids_BL, assignment.first)
    taught = tokens_BS, labels_BS, counts_BS * is_read_B[:, None]
    problems = tuple(problem for example in examples for problem in example.problems)
    return Batch(*_arrays(taught, len(examples)), assignment.next_example, assignment.examples_per_dataset, problems)


def _within_bounds(batches: Iterator[Batch], data: DataConfig) -> Iterator[Batch]:
    """Counts what is left out, and ends where that is more than may be."""
    skipped = SkippedRecords()
    for batch in batches:
        skipped += SkippedRecords(len(batch.tokens_BS), len(batch.problems))
        if skipped.n_records > data.max_bad_share * max(skipped.n_examples, FEW_ROWS):
            raise DataError(
                f"on_bad_record = skip: {skipped.n_records} records are left out beside {skipped.n_examples} "
                f"examples, more than max_bad_share {data.max_bad_share:g}; the last is {batch.problems[-1]}"
            )
        yield replace(batch, skipped=skipped)


def _fill_up(values_BS: np.ndarray, n_rows: int, dtype: type) -> np.ndarray:
    return np.pad(values_BS.astype(dtype, order="C"), [(0, n_rows - len(values_BS)), (0, 0)])


def _check_labels(batch: Batch) -> Batch:
    if not batch.weights_BS.any() and not batch.problems:
        raise DataError(
            f"examples before number {batch.next_example}: hold no id that may be masked; shorten "
            "mlm_mask_ignore_ids, or give other data"
        )
    return batch


def _lesson(config: RunConfig, seed: int) -> Lesson:
    if not config.model.mlm_training:
        return _next_tokens
    rules = MaskingRules.of(config.data, config.model.n_vocab)

    def masked(ids_BL: np.ndarray, first_example: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids_BS = example_ids(ids_BL, rules.cls_id)
        tokens_BS, chosen_BS = mask_tokens(ids_BS, _masking_draws(seed, first_example, *ids_BS.shape), rules)
        return tokens_BS, ids_BS, chosen_BS

    return masked


def _next_tokens(ids_BL: np.ndarray, first_example: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels_BS = ids_BL[:, 1:]
    return ids_BL[:, :-1], labels_BS, np.ones_like(labels_BS)


def _masking_draws(seed: int, first_example: int, n_examples: int, n_ctx: int) -> MaskingDraws:
    places_BS = first_example * n_ctx + np.arange(n_examples * n_ctx).reshape(n_examples, n_ctx)
    return MaskingDraws(*(uniform(stream_state(seed, stream), places_BS) for stream in MASKING_DRAWS))


# Rows that end, for evaluation.


def _sequential_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    shards = sort_shards(shard for _, pattern in uses for shard in list_shards(pattern))
    return read_once(shards, RecordRules(config.model.n_ctx, config.model.n_vocab))


def _mixed_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    return itertools.chain.from_iterable([_evaluation_rows_of_dataset(config, *use) for use in uses])


def _evaluation_rows_of_dataset(config: RunConfig, use: DatasetUse, pattern: str) -> Iterator[np.ndarray]:
    rules = record_rules(config, use)
    records = read_once(list_shards(pattern), rules)
    return records if rules.n_ctx is not None else _windows(records, config.model.n_ctx, config.data.eos_id)


def _windows(documents: Iterator[np.ndarray], n_ctx: int, eos_id: int) -> Iterator[np.ndarray]:
    """Lays windows of n_ctx + 1 ids over all documents, each followed by eos; every id but the first is a label.

    The last window is filled up from the beginning of the first, so that it holds real text only.
    """
    pending, first = np.array([], dtype=np.int64), None
    for ids in documents:
        pending = np.concatenate([pending, ids, [eos_id]])
        while len(pending) > n_ctx:
            first = pending[: n_ctx + 1] if first is None else first
            yield pending[: n_ctx + 1]
            pending = pending[n_ctx:]
    if len(pending) > 1:
        text = pending if first is None else np.concatenate([pending, first])
        yield np.resize(text, n_ctx + 1)


_EVALUATION_ROWS = {"sequential_input": _sequential_evaluation_rows, "generic_text": _mixed_evaluation_rows}
