"""The choice of the next token: penalties, bans and filters against their definitions, draws against exact
probabilities, and rows that do not care for their place, their company and the mesh.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import mtf, tf
from models.kernels import noise, sampling
from models.kernels.sampling import MAX_BIASES, MAX_ENDS, MAX_TOP, SamplingParams
from models.kernels.vocabulary import Vocabulary
from models.ops.sampling import RowParams, sample_next_tokens
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference_sampling as reference
from tests.models.reference_sampling import EOS, Rows, Text, assert_drawn_with

LOGITS = np.array([1.0, -0.5, 2.0, 0.3, -2.0, 1.5, 0.0, -1.0])
SOME = np.arange(64)  # seeds
GREEDY = SamplingParams(temperature=0.0)
N_VOCAB = len(LOGITS)
N_ROWS = 16


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (SamplingParams(top_k=1), [2]),
        (SamplingParams(top_k=3), [0, 2, 5]),
        (SamplingParams(5.0, top_k=8), [0, 1, 2, 3, 4, 5, 6, 7]),
        (SamplingParams(top_k=100), [0, 1, 2, 3, 4, 5, 6, 7]),
        # The probabilities are .41 (token 2), .25 (5), .15 (0), .075 (3), .056 (6), .034 (1), .020 (7), .0075 (4).
        (SamplingParams(top_p=0.0), [2]),
        (SamplingParams(top_p=1e-6), [2]),
        (SamplingParams(top_p=0.75), [0, 2, 5]),
        (SamplingParams(top_k=2, top_p=0.99), [2, 5]),
        (SamplingParams(0.2, top_p=0.75), [2]),
        (SamplingParams(min_p=0.3), [0, 2, 5]),
        (SamplingParams(min_p=0.4), [2, 5]),
        (SamplingParams(min_p=1.0), [2]),
        # The entropy is 1.61, nearest to the surprise of token 5, 1.39; then come 0 (1.89), 2 (.89) and 3 (2.59).
        (SamplingParams(typical_p=0.0), [5]),
        (SamplingParams(typical_p=1e-6), [5]),
        (SamplingParams(typical_p=0.3), [0, 5]),
        (SamplingParams(typical_p=0.5), [0, 2, 5]),
        (SamplingParams(typical_p=0.85), [0, 2, 3, 5]),
        # Of 2, 5 and 0 alone the entropy is 1.02.
        (SamplingParams(top_k=3, typical_p=0.5), [2, 5]),
    ],
    ids=str,
)
def test_filters(rule: SamplingParams, kept: list[int]) -> None:
    probabilities, *_ = Rows.repeated(LOGITS, rule, SOME[:N_ROWS]).probabilities()
    assert np.flatnonzero(probabilities).tolist() == kept
    expected = np.where(np.isin(np.arange(8), kept), np.exp(LOGITS / rule.temperature), 0.0)
    np.testing.assert_allclose(probabilities, expected / expected.sum(), rtol=1e-5)


def test_ties_with_the_last_token_that_a_filter_keeps_are_kept() -> None:
    for rule in (SamplingParams(top_k=2), SamplingParams(top_p=0.6)):
        probabilities, *_ = Rows.repeated(
            np.array([1.0, 2.0, 1.0, 0.0, 1.0, -5, -5, -5]), rule, SOME[:N_ROWS]
        ).probabilities()
        assert np.flatnonzero(probabilities).tolist() == [0, 1, 2, 4]


def test_a_token_slightly_less_likely_than_the_last_is_not_kept() -> None:
    logits = -np.array([0.0, 1.0, np.nextafter(np.float32(1.0), np.float32(2.0)), 9, 9, 9, 9, 9])
    for rule in (SamplingParams(top_k=2), SamplingParams(top_p=0.6)):
        probabilities, *_ = Rows.repeated(logits, rule, SOME[:N_ROWS]).probabilities()
        assert np.flatnonzero(probabilities).tolist() == [0, 1]


TEXT = Text((2, 4, 5, 2, 5, 5), n_prompt=3)  # 2, 5 and 5 were generated


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SamplingParams(repetition_penalty=2.0), [1.0, -0.5, 1.0, 0.3, -4.0, 0.75, 0.0, -1.0]),
        (SamplingParams(repetition_penalty=0.5), [1.0, -0.5, 4.0, 0.3, -1.0, 3.0, 0.0, -1.0]),
        (SamplingParams(presence_penalty=0.5), [1.0, -0.5, 1.5, 0.3, -2.0, 1.0, 0.0, -1.0]),
        (SamplingParams(frequency_penalty=0.5), [1.0, -0.5, 1.5, 0.3, -2.0, 0.5, 0.0, -1.0]),
        (
            SamplingParams(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=-0.5),
            [1.0, -0.5, 1.25, 0.3, -4.0, 1.5, 0.0, -1.0],
        ),
        (SamplingParams(no_repeat_ngram=1), [1.0, -0.5, None, 0.3, None, None, 0.0, -1.0]),
        (SamplingParams(no_repeat_ngram=2), [1.0, -0.5, None, 0.3, -2.0, None, 0.0, -1.0]),
        (SamplingParams(no_repeat_ngram=3), list(LOGITS)),
        (SamplingParams(never_end=True), [1.0, -0.5, 2.0, None, -2.0, 1.5, 0.0, -1.0]),
        (SamplingParams(min_tokens=4), [1.0, -0.5, 2.0, None, -2.0, 1.5, 0.0, -1.0]),
        (SamplingParams(min_tokens=3), list(LOGITS)),
        (SamplingParams(never_end=True, end_ids=(5, 0)), [None, -0.5, 2.0, None, -2.0, None, 0.0, -1.0]),
        (SamplingParams(repetition_penalty=2.0, end_ids=(5,)), [1.0, -0.5, 1.0, 0.3, -4.0, 1.5, 0.0, -1.0]),
        (SamplingParams(logit_bias=((0, 5.5), (2, -100.0))), [6.5, -0.5, -98.0, 0.3, -2.0, 1.5, 0.0, -1.0]),
        (SamplingParams(logit_bias=((7, 100.0),)), [1.0, -0.5, 2.0, 0.3, -2.0, 1.5, 0.0, 99.0]),
        (SamplingParams(logit_bias=((3, 100.0),), min_tokens=4), [1.0, -0.5, 2.0, None, -2.0, 1.5, 0.0, -1.0]),
        # The bias comes before the penalty, as with Hugging Face and vLLM.
        (
            SamplingParams(repetition_penalty=2.0, logit_bias=((2, 4.0), (5, -2.0))),
            [1.0, -0.5, 3.0, 0.3, -4.0, -1.0, 0.0, -1.0],
        ),
    ],
    ids=str,
)
def test_penalties_and_bans(rule: SamplingParams, expected: list[float | None]) -> None:
    probabilities, *_ = Rows.repeated(LOGITS, rule, SOME[:N_ROWS], TEXT).probabilities()
    exact = np.exp([-np.inf if logit is None else logit for logit in expected])
    np.testing.assert_allclose(probabilities, exact / exact.sum(), rtol=1e-5, atol=1e-9)
    most_likely = Rows.repeated(LOGITS, dataclasses.replace(rule, temperature=0.0), SOME, TEXT)
    assert set(most_likely.chosen()[0]) == {exact.argmax()}


def test_as_many_biases_as_there_is_room_for_all_count() -> None:
    """Those of one token add up."""
    per_token = MAX_BIASES // N_VOCAB
    rule = SamplingParams(logit_bias=tuple((i % N_VOCAB, (i % N_VOCAB) / per_token) for i in range(MAX_BIASES)))
    probabilities, *_ = Rows.repeated(LOGITS, rule, SOME[:N_ROWS]).probabilities()
    exact = np.exp(LOGITS + np.arange(N_VOCAB))
    np.testing.assert_allclose(probabilities, exact / exact.sum(), rtol=1e-4)


def test_a_repeated_ngram_bans_only_its_last_token() -> None:
    text = Text((7, 1, 2, 3, 1, 2, 4, 3, 1, 2), n_prompt=2)
    banned = {n: np.flatnonzero(np.isinf(reference.steered(ngrams(n), LOGITS, text))).tolist() for n in range(1, 12)}
    assert banned == {1: [1, 2, 3, 4, 7], 2: [3, 4], 3: [3, 4], 4: [4]} | {n: [] for n in range(5, 12)}
    for n, expected in banned.items():
        probabilities, *_ = Rows.repeated(LOGITS, ngrams(n), SOME[:N_ROWS], text).probabilities()
        assert np.flatnonzero(probabilities == 0.0).tolist() == expected


def ngrams(n: int) -> SamplingParams:
    return SamplingParams(no_repeat_ngram=n, penalize_end=True)


@pytest.mark.parametrize(
    ("rule", "end_by_default", "end_if_penalized"),
    [
        (SamplingParams(repetition_penalty=2.0), 0.3, 0.15),
        (SamplingParams(no_repeat_ngram=1), 0.3, -np.inf),
        (SamplingParams(no_repeat_ngram=2), 0.3, -np.inf),
        (SamplingParams(no_repeat_ngram=3), 0.3, 0.3),
    ],
    ids=str,
)
def test_an_end_in_the_prompt_may_come_again(
    rule: SamplingParams, end_by_default: float, end_if_penalized: float
) -> None:
    """As between the turns of a dialogue; other tokens are penalised alike."""
    text = Text((2, EOS, 5, 2), n_prompt=4)
    for penalize_end, end in ((False, end_by_default), (True, end_if_penalized)):
        with_setting = dataclasses.replace(rule, penalize_end=penalize_end)
        steered = reference.steered(with_setting, LOGITS, text)
        assert steered[EOS] == end and (steered != LOGITS).sum() >= (rule.no_repeat_ngram < 2)
        probabilities, *_ = Rows.repeated(LOGITS, with_setting, SOME[:N_ROWS], text).probabilities()
        np.testing.assert_allclose(probabilities, np.exp(steered) / np.exp(steered).sum(), rtol=1e-5, atol=1e-9)


def test_each_row_says_which_token_ended_its_text() -> None:
    rules = [dataclasses.replace(GREEDY, end_ids=ends) for ends in ((), (2,), (0, 1, 4, 2), (5,))]
    rows = Rows(np.float32([LOGITS] * 4), rules, [Text()] * 4, np.zeros(4, np.int32))
    *_, ended = rows.chosen()
    assert ended.tolist() == [0, 3, 3, 0]  # 1 + token 2, the most likely one
    *_, ended = Rows.repeated(np.float32([0, 0, 0, 9, 0, 0, 0, 0]), GREEDY, SOME[:1]).chosen()
    assert ended.tolist() == [1 + EOS]


def test_ids_that_are_no_token_are_neither_drawn_nor_reported() -> None:
    """Also where they are the most likely ones, and eos among them is one."""
    unused, used = ((0, 1), (2, 5), (7, 8)), [1, EOS, 5, 6]
    kernel = sampling.sample_next_tokens(Vocabulary(EOS, unused))
    for rule in (SamplingParams(), GREEDY, SamplingParams(3.0, top_p=0.99, entmax_sampling=True)):
        rows = Rows.repeated(LOGITS, rule, SOME[:N_ROWS])
        tokens, log_probs, top_tokens, top_log_probs, _ = (x.numpy() for x in kernel(*map(tf.constant, rows.inputs(1))))
        assert set(tokens) == {5} if rule == GREEDY else set(tokens) <= set(used)
        assert (
            top_tokens[0, : len(used)].tolist() == [5, EOS, 6, 1] and np.isneginf(top_log_probs[:, len(used) :]).all()
        )
        # Under the model itself, whose probabilities include theirs.
        exact = LOGITS - np.log(np.exp(LOGITS).sum())
        np.testing.assert_allclose(log_probs, exact[tokens], rtol=1e-5)


def test_where_all_tokens_are_banned_any_but_eos_may_be_sampled() -> None:
    text, rule = Text(tuple(range(8)), n_prompt=8), SamplingParams(no_repeat_ngram=1, never_end=True)
    assert set(Rows.repeated(LOGITS, rule, SOME, text).chosen()[0]) == {0, 1, 2, 4, 5, 6, 7}


def test_greedy_takes_the_first_of_equal_tokens_with_any_filter_and_seed() -> None:
    rule = SamplingParams(0.0, top_k=1, typical_p=0.1, entmax_sampling=True)
    assert set(Rows.repeated(np.array([0.0, 3.0, 1.0, 3.0, 2.0, 2.0, 2.0, 2.0]), rule, SOME).chosen()[0]) == {1}


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-38, 5e-324])
def test_the_lowest_temperatures_give_the_most_likely_token(temperature: float) -> None:
    for entmax in (False, True):
        rule = SamplingParams(temperature, entmax_sampling=entmax)
        assert set(Rows.repeated(LOGITS, rule, SOME).chosen()[0]) == {2}


def test_if_nothing_is_left_repetitions_are_equally_likely() -> None:
    rule = SamplingParams(no_repeat_ngram=1, min_tokens=5, end_ids=(0, 6, 7))
    rows = Rows.repeated(LOGITS, rule, np.zeros(1), Text((1, 2, 4, 5)))
    np.testing.assert_allclose(rows.probabilities()[0], [0.0, 0.25, 0.25, 0.0, 0.25, 0.25, 0.0, 0.0])


SHARES = st.one_of(st.just(1.0), st.floats(0.01, 1.0))
PENALTIES = st.one_of(st.just(0.0), st.floats(-2.0, 2.0))
RULES = st.builds(
    SamplingParams,
    temperature=st.floats(0.3, 3.0),
    top_k=st.integers(0, N_VOCAB + 2),
    top_p=SHARES,
    typical_p=SHARES,
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 0.5)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    presence_penalty=PENALTIES,
    frequency_penalty=PENALTIES,
    no_repeat_ngram=st.integers(0, 4),
    penalize_end=st.booleans(),
    entmax_sampling=st.booleans(),
    never_end=st.booleans(),
    min_tokens=st.integers(0, 16),
    end_ids=st.lists(st.integers(0, N_VOCAB - 1), max_size=MAX_ENDS).map(tuple),
    logit_bias=st.lists(st.tuples(st.integers(0, N_VOCAB - 1), st.integers(-4, 4)), max_size=3).map(tuple),
)
TEXTS = st.builds(
    lambda tokens, n_prompt: Text(tuple(tokens), min(n_prompt, len(tokens))),
    st.lists(st.integers(0, 5), max_size=16),
    st.integers(0, 16),
)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(RULES, min_size=N_ROWS, max_size=N_ROWS),
    st.lists(TEXTS, min_size=N_ROWS, max_size=N_ROWS),
)
def test_each_row_is_sampled_with_its_own_parameters(seed: int, rules: list[SamplingParams], texts: list[Text]) -> None:
    logits = np.random.default_rng(seed).normal(0.0, 2.0, (N_ROWS, N_VOCAB)).astype(np.float32)
    actual = Rows(logits, rules, texts, np.zeros(N_ROWS, np.int32)).probabilities()
    for row, rule, text, probabilities in zip(logits, rules, texts, actual, strict=True):
        exact, clearness = reference.probabilities_and_clearness(rule, reference.steered(rule, row, text))
        if clearness > 1e-4:  # otherwise float32 may keep or drop the token at the bound
            np.testing.assert_allclose(probabilities, exact, rtol=2e-4, atol=1e-6, err_msg=f"{rule} {text}")


@pytest.mark.parametrize(
    "rule",
    [
        SamplingParams(),
        SamplingParams(0.5),
        SamplingParams(2.0, top_k=4),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.12),
        SamplingParams(typical_p=0.85),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(presence_penalty=0.7),
        SamplingParams(frequency_penalty=0.4),
        SamplingParams(no_repeat_ngram=2),
        SamplingParams(entmax_sampling=True),
        SamplingParams(never_end=True),
        SamplingParams(min_tokens=9, logit_bias=((0, -1.5), (4, 2.5))),
        SamplingParams(1.5, top_k=5, top_p=0.9),
        SamplingParams(0.8, top_k=6, min_p=0.05, repetition_penalty=1.3, frequency_penalty=0.2),
    ],
    ids=str,
)
def test_tokens_are_sampled_with_their_probabilities(rule: SamplingParams) -> None:
    for first_seed in (0, 2**31 - 2**15):
        tokens = Rows.repeated(LOGITS, rule, np.arange(2**15) + first_seed, TEXT).chosen()[0]
        assert_drawn_with(tokens, reference.probabilities(rule, LOGITS, TEXT))


def first_clocks(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Samples from unchanged LOGITS."""
    clocks = noise.exponential(tf.constant(seeds, tf.int32), tf.constant(positions, tf.int32), len(LOGITS))
    return (np.exp(LOGITS) / clocks.numpy()).argmax(-1)


