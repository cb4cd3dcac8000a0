"""Masking is compared with a plain loop, and its fractions with their binomial bounds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import DataConfig
from data.loading.masking import MaskingRules, MaskingSamples, example_tokens, mask_tokens
from data.loading.mixture import TOKEN

N_VOCAB = 20
MASK_ID, CLS_ID, PADDING_ID = 19, 18, 3
IGNORED_IDS = (5, 7)
SPECIAL_IDS = {MASK_ID, CLS_ID, PADDING_ID, *IGNORED_IDS}
ORDINARY_IDS = sorted({*range(N_VOCAB)} - SPECIAL_IDS)
DATA = DataConfig(padding_id=PADDING_ID, mlm_mask_id=MASK_ID, mlm_cls_token_id=CLS_ID, mlm_mask_ignore_ids=IGNORED_IDS)
DEVIATIONS = 5.0  # a fraction further off, in standard deviations, is wrong


def rules(mask_prob=0.15, same_prob=0.1, random_prob=0.2) -> MaskingRules:
    shares = {"mlm_mask_prob": mask_prob, "mlm_same_token_prob": same_prob, "mlm_random_token_prob": random_prob}
    return MaskingRules.of(dataclasses.replace(DATA, **shares), N_VOCAB)


def samples_like(ids_BS: np.ndarray, seed: int = 0) -> MaskingSamples:
    return MaskingSamples(*np.random.default_rng(seed).random((3, *ids_BS.shape)))


def assert_share(n_hits: int, n_trials: int, share: float) -> None:
    assert abs(n_hits - n_trials * share) <= DEVIATIONS * math.sqrt(n_trials * share * (1 - share)) + 1e-9


def expected_row(row: list[int], choice: list[float], replacement: list[float], token: list[float], of: MaskingRules):
    """Masks one example in plain Python; returns the tokens and the chosen positions."""
    ordinary = [place for place, token_id in enumerate(row) if token_id not in SPECIAL_IDS]
    chosen = [place for place in ordinary if choice[place] < of.mask_prob]
    if ordinary and not chosen:
        chosen = [min(ordinary, key=lambda place: choice[place])]
    tokens = list(row)
    for place in chosen:
        if replacement[place] < of.same_prob:
            continue
        is_random = replacement[place] >= 1 - of.random_prob
        tokens[place] = ORDINARY_IDS[int(token[place] * len(ORDINARY_IDS))] if is_random else MASK_ID
    return tokens, [place in chosen for place in range(len(row))]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, N_VOCAB - 1), min_size=n, max_size=n), min_size=1)
    ),
    st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5)),
    st.integers(0, 2**32),
)
def test_masking_equals_a_plain_loop_over_positions(rows, shares, seed):
    ids_BS, of = np.array(rows), rules(*shares)
    samples = samples_like(ids_BS, seed)
    tokens_BS, chosen_BS = mask_tokens(ids_BS, ids_BS >= 0, samples, of)
    for row, example in enumerate(rows):
        numbers = [
            np.asarray(part)[row].tolist() for part in (samples.choice_BS, samples.replacement_BS, samples.token_BS)
        ]
        assert (tokens_BS[row].tolist(), chosen_BS[row].tolist()) == expected_row(example, *numbers, of)
    np.testing.assert_array_equal(ids_BS, rows)


@pytest.mark.parametrize(
    ("mask_prob", "same_prob", "random_prob"),
    [(0.15, 0.1, 0.1), (0.15, 0.1, 0.0), (0.6, 0.0, 0.3), (1.0, 0.5, 0.5), (0.4, 0.9, 0.1)],
)
def test_each_fraction_is_within_its_binomial_bounds(mask_prob, same_prob, random_prob):
    ids_BS = np.random.default_rng(1).integers(0, N_VOCAB, (2000, 200))
    tokens_BS, chosen_BS = mask_tokens(
        ids_BS, ids_BS >= 0, samples_like(ids_BS), rules(mask_prob, same_prob, random_prob)
    )
    ordinary_BS = np.isin(ids_BS, ORDINARY_IDS)
    n_chosen = int(chosen_BS.sum())
    assert_share(n_chosen, int(ordinary_BS.sum()), mask_prob)
    masked = int((tokens_BS[chosen_BS] == MASK_ID).sum())
    assert_share(masked, n_chosen, max(0.0, 1 - same_prob - random_prob))
    # A random token equals the old one with probability 1 / number of ordinary ids.
    assert_share(int((tokens_BS == ids_BS)[chosen_BS].sum()), n_chosen, same_prob + random_prob / len(ORDINARY_IDS))
    assert not chosen_BS[~ordinary_BS].any()
    np.testing.assert_array_equal(tokens_BS[~chosen_BS], ids_BS[~chosen_BS])


def test_random_tokens_are_uniform_over_ordinary_ids():
    ids_BS = np.full((1000, 100), ORDINARY_IDS[0])
    tokens_BS, _ = mask_tokens(ids_BS, ids_BS >= 0, samples_like(ids_BS), rules(1.0, 0.0, 1.0))
    counts = np.bincount(tokens_BS.ravel(), minlength=N_VOCAB)
    assert set(np.flatnonzero(counts)) == set(ORDINARY_IDS)
    for token_id in ORDINARY_IDS:
        assert_share(int(counts[token_id]), tokens_BS.size, 1 / len(ORDINARY_IDS))


def test_if_nothing_was_chosen_one_position_is_chosen_uniformly():
    row = [CLS_ID, 0, PADDING_ID, 1, IGNORED_IDS[0], 2, MASK_ID, 4]
    ids_BS = np.array([row] * 20_000)
    _, chosen_BS = mask_tokens(ids_BS, ids_BS >= 0, samples_like(ids_BS), rules(mask_prob=0.0))
    assert (chosen_BS.sum(axis=1) == 1).all()
    for place in (1, 3, 5, 7):
        assert_share(int(chosen_BS[:, place].sum()), len(ids_BS), 1 / 4)


def test_nothing_is_chosen_among_special_ids():
    ids_BS = np.array([sorted(SPECIAL_IDS)] * 50)
    tokens_BS, chosen_BS = mask_tokens(ids_BS, ids_BS >= 0, samples_like(ids_BS), rules(mask_prob=1.0))
    assert not chosen_BS.any()
    np.testing.assert_array_equal(tokens_BS, ids_BS)


def test_the_largest_number_gives_the_last_id():
    largest = np.full((1, 1), 1 - 2.0**-53)
    tokens_BS, _ = mask_tokens(
        np.array([[0]]), np.array([[True]]), MaskingSamples(largest, largest, largest), rules(random_prob=1.0)
    )
    assert tokens_BS.tolist() == [[ORDINARY_IDS[-1]]]


def test_special_ids_are_mask_cls_padding_and_the_ignored_ones():
    assert set(np.flatnonzero(rules().is_special_V)) == SPECIAL_IDS
    without_cls = MaskingRules.of(dataclasses.replace(DATA, mlm_cls_token_id=None), N_VOCAB)
    assert set(np.flatnonzero(without_cls.is_special_V)) == SPECIAL_IDS - {CLS_ID}
    assert without_cls.cls_id is None


def test_an_example_is_the_beginning_of_a_record_after_the_cls_id():
    tokens_BL = np.zeros((2, 5), TOKEN)
    tokens_BL["id"], tokens_BL["segment"] = np.arange(10).reshape(2, 5), [[1, 1, 2, 2, 3], [4, 5, 5, 5, 5]]
    assert example_tokens(tokens_BL, None)["id"].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    with_cls = example_tokens(tokens_BL, CLS_ID)
    assert with_cls["id"].tolist() == [[CLS_ID, 0, 1, 2], [CLS_ID, 5, 6, 7]]
    assert with_cls["segment"].tolist() == [[1, 1, 1, 2], [4, 4, 5, 5]]
    assert tokens_BL["id"][0, 0] == 0


def test_only_labels_are_chosen():
    ids_BS = np.random.default_rng(1).choice(sorted(ORDINARY_IDS), (50, 8))
    is_label_S = np.arange(8) % 4 == 1
    for prob in (0.0, 0.5, 1.0):
        _, chosen_BS = mask_tokens(ids_BS, np.tile(is_label_S, (50, 1)), samples_like(ids_BS), rules(prob))
        assert chosen_BS[:, is_label_S].any(axis=1).all() and not chosen_BS[:, ~is_label_S].any()
