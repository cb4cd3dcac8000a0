"""Entmax against NumPy in float64: probabilities, the loss and its gradient on several meshes, and sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import mtf, tf
from models import losses
from models.kernels import entmax as kernels
from models.kernels.sampling import SamplingParams
from models.ops.entmax import entmax_loss
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference_sampling
from tests.models.reference_sampling import Rows, assert_drawn_with
from tests.models.reference_sampling import entmax as exact_entmax

Devices = tuple[str, ...]
ALPHA = 1.3


def exact_loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[B, S, V], [B, S] -> [B, S]: (p - e_label) z + H(p), H the Tsallis entropy."""
    probabilities = exact_entmax(logits)
    entropy = (probabilities - probabilities**ALPHA).sum(-1) / (ALPHA * (ALPHA - 1.0))
    return ((probabilities - np.eye(logits.shape[-1])[labels]) * logits).sum(-1) + entropy


def normal(*shape: int, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng([7, *shape]).normal(0.0, std, shape).astype(np.float32)


@pytest.mark.parametrize("n_tokens", [2, 64, pytest.param(50257, marks=pytest.mark.slow)])
@pytest.mark.parametrize("std", [0.02, 1.0, 4.0, 100.0])
def test_entmax(n_tokens: int, std: float) -> None:
    logits = normal(3, n_tokens, std=std) + np.float32(20.0)
    actual, expected = kernels.entmax(logits).numpy(), exact_entmax(logits)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual.sum(-1), 1.0, rtol=1e-5)
    assert (actual[expected == 0.0] < 1e-12).all() and (actual[expected > 1e-9] > 0.0).all()


def test_entmax_of_equal_and_of_distant_logits() -> None:
    np.testing.assert_allclose(kernels.entmax(np.full((2, 1000), -7.0, np.float32)), 0.001, rtol=1e-5)
    np.testing.assert_array_equal(kernels.entmax(np.array([[3.0, 9.0, 5.6]], np.float32)), [[0.0, 1.0, 0.0]])


def test_probability_is_0_from_1_over_alpha_minus_1_below_the_largest_logit() -> None:
    below = 1.0 / (ALPHA - 1.0)
    just_within, just_without = (
        kernels.entmax(np.array([[0.0, -below * factor]], np.float32)).numpy()[0, 1] for factor in (0.9, 1.001)
    )
    assert just_within > 1e-4 and just_without == 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-8000, 8000), min_size=5, max_size=5))
def test_entmax_meets_its_definition(thousandths: list[int]) -> None:
    logits = np.array(thousandths, np.float32) / 1000
    probabilities = np.float64(kernels.entmax(logits))
    assert abs(probabilities.sum() - 1.0) < 1e-5
    taus = (ALPHA - 1.0) * np.float64(logits) - probabilities ** (ALPHA - 1.0)
    # One tau for all tokens that are sampled; no other token exceeds it.
    tau = taus[probabilities.argmax()]
    np.testing.assert_allclose(taus[probabilities > 1e-6], tau, atol=2e-4)
    assert (taus <= tau + 2e-2).all()


@pytest.mark.parametrize(
    ("mesh_shape", "layout"), [("", ""), ("x:2,y:2", "batch:x,vocab:y"), ("x:2,y:2", "sequence:x,vocab:y")]
)
def test_the_loss_and_its_gradient(devices: Devices, mesh_shape: str, layout: str) -> None:
    logits, labels = normal(2, 4, 8, std=3.0), np.array([[0, 7, 3, 2], [4, 4, 1, 6]], np.int32)
    weights = np.array([[0.2, 0.1, 0.0, 0.3], [0.1, 0.1, 0.05, 0.15]], np.float32)

    def build(logits: mtf.Tensor, labels: mtf.Tensor, weights: mtf.Tensor) -> list[mtf.Tensor]:
        each = entmax_loss(logits, labels)
        loss, mean = losses.weighted_mean(each, weights)
        return [each, loss, mean, *mtf.gradients([loss], [logits])]

    placement = place(tiny.mesh_config(mesh_shape, layout), devices if layout else devices[:1])
    inputs = [("batch sequence vocab", logits), ("batch sequence", labels), ("batch sequence", weights)]
    each, loss, mean, d_logits = tiny.evaluate(build, placement, *inputs)
    exact = logits.astype(np.float64)
    expected = exact_loss(exact, labels)
    np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([loss, mean], (weights * expected).sum(), rtol=1e-5)
    np.testing.assert_allclose(d_logits, (exact_entmax(exact) - np.eye(8)[labels]) * weights[..., None], atol=1e-6)