def test_the_positions_of_one_seed_are_independent() -> None:
    positions = np.arange(2**15)
    tokens = first_clocks(np.full_like(positions, 12345), positions)
    probabilities = reference.probabilities(SamplingParams(), LOGITS)
    assert_drawn_with(tokens, probabilities)
    assert_drawn_with(tokens[1:] * 8 + tokens[:-1], np.outer(probabilities, probabilities).ravel())


@pytest.mark.parametrize("moved", [(1, 0), (0, 1), (1, 1), (1, -1)], ids=str)
def test_seeds_and_positions_next_to_each_other_are_independent(moved: tuple[int, int]) -> None:
    seeds, positions = np.divmod(np.arange(2**15), 128)
    pairs = first_clocks(seeds + 7, positions + 7) * 8 + first_clocks(seeds + 7 + moved[0], positions + 7 + moved[1])
    probabilities = reference.probabilities(SamplingParams(), LOGITS)
    assert_drawn_with(pairs, np.outer(probabilities, probabilities).ravel())


@pytest.mark.parametrize(("seeds", "apart"), [((20522, 12438), 1), ((51657, 18951), 3), ((38919, 7856), 4)], ids=str)
def test_no_two_rows_share_numbers(seeds: tuple[int, int], apart: int) -> None:
    """With 32-bit keys these seeds would share numbers at position 5, shifted by this many tokens."""
    one, other = noise.exponential(tf.constant(seeds), tf.constant([5, 5]), 256).numpy()
    assert (one[apart:] == other[:-apart]).mean() < 0.1
    assert len(np.intersect1d(one, other)) < 5


