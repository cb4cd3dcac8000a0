"""Writing text: the cache against the whole forward pass, sampling against exact probabilities, the ends of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import PredictionConfig, RunConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.decode import KEY_STRIDE, Request
from models.dims import Dims
from models.kernels.sampling import SamplingRule, filtered_logits, sample
from runtime.graph import build_generation
from runtime.mesh import place
from tests import tiny
from tests.models import reference
from tests.models.decoding import cached_logits

MODEL = dataclasses.replace(tiny.MODEL, n_layer=3, attention_types=("global", "local", "none"))
GREEDY, FREE = SamplingRule(0.0, 0, 1.0), SamplingRule(1.0, 0, 1.0)
NO_EOS = tiny.MODEL.n_vocab  # an id that is never drawn
PROMPT = np.array([3, 1, 4, 15], np.int32)


# The cache.


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 0.15, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("prompt_length", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_the_cache_gives_the_logits_of_the_whole_forward_pass(
    devices: tuple[str, ...], precision: str, tolerance: float, prompt_length: int
) -> None:
    model = dataclasses.replace(MODEL, precision=precision)
    placement = place(tiny.mesh_config("", ""), devices[:1])

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        whole = gpt2.logits(Context(tokens.mesh, model, Dims.of(model, 2, 16)), tokens)
        return [mtf.cast(logits, tf.float32) for logits in (whole, *cached_logits(model, tokens, prompt_length))]

    tokens_BS = tiny.batch()[0][:2]
    function = tiny.compiled(build, placement, ("batch sequence", tokens_BS))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    whole_BSV, *cached_BV = function(tokens_BS)
    cached_BSV = np.stack(cached_BV, axis=1)
    assert cached_BSV.shape == (2, 17 - prompt_length, MODEL.n_vocab)
    np.testing.assert_allclose(cached_BSV, whole_BSV[:, prompt_length - 1 :], rtol=tolerance, atol=tolerance)


# Continuations.


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model that writes, and its variables."""

    write: Callable[..., np.ndarray]
    values: dict[str, np.ndarray]


def writer_of(devices: Sequence[str], request: Request, n_rows: int, mesh: tuple[str, str] = ("", "")) -> Writer:
    """Continues `PROMPT` in `n_rows` rows, from a noise key; its variables are the same on any mesh."""
    config = run_config(n_rows, mesh)
    placement = place(config.mesh, devices if mesh[0] else devices[:1])
    step = build_generation(config, placement, len(PROMPT), request)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return Writer(lambda key: step(PROMPT, np.int32(key))["written"], tiny.values_of(placement.store))


def run_config(n_rows: int, mesh: tuple[str, str]) -> RunConfig:
    config = tiny.run_config(tiny.mesh_config(*mesh))
    return dataclasses.replace(config, model=MODEL, prediction=PredictionConfig(predict_batch_size=n_rows))


@pytest.fixture(scope="module")
def on_one_device(devices: tuple[str, ...]) -> Writer:
    return writer_of(devices, Request(FREE, 12, NO_EOS), 4)


@pytest.mark.parametrize("n_new_tokens", [pytest.param(1, marks=pytest.mark.slow), 12])
def test_without_temperature_it_is_the_likeliest_token_of_the_whole_model(
    devices: tuple[str, ...], n_new_tokens: int
) -> None:
    writer = writer_of(devices, Request(GREEDY, n_new_tokens, NO_EOS), 2)
    text = PROMPT.tolist()
    for _ in range(n_new_tokens):
        logits_BSV = reference.logits(MODEL, writer.values, np.array([text]))
        text.append(int(logits_BSV[0, -1].argmax()))
    assert n_new_tokens == 1 or len(set(text[4:])) > 1
    np.testing.assert_array_equal(writer.write(0), [text[4:]] * 2)
    np.testing.assert_array_equal(writer.write(1), [text[4:]] * 2)


def test_a_key_repeats_the_text_and_rows_and_keys_differ(on_one_device: Writer) -> None:
    first, second = on_one_device.write(5), on_one_device.write(6)
    assert (first.shape, first.dtype) == ((4, 12), np.int32)
    assert first.min() >= 0 and first.max() < MODEL.n_vocab
    np.testing.assert_array_equal(on_one_device.write(5), first)
    assert len({tuple(row) for row in (*first, *second)}) == 8


@pytest.mark.parametrize(
    "mesh",
    [
        ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y"),
        pytest.param(("x:4", "batch:x"), marks=pytest.mark.slow),
        pytest.param(("x:2,y:2", "batch:y,embd:x"), marks=pytest.mark.slow),
        pytest.param(("x:2,y:2", "batch:y,sequence:x,memory_length:x"), marks=pytest.mark.slow),
    ],
    ids=lambda mesh: mesh[1],
)
def test_a_mesh_writes_the_text_of_one_device(
    devices: tuple[str, ...], on_one_device: Writer, mesh: tuple[str, str]
) -> None:
    on_mesh = writer_of(devices, Request(FREE, 12, NO_EOS), 4, mesh)
    np.testing.assert_array_equal(on_mesh.write(5), on_one_device.write(5))


