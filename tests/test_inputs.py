"""Batches are compared with plain lists, and random ones with an independent generator in Python's integers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from natsort import natsorted

import inputs
from configs.errors import DataError
from configs.schema import (
    DataConfig,
    DatasetConfig,
    DatasetUse,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    PredictionConfig,
    RunConfig,
    TrainingConfig,
)
from data.loading.batch import SkippedRecords
from data.loading.counter_rng import random_bits
from data.tfrecord.records import Record, write_examples

N_CTX = 4
LENGTH = N_CTX + 1
EOS_ID = 999
ROOT = Path(__file__).resolve().parents[1]


def run_config(uses=None, input_fn="sequential_input", shuffle=False, batch_size=3, seed=1) -> RunConfig:
    uses = uses or (use_of("a"),)
    return RunConfig(
        name="test",
        model_path="unused",
        model=ModelConfig(n_head=1, n_embd=4, n_layer=1, n_ctx=N_CTX, n_vocab=1000),
        training=TrainingConfig(train_batch_size=batch_size, train_steps=1, seed=seed),
        evaluation=EvaluationConfig(eval_batch_size=batch_size),
        prediction=PredictionConfig(),
        data=DataConfig(datasets=uses, input_fn=input_fn, shuffle_input_filenames=shuffle, eos_id=EOS_ID, padding_id=0),
        mesh=MeshConfig(),
    )


def use_of(name: str, stitch=None, datatype="chunks", weight=None) -> DatasetUse:
    return DatasetUse(DatasetConfig(id=name, n_vocab=1000, cache_dir="unused"), stitch, datatype, weight)


def write_numbered(folder: Path, name: str, first: int, n_examples: int) -> str:
    """Writes chunks whose first id is their number; returns the path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_{n_examples}.tfrecords"
    write_examples(str(path), [[first + k, 1, 2, 3, 4] for k in range(n_examples)])
    return str(path)


def real_rows(batches, n_batches=None) -> list[list[int]]:
    """Returns the examples, without padding rows."""
    rows = []
    for batch in itertools.islice(batches, n_batches):
        np.testing.assert_array_equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
        ids = np.concatenate([batch.tokens_BS, batch.labels_BS[:, -1:]], axis=1)
        rows += ids[batch.weights_BS.any(axis=1)].tolist()
    return rows


def always(rows: range) -> Callable[[int], range]:
    return lambda batch_size: rows


