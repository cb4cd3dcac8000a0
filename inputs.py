"""Training and evaluation batches from tfrecords, for causal or masked language modelling.

Every batch is a function of the config, the files and the number of an example, so that a run resumes exactly where it
stopped. Nothing here knows the model.

Shape suffixes: B batch, S sequence (n_ctx), L tokens of an example (n_ctx + 1).
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
from data.loading.masking import MaskingRules, MaskingSamples, example_tokens, mask_tokens
from data.loading.mixture import (
    TOKEN,
    DocumentWindow,
    Mixture,
    mixture_of,
    record_rules,
    shards_as_one,
    shards_of,
    tokens_of,
    window_of,
)
from data.loading.position import BatchIndices, batches_from_position
from data.loading.reader import prefetch, read_epoch

BATCHES_AHEAD = 8
MIN_EXAMPLES = 1000  # with fewer than these, `max_bad_share` allows as much as with these
MASKING_STREAMS = range(1 << 32, (1 << 32) + 3)  # of `MaskingSamples`, beyond any number of datasets
EVALUATION_SEED = MAX_SEED + 1  # masks held-out text the same way in every run; no training uses it

# From the tokens of records [batch, n_ctx + 1] and the number of the first to tokens, labels, their weights, and the
# segment of each token.
Targets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
MakeTargets = Callable[[np.ndarray, int], Targets]


def training_batches(
    config: RunConfig,
    patterns: Sequence[str],
    start_example: int = 0,
    examples_per_dataset: Mapping[str, int] | None = None,
    own_rows: Callable[[int], range] = range,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Yields full batches, or some rows of each, without end, starting at any example.

    `sequential_input` without weights reads the chunks of all datasets in GPT-Neo's order: their files together,
    sorted, shuffled by the seed and, after the first epoch, by the epoch; a batch may span two epochs. With weights,
    and with `generic_text`, the weights decide how often each dataset is drawn; the j-th example of a dataset of chunks
    is chunk j, that of documents is cut by `cut_documents`. Masking differs in every epoch.

    Args:
        config: the run; `training.batch_size_at` a step examples make its batch.
        patterns: one glob of tfrecords for each of `config.data.datasets`.
        start_example: number of examples that training has read so far, >= 0.
        examples_per_dataset: how many of them each dataset gave, from `Batch`; None: computed from the weights, if
            they have never changed.
        own_rows: the rows to yield of a batch of some size, for one process of several, which reads nothing else.
        start_step: number of updates that training has made, by which `batch_size_warmup` gives the sizes.

    Raises:
        DataError: a glob matches nothing, or a file or record is invalid; the message names it.
    """
    mixture = mixture_of(config, patterns)
    training, size = config.training, config.training.train_batch_size
    start = (start_example, examples_per_dataset, own_rows, start_step)
    indices = batches_from_position(mixture.weights, training, *start)
    make_targets = _make_targets(config, config.training.seed)
    read = functools.partial(_read_batch, config, mixture, make_targets)
    batches = _limit_skipped(prefetch(read, indices, BATCHES_AHEAD), config.data)
    # Some rows alone prove nothing: the rows of another process may hold labels.
    return map(functools.partial(_check_labels, config), batches) if own_rows(size) == range(size) else batches


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
        raise DataError(f"{names}: nothing to evaluate on; give eval_path in a dataset config, or name --eval_tasks")
    rows = _EVALUATION_ROWS[config.data.input_fn](config, uses)
    make_targets = _make_targets(config, EVALUATION_SEED)
    return itertools.islice(_padded_batches(config, rows, make_targets), max_batches)


def _padded_batches(config: RunConfig, rows: Iterator[np.ndarray], make_targets: MakeTargets) -> Iterator[Batch]:
    """Yields batches of rows, the last one padded."""
    n_examples, n_rows = 0, config.evaluation.eval_batch_size
    while examples := list(itertools.islice(rows, n_rows)):
        padding = [_blank(config)] * (n_rows - len(examples))
        targets = make_targets(np.stack(examples + padding), n_examples)
        n_examples += len(examples)
        yield _batch(config, targets, n_examples)


def _blank(config: RunConfig) -> np.ndarray:
    """Returns an example of tokens that are no labels."""
    return np.zeros(config.model.n_ctx + 1, TOKEN)


def _read_batch(config: RunConfig, mixture: Mixture, make_targets: MakeTargets, indices: BatchIndices) -> Batch:
    examples = mixture.read(indices)
    tokens_BL = np.stack([_blank(config) if example.tokens is None else example.tokens for example in examples])
    batch = _batch(config, make_targets(tokens_BL, indices.first_example), indices.next_example)
    problems = tuple(problem for example in examples for problem in example.problems)
    epoch = indices.next_example / mixture.examples_per_epoch
    return replace(batch, examples_per_dataset=indices.examples_per_dataset, problems=problems, epoch=epoch)