def test_exponential_numbers_are_exact_down_to_the_smallest() -> None:
    seeds = tf.range(4096)
    clocks = noise.exponential(seeds, seeds % 7, 4096).numpy().ravel()
    assert clocks.dtype == np.float32 and clocks.min() > 0.0 and np.isfinite(clocks).all()
    for bound in (1e-6, 1e-4, 0.01, 0.5, 1.0, 3.0, 10.0):
        share = -np.expm1(-bound)
        assert abs((clocks < bound).sum() - share * clocks.size) < 5 * np.sqrt(share * (1 - share) * clocks.size), bound


def mixed_rows() -> Rows:
    """Rows with parameters and texts of all kinds."""
    rng = np.random.default_rng(3)
    rules = [
        GREEDY,
        SamplingParams(),
        SamplingParams(0.7, top_k=20, top_p=0.9),
        SamplingParams(typical_p=0.5, never_end=True),
        SamplingParams(1.2, min_p=0.1, repetition_penalty=1.3),
        SamplingParams(entmax_sampling=True, presence_penalty=0.5),
        SamplingParams(0.0, no_repeat_ngram=2, frequency_penalty=1.0),
        SamplingParams(1.5, top_k=3, min_tokens=9, logit_bias=((3, 4.0), (60, 2.5))),
    ]
    texts = [Text(tuple(rng.integers(0, 4, n).tolist()), n // 2) for n in range(4, 12)]
    return Rows(rng.normal(0.0, 2.0, (8, 64)).astype(np.float32), rules, texts, np.arange(8, dtype=np.int32) * 3)


def taken(rows: Rows, indices: list[int]) -> Rows:
    rules, texts = ([values[index] for index in indices] for values in (rows.rules, rows.texts))
    return Rows(rows.logits[indices], rules, texts, rows.seeds[indices])


@pytest.mark.parametrize(
    "indices", [[7, 6, 5, 4, 3, 2, 1, 0], [2, 2, 5, 1, 1, 1, 2, 5], [6] * 8, [3] * 8, [4] * 8, [2]], ids=str
)
def test_a_row_does_not_depend_on_its_index_and_the_other_rows(indices: list[int]) -> None:
    rows = mixed_rows()
    for together, alone in zip(rows.chosen(n_top=2), taken(rows, indices).chosen(n_top=2), strict=True):
        np.testing.assert_allclose(alone, together[indices], rtol=1e-6)


def test_rows_with_one_seed_differ_by_length_only() -> None:
    rows = Rows.repeated(np.zeros(64), SamplingParams(), np.full(8, 5))
    tokens = dataclasses.replace(rows, texts=[Text((1, 2))] * 2 + [Text((1,) * n) for n in range(3, 9)]).chosen()[0]
    assert tokens[0] == tokens[1] and len(set(tokens)) > 4


@pytest.mark.parametrize(
    "layout", ["batch:x,vocab:y,memory_length:y", pytest.param("vocab:x,memory_length:y", marks=pytest.mark.slow)]
)
def test_a_mesh_samples_the_same_tokens_as_one_device(devices: tuple[str, ...], layout: str) -> None:
    rows = mixed_rows()
    names = ["batch vocab", "batch float_settings", "batch integer_settings", "batch", "batch"]
    names += ["batch memory_length", "batch", "batch"]

    def build(logits: mtf.Tensor, *others: mtf.Tensor) -> list[mtf.Tensor]:
        choice = sample_next_tokens(logits, RowParams(*others[:4]), *others[4:], Vocabulary(EOS))
        return [choice.tokens, choice.log_probs, choice.top_tokens, choice.top_log_probs, choice.ended]

    placement = place(tiny.mesh_config("x:2,y:2", layout), devices)
    on_mesh = tiny.evaluate(build, placement, *zip(names, rows.inputs(n_top=1), strict=True))
    for actual, expected in zip(on_mesh, rows.chosen(n_top=1), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_vocabulary_may_have_several_ends() -> None:
    """A text ends with any of them, and with none of them where it may not end."""
    rows = mixed_rows()
    logits = np.full_like(rows.logits, -1.0)
    logits[:, 3], logits[:, 4] = 2.0, 1.0
    ending, unending = SamplingParams(0.0), SamplingParams(0.0, never_end=True)
    for rule, expected in ((ending, (3, 4)), (unending, (4, 0))):
        given = dataclasses.replace(rows, logits=logits, rules=[rule] * len(logits)).inputs(n_top=0)
        kernel = sampling.sample_next_tokens(Vocabulary(EOS, ((3, 4),), other_ends=(3,)))
        tokens, *_, ended = (x.numpy() for x in kernel(*map(tf.constant, given)))
        assert (set(tokens.tolist()), set(ended.tolist())) == ({expected[0]}, {expected[1]})


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_log_probabilities_are_those_of_the_raw_logits(dtype: tf.DType) -> None:
    rows = mixed_rows()
    logits, *others = map(tf.constant, rows.inputs(n_top=3))
    logits = tf.cast(logits, dtype)
    tokens, log_probs, top_tokens, top_log_probs, _ = (
        x.numpy() for x in sampling.sample_next_tokens(Vocabulary(EOS))(logits, *others)
    )
    exact = np.float64(tf.cast(logits, tf.float32))
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs, np.take_along_axis(exact, tokens[:, None], 1)[:, 0], rtol=1e-5)
    order = np.argsort(-exact, axis=-1, kind="stable")[:, :MAX_TOP]
    np.testing.assert_array_equal(top_tokens, order)
    np.testing.assert_allclose(top_log_probs, np.take_along_axis(exact, order, 1), rtol=1e-5)
    as_float32 = dataclasses.replace(rows, logits=tf.cast(logits, tf.float32).numpy())
    np.testing.assert_array_equal(tokens, as_float32.chosen()[0])


def test_top_tokens_are_zero_if_no_row_wants_them() -> None:
    assert not any(output.any() for output in mixed_rows().chosen()[2:4])


@pytest.mark.slow
def test_a_vocabulary_may_be_smaller_than_the_number_of_top_tokens() -> None:
    rows = Rows.repeated(np.array([0.0, 1.0, -1.0]), GREEDY, np.arange(2))
    tokens, _, top_tokens, top_log_probs, _ = rows.chosen(n_top=1)
    assert top_tokens[0, :3].tolist() == [1, 0, 2] and np.isneginf(top_log_probs[:, 3:]).all()
    np.testing.assert_array_equal(tokens, [1, 1])
