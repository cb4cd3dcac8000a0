"""Training and evaluation batches from tfrecords, for causal or masked language modelling.

Every batch is a function of the config, the files and the number of an example, so that a run resumes exactly where it
stopped. Nothing here knows the model.

Shape suffixes: B batch, S sequence (n_ctx), L ids of an example (n_ctx + 1).
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
from data.loading.masking import MaskingRules, MaskingSamples, example_ids, mask_tokens
from data.loading.mixture import Mixture, mixture_of, record_rules
from data.loading.position import BatchIndices, batches_from_position
from data.loading.reader import RecordRules, prefetch, read_epoch
from data.tfrecord.shards import list_shards, sort_shards

BATCHES_AHEAD = 8
MIN_EXAMPLES = 1000  # with fewer than these, `max_bad_share` allows as much as with these
MASKING_STREAMS = range(1 << 32, (1 << 32) + 3)  # of `MaskingSamples`, beyond any number of datasets
EVALUATION_SEED = MAX_SEED + 1  # masks held-out text the same way in every run; no training uses it

# From the ids of records [batch, n_ctx + 1] and the number of the first to tokens, labels, and whether a label counts.
Targets = tuple[np.ndarray, np.ndarray, np.ndarray]
MakeTargets = Callable[[np.ndarray, int], Targets]


def training_batches(
    config: RunConfig,
    patterns: Sequence[str],
    start_example: int = 0,
    examples_per_dataset: Mapping[str, int] | None = None,
    own_rows: range | None = None,
) -> Iterator[Batch]:
    """Yields full batches, or some rows of each, without end, starting at any example.

    `sequential_input` without weights reads the chunks of all datasets in GPT-Neo's order: their files together,
    sorted, shuffled by the seed and, after the first epoch, by the epoch; a batch may span two epochs. With weights,
    and with `generic_text`, the weights decide how often each dataset is drawn; the j-th example of a dataset of chunks
    is chunk j, that of documents is cut by `cut_documents`. Masking differs in every epoch.

    Args:
        config: the run; `training.train_batch_size` examples make a batch.
        patterns: one glob of tfrecords for each of `config.data.datasets`.
        start_example: number of examples that training has read so far, >= 0.
        examples_per_dataset: how many of them each dataset gave, from `Batch`; None: computed from the weights, if
            they have never changed.
        own_rows: the rows of each batch to yield, for one process of several, which reads nothing else; None: all.

    Raises:
        DataError: a glob matches nothing, or a file or record is invalid; the message names it.
    """
    mixture = mixture_of(config, patterns)
    every_row = range(config.training.train_batch_size)
    own_rows = own_rows or every_row
    indices = batches_from_position(mixture.weights, config.training, start_example, examples_per_dataset, own_rows)
    make_targets = _make_targets(config, config.training.seed)
    read = functools.partial(_read_batch, mixture, make_targets, config.model.n_ctx + 1)
    batches = _limit_skipped(prefetch(read, indices, BATCHES_AHEAD), config.data)
    # Some rows alone prove nothing: the rows of another process may hold labels.
    return map(_check_labels, batches) if own_rows == every_row else batches


def evaluation_batches(
    config: RunConfig, patterns: Sequence[str | None], max_batches: int | None = None
) -> Iterator[Batch]:
    """Yields every held-out example once, always in the order of the files and with the same masked positions.

    The last batch is padded with rows of weight 0, so that sums over `weights_BS` are exact.

    Args:
        config: the run; `evaluation.eval_batch_size` rows make a batch.
        patterns: one glob of tfrecords for each of `config.data.datasets`; None if it has no held-out part.
        max_batches: stops after so many batches; None: at the end of the data.

    Raises:
        DataError: nothing is held out, a glob matches nothing, or a file or record is invalid; the message names it.
    """
    uses = [(use, pattern) for use, pattern in zip(config.data.datasets, patterns, strict=True) if pattern]
    if not uses:
        names = ", ".join(use.dataset.id for use in config.data.datasets) or "no dataset"
        raise DataError(f"{names}: nothing to evaluate on; give eval_path in a dataset config")
    rows = _EVALUATION_ROWS[config.data.input_fn](config, uses)
    make_targets = _make_targets(config, EVALUATION_SEED)
    return itertools.islice(_padded_batches(rows, config.evaluation.eval_batch_size, make_targets), max_batches)


def _padded_batches(rows: Iterator[np.ndarray], batch_size: int, make_targets: MakeTargets) -> Iterator[Batch]:
    """Yields batches of rows, the last one padded."""
    n_examples = 0
    while examples := list(itertools.islice(rows, batch_size)):
        targets = make_targets(np.stack(examples), n_examples)
        n_examples += len(examples)
        yield Batch(*_padded_arrays(targets, batch_size), n_examples, None)


def _padded_arrays(targets: Targets, n_rows: int) -> Iterator[np.ndarray]:
    for values_BS, dtype in zip(targets, (np.int32, np.int32, np.float32), strict=True):
        yield np.pad(values_BS.astype(dtype, order="C"), [(0, n_rows - len(values_BS)), (0, 0)])


def _read_batch(mixture: Mixture, make_targets: MakeTargets, length: int, indices: BatchIndices) -> Batch:
    examples = mixture.read(indices)
    is_valid_B = np.array([example.ids is not None for example in examples])
    blank = np.zeros(length, dtype=np.int64)
    ids_BL = np.stack([blank if example.ids is None else example.ids for example in examples])
    tokens_BS, labels_BS, counts_BS = make_targets(ids_BL, indices.first_example)
    arrays = _padded_arrays((tokens_BS, labels_BS, counts_BS * is_valid_B[:, None]), len(examples))
    problems = tuple(problem for example in examples for problem in example.problems)
    epoch = indices.next_example / mixture.examples_per_epoch
    return Batch(*arrays, indices.next_example, indices.examples_per_dataset, problems, epoch=epoch)


def _limit_skipped(batches: Iterator[Batch], data: DataConfig) -> Iterator[Batch]:
    """Counts the skipped records, and raises `DataError` once they are more than `max_bad_share` allows."""
    skipped = SkippedRecords()
    for batch in batches:
        skipped += SkippedRecords(len(batch.tokens_BS), len(batch.problems))
        if skipped.n_records > data.max_bad_share * max(skipped.n_examples, MIN_EXAMPLES):
            raise DataError(
                f"on_bad_record = skip: {skipped.n_records} records skipped in {skipped.n_examples} examples, more "
                f"than max_bad_share {data.max_bad_share:g}; the last one is {batch.problems[-1]}"
            )
        yield replace(batch, skipped=skipped)


def _check_labels(batch: Batch) -> Batch:
    if not batch.weights_BS.any() and not batch.problems:
        raise DataError(
            f"the batch before example {batch.next_example}: holds no id that may be masked; shorten "
            "mlm_mask_ignore_ids, or give other data"
        )
    return batch


def _make_targets(config: RunConfig, seed: int) -> MakeTargets:
    if not config.model.mlm_training:
        return _next_tokens
    return functools.partial(_masked_tokens, MaskingRules.of(config.data, config.model.n_vocab), seed)


def _next_tokens(ids_BL: np.ndarray, first_example: int) -> Targets:
    labels_BS = ids_BL[:, 1:]
    return ids_BL[:, :-1], labels_BS, np.ones_like(labels_BS)


def _masked_tokens(rules: MaskingRules, seed: int, ids_BL: np.ndarray, first_example: int) -> Targets:
    ids_BS = example_ids(ids_BL, rules.cls_id)
    counters_BS = first_example * ids_BS.shape[1] + np.arange(ids_BS.size).reshape(ids_BS.shape)
    samples = MaskingSamples(*(uniform(stream_state(seed, stream), counters_BS) for stream in MASKING_STREAMS))
    tokens_BS, chosen_BS = mask_tokens(ids_BS, samples, rules)
    return tokens_BS, ids_BS, chosen_BS


def _sequential_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    shards = sort_shards(shard for _, pattern in uses for shard in list_shards(pattern))
    return (record.ids_L for record in read_epoch(shards, RecordRules(config.model.n_ctx, config.model.n_vocab)))


def _mixed_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    return itertools.chain.from_iterable([_evaluation_rows_of_dataset(config, *use) for use in uses])


def _evaluation_rows_of_dataset(config: RunConfig, use: DatasetUse, pattern: str) -> Iterator[np.ndarray]:
    rules = record_rules(config, use)
    records = (record.ids_L for record in read_epoch(list_shards(pattern), rules))
    return records if rules.n_ctx is not None else _windows(records, config.model.n_ctx, config.data.eos_id)


def _windows(documents: Iterator[np.ndarray], n_ctx: int, eos_id: int) -> Iterator[np.ndarray]:
    """Yields windows of n_ctx + 1 ids over all documents, each followed by eos; every id but the first is a label.

    The last window is completed from the beginning of the first, so that it holds real text only.
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