def _batch(config: RunConfig, targets: Targets, next_example: int) -> Batch:
    tokens_BS, labels_BS, weights_BS, segments_BS = targets
    return Batch(
        tokens_BS.astype(np.int32),
        labels_BS.astype(np.int32),
        weights_BS.astype(np.float32),
        next_example,
        segment_starts_BS=_starts(segments_BS) if config.data.has_segments else None,
    )


def _starts(segments_BS: np.ndarray) -> np.ndarray:
    """Returns the position where the segment of each position begins."""
    positions_S = np.arange(segments_BS.shape[1], dtype=np.int32)
    begins_BS = np.diff(segments_BS, axis=1, prepend=segments_BS[:, :1]) != 0
    return np.maximum.accumulate(np.where(begins_BS, positions_S, np.int32(0)), axis=1)


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


def _check_labels(config: RunConfig, batch: Batch) -> Batch:
    if not batch.weights_BS.any() and not batch.problems:
        lack = "holds no id that may be masked; shorten mlm_mask_ignore_ids, or give other data"
        if not config.model.mlm_training:
            lack = "holds no label of a weight above 0; give data with other loss_weights, or raise train_batch_size"
        raise DataError(f"the batch before example {batch.next_example}: {lack}")
    return batch


def _make_targets(config: RunConfig, seed: int) -> MakeTargets:
    if config.model.ranks:
        return _ends_of_pairs
    if not config.model.mlm_training:
        return _next_tokens
    return functools.partial(_masked_tokens, MaskingRules.of(config.data, config.model.n_vocab), seed)


def _next_tokens(tokens_BL: np.ndarray, first_example: int) -> Targets:
    own_BS, next_BS = tokens_BL[:, :-1], tokens_BL[:, 1:]
    # The first token of a segment is predicted by nothing.
    weights_BS = next_BS["weight"] * (next_BS["segment"] == own_BS["segment"])
    return own_BS["id"], next_BS["id"], weights_BS, own_BS["segment"]


def _ends_of_pairs(tokens_BL: np.ndarray, first_example: int) -> Targets:
    """Returns the pairs of `PairEncoder`: at the end of each worse text, the label is where its better one ends."""
    own_BS, positions_S = tokens_BL[:, :-1], np.arange(tokens_BL.shape[1] - 1)
    is_end_BS = own_BS["weight"] > 0
    n_before_BS = np.cumsum(is_end_BS, axis=1) - is_end_BS
    is_worse_BS = is_end_BS & (n_before_BS % 2 == 1)
    last_ends_BS = np.maximum.accumulate(np.where(is_end_BS, positions_S, 0), axis=1)
    ends_before_BS = np.pad(last_ends_BS, [(0, 0), (1, 0)])[:, :-1]
    labels_BS = np.where(is_worse_BS, ends_before_BS, positions_S)
    # The texts of a pair do not see one another either.
    return own_BS["id"], labels_BS, own_BS["weight"] * is_worse_BS, own_BS["segment"] + n_before_BS


def _masked_tokens(rules: MaskingRules, seed: int, tokens_BL: np.ndarray, first_example: int) -> Targets:
    own_BS = example_tokens(tokens_BL, rules.cls_id)
    counters_BS = first_example * own_BS.shape[1] + np.arange(own_BS.size).reshape(own_BS.shape)
    samples = MaskingSamples(*(uniform(stream_state(seed, stream), counters_BS) for stream in MASKING_STREAMS))
    tokens_BS, chosen_BS = mask_tokens(own_BS["id"], own_BS["weight"] > 0, samples, rules)
    return tokens_BS, own_BS["id"], own_BS["weight"] * chosen_BS, own_BS["segment"]


def _sequential_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    return map(tokens_of, read_epoch(*shards_as_one(config, uses)))


def _mixed_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    return itertools.chain.from_iterable([_evaluation_rows_of_dataset(config, *use) for use in uses])


def _evaluation_rows_of_dataset(config: RunConfig, use: DatasetUse, pattern: str) -> Iterator[np.ndarray]:
    rules = record_rules(config, use)
    records = map(tokens_of, read_epoch(shards_of(use, pattern), rules))
    return records if rules.n_ctx is not None else _windows(records, window_of(config, use))


def _windows(documents: Iterator[np.ndarray], window: DocumentWindow) -> Iterator[np.ndarray]:
    """Yields windows of n_ctx + 1 tokens over all documents, each followed by eos; every one but the first is a label.

    The last window is completed from the beginning of the first, so that it holds real text only.
    """
    pending, first = np.array([], TOKEN), None
    for tokens in documents:
        pending = np.concatenate([pending, tokens, window.end_of_document])
        while len(pending) >= window.length:
            first = pending[: window.length] if first is None else first
            yield window.packed(pending[: window.length])
            pending = pending[window.length - 1 :]
    if len(pending) > 1:
        text = pending if first is None else np.concatenate([pending, first])
        yield window.packed(np.resize(text, window.length))


_EVALUATION_ROWS = {"sequential_input": _sequential_evaluation_rows, "generic_text": _mixed_evaluation_rows}
