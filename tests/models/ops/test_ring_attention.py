"""Attention of a sequence that is split over the mesh, against NumPy on whole sequences, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshtf import mtf, tf
from models.kernels import linear_attention as linear_kernels
from models.kernels.attention import AttentionParams
from models.ops.attention import softmax_attention
from models.ops.dropout import Noise
from models.ops.linear_attention import causal_linear_attention
from models.ops.ring_attention import exchanges, halo_sizes, returned
from tests import tiny
from tests.models import reference_attention as reference
from tests.models.ops.on_mesh import Devices, placed

ROW, KEYS = "batch sequence heads features_per_head", "batch memory_length kv_heads features_per_head"
STARTS = "batch sequence"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def inputs_of(n_positions: int) -> list[np.ndarray]:
    """Queries, keys, values and the gradient of the outputs."""
    return [normal(2, n_positions, 2, 3, seed=seed) for seed in range(4)]


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@given(st.integers(2, 9), st.integers(1, 6))
def test_every_visible_pair_is_computed_once_and_all_processors_work_alike(n: int, n_positions: int) -> None:
    """Those of other slices; an odd slice cannot be halved between two processors that are half the axis apart."""
    met = np.zeros((n * n_positions, n * n_positions), int)
    work = np.zeros(n, int)
    for exchange in exchanges(n, n_positions, is_causal=True):
        starts = exchange.starts(n_positions)
        for at, (fetched, lent) in enumerate(zip(exchange.fetched, exchange.lent, strict=True)):
            assert fetched is None or lent is None
            if fetched is not None or lent is not None:
                query, key = starts[at]
                met[query : query + exchange.n_rows, key : key + n_positions] += 1
                work[at] += exchange.n_rows
    slices = np.arange(n * n_positions) // n_positions
    np.testing.assert_array_equal(met, slices[:, None] > slices)
    assert np.ptp(work) <= (n_positions if n % 2 == 0 and n_positions % 2 else 0)


def test_exchanges_of_four_processors_by_hand() -> None:
    near, far = exchanges(4, 6, is_causal=True)
    assert (near.fetched, near.lent) == ((None, 0, 1, 2), (3, None, None, None))
    assert (far.fetched, far.lent) == ((None, None, 0, 1), (2, 3, None, None))
    assert (far.own_rows, far.lent_rows) == (slice(0, 3), slice(3, 6))
    assert far.starts(6) == [(15, 0), (21, 6), (12, 0), (18, 6)]
    assert returned(near.fetched) == (1, 2, 3, None) and returned(near.lent) == (None, None, None, 0)
    assert [exchange.fetched[0] for exchange in exchanges(4, 6, is_causal=False)] == [3, 2, 1]


def test_neighbours_within_a_radius() -> None:
    assert [halo_sizes(reach, 4) for reach in (0, 3, 4, 9)] == [[], [3], [4], [4, 4, 1]]


PARAMS = {
    "global": (AttentionParams(True, None, 0.0, softcap=0.5), 8),
    "odd slices": (AttentionParams(True, None, 0.0), 12),
    "segments": (AttentionParams(True, None, 0.0, has_segments=True), 8),
    "everywhere": (AttentionParams(False, None, 0.0, has_segments=True), 8),
    "local": (AttentionParams(True, 4, 0.0, has_segments=True), 8),
    "local both ways": (AttentionParams(False, 3, 0.0, has_segments=True), 8),
}


@pytest.mark.parametrize(
    "name", [name if name == "segments" else pytest.param(name, marks=pytest.mark.slow) for name in PARAMS]
)
def test_softmax_attention(devices: Devices, name: str) -> None:
    """With one head of keys for all; dropout, and a head of keys for each, are compared in `test_attention.py`."""
    params, n_positions = PARAMS[name]
    queries, *wide, d_outputs = inputs_of(n_positions)
    inputs = [queries, *(x[:, :, :1] for x in wide), d_outputs]
    starts = reference.segments((1, 2, n_positions - 3), (5, n_positions - 5))

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        *tensors, d_outputs, starts = tensors
        noise = Noise(
            mtf.constant(starts.mesh, 1, dtype=tf.int32), mtf.zeros(starts.mesh, starts.shape.dims[:1], tf.int32)
        )
        outputs, _ = softmax_attention(*tensors, params, noise, starts if params.has_segments else None)
        return [outputs, *mtf.gradients([mtf.reduce_sum(outputs * d_outputs)], tensors)]

    arguments = zip([ROW, KEYS, KEYS, ROW, STARTS], [*inputs, starts], strict=True)
    actual = tiny.evaluate(build, placed(devices, "x:4", "sequence:x"), *arguments)
    seen = reference.visible(n_positions, n_positions, params.is_causal, params.radius)
    if params.has_segments:
        seen = seen & (starts[:, None, :, None] == starts[:, None, None, :])
    queries, *of_keys, d_outputs = [x.astype(np.float64) for x in inputs]
    exact = [queries, *(np.repeat(x, 2, 2) for x in of_keys)]
    close(actual[0], reference.softmax_attention(*exact, seen, softcap=params.softcap)[0])
    if params.softcap is None:
        expected = reference.softmax_attention_gradient(exact, seen, d_outputs)
    else:
        expected = reference.slopes(
            lambda *inputs: (reference.softmax_attention(*inputs, seen, softcap=params.softcap)[0] * d_outputs).sum(),
            exact,
        )
    d_queries, *d_keys = expected
    for one, other in zip(actual[1:], [d_queries, *(x.sum(2, keepdims=True) for x in d_keys)], strict=True):
        close(one, other)


@pytest.mark.parametrize("normalization", ["position", pytest.param("feature", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [1.0, pytest.param(100.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("has_segments", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_linear_attention(devices: Devices, normalization: str, scale: float, has_segments: bool) -> None:
    """Against the kernels of whole sequences, which are compared with NumPy; also where positions are chunks."""
    inputs, starts = inputs_of(12), reference.segments((1, 4, 7), (3, 6, 3))
    inputs[1] *= np.float32(scale)

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        *tensors, d_outputs, starts = tensors
        outputs = causal_linear_attention(*tensors, normalization, starts if has_segments else None)
        return [outputs, *mtf.gradients([mtf.reduce_sum(outputs * d_outputs)], tensors)]

    arguments = zip([ROW, ROW, ROW, ROW, STARTS], [*inputs, starts], strict=True)
    actual = tiny.evaluate(build, placed(devices, "x:4", "sequence:x"), *arguments)
    of_rows = (starts,) if has_segments else ()
    outputs = linear_kernels.causal_linear_attention(*inputs[:3], *of_rows, normalization=normalization)
    gradients = linear_kernels.causal_linear_attention_gradient(*inputs, *of_rows, normalization=normalization)
    for one, other in zip(actual, [outputs, *gradients], strict=True):
        close(one, np.asarray(other), 1e-4 if scale > 1.0 else 1e-5)