@pytest.mark.parametrize("n_rows", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_row_does_not_depend_on_how_many_there_are(
    devices: tuple[str, ...], on_one_device: Writer, n_rows: int
) -> None:
    written = writer_of(devices, Request(FREE, 12, NO_EOS), n_rows).write(5)
    n_common = min(n_rows, 4)
    np.testing.assert_array_equal(written[:n_common], on_one_device.write(5)[:n_common])


def test_a_row_that_has_ended_holds_eos_and_the_others_go_on(devices: tuple[str, ...], on_one_device: Writer) -> None:
    endless = on_one_device.write(5)
    eos_id = int(endless[1, 3])  # so that row 1 ends in the midst
    written = writer_of(devices, Request(FREE, 12, eos_id), 4).write(5)
    for row, expected in zip(written, endless, strict=True):
        end = np.flatnonzero(expected == eos_id)[0] if eos_id in expected else 12
        np.testing.assert_array_equal(row, np.where(np.arange(12) < end, expected, eos_id))
    assert (written[1] == eos_id).sum() >= 9 and (written != eos_id).any(axis=0).all()


# Sampling.


def filtered(rule: SamplingRule, logits: np.ndarray) -> np.ndarray:
    """The probabilities of one row, by the definitions: keep the likeliest, then renormalise; float64 [V]."""
    probabilities = np.exp((logits - logits.max()) / rule.temperature)
    order = np.argsort(-logits)
    if rule.top_k:
        probabilities[order[rule.top_k :]] = 0.0
    probabilities /= probabilities.sum()
    n_kept = 1
    while probabilities[order[:n_kept]].sum() < rule.top_p and n_kept < len(logits):
        n_kept += 1
    if rule.top_p < 1.0:
        probabilities[order[n_kept:]] = 0.0
    return probabilities / probabilities.sum()


LOGITS = np.array([1.0, -0.5, 2.0, 0.3, -2.0, 1.5, 0.0, -1.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-4000, 4000), min_size=2, max_size=12, unique=True),
    st.floats(0.3, 3.0),
    st.integers(0, 13),
    st.floats(0.01, 1.0),
)
def test_filters_keep_what_the_definitions_keep(
    thousandths: list[int], temperature: float, top_k: int, top_p: float
) -> None:
    rule, logits = SamplingRule(temperature, top_k, top_p), np.array(thousandths) / 1000.0
    expected = filtered(rule, logits)
    likeliest_first = np.cumsum(np.sort(filtered(dataclasses.replace(rule, top_p=1.0), logits))[::-1])
    if np.abs(likeliest_first - top_p).min() < 1e-5:
        return  # float32 may count the token at the bound either way
    actual = filtered_logits(rule, tf.constant(logits[None], tf.float32))
    np.testing.assert_allclose(tf.nn.softmax(actual).numpy()[0], expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (SamplingRule(1.0, 1, 1.0), [2]),
        (SamplingRule(1.0, 3, 1.0), [0, 2, 5]),
        (SamplingRule(5.0, 8, 1.0), [0, 1, 2, 3, 4, 5, 6, 7]),
        (SamplingRule(1.0, 0, 1e-6), [2]),
        (SamplingRule(1.0, 0, 0.75), [0, 2, 5]),
        (SamplingRule(1.0, 2, 0.99), [2, 5]),
        (SamplingRule(0.2, 0, 0.75), [2]),
    ],
)
def test_filters_by_hand(rule: SamplingRule, kept: list[int]) -> None:
    logits = filtered_logits(rule, tf.constant(LOGITS[None], tf.float32)).numpy()[0]
    assert np.flatnonzero(np.isfinite(logits)).tolist() == kept


def draws(rule: SamplingRule, key: int, n_rows: int = 40_000) -> np.ndarray:
    repeated_BV = tf.constant(np.broadcast_to(LOGITS, (n_rows, len(LOGITS))), tf.float32)
    return sample(rule)(repeated_BV, tf.constant(key), tf.range(n_rows)).numpy()


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities / probabilities.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0
    return float((((counts - expected) ** 2)[expected > 0] / expected[expected > 0]).sum())


# The 99.9 % points of the chi-square distribution, by degrees of freedom.
CHI_SQUARE_BOUND = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 7: 24.32, 63: 103.4}


@pytest.mark.parametrize("key", [0, 123456789])
@pytest.mark.parametrize(
    "rule",
    [FREE, SamplingRule(0.5, 0, 1.0), SamplingRule(2.0, 4, 1.0), SamplingRule(1.0, 0, 0.8), SamplingRule(1.5, 5, 0.9)],
    ids=str,
)
def test_tokens_come_with_their_probabilities(rule: SamplingRule, key: int) -> None:
    probabilities = filtered(rule, LOGITS)
    counts = np.bincount(draws(rule, key), minlength=len(LOGITS))
    bound = CHI_SQUARE_BOUND[int((probabilities > 0).sum()) - 1]
    assert chi_square(counts, probabilities) < bound
    assert chi_square(counts, np.ones(8) * (probabilities > 0)) > 10 * bound


@pytest.mark.parametrize("apart", [KEY_STRIDE, 1], ids=["positions", "seeds"])
def test_draws_of_two_keys_are_independent(apart: int) -> None:
    pairs = draws(FREE, 7) * 8 + draws(FREE, 7 + apart)
    probabilities = filtered(FREE, LOGITS)
    assert chi_square(np.bincount(pairs, minlength=64), np.outer(probabilities, probabilities).ravel()) < 103.4


def test_without_temperature_no_noise_is_heard() -> None:
    assert set(draws(GREEDY, 1).tolist()) == {2}


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-38, 5e-324])
def test_the_lowest_temperatures_give_the_likeliest_token_too(temperature: float) -> None:
    for entmax in (False, True):
        assert set(draws(SamplingRule(temperature, 0, 1.0, entmax), 1).tolist()) == {2}
