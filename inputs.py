"""Token ids on their way from tfrecords to the model: batches, causal or masked, and prompts.

Everything is a function of the config, the files, and the number of an example, so that a run goes on exactly where it
stopped. Nothing here knows the model.

Shape suffixes: B batch, S sequence (n_ctx), L ids of an example (n_ctx + 1), D datasets.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import DataError
from configs.schema import MAX_SEED, DatasetUse, RunConfig
from data.masking import MaskingDraws, MaskingRules, example_ids, mask_tokens
from data.shards import RecordRules, Shard, list_shards, read_cyclic, read_once, shuffle_shards, sort_shards
from data.tokenizer import Tokenizer

DRAWS_AT_ONCE = 1 << 20
MIXING_DRAWS = 0  # the stream of draws that chooses datasets; dataset d cuts its documents with stream d + 1
MASKING_DRAWS = range(1 << 32, (1 << 32) + 3)  # the streams of `MaskingDraws`, beyond any number of datasets
EVALUATION_SEED = MAX_SEED + 1  # masks held-out text, the same in every run; no training has it

_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Batch:
    """Examples as the model takes them.

    Attributes:
        tokens_BS: int32 ids, [batch, n_ctx].
        labels_BS: int32 ids to be guessed, [batch, n_ctx]: those that follow each token, or those that masking hid.
        weights_BS: float32, [batch, n_ctx]; how much each label counts. In training they are equal shares that sum to
            1; in evaluation they are 1 or 0, and 0 in rows that only fill a batch up.
        next_example: number of the example after the last one here; training goes on from it.
    """

    tokens_BS: np.ndarray
    labels_BS: np.ndarray
    weights_BS: np.ndarray
    next_example: int


# From records [batch, n_ctx + 1] and the number of the first to tokens, labels, and whether each label counts.
Lesson = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


def training_batches(config: RunConfig, patterns: Sequence[str], start_example: int = 0) -> Iterator[Batch]:
    """Yields full batches without end, from any example on.

    `sequential_input` reads the chunks of all datasets in GPT-Neo's order: their files together, sorted, shuffled by
    the seed; a batch may span two epochs. `generic_text` draws the dataset of each example by the weights; the j-th
    example of a dataset of chunks is chunk j, that of `documents_random` is cut by `_cut_documents`. Masking is drawn
    anew in every epoch.

    Args:
        config: the run; `training.train_batch_size` examples make a batch.
        patterns: one glob of tfrecords for each of `config.data.datasets`.
        start_example: number of examples that training has taken so far, >= 0.

    Raises:
        DataError: a glob matches nothing, or a file or record is wrong; the message names it.
    """
    rows = _TRAINING_ROWS[config.data.input_fn](config, patterns, start_example)
    lesson = _lesson(config, config.training.seed)
    return map(_share_weights, _batches(rows, config.training.train_batch_size, lesson, start_example))


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
        raise DataError(f"{names}: nothing to evaluate on -- give eval_path in a dataset config")
    rows = _EVALUATION_ROWS[config.data.input_fn](config, uses)
    lesson = _lesson(config, EVALUATION_SEED)
    return itertools.islice(_batches(rows, config.evaluation.eval_batch_size, lesson, 0), max_batches)


def prompt_tokens(text: str, tokenizer: Tokenizer, n_ctx: int, n_new_tokens: int, eos_id: int) -> np.ndarray:
    """Encodes a prompt so that it and the new tokens fit into the context.

    Returns:
        int32 ids, [prompt_length]: the last n_ctx - n_new_tokens of the prompt, at least one; for a prompt without
        tokens [eos_id], which every text follows.
    """
    n_kept = max(1, n_ctx - n_new_tokens)
    return np.array(tokenizer.encode_end(text, n_kept) or [eos_id], dtype=np.int32)


def record_n_ctx(config: RunConfig, use: DatasetUse) -> int | None:
    """Returns the n_ctx that the records of a dataset are made for, or None where they are documents of any length."""
    documents = config.data.input_fn == "generic_text" and use.datatype == "documents_random"
    return None if documents else config.model.n_ctx


# Batches.


def _batches(rows: Iterator[np.ndarray], batch_size: int, lesson: Lesson, position: int) -> Iterator[Batch]:
    while examples := list(itertools.islice(rows, batch_size)):
        tokens_BS, labels_BS, counts_BS = lesson(np.stack(examples), position)
        position += len(examples)
        yield Batch(
            tokens_BS=_fill_up(tokens_BS, batch_size, np.int32),
            labels_BS=_fill_up(labels_BS, batch_size, np.int32),
            weights_BS=_fill_up(counts_BS, batch_size, np.float32),
            next_example=position,
        )


def _fill_up(values_BS: np.ndarray, batch_size: int, dtype: type) -> np.ndarray:
    return np.pad(values_BS.astype(dtype, order="C"), [(0, batch_size - len(values_BS)), (0, 0)])


def _share_weights(batch: Batch) -> Batch:
    n_labels = np.count_nonzero(batch.weights_BS)
    if n_labels == 0:
        raise DataError(
            f"examples before number {batch.next_example}: hold no id that may be masked -- shorten "
            "mlm_mask_ignore_ids, or give other data"
        )
    return dataclasses.replace(batch, weights_BS=batch.weights_BS / np.float32(n_labels))


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


# Rows of n_ctx + 1 ids, without end, for training.


def _sequential_rows(config: RunConfig, patterns: Sequence[str], start_example: int) -> Iterator[np.ndarray]:
    shards = [shard for pattern in patterns for shard in list_shards(pattern)]
    return read_cyclic(_training_order(config, shards), _chunk_rules(config), start_example)


def _mixed_rows(config: RunConfig, patterns: Sequence[str], start_example: int) -> Iterator[np.ndarray]:
    weights_D = np.array([use.weight for use in config.data.datasets])
    seed = config.training.seed
    counts_D = count_choices(weights_D, seed, start_example)
    rows_D = [_rows_of_dataset(config, number, patterns[number], int(count)) for number, count in enumerate(counts_D)]
    return (next(rows_D[number]) for number in _choices_from(weights_D, seed, start_example))


def _rows_of_dataset(config: RunConfig, number: int, pattern: str, start: int) -> Iterator[np.ndarray]:
    use = config.data.datasets[number]
    shards = _training_order(config, list_shards(pattern))
    rules = _rules(config, use)
    if rules.n_ctx is not None:
        return read_cyclic(shards, rules, start)
    documents = read_cyclic(shards, rules, start * use.stitch)
    state = stream_state(config.training.seed, number + 1)
    return _cut_documents(documents, use.stitch, config.model.n_ctx + 1, config.data.eos_id, state, start)


def _training_order(config: RunConfig, shards: Sequence[Shard]) -> tuple[Shard, ...]:
    ordered = sort_shards(shards)
    return shuffle_shards(ordered, config.training.seed) if config.data.shuffle_input_filenames else ordered


def _chunk_rules(config: RunConfig) -> RecordRules:
    return RecordRules(config.model.n_ctx, config.model.n_vocab)


def _rules(config: RunConfig, use: DatasetUse) -> RecordRules:
    return RecordRules(record_n_ctx(config, use), config.model.n_vocab)


def _cut_documents(
    documents: Iterator[np.ndarray], stitch: int, length: int, eos_id: int, state: int, start: int
) -> Iterator[np.ndarray]:
    """Cuts example j, [length], out of documents j * stitch, ..., (j + 1) * stitch - 1, joined by eos.

    Where these are too short, the documents after them are joined too; example j + 1 takes those again. The place of
    the cut is draw j. `documents` begin with the first one of example `start`.

    Source: GPT-Neo's documents_random, which fails on short documents and cannot resume.
    """
    window: deque[np.ndarray] = deque()
    for example in itertools.count(start):
        while len(window) < stitch or _joined_length(window) < length:
            window.append(next(documents))
        text = _join(window, eos_id)
        (draw,) = draws(state, np.array([example]))
        cut = int(draw) % (len(text) - length + 1)
        yield text[cut : cut + length]
        for _ in range(stitch):
            window.popleft()


def _joined_length(documents: Sequence[np.ndarray]) -> int:
    return sum(len(ids) for ids in documents) + len(documents) - 1


def _join(documents: Sequence[np.ndarray], eos_id: int) -> np.ndarray:
    pieces = [piece for ids in documents for piece in (ids, [eos_id])]
    return np.concatenate(pieces[:-1])


# Rows that end, for evaluation.


def _sequential_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    shards = sort_shards(shard for _, pattern in uses for shard in list_shards(pattern))
    return read_once(shards, _chunk_rules(config))


def _mixed_evaluation_rows(config: RunConfig, uses: Sequence[tuple[DatasetUse, str]]) -> Iterator[np.ndarray]:
    return itertools.chain.from_iterable([_evaluation_rows_of_dataset(config, *use) for use in uses])


def _evaluation_rows_of_dataset(config: RunConfig, use: DatasetUse, pattern: str) -> Iterator[np.ndarray]:
    rules = _rules(config, use)
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


_TRAINING_ROWS = {"sequential_input": _sequential_rows, "generic_text": _mixed_rows}
_EVALUATION_ROWS = {"sequential_input": _sequential_evaluation_rows, "generic_text": _mixed_evaluation_rows}


# Draws that are functions of a number: any of them can be had without those before it.


def draws(state: int, numbers: np.ndarray) -> np.ndarray:
    """Returns draws number `numbers` of the generator splitmix64 in `state`, uniform uint64 of the same shape.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16.
    """
    mixed = np.uint64(state) + (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def uniform(state: int, numbers: np.ndarray) -> np.ndarray:
    """Returns draws number `numbers` as float64 in [0, 1), of the same shape: the first 53 bits of each."""
    return (draws(state, numbers) >> np.uint64(11)) * 2.0**-53


def stream_state(seed: int, stream: int) -> int:
    """Returns the state of one of the independent streams of a seed."""
    (seeded,) = draws(seed, np.array([0]))
    (state,) = draws(int(seeded), np.array([stream]))
    return int(state)


def choose_datasets(weights_D: np.ndarray, seed: int, numbers: np.ndarray) -> np.ndarray:
    """Draws the dataset of each numbered example, with chances in proportion to the weights."""
    shares_D = np.cumsum(weights_D) / np.sum(weights_D)
    positions = uniform(stream_state(seed, MIXING_DRAWS), numbers)
    return np.minimum(np.searchsorted(shares_D, positions, side="right"), len(weights_D) - 1)


def count_choices(weights_D: np.ndarray, seed: int, n_examples: int) -> np.ndarray:
    """Returns how many of the first examples each dataset gave, [D]; about 25 ns an example."""
    counts_D = np.zeros(len(weights_D), dtype=np.int64)
    for first in range(0, n_examples, DRAWS_AT_ONCE):
        numbers = np.arange(first, min(first + DRAWS_AT_ONCE, n_examples))
        counts_D += np.bincount(choose_datasets(weights_D, seed, numbers), minlength=len(weights_D))
    return counts_D


def _choices_from(weights_D: np.ndarray, seed: int, first: int) -> Iterator[int]:
    for begin in itertools.count(first, 1024):
        yield from choose_datasets(weights_D, seed, np.arange(begin, begin + 1024))
