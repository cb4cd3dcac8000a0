"""The loss of a batch from the last state, in blocks of tokens and on split dimensions, against NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from meshtf import mtf
from models import losses
from models.ops import output_layer
from models.ops.entmax import entmax_loss
from models.ops.output_layer import OutputLayer, linear_cross_entropy, token_cross_entropy
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference

B, S, E, V = 2, 6, 4, 8
LABELS = np.array([[0, 7, 3, 1, 1, 6], [4, 4, 1, 2, 0, 5]], np.int32)
WEIGHTS = np.array([[0.1, 0.1, 0.0, 0.05, 0.1, 0.05], [0.2, 0.1, 0.2, 0.0, 0.05, 0.05]], np.float32)
UPSTREAM = 3.0


@dataclasses.dataclass(frozen=True)
class Case:
    """How the layer is made and split; it is one block, or has blocks of `block_size` tokens."""

    mesh_shape: str = ""
    layout: str = ""
    is_vocab_first: bool = True
    softcap: float | None = None
    z_loss: float = 0.0
    block_size: int | None = None


CASES = {
    "whole": Case(z_loss=0.1),
    "blocks, the last one filled up": Case(softcap=2.0, z_loss=0.1, block_size=5),
    "a block for each token": Case(is_vocab_first=False, block_size=1),
    "split vocabulary": Case("x:4", "vocab:x", z_loss=0.1, block_size=5),
    "split batch and vocabulary": Case("x:2,y:2", "batch:x,vocab:y", is_vocab_first=False, softcap=2.0, block_size=4),
    "split sequence and features": Case("x:2,y:2", "sequence:x,embd:y", z_loss=0.1, block_size=4),
    "split vocabulary and features": Case("x:2,y:2", "vocab:x,embd:y", softcap=2.0, z_loss=0.1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_loss_of_a_batch(devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    generator = np.random.default_rng(5)
    state, table, bias = (generator.normal(0.0, 1.5, shape).astype(np.float32) for shape in ((B, S, E), (V, E), (V,)))
    if case.block_size is not None:
        n_words = V // (1 if "vocab" not in case.layout else 4 if case.mesh_shape == "x:4" else 2)
        monkeypatch.setattr(output_layer, "SMALLEST_BLOCK", 1)
        monkeypatch.setattr(output_layer, "BLOCK_BYTES", case.block_size * n_words * 4)

    def build(state: mtf.Tensor, table: mtf.Tensor, bias: mtf.Tensor, *batch: mtf.Tensor) -> list[mtf.Tensor]:
        layer, (labels, weights) = OutputLayer(table, bias, case.softcap, is_trained=True), batch
        loss, mean = linear_cross_entropy(state, layer, labels, weights, case.z_loss)
        gradients = [*mtf.gradients([loss], [state, table, bias]), *mtf.gradients([loss * UPSTREAM], [state])]
        return [loss, mean, token_cross_entropy(state, layer, labels), *gradients]

    placement = place(tiny.mesh_config(case.mesh_shape, case.layout), devices if case.layout else devices[:1])
    of_table = ("vocab embd", table) if case.is_vocab_first else ("embd vocab", table.T)
    batch = [("batch sequence", LABELS), ("batch sequence", WEIGHTS)]
    inputs = [("batch sequence embd", state), of_table, ("vocab", bias), *batch]
    loss, mean, each, d_state, d_table, d_bias, scaled = tiny.evaluate(build, placement, *inputs)

    logits = np.float64(state) @ np.float64(table).T + bias
    capped = np.tanh(logits / case.softcap) * case.softcap if case.softcap else logits
    expected, log_z = reference.losses(capped, LABELS)
    np.testing.assert_allclose(each, expected, atol=1e-5)
    np.testing.assert_allclose(mean, (WEIGHTS * expected).sum(), atol=1e-5)
    np.testing.assert_allclose(loss, (WEIGHTS * (expected + case.z_loss * log_z**2)).sum(), atol=1e-5)
    d_logits = np.exp(capped - log_z[..., None]) * (1.0 + 2.0 * case.z_loss * log_z[..., None]) - np.eye(V)[LABELS]
    d_logits *= WEIGHTS[..., None] * (1.0 - (capped / case.softcap) ** 2 if case.softcap else 1.0)
    np.testing.assert_allclose(d_state, d_logits @ table, atol=1e-5)
    np.testing.assert_allclose(scaled, UPSTREAM * (d_logits @ table), atol=1e-5)
    expected = np.einsum("bsv,bse->ve", d_logits, state)
    np.testing.assert_allclose(d_table, expected if case.is_vocab_first else expected.T, atol=1e-5)
    np.testing.assert_allclose(d_bias, d_logits.sum((0, 1)), atol=1e-5)


@pytest.mark.parametrize("is_entmax", [False, True])
def test_the_uniform_loss_is_that_of_equal_logits(devices: tuple[str, ...], is_entmax: bool) -> None:
    model = dataclasses.replace(tiny.MODEL, n_vocab=V, entmax_loss=is_entmax)

    def build(state: mtf.Tensor, table: mtf.Tensor, labels: mtf.Tensor) -> list[mtf.Tensor]:
        if not is_entmax:
            return [token_cross_entropy(state, OutputLayer(table, None, None, is_trained=True), labels)]
        return [entmax_loss(mtf.einsum([state, table], [*labels.shape.dims, table.shape.dims[0]]), labels)]

    values = ("batch sequence embd", np.ones((B, S, E), np.float32)), ("vocab embd", np.full((V, E), 0.7, np.float32))
    (each,) = tiny.evaluate(build, place(tiny.mesh_config("", ""), devices[:1]), *values, ("batch sequence", LABELS))
    np.testing.assert_allclose(each, losses.uniform_loss(model), rtol=1e-5)