def first_ids(batches, n_batches=None) -> list[int]:
    return [row[0] for row in real_rows(batches, n_batches)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two datasets of chunks (a: 0-45, b: 100-116) and one of documents (d)."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, first, n_examples in (("x_10", 0, 5), ("x_9", 5, 40), ("x_1", 45, 1)):
        write_numbered(folder / "a", name, first, n_examples)
    write_numbered(folder / "b", "y_1", 100, 17)
    (folder / "d").mkdir()
    write_examples(str(folder / "d" / f"z_{len(DOCUMENTS)}.tfrecords"), DOCUMENTS)
    return folder


DOCUMENTS = [[200 + k] * (1 + k * k % 7) for k in range(11)]
CHUNKS_A = [45, *range(5, 45), *range(5)]  # natural order of the files: x_1, x_9, x_10
CHUNKS_B = list(range(100, 117))


# Sequential input.


def test_a_batch_holds_tokens_and_the_labels_that_follow_them(folder):
    batch = next(inputs.training_batches(run_config(), [f"{folder}/a/*.tfrecords"]))
    assert batch.tokens_BS.tolist() == [[45, 1, 2, 3], [5, 1, 2, 3], [6, 1, 2, 3]]
    assert batch.labels_BS.tolist() == [[1, 2, 3, 4]] * 3
    assert batch.weights_BS.tolist() == [[1.0] * 4] * 3
    assert batch.next_example == 3
    dtypes = (batch.tokens_BS.dtype, batch.labels_BS.dtype, batch.weights_BS.dtype)
    assert dtypes == (np.int32, np.int32, np.float32)
    assert batch.tokens_BS.flags["C_CONTIGUOUS"] and batch.labels_BS.flags["C_CONTIGUOUS"]


def test_a_batch_may_span_epochs_and_no_example_is_dropped(folder):
    batches = inputs.training_batches(run_config(batch_size=7), [f"{folder}/a/*.tfrecords"])
    assert first_ids(batches, 20) == (CHUNKS_A * 4)[:140]


@pytest.mark.parametrize("seed", [1, 5])
def test_files_of_all_datasets_are_shuffled_as_gpt_neo_shuffles_them(tmp_path, seed):
    paths = [write_numbered(tmp_path / d, f"f_{k}", 100 * i + k, 1) for i, d in enumerate("ba") for k in range(12)]
    order = natsorted(paths)
    random.seed(seed)
    random.shuffle(order)
    first_id = {path: 100 * i + k for path, (i, k) in zip(paths, itertools.product(range(2), range(12)), strict=True)}
    config = run_config((use_of("b"), use_of("a")), shuffle=True, batch_size=4, seed=seed)
    batches = inputs.training_batches(config, [f"{tmp_path}/b/*", f"{tmp_path}/a/*"])
    assert first_ids(batches, 6) == [first_id[path] for path in order]


@settings(deadline=None, max_examples=6)
@given(start=st.integers(0, 150), batch_size=st.integers(1, 40))
def test_resuming_from_a_position_equals_never_having_stopped(folder, start, batch_size):
    config = run_config(shuffle=True, batch_size=batch_size)
    patterns = [f"{folder}/a/*.tfrecords"]
    whole = first_ids(inputs.training_batches(config, patterns), -(-(start + 2 * batch_size) // batch_size))
    resumed = list(itertools.islice(inputs.training_batches(config, patterns, start), 2))
    assert first_ids(resumed) == whole[start : start + 2 * batch_size]
    assert [batch.next_example for batch in resumed] == [start + batch_size, start + 2 * batch_size]


def test_an_empty_glob_fails_before_the_first_batch(tmp_path):
    with pytest.raises(DataError, match=f"^{tmp_path}/none: no file matches"):
        inputs.training_batches(run_config(), [f"{tmp_path}/none"])


def test_an_invalid_record_is_named(tmp_path):
    write_numbered(tmp_path, "a", 998, 3)
    with pytest.raises(DataError, match=r"a_3.tfrecords: record 2 holds the id 1000, outside \[0, 1000\)"):
        next(inputs.training_batches(run_config(), [f"{tmp_path}/*"]))


# Generic text.

MIXTURE = (use_of("a", weight=3.0), use_of("d", 2, "documents_random", 1.0), use_of("b", weight=2.0))


def patterns_of(folder: Path) -> list[str]:
    return [f"{folder}/{name}/*.tfrecords" for name in "adb"]


def splitmix64(state: int, number: int) -> int:
    """Computes number `number` in Python's integers, as the paper does."""
    mask = 2**64 - 1
    mixed = (state + (number + 1) * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)


def expected_mixture(n_examples: int, seed: int) -> list[list[int]]:
    """Returns the examples of the three datasets of MIXTURE, from the definitions in the docstrings."""
    counts, rows = [0, 0, 0], []
    for example in range(n_examples):
        share = (splitmix64(splitmix64(splitmix64(seed, 0), 0), example) >> 11) / 2**53
        dataset = 0 if share < 1 / 2 else 1 if share < 4 / 6 else 2
        if dataset == 1:
            rows.append(expected_cut(counts[1], splitmix64(splitmix64(seed, 0), 2)))
        else:
            numbers = CHUNKS_A if dataset == 0 else CHUNKS_B
            rows.append([numbers[counts[dataset] % len(numbers)], 1, 2, 3, 4])
        counts[dataset] += 1
    return rows


def expected_cut(example: int, state: int) -> list[int]:
    documents = itertools.islice(itertools.cycle(DOCUMENTS), 2 * example, None)
    text = next(documents) + [EOS_ID] + next(documents)
    while len(text) < LENGTH:
        text += [EOS_ID, *next(documents)]
    cut = splitmix64(state, example) % (len(text) - LENGTH + 1)
    return text[cut : cut + LENGTH]


def test_the_generator_gives_the_published_numbers():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert random_bits(0, np.arange(3)).tolist() == published


@pytest.mark.parametrize("seed", [1, 2**31 - 1])
def test_a_mixture_follows_its_definition(folder, seed):
    config = run_config(MIXTURE, "generic_text", batch_size=10, seed=seed)
    assert real_rows(inputs.training_batches(config, patterns_of(folder)), 15) == expected_mixture(150, seed)


@settings(deadline=None, max_examples=4)
@given(start=st.integers(0, 140))
def test_a_mixture_resumes_from_any_position(folder, start):
    config = run_config(MIXTURE, "generic_text", batch_size=10)
    rows = real_rows(inputs.training_batches(config, patterns_of(folder), start), 1)
    assert rows == expected_mixture(150, 1)[start : start + 10]


def test_another_process_reads_the_same(folder):
    program = (
        "import json, sys; sys.path[:0] = [{root!r}, {tests!r}]\n"
        "import inputs, test_inputs as t\n"
        "config = t.run_config(t.MIXTURE, 'generic_text', True, 10)\n"
        "print(json.dumps(t.real_rows(inputs.training_batches(config, {patterns!r}, 70), 5)))"
    ).format(root=str(ROOT), tests=str(ROOT / "tests"), patterns=patterns_of(folder))
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    config = run_config(MIXTURE, "generic_text", shuffle=True, batch_size=10)
    whole = real_rows(inputs.training_batches(config, patterns_of(folder)), 12)
    assert json.loads(output.splitlines()[-1]) == whole[70:]


# Evaluation.


@pytest.mark.parametrize("batch_size", [1, 7, 46, 50])
def test_evaluation_gives_every_example_once_in_the_order_of_the_files(folder, batch_size):
    config = run_config(shuffle=True, batch_size=batch_size)
    batches = list(inputs.evaluation_batches(config, [f"{folder}/a/*.tfrecords"]))
    assert first_ids(batches) == CHUNKS_A
    assert {batch.tokens_BS.shape for batch in batches} == {(batch_size, N_CTX)}
    assert sum(batch.weights_BS.sum() for batch in batches) == 46 * N_CTX
    assert batches[-1].next_example == 46


def test_padding_rows_have_no_weight(folder):
    *_, last = inputs.evaluation_batches(run_config(batch_size=20), [f"{folder}/b/*.tfrecords"])
    assert last.weights_BS.tolist() == [[1] * N_CTX] * 17 + [[0] * N_CTX] * 3
    assert not last.tokens_BS[17:].any() and not last.labels_BS[17:].any()


def test_evaluation_stops_after_max_batches(folder):
    batches = inputs.evaluation_batches(run_config(batch_size=4), [f"{folder}/a/*.tfrecords"], max_batches=3)
    assert first_ids(batches) == CHUNKS_A[:12]


def test_evaluation_skips_datasets_without_a_held_out_part(folder):
    config = run_config((use_of("a"), use_of("b")))
    assert first_ids(inputs.evaluation_batches(config, [None, f"{folder}/b/*.tfrecords"])) == CHUNKS_B


def test_evaluation_without_held_out_data_is_an_error():
    config = run_config((use_of("a"), use_of("b")))
    with pytest.raises(DataError) as caught:
        inputs.evaluation_batches(config, [None, ""])
    assert str(caught.value) == "a, b: nothing to evaluate on; give eval_path in a dataset config, or name --eval_tasks"


def test_evaluation_of_documents_has_every_id_but_the_first_as_a_label_once(folder):
    stream = [token for document in DOCUMENTS for token in [*document, EOS_ID]]
    config = run_config(MIXTURE, "generic_text")
    rows = real_rows(inputs.evaluation_batches(config, [None, patterns_of(folder)[1], None]))
    labels = [token for row in rows for token in row[1:]]
    assert labels[: len(stream) - 1] == stream[1:]
    assert labels[len(stream) - 1 :] == stream[: len(labels) - len(stream) + 1]
    assert len(rows) == -(-(len(stream) - 1) // N_CTX)


def test_evaluation_of_a_mixture_goes_through_its_datasets(folder):
    config = run_config(MIXTURE, "generic_text")
    patterns = patterns_of(folder)
    rows = first_ids(inputs.evaluation_batches(config, patterns))
    assert rows[:46] == CHUNKS_A and rows[-17:] == CHUNKS_B
    assert set(rows[46:-17]) <= {EOS_ID, *range(200, 211)}


def test_one_short_document_is_repeated_to_the_length_of_an_example(tmp_path):
    write_examples(f"{tmp_path}/z_1.tfrecords", [[8]])
    config = run_config((use_of("z", 2, "documents_random"),), "generic_text", batch_size=1)
    assert real_rows(inputs.evaluation_batches(config, [f"{tmp_path}/*"])) == [[8, EOS_ID, 8, EOS_ID, 8]]
    assert real_rows(inputs.training_batches(config, [f"{tmp_path}/*"]), 1) == [[8, EOS_ID, 8, EOS_ID, 8]]


# Masked batches. Ids 1 to 4 end every chunk; of these 2 is never to be chosen.

MASK_ID, CLS_ID, IGNORED_ID = 998, 997, 2
NEVER_CHOSEN = {MASK_ID, IGNORED_ID, 0}  # and the cls id, where there is one


def masked_config(*args, cls_id=None, mask_prob=0.3, same_prob=0.2, random_prob=0.2, **kwargs) -> RunConfig:
    config = run_config(*args, **kwargs)
    data = dataclasses.replace(
        config.data,
        mlm_mask_id=MASK_ID,
        mlm_cls_token_id=cls_id,
        mlm_mask_prob=mask_prob,
        mlm_same_token_prob=same_prob,
        mlm_random_token_prob=random_prob,
        mlm_mask_ignore_ids=(IGNORED_ID,),
    )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, mlm_training=True), data=data)


def masked_rows(batches, n_batches=None) -> list[tuple[list[int], list[int], list[bool]]]:
    """Tokens, labels and which labels count, example by example."""
    rows = []
    for batch in itertools.islice(batches, n_batches):
        parts = (batch.tokens_BS, batch.labels_BS, batch.weights_BS > 0)
        rows += zip(*(part.tolist() for part in parts), strict=True)
    return rows


def expected_masking(ids: list[int], example: int, seed: int) -> tuple[list[int], list[int], list[bool]]:
    """Masks one example with `masked_config`'s shares from the definition, in Python's own numbers."""
    streams = [splitmix64(splitmix64(seed, 0), 2**32 + k) for k in range(3)]
    shares = [[(splitmix64(s, example * N_CTX + place) >> 11) / 2**53 for place in range(N_CTX)] for s in streams]
    able = [place for place in range(N_CTX) if ids[place] not in NEVER_CHOSEN]
    chosen = {place for place in able if shares[0][place] < 0.3}
    chosen |= {min(able, key=lambda place: shares[0][place])} if able and not chosen else set()
    ordinary = [token for token in range(1000) if token not in NEVER_CHOSEN]
    tokens = list(ids)
    for place in chosen:
        if shares[1][place] >= 0.8:
            tokens[place] = ordinary[int(shares[2][place] * len(ordinary))]
        elif shares[1][place] >= 0.2:
            tokens[place] = MASK_ID
    return tokens, list(ids), [place in chosen for place in range(N_CTX)]


@pytest.mark.parametrize("seed", [1, 2**31 - 1])
def test_masked_batches_follow_their_definition(folder, seed):
    batches = inputs.training_batches(masked_config(batch_size=10, seed=seed), [f"{folder}/a/*.tfrecords"])
    examples = [[first, 1, 2, 3] for first in (CHUNKS_A * 3)[:100]]
    expected = [expected_masking(ids, number, seed) for number, ids in enumerate(examples)]
    assert masked_rows(batches, 10) == expected


@settings(deadline=None, max_examples=6)
@given(start=st.integers(0, 60), batch_size=st.integers(1, 30), mixed=st.booleans())
def test_masked_training_resumes_from_any_position(folder, start, batch_size, mixed):
    args = (MIXTURE, "generic_text") if mixed else (None, "sequential_input", True)
    config = masked_config(*args, batch_size=batch_size, cls_id=CLS_ID)
    patterns = patterns_of(folder) if mixed else [f"{folder}/a/*.tfrecords"]
    resumed = inputs.training_batches(config, patterns, start)
    whole = masked_rows(inputs.training_batches(config, patterns), -(-(start + 2 * batch_size) // batch_size))
    assert masked_rows(resumed, 2) == whole[start : start + 2 * batch_size]


def test_masked_labels_are_the_text_and_special_ids_are_never_chosen(folder):
    config = masked_config(MIXTURE, "generic_text", batch_size=10, cls_id=CLS_ID)
    rows = masked_rows(inputs.training_batches(config, patterns_of(folder)), 15)
    assert [labels for _, labels, _ in rows] == [[CLS_ID, *ids[: N_CTX - 1]] for ids in expected_mixture(150, 1)]
    for tokens, labels, chosen in rows:
        for token, label, is_chosen in zip(tokens, labels, chosen, strict=True):
            assert label not in NEVER_CHOSEN | {CLS_ID} if is_chosen else token == label


def test_the_fractions_of_masking_are_exact_and_its_choices_independent(tmp_path):
    n_examples = 20_000
    write_examples(f"{tmp_path}/a_{n_examples}.tfrecords", [[10, 11, 12, 13, 14]] * n_examples)
    batches = inputs.training_batches(masked_config(batch_size=n_examples), [f"{tmp_path}/*"])
    batch = next(batches)
    chosen_BS = batch.weights_BS > 0
    # An example is left without a choice with probability 0.7^4; then it gets one.
    assert_near(chosen_BS.mean(axis=0), 0.3 + 0.7**4 / 4, n_examples)
    assert_near((chosen_BS[:, 0] & chosen_BS[:, 1]).mean(), 0.3**2, n_examples)
    n_chosen = chosen_BS.sum()
    assert_near((batch.tokens_BS == batch.labels_BS)[chosen_BS].mean(), 0.2 + 0.2 / 997, n_chosen)
    assert_near((batch.tokens_BS[chosen_BS] == MASK_ID).mean(), 0.6, n_chosen)
    again_BS = next(batches).weights_BS > 0
    assert_near((chosen_BS & again_BS).mean(axis=0), (0.3 + 0.7**4 / 4) ** 2, n_examples)


def assert_near(measured: float | np.ndarray, share: float, n_trials: int) -> None:
    np.testing.assert_allclose(measured, share, atol=5 * math.sqrt(share * (1 - share) / n_trials))


def test_every_epoch_and_every_seed_masks_other_positions(folder):
    config = masked_config(batch_size=46)
    patterns = [f"{folder}/a/*.tfrecords"]
    first, second = itertools.islice(inputs.training_batches(config, patterns), 2)
    other = next(inputs.training_batches(masked_config(batch_size=46, seed=2), patterns))
    np.testing.assert_array_equal(first.labels_BS, second.labels_BS)
    assert ((first.weights_BS > 0) != (second.weights_BS > 0)).any()
    assert ((first.weights_BS > 0) != (other.weights_BS > 0)).any()


def test_masked_weights_are_1_at_the_chosen_positions(folder):
    for batch in itertools.islice(inputs.training_batches(masked_config(), [f"{folder}/a/*.tfrecords"]), 20):
        assert set(batch.weights_BS.ravel().tolist()) == {0.0, 1.0}
        assert batch.weights_BS.dtype == np.float32


def test_a_batch_in_which_nothing_can_be_masked_is_an_error(tmp_path):
    write_examples(f"{tmp_path}/a_1.tfrecords", [[0, IGNORED_ID, MASK_ID, 0, 5]])
    with pytest.raises(DataError) as raised:
        next(inputs.training_batches(masked_config(), [f"{tmp_path}/*"]))
    assert "holds no id that may be masked" in str(raised.value)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("input_fn", ["sequential_input", "generic_text"])
def test_the_rows_of_several_processes_form_the_batch_of_one(folder, is_masked, input_fn):
    uses = (use_of("a"), use_of("b", weight=2.0))
    config = (masked_config if is_masked else run_config)(uses, input_fn, batch_size=6)
    patterns = [f"{folder}/a/*.tfrecords", f"{folder}/b/*.tfrecords"]
    wholes = itertools.islice(inputs.training_batches(config, patterns, 5), 12)
    own_rows = [range(0, 1), range(1, 4), range(4, 6)]
    parts = zip(*[inputs.training_batches(config, patterns, 5, None, always(rows)) for rows in own_rows], strict=True)
    for whole, of_processes in zip(wholes, parts, strict=False):
        assert {part.next_example for part in of_processes} == {whole.next_example}
        for name in ("tokens_BS", "labels_BS", "weights_BS"):
            together = np.concatenate([getattr(part, name) for part in of_processes])
            np.testing.assert_array_equal(together, getattr(whole, name))


@settings(deadline=None, max_examples=8)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.sampled_from([2, 4, 6])), min_size=1, max_size=4),
    start_step=st.integers(0, 12),
    is_masked=st.booleans(),
)
def test_batches_that_grow_continue_from_any_step_for_every_process(folder, sizes, start_step, is_masked):
    steps = [0, *itertools.accumulate(n_steps for n_steps, _ in sizes)]
    warmup = tuple((step, size) for step, (_, size) in zip(steps, sizes, strict=False))
    config = (masked_config if is_masked else run_config)((use_of("a"), use_of("b", weight=2.0)), batch_size=1)
    training = dataclasses.replace(config.training, batch_size_warmup=warmup, train_batch_size=sizes[-1][1])
    config = dataclasses.replace(config, training=training)
    patterns = [f"{folder}/a/*.tfrecords", f"{folder}/b/*.tfrecords"]
    whole = list(itertools.islice(inputs.training_batches(config, patterns), start_step + 4))
    expected_sizes = [next(size for first, size in reversed(warmup) if first <= step) for step in range(start_step + 4)]
    assert [len(batch.tokens_BS) for batch in whole] == expected_sizes
    ends = list(itertools.accumulate(expected_sizes))
    assert [batch.next_example for batch in whole] == ends
    # As one long batch: no example is lost or repeated.
    (together,) = itertools.islice(inputs.training_batches(config.with_batch_size(ends[-1]), patterns), 1)
    np.testing.assert_array_equal(np.concatenate([batch.tokens_BS for batch in whole]), together.tokens_BS)
    before = whole[start_step - 1] if start_step else None
    start = (before.next_example, before.examples_per_dataset) if before else (0, None)
    for half in (lambda size: range(size // 2), lambda size: range(size // 2, size), range):
        resumed = itertools.islice(inputs.training_batches(config, patterns, *start, half, start_step), 4)
        for batch, expected in zip(resumed, whole[start_step:], strict=True):
            rows = half(len(expected.tokens_BS))
            assert batch.next_example == expected.next_example
            assert batch.examples_per_dataset == expected.examples_per_dataset
            np.testing.assert_array_equal(batch.tokens_BS, expected.tokens_BS[rows.start : rows.stop])
            np.testing.assert_array_equal(batch.weights_BS, expected.weights_BS[rows.start : rows.stop])


def test_every_evaluation_masks_the_same_positions_for_any_seed_and_batch_size(folder):
    patterns = [f"{folder}/a/*.tfrecords"]
    rows = masked_rows(inputs.evaluation_batches(masked_config(batch_size=46, seed=1), patterns))
    others = masked_rows(inputs.evaluation_batches(masked_config(batch_size=7, seed=5), patterns))
    assert others[:46] == rows
    assert rows == [expected_masking([first, 1, 2, 3], number, 2**31) for number, first in enumerate(CHUNKS_A)]


def test_masked_evaluation_counts_chosen_positions_and_no_padding_row(folder):
    *_, last = inputs.evaluation_batches(masked_config(batch_size=20), [f"{folder}/b/*.tfrecords"])
    assert set(last.weights_BS.ravel().tolist()) == {0.0, 1.0}
    assert last.weights_BS[:17].any(axis=1).all()
    assert not any(part[17:].any() for part in (last.tokens_BS, last.labels_BS, last.weights_BS))


# Where each dataset stands.


def test_weights_may_change_between_runs_without_losing_or_repeating_an_example(folder):
    before = mixture_config((1.0, 1.0))
    after = mixture_config((1.0, 4.0))
    patterns = [f"{folder}/a/*.tfrecords", f"{folder}/b/*.tfrecords"]
    before_change = list(itertools.islice(inputs.training_batches(before, patterns), 5))
    start = before_change[-1].next_example, before_change[-1].examples_per_dataset
    resumed = list(itertools.islice(inputs.training_batches(after, patterns, *start), 40))
    rows = first_ids([*before_change, *resumed])
    for chunks in (CHUNKS_A, CHUNKS_B):
        own = [row for row in rows if row in chunks]
        assert own == [chunks[number % len(chunks)] for number in range(len(own))]
    assert resumed[-1].examples_per_dataset == {
        "a": sum(row < 100 for row in rows),
        "b": sum(row >= 100 for row in rows),
    }
    n_later = 40 * 3
    assert sum(row >= 100 for row in rows[15:]) / n_later == pytest.approx(0.8, abs=5 * math.sqrt(0.16 / n_later))


def mixture_config(weights) -> RunConfig:
    return run_config([use_of(name, weight=weight) for name, weight in zip("ab", weights, strict=True)], "generic_text")


def test_a_new_dataset_starts_at_its_first_example(folder):
    patterns = [f"{folder}/a/*.tfrecords", f"{folder}/b/*.tfrecords"]
    batches = inputs.training_batches(mixture_config((1.0, 1.0)), patterns, 30, {"a": 30})
    rows = first_ids(batches, 10)
    assert [row for row in rows if row >= 100][:3] == CHUNKS_B[:3]
    assert [row for row in rows if row < 100][:3] == CHUNKS_A[30:33]


def test_the_default_mode_keeps_the_weights_over_the_run(folder):
    uses = [use_of("a", weight=3.0), use_of("b", 25, "documents_random", 1.0)]  # the last one's stitch is not used
    config = run_config(uses, "sequential_input", batch_size=1000)
    patterns = [f"{folder}/a/*.tfrecords", f"{folder}/b/*.tfrecords"]
    batches = list(itertools.islice(inputs.training_batches(config, patterns), 100))
    rows = first_ids(batches)
    for chunks, share in ((CHUNKS_A, 0.75), (CHUNKS_B, 0.25)):
        own = [row for row in rows if row in set(chunks)]
        assert own == [chunks[number % len(chunks)] for number in range(len(own))]
        assert len(own) / 10**5 == pytest.approx(share, rel=0.01)
    assert batches[-1].examples_per_dataset == {
        "a": sum(row < 100 for row in rows),
        "b": sum(row >= 100 for row in rows),
    }
    halves = [sum(row < 100 for row in half) / len(half) for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])]
    assert halves == pytest.approx([0.75, 0.75], rel=0.01)


def test_without_weights_the_default_mode_reads_all_datasets_as_one(folder):
    patterns = [f"{folder}/b/*.tfrecords", f"{folder}/a/*.tfrecords"]
    config = run_config([use_of("b"), use_of("a")], batch_size=len(CHUNKS_A) + len(CHUNKS_B))
    (batch,) = itertools.islice(inputs.training_batches(config, patterns), 1)
    assert first_ids([batch]) == [*CHUNKS_A, *CHUNKS_B]
    assert batch.examples_per_dataset == {"all": len(CHUNKS_A) + len(CHUNKS_B)}


@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_every_example_of_an_epoch_is_read_by_one_process_once(folder, n_processes):
    size, n_epochs = 8, 3
    config = run_config(batch_size=size, shuffle=True)
    own = [range(p * size // n_processes, (p + 1) * size // n_processes) for p in range(n_processes)]
    n_batches = -(-n_epochs * len(CHUNKS_A) // size)
    parts = [inputs.training_batches(config, [f"{folder}/a/*.tfrecords"], own_rows=always(rows)) for rows in own]
    rows = [first_ids([batch]) for of_all in itertools.islice(zip(*parts, strict=True), n_batches) for batch in of_all]
    together = list(itertools.chain.from_iterable(rows))
    for epoch in range(n_epochs):
        assert sorted(together[epoch * len(CHUNKS_A) : (epoch + 1) * len(CHUNKS_A)]) == sorted(CHUNKS_A)


# Bad records.


def write_with_invalid(folder: Path, n_examples: int, bad: set[int]) -> str:
    rows = [[number % 900, 1, 2, 3, 5000 if number in bad else 4] for number in range(n_examples)]
    write_examples(f"{folder}/a_{n_examples}.tfrecords", rows)
    return f"{folder}/*.tfrecords"


def skipping(batch_size: int, share: float = 0.01) -> RunConfig:
    config = run_config(batch_size=batch_size)
    data = dataclasses.replace(config.data, on_bad_record="skip", max_bad_share=share)
    return dataclasses.replace(config, data=data)


def test_a_bad_record_stops_training_unless_it_may_be_skipped(tmp_path):
    pattern = write_with_invalid(tmp_path, 8, {5})
    with pytest.raises(DataError, match="record 5 holds the id 5000"):
        list(itertools.islice(inputs.training_batches(run_config(batch_size=4), [pattern]), 2))
    first, second = itertools.islice(inputs.training_batches(skipping(batch_size=4), [pattern]), 2)
    assert first.problems == () and first.weights_BS.all()
    assert second.weights_BS.tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4, [1.0] * 4]
    assert second.tokens_BS[:, 0].tolist() == [4, 0, 6, 7]
    (problem,) = second.problems
    assert problem.startswith(f"{tmp_path}/a_8.tfrecords: record 5 holds the id 5000, outside [0, 1000)")
    assert second.next_example == 8
    assert (first.skipped, second.skipped) == (SkippedRecords(4, 0), SkippedRecords(8, 1))
    assert (first.skipped + second.skipped).fraction == 1 / 12


def test_no_more_than_max_bad_share_is_skipped(tmp_path):
    pattern = write_with_invalid(tmp_path, 4000, {1, *range(2000, 2041)})
    batches = inputs.training_batches(skipping(batch_size=100), [pattern])
    with pytest.raises(DataError) as raised:
        for batch in batches:
            reached = batch.next_example
    assert reached == 2000
    assert str(raised.value).startswith(
        "on_bad_record = skip: 42 records skipped in 2100 examples, more than max_bad_share 0.01; the last one"
    )


def test_invalid_documents_are_skipped(tmp_path):
    documents = [[200 + k] * 3 for k in range(6)]
    documents[2] = [5000] * 3
    write_examples(f"{tmp_path}/z_6.tfrecords", documents)
    config = skipping(batch_size=2, share=0.9)
    uses = (use_of("d", stitch=2, datatype="documents_random"),)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=uses, input_fn="generic_text"))
    batches = list(itertools.islice(inputs.training_batches(config, [f"{tmp_path}/*"]), 3))
    rows = real_rows(batches)
    assert all(len(row) == LENGTH and 5000 not in row for row in rows)
    assert {201 + 2, EOS_ID} <= set(rows[1])  # documents 2 and 3, of which 3 is left, and then 4
    assert [len(batch.problems) for batch in batches] == [1, 0, 1]


def test_fixed_documents_begin_at_the_beginning(folder):
    uses = (use_of("d", stitch=3, datatype="documents_fixed"),)
    config = run_config(uses, "generic_text", batch_size=4)
    rows = real_rows(inputs.training_batches(config, [f"{folder}/d/*.tfrecords"]), 3)
    expected = []
    for example in range(12):
        text, number = [], 3 * example
        while number < 3 * example + 3 or len(text) - 1 < LENGTH:
            text += [*DOCUMENTS[number % len(DOCUMENTS)], EOS_ID]
            number += 1
        expected.append(text[:LENGTH])
    assert rows == expected


# Segments and weights.


def packed_use(name: str, packing: str = "masked", **changes) -> DatasetUse:
    use = use_of(name, **changes)
    return dataclasses.replace(use, dataset=dataclasses.replace(use.dataset, packing=packing))


def write_records(folder: Path, name: str, *records: Record) -> str:
    """Writes a file of records into a folder of its own; returns its glob."""
    (folder / name).mkdir()
    write_examples(str(folder / name / f"r_{len(records)}.tfrecords"), records)
    return f"{folder}/{name}/*.tfrecords"


def record_of(ids: list[int], weights: list[float] | None = None, segments: list[int] | None = None) -> Record:
    arrays = (np.array(weights, np.float32) if weights else None, np.array(segments) if segments else None)
    return Record(np.array(ids), *arrays)


def test_weights_and_segments_of_records(tmp_path):
    """The weight is that of the label; the first token of a segment is predicted by nothing; padding is a segment."""
    records = [
        record_of([1, 2, 3, 4, 5], [1.0, 0.5, 0.25, 2.0, 1.0], [1, 1, 2, 2, 2]),
        record_of([1, 2, 3, 0, 0], [1.0, 1.0, 1.0, 0.0, 0.0], [1, 2, 2, 0, 0]),
        record_of([6, 7, 8, 9, 9]),
    ]
    config = run_config((packed_use("a"),))
    pattern = write_records(tmp_path, "a", *records)
    (held_out,) = inputs.evaluation_batches(config, [pattern])
    for batch in (next(inputs.training_batches(config, [pattern])), held_out):
        assert batch.tokens_BS.tolist() == [[1, 2, 3, 4], [1, 2, 3, 0], [6, 7, 8, 9]]
        assert batch.weights_BS.tolist() == [[0.5, 0.0, 2.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0] * 4]
        assert batch.segment_starts_BS.tolist() == [[0, 0, 2, 2], [0, 1, 1, 3], [0] * 4]
        assert (batch.weights_BS.dtype, batch.segment_starts_BS.dtype) == (np.float32, np.int32)


def test_a_document_begins_after_each_end_of_text(tmp_path):
    rows = [[1, EOS_ID, 2, 3, EOS_ID], [EOS_ID, EOS_ID, 1, EOS_ID, 5], [1, 2, 3, 4, 5]]
    pattern = write_records(tmp_path, "a", *map(record_of, rows))
    batch = next(inputs.training_batches(run_config((packed_use("a"),)), [pattern]))
    assert batch.segment_starts_BS.tolist() == [[0, 0, 2, 2], [0, 1, 2, 2], [0] * 4]
    assert batch.weights_BS.tolist() == [[1, 0, 1, 1], [0, 0, 1, 0], [1] * 4]
    stream = next(inputs.training_batches(run_config(), [pattern]))
    assert stream.segment_starts_BS is None and stream.weights_BS.all()
    np.testing.assert_array_equal(stream.tokens_BS, batch.tokens_BS)


@pytest.mark.parametrize("weight", [None, 1.0])
def test_datasets_with_and_without_segments_in_one_run(tmp_path, weight):
    """Read as one dataset, and mixed."""
    patterns = [write_records(tmp_path, name, *[record_of([n, EOS_ID, 2, 3, 4])] * 4) for n, name in enumerate("ab", 1)]
    config = run_config((packed_use("a", weight=weight), packed_use("b", "stream", weight=weight)), batch_size=8)
    for batches in (inputs.training_batches(config, patterns), inputs.evaluation_batches(config, patterns)):
        batch = next(batches)
        starts = dict(zip(batch.tokens_BS[:, 0].tolist(), batch.segment_starts_BS.tolist(), strict=True))
        assert starts == {1: [0, 0, 2, 2], 2: [0, 0, 0, 0]}


def test_documents_that_are_joined_do_not_see_one_another(tmp_path):
    pattern = write_records(tmp_path, "d", record_of([1, 2]), record_of([3]), record_of([4, 5, 6]))
    use = packed_use("d", stitch=2, datatype="documents_fixed")
    config = run_config((use,), "generic_text", batch_size=1)
    (first,), (second,) = (
        zip(batch.tokens_BS.tolist(), batch.weights_BS.tolist(), batch.segment_starts_BS.tolist(), strict=True)
        for batch in itertools.islice(inputs.training_batches(config, [pattern]), 2)
    )
    assert first == ([1, 2, EOS_ID, 3], [1.0, 1.0, 0.0, 1.0], [0, 0, 0, 3])
    assert second == ([4, 5, 6, EOS_ID], [1.0, 1.0, 1.0, 0.0], [0, 0, 0, 0])
    held_out = [batch.segment_starts_BS[0].tolist() for batch in inputs.evaluation_batches(config, [pattern])]
    assert held_out == [[0, 0, 0, 3], [0, 1, 1, 1]]


def test_masked_training_honours_weights_and_segments(tmp_path):
    pattern = write_records(tmp_path, "a", record_of([51, 52, 53, 54, 55], [0.0, 0.5, 1.0, 0.0, 1.0], [1, 1, 2, 2, 2]))
    config = masked_config(uses=(packed_use("a"),), batch_size=200)
    batch = next(inputs.training_batches(config, [pattern]))
    assert {*batch.weights_BS[:, 1]} == {0.0, 0.5} and {*batch.weights_BS[:, 2]} == {0.0, 1.0}
    assert not batch.weights_BS[:, [0, 3]].any()
    assert {*map(tuple, batch.segment_starts_BS.tolist())} == {(0, 0, 2, 2)}


def test_segments_in_a_dataset_that_is_packed_as_a_stream_are_refused(tmp_path):
    pattern = write_records(
        tmp_path, "a", record_of([1, 2, 3, 4, 5]), record_of([1, 2, 3, 4, 5], None, [1, 1, 2, 2, 2])
    )
    for batches in (inputs.training_batches, inputs.evaluation_batches):
        with pytest.raises(DataError) as raised:
            next(batches(run_config(), [pattern]))
        assert str(raised.value) == (
            f"{tmp_path}/a/r_2.tfrecords: record 1 holds the segments of several texts, and packing stream would join "
            'them; write "packing": "masked" in the dataset config'
        )


def test_masks_need_the_end_of_text(tmp_path):
    config = run_config((packed_use("a"),))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, eos_id=None))
    pattern = write_records(tmp_path, "a", record_of([1, 2, 3, 4, 5]))
    with pytest.raises(DataError, match="record 0 holds no segments, and without eos_id packing masked cannot tell"):
        next(inputs.training_batches(config, [pattern]))


def test_a_batch_without_a_label_is_refused(tmp_path):
    pattern = write_records(tmp_path, "a", record_of([1, 2, 3, 4, 5], [1.0, 0.0, 0.0, 0.0, 0.0]))
    with pytest.raises(DataError, match="the batch before example 3: holds no label of a weight above 0"):
        next(inputs.training_batches(run_config(), [pattern]))