def test_the_gradient_of_the_loss_by_central_differences() -> None:
    logits, labels, step = normal(1, 6, 5, std=2.0), np.array([[0, 4, 2, 2, 1, 3]], np.int32), 1e-5
    exact = logits.astype(np.float64)
    ends = [[exact_loss(exact + sign * step * unit, labels) for unit in np.eye(5)] for sign in (1, -1)]
    expected = np.stack(np.subtract(*ends), -1) / (2 * step)
    loss, tau = kernels.entmax_loss(logits, labels)
    d_loss = np.array([[1.0, 2.0, -1.0, 0.0, 0.5, 1.0]], np.float32)
    d_logits = kernels.entmax_loss_gradient(logits, labels, tau, d_loss)
    np.testing.assert_allclose(d_logits, expected * d_loss[..., None], atol=2e-6)
    assert (loss.numpy() > 0.0).all()


def test_the_loss_is_0_for_a_certain_label_and_finite_for_one_without_probability() -> None:
    logits = np.array([[[50.0, 0.0, 1.0]] * 2], np.float32)
    loss, _ = kernels.entmax_loss(logits, np.array([[0, 1]], np.int32))
    np.testing.assert_array_equal(loss, [[0.0, 50.0]])


def test_the_loss_of_bfloat16_logits_is_float32_and_its_gradient_bfloat16() -> None:
    logits, labels = tf.cast(normal(2, 3, 64, std=2.0), tf.bfloat16), np.zeros((2, 3), np.int32)
    loss, tau = kernels.entmax_loss(logits, labels)
    d_logits = kernels.entmax_loss_gradient(logits, labels, tau, tf.ones_like(loss))
    assert (loss.dtype, tau.dtype, d_logits.dtype) == (tf.float32, tf.float32, tf.bfloat16)
    exact = np.float64(tf.cast(logits, tf.float32))
    np.testing.assert_allclose(loss, exact_loss(exact, labels), rtol=1e-5)
    np.testing.assert_allclose(tf.cast(d_logits, tf.float32), exact_entmax(exact) - np.eye(64)[labels], atol=2**-8)


# Entmax gives the last three the probability 0, and at half the temperature a fourth one too.
LOGITS = np.array([1.0, 0.2, 2.0, 0.6, 0.0, -3.0, -2.5, -4.0])


@pytest.mark.parametrize(
    "rule",
    [
        SamplingParams(entmax_sampling=True),
        SamplingParams(0.5, entmax_sampling=True),
        SamplingParams(top_k=3, entmax_sampling=True),
        SamplingParams(top_p=0.7, entmax_sampling=True),
        SamplingParams(top_k=6, top_p=0.9999999, entmax_sampling=True),
        SamplingParams(min_p=0.2, entmax_sampling=True),
        SamplingParams(typical_p=0.9, entmax_sampling=True),
    ],
    ids=str,
)
def test_tokens_are_sampled_with_their_probabilities(rule: SamplingParams) -> None:
    expected = reference_sampling.probabilities(rule, LOGITS)
    assert (expected == 0.0).any()
    assert_drawn_with(Rows.repeated(LOGITS, rule, np.arange(2**15)).chosen()[0], expected)
    probabilities, *_ = Rows.repeated(LOGITS, rule, np.arange(16)).probabilities()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-6)
