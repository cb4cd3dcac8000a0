"""The cross-entropy, its weights and the z-loss on split vocabularies against NumPy, forward and backward."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from meshtf import mtf
from models import losses
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference

LABELS = np.array([[0, 7, 3], [4, 4, 1]], np.int32)
WEIGHTS = np.array([[0.3, 0.1, 0.0], [0.25, 0.15, 0.2]], np.float32)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize(("mesh_shape", "layout"), [("x:4", "vocab:x"), ("x:2,y:2", "batch:x,vocab:y")])
def test_training_loss(devices: tuple[str, ...], mesh_shape: str, layout: str, z_loss: float) -> None:
    logits = np.random.default_rng(5).normal(0.0, 3.0, (2, 3, 8)).astype(np.float32)

    def build(logits: mtf.Tensor, labels: mtf.Tensor, weights: mtf.Tensor) -> list[mtf.Tensor]:
        each = losses.token_losses(tiny.MODEL, logits, labels)
        loss = each.training_loss(weights, z_loss)
        return [each.loss, each.log_z, each.mean(weights), loss, *mtf.gradients([loss], [logits])]

    inputs = [("batch sequence vocab", logits), ("batch sequence", LABELS), ("batch sequence", WEIGHTS)]
    placement = place(tiny.mesh_config(mesh_shape, layout), devices)
    cross_entropy, log_z, mean, loss, d_logits = tiny.evaluate(build, placement, *inputs)
    exact = logits.astype(np.float64)
    expected, expected_log_z = reference.losses(exact, LABELS)
    np.testing.assert_allclose(cross_entropy, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_z, expected_log_z, rtol=1e-5)
    np.testing.assert_allclose(mean, (WEIGHTS * expected).sum(), rtol=1e-5)
    np.testing.assert_allclose(loss, (WEIGHTS * (expected + z_loss * expected_log_z**2)).sum(), rtol=1e-5)
    softmax = np.exp(exact - expected_log_z[..., None])
    d_expected = softmax * (1.0 + 2.0 * z_loss * expected_log_z[..., None]) - np.eye(8)[LABELS]
    np.testing.assert_allclose(d_logits, d_expected * WEIGHTS[..., None], atol=1e-5)


@pytest.mark.parametrize("entmax_loss", [False, True])
def test_the_uniform_loss_is_that_of_equal_logits(devices: tuple[str, ...], entmax_loss: bool) -> None:
    model = dataclasses.replace(tiny.MODEL, n_vocab=8, entmax_loss=entmax_loss)

    def build(logits: mtf.Tensor, labels: mtf.Tensor) -> list[mtf.Tensor]:
        return [losses.token_losses(model, logits, labels).loss]

    inputs = [("batch sequence vocab", np.full((2, 3, 8), 0.7, np.float32)), ("batch sequence", LABELS)]
    (each,) = tiny.evaluate(build, place(tiny.mesh_config("", ""), devices[:1]), *inputs)
    np.testing.assert_allclose(each, losses.uniform_loss(model), rtol=1e-5)
