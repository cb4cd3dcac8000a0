"""Softmax attention as mesh operations, on several layouts over four devices, against NumPy, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

from meshtf import mtf, tf
from models.ops.attention import AttentionParams, merged_attention, softmax_attention
from models.ops.dropout import Noise, dropout
from runtime.mesh.placement import Placement, place
from tests import tiny
from tests.models import reference_attention as reference

Devices = tuple[str, ...]
KEY, MEMORY_KEY, RATE = 11, 12, 0.25
ROW = "batch sequence heads features_per_head"
KEYS = "batch memory_length heads features_per_head"
MEMORY = "batch mem_kv_sequence heads features_per_head"
N_BATCH, N_POSITIONS, N_HEADS, N_FEATURES = 2, 8, 2, 3


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def rows(length: int, seed: int) -> np.ndarray:
    return normal(N_BATCH, length, N_HEADS, N_FEATURES, seed=seed)


def placed(devices: Devices, mesh_shape: str, layout: str) -> Placement:
    return place(tiny.mesh_config(mesh_shape, layout), devices if mesh_shape else devices[:1])


def noise(mesh: mtf.Mesh, key: int) -> Noise:
    rows = mtf.mtf_range(mesh, mtf.Dimension("batch", N_BATCH), tf.int32)
    return Noise(mtf.constant(mesh, key, dtype=tf.int32), rows)


def dropout_factor(devices: Devices, n_keys: int, key: int) -> np.ndarray:
    """The factors of the weights, [batch, heads, sequence, keys]."""
    ones = ("batch heads sequence keys", np.ones((N_BATCH, N_HEADS, N_POSITIONS, n_keys), np.float32))
    (factor,) = tiny.evaluate(lambda x: [dropout(x, RATE, noise(x.mesh, key))], placed(devices, "", ""), ones)
    return factor


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "rule"),
    [
        ("x:2,y:2", "batch:x,heads:y", AttentionParams(True, 3, RATE)),
        ("x:4", "sequence:x", AttentionParams(True, None, RATE)),
        ("x:4", "sequence:x", AttentionParams(True, 4, RATE)),
        pytest.param("x:4", "sequence:x", AttentionParams(True, 3, RATE), marks=pytest.mark.slow),
        pytest.param("x:4", "memory_length:x", AttentionParams(True, None, RATE), marks=pytest.mark.slow),
        pytest.param("x:4", "memory_length:x", AttentionParams(False, 3, RATE), marks=pytest.mark.slow),
        ("x:2,y:2", "sequence:x,memory_length:y", AttentionParams(True, 3, RATE)),
        pytest.param(
            "x:2,y:2", "sequence:x,memory_length:y", AttentionParams(False, None, RATE), marks=pytest.mark.slow
        ),
    ],
)
def test_softmax_attention(devices: Devices, mesh_shape: str, layout: str, rule: AttentionParams) -> None:
    inputs = [rows(N_POSITIONS, seed) for seed in range(4)]
    d_log_z = normal(N_BATCH, N_HEADS, N_POSITIONS)

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        *tensors, d_outputs, d_log_z = tensors
        outputs, log_z = softmax_attention(*tensors, rule, noise(d_outputs.mesh, KEY))
        loss = mtf.reduce_sum(outputs * d_outputs) + mtf.reduce_sum(log_z * d_log_z)
        return [outputs, log_z, *mtf.gradients([loss], list(tensors))]

    names = [ROW, KEYS, KEYS, ROW, "batch heads sequence"]
    arguments = zip(names, [*inputs, d_log_z], strict=True)
    outputs, log_z, *gradients = tiny.evaluate(build, placed(devices, mesh_shape, layout), *arguments)
    factor = dropout_factor(devices, N_POSITIONS, KEY)
    *exact, d_outputs = [x.astype(np.float64) for x in inputs]
    seen = reference.visible(N_POSITIONS, N_POSITIONS, rule.is_causal, rule.radius)
    expected = reference.softmax_attention(*exact, seen, factor)
    close(outputs, expected[0])
    close(log_z, expected[1])
    expected = reference.softmax_attention_gradient(exact, seen, d_outputs, d_log_z, factor)
    for one, other in zip(gradients, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_one_output_alone(devices: Devices, which: int) -> None:
    inputs = [rows(N_POSITIONS, seed) for seed in range(3)]

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        results = softmax_attention(*tensors, AttentionParams(True, None, 0.0), noise(tensors[0].mesh, KEY))
        return mtf.gradients([mtf.reduce_sum(results[which])], list(tensors))

    gradients = tiny.evaluate(build, placed(devices, "", ""), *zip([ROW, KEYS, KEYS], inputs, strict=True))
    seen = reference.visible(N_POSITIONS, N_POSITIONS, True, None)
    exact, d_results = [x.astype(np.float64) for x in inputs], (np.full_like(inputs[0], 1 - which), float(which))
    for one, other in zip(gradients, reference.softmax_attention_gradient(exact, seen, *d_results), strict=True):
        close(one, other)


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "rate"),
    [
        ("x:2,y:2", "batch:x,heads:y", RATE),
        pytest.param("x:2,y:2", "sequence:x,memory_length:y", RATE, marks=pytest.mark.slow),
        pytest.param("x:2,y:2", "memory_length:x,heads:y", 0.0, marks=pytest.mark.slow),
    ],
)
def test_attention_merged_with_memory_equals_attention_over_both(
    devices: Devices, mesh_shape: str, layout: str, rate: float
) -> None:
    n_memory = 4
    inputs = [rows(length, seed) for seed, length in enumerate([N_POSITIONS] * 3 + [n_memory] * 2 + [N_POSITIONS])]

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        queries, keys, values, memory_keys, memory_values, d_outputs = tensors
        own = softmax_attention(queries, keys, values, AttentionParams(True, None, rate), noise(queries.mesh, KEY))
        rule = AttentionParams(False, None, rate)
        learned = softmax_attention(queries, memory_keys, memory_values, rule, noise(queries.mesh, MEMORY_KEY))
        outputs, log_z = merged_attention(own, learned)
        loss = mtf.reduce_sum(outputs * d_outputs)
        return [outputs, log_z, *mtf.gradients([loss], list(tensors[:5]))]

    names = [ROW, KEYS, KEYS, MEMORY, MEMORY, ROW]
    actual = tiny.evaluate(build, placed(devices, mesh_shape, layout), *zip(names, inputs, strict=True))
    queries, keys, values, memory_keys, memory_values, d_outputs = (x.astype(np.float64) for x in inputs)
    both = [queries, np.concatenate([memory_keys, keys], 1), np.concatenate([memory_values, values], 1)]
    seen = np.pad(reference.visible(N_POSITIONS, N_POSITIONS, True, None), [(0, 0), (n_memory, 0)], constant_values=1)
    factors = [dropout_factor(devices, n_memory, MEMORY_KEY), dropout_factor(devices, N_POSITIONS, KEY)]
    factor = np.concatenate(factors, -1) if rate else 1.0
    d_queries, *d_both = reference.softmax_attention_gradient(both, seen, d_outputs, dropout_factor=factor)
    d_memory, d_own = ([x[:, part] for x in d_both] for part in (slice(n_memory), slice(n_memory, None)))
    expected = [*reference.softmax_attention(*both, seen, factor), d_queries, *d_own, *d_memory]
    for one, other in zip(actual, expected, strict=True):
        close(one, other)


def test_merging_when_one_part_is_negligible(devices: Devices) -> None:
    """The share of either part underflows; log_z is that of the other."""
    parts = [
        (rows(1, seed)[:, 0], np.full((N_BATCH, N_HEADS), log_z, np.float32)) for seed, log_z in ((0, 200), (1, 0))
    ]

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        one, other = tensors[:2], tensors[2:]
        return [*merged_attention(one, other), *merged_attention(other, one)]

    names = ["batch heads features_per_head", "batch heads"] * 2
    actual = tiny.evaluate(build, placed(devices, "", ""), *zip(names, [*parts[0], *parts[1]], strict=True))
    for one, other in zip(actual, [*parts[0], *parts[0]], strict=True):
        close(one, other)
