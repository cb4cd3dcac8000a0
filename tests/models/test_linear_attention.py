"""Linear attention: its kernels and operations against NumPy in float64, forward and backward, and by single steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import mtf, tf
from models.kernels import linear_attention as kernels
from models.ops.linear_attention import (
    causal_linear_attention,
    linear_attention,
    linear_attention_step,
    linear_state,
)
from runtime.generation.packed_batches import BatchShape, PackedBatch, PackedText
from runtime.mesh.placement import Placement, place
from tests import tiny
from tests.models import reference_attention as reference

Devices = tuple[str, ...]
SEQUENCE = "batch sequence heads features_per_head"
CAUSAL = (kernels.causal_linear_attention, kernels.causal_linear_attention_gradient, reference.causal_linear_attention)
EVERYWHERE = (kernels.linear_attention, kernels.linear_attention_gradient, reference.linear_attention)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def inputs_of(length: int, n_heads: int = 2, n_features: int = 4) -> list[np.ndarray]:
    """Queries, keys, values and the gradient of the outputs."""
    return [normal(2, length, n_heads, n_features, seed=seed) for seed in range(4)]


def close(actual: object, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


def doubles(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def placed(devices: Devices, mesh_shape: str, layout: str) -> Placement:
    return place(tiny.mesh_config(mesh_shape, layout), devices if mesh_shape else devices[:1])


def causal_gradient(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, d_outputs: np.ndarray, normalization: str
) -> tuple[np.ndarray, ...]:
    """Gradients of queries, keys and values, from all weights [B, T, 1 + S, H, D] at once; epsilon is the first."""
    weights = reference.linear_weights(queries, keys, normalization)
    along_values = np.einsum("bthe,bshe->btsh", d_outputs, np.insert(values, 0, 0.0, 1))
    d_logs = weights * along_values[..., None]  # of the logarithms of the weights, before these are normalised
    of_features, features = d_logs.sum(2), reference.softmax(queries, -1)
    if normalization == "position":
        d_keys = d_logs - weights * d_logs.sum((2, 4), keepdims=True)
        d_queries = d_keys.sum(2)
    else:
        of_each = reference.linear_weights(np.zeros_like(queries), keys, "feature") * queries.shape[-1]
        d_keys = d_logs - of_each * of_features[:, :, None]
        d_queries = of_features - features * of_features.sum(-1, keepdims=True)
    d_values = np.einsum("btshd,bthe->bshe", weights, d_outputs)
    return d_queries, d_keys.sum(1)[:, 1:], d_values[:, 1:]


def assert_causal_results(inputs: list[np.ndarray], tolerance: float = 1e-5, normalization: str = "position") -> None:
    """Compares outputs and gradients of the causal kernels with NumPy."""
    outputs = kernels.causal_linear_attention(*inputs[:3], normalization=normalization)
    close(outputs, reference.causal_linear_attention(*doubles(*inputs[:3]), normalization), tolerance)
    gradients = kernels.causal_linear_attention_gradient(*inputs, normalization=normalization)
    for one, other in zip(gradients, causal_gradient(*doubles(*inputs), normalization), strict=True):
        close(one, other, tolerance)


LONG = 130  # three chunks, the last one partly filled


@pytest.mark.parametrize("length", [1, LONG, pytest.param(2 * kernels.CHUNK, marks=pytest.mark.slow)])
def test_causal(length: int) -> None:
    assert_causal_results(inputs_of(length))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_causal_by_feature(scale: float) -> None:
    """In chunks, and where every position is a chunk of its own."""
    queries, keys, values, d_outputs = inputs_of(LONG)
    assert_causal_results([queries, keys * np.float32(scale), values, d_outputs], 1e-4, "feature")


def test_by_hand() -> None:
    """Two positions and features: the first feature is shared 1 : 3, the second 4 : 1, and its keys are the larger."""
    queries, values = np.zeros((1, 2, 1, 2), np.float32), np.array([[2.0, 0.0], [6.0, 1.0]], np.float32)
    keys, values = np.log(np.array([[1.0, 8.0], [3.0, 2.0]], np.float32))[None, :, None], values[None, :, None]
    by_position = kernels.causal_linear_attention(queries, keys, values)
    close(by_position[0, :, 0], [[2.0, 0.0], [(9 * 2 + 5 * 6) / 14, 5 / 14]])
    by_feature = kernels.causal_linear_attention(queries, keys, values, normalization="feature")
    close(by_feature[0, :, 0], [[2.0, 0.0], [(5.0 + 2.8) / 2, (0.75 + 0.2) / 2]])
    close(kernels.linear_attention(queries, keys, values)[0, :, 0], [[(5.0 + 2.8) / 2, (0.75 + 0.2) / 2]] * 2)


@pytest.mark.parametrize("normalization", kernels.NORMALIZATIONS)
def test_the_causal_gradient_of_the_reference_by_central_differences(normalization: str) -> None:
    *inputs, d_outputs = doubles(*inputs_of(5))
    inputs[1] -= 14.0  # epsilon counts

    def loss(*inputs: np.ndarray) -> float:
        return (reference.causal_linear_attention(*inputs, normalization) * d_outputs).sum()

    for one, other in zip(
        causal_gradient(*inputs, d_outputs, normalization), reference.slopes(loss, inputs), strict=True
    ):
        close(one, other, 1e-8)


@pytest.mark.parametrize("length", [1, 13])
def test_gradient_where_every_position_sees_all(length: int) -> None:
    *inputs, d_outputs = inputs_of(length, n_heads=1, n_features=3)
    close(kernels.linear_attention(*inputs), reference.linear_attention(*doubles(*inputs)))
    expected = reference.slopes(
        lambda *inputs: (reference.linear_attention(*inputs) * d_outputs).sum(), doubles(*inputs)
    )
    for one, other in zip(kernels.linear_attention_gradient(*inputs, d_outputs), expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_any_keys_are_stable(shift: float) -> None:
    """Keys that rise and fall by hundreds within a few positions."""
    queries, keys, values, d_outputs = inputs_of(LONG)
    queries, keys = queries * np.float32(100.0), keys * np.float32(100.0) + np.float32(shift)
    assert_causal_results([queries, keys, values, d_outputs], 1e-4)
    assert np.isfinite(kernels.linear_attention(queries, keys, values)).all()


@pytest.mark.parametrize("rise", [0.8, -0.8, 2.0, -2.0])
def test_keys_that_rise_or_fall_all_along(rise: float) -> None:
    """By slightly less than a chunk allows, and by more."""
    queries, keys, values, d_outputs = inputs_of(LONG)
    keys += np.float32(rise) * np.arange(LONG, dtype=np.float32)[:, None, None]
    assert_causal_results([queries, keys, values, d_outputs], 1e-4)


@pytest.mark.parametrize("at", [0, 50, LONG - 1])
def test_one_key_far_above_all_others(at: int) -> None:
    queries, keys, values, d_outputs = inputs_of(LONG)
    keys[0, at, 1, 2] = 1000.0
    assert_causal_results([queries, keys, values, d_outputs], 2e-5)


def test_epsilon_counts_where_keys_are_small() -> None:
    queries, keys, values, d_outputs = inputs_of(LONG)
    keys[:, :, 1] -= 18.0
    assert_causal_results([queries, keys, values, d_outputs])
    outputs = np.abs(kernels.causal_linear_attention(queries, keys, values))[:, :9]
    assert outputs[:, :, 1].max() < 0.2 * outputs[:, :, 0].max()


@given(st.integers(0, LONG - 1))
@settings(max_examples=20, deadline=None)
def test_a_position_sees_no_later_one(changed: int) -> None:
    *inputs, _ = inputs_of(LONG)
    before = np.asarray(kernels.causal_linear_attention(*inputs))
    for x in inputs:
        x[:, changed] += 3.0
    after = np.asarray(kernels.causal_linear_attention(*inputs))
    np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
    assert (after[:, changed] != before[:, changed]).any()


@given(st.integers(0, LONG - 1), st.sampled_from([-500.0, 500.0]))
@settings(max_examples=20, deadline=None)
def test_a_position_sees_no_later_key_that_changes_the_chunks(changed: int, key: float) -> None:
    """Up to rounding, because the chunk length changes."""
    queries, keys, values, _ = inputs_of(LONG)
    before = np.asarray(kernels.causal_linear_attention(queries, keys, values))
    keys[:, changed] = key
    after = np.asarray(kernels.causal_linear_attention(queries, keys, values))
    close(after[:, :changed], before[:, :changed], 2e-6)


@pytest.mark.parametrize("exact", [reference.causal_linear_attention, reference.linear_attention])
def test_bfloat16_is_summed_in_float32(exact: Callable[..., np.ndarray]) -> None:
    kernel, gradient_kernel, _ = CAUSAL if exact is reference.causal_linear_attention else EVERYWHERE
    inputs = [tf.cast(x, tf.bfloat16) for x in inputs_of(70, n_heads=1)]
    outputs = kernel(*inputs[:3])
    assert outputs.dtype == tf.bfloat16
    close(tf.cast(outputs, tf.float32), exact(*(np.asarray(tf.cast(x, tf.float64)) for x in inputs[:3])), 2**-8)
    assert {x.dtype for x in gradient_kernel(*inputs)} == {tf.bfloat16}


@pytest.mark.parametrize(
    ("attend", "mesh_shape", "layout"),
    [
        pytest.param(causal_linear_attention, "x:2,y:2", "batch:x,heads:y", marks=pytest.mark.slow),
        pytest.param(causal_linear_attention, "x:4", "sequence:x", marks=pytest.mark.slow),
        pytest.param(linear_attention, "x:2,y:2", "batch:x,heads:y", marks=pytest.mark.slow),
        (linear_attention, "x:4", "sequence:x"),
    ],
)
def test_operation(devices: Devices, attend: Callable[..., mtf.Tensor], mesh_shape: str, layout: str) -> None:
    *inputs, d_outputs = inputs_of(4)

    def build(queries: mtf.Tensor, keys: mtf.Tensor, values: mtf.Tensor, d_outputs: mtf.Tensor) -> list[mtf.Tensor]:
        outputs = attend(queries, keys, values)
        assert outputs.shape == queries.shape
        return [outputs, *mtf.gradients([mtf.reduce_sum(outputs * d_outputs)], [queries, keys, values])]

    arguments = [(SEQUENCE, x) for x in (*inputs, d_outputs)]
    outputs, *gradients = tiny.evaluate(build, placed(devices, mesh_shape, layout), *arguments)
    kernel, gradient_kernel, exact = CAUSAL if attend is causal_linear_attention else EVERYWHERE
    close(outputs, exact(*doubles(*inputs)))
    for one, other in zip(gradients, gradient_kernel(*inputs, d_outputs), strict=True):
        close(one, np.asarray(other))


@pytest.mark.parametrize(
    ("layout", "scale", "normalization"),
    [
        ("batch:x,heads:y", 1.0, "position"),
        ("batch:x,heads:y", 100.0, "feature"),
        ("sequence:x", 1.0, "feature"),
        ("sequence:x", 100.0, "position"),
    ],
)
def test_steps_after_a_prompt_equal_the_whole_sequence(
    devices: Devices, layout: str, scale: float, normalization: str
) -> None:
    n_prompt = 6
    queries, keys, values, _ = inputs_of(9)
    keys = keys * np.float32(scale)
    # Padding after the prompt must not change the state.
    padded = [np.concatenate([x[:, :n_prompt], np.full_like(x[:, :2], 7.0)], 1) for x in (keys, values)]
    prompt = [*((SEQUENCE, x) for x in padded), ("batch", np.full(len(keys), n_prompt, np.int32))]
    steps = [("batch heads features_per_head", x[:, at]) for at in range(n_prompt, 9) for x in (queries, keys, values)]

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        state, rows, outputs = linear_state(*tensors[:3]), iter(tensors[3:]), []
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
        for row in zip(rows, rows, rows, strict=True):
            output, state = linear_attention_step(*row, state, normalization)
            outputs.append(output)
        assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
        return outputs

    outputs = tiny.evaluate(build, placed(devices, "x:2,y:2", layout), *prompt, *steps)
    whole = reference.causal_linear_attention(*doubles(queries, keys, values), normalization)
    close(np.stack(outputs, 1), whole[:, n_prompt:])
    whole = kernels.causal_linear_attention(queries, keys, values, normalization=normalization)
    close(np.stack(outputs, 1), np.asarray(whole)[:, n_prompt:])


# Segments.

# Chunks have 44 positions at LONG: segments in one chunk, over its ends, over whole chunks, and of one position.
STARTS = reference.segments((1, 5, 38, 86), (43, 2, 1, 60, 24))


def assert_segments(
    actual: Sequence[object], function: Callable[..., Sequence[np.ndarray]], inputs: list[np.ndarray], tolerance: float
) -> None:
    """Compares results with those of a function of each segment alone."""
    for index, result in enumerate(actual):
        expected = reference.by_segment(lambda *own, index=index: function(*own)[index], STARTS, *doubles(*inputs))
        close(result, expected, tolerance)


def assert_causal_segments(inputs: list[np.ndarray], tolerance: float, normalization: str) -> None:
    def exact(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return reference.causal_linear_attention(*inputs[:3], normalization), *causal_gradient(*inputs, normalization)

    outputs = kernels.causal_linear_attention(*inputs[:3], STARTS, normalization)
    gradients = kernels.causal_linear_attention_gradient(*inputs, STARTS, normalization)
    assert_segments([outputs, *gradients], exact, inputs, tolerance)


@pytest.mark.parametrize("normalization", kernels.NORMALIZATIONS)
def test_a_causal_segment_is_as_if_alone(normalization: str) -> None:
    assert_causal_segments(inputs_of(LONG), 1e-5, normalization)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", kernels.NORMALIZATIONS)
@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_keys_of_causal_segments_rise_and_fall_by_hundreds(scale: float, normalization: str) -> None:
    queries, keys, values, d_outputs = inputs_of(LONG)
    assert_causal_segments([queries, keys * np.float32(scale), values, d_outputs], 1e-4, normalization)


@pytest.mark.parametrize(
    "height", [30.0, 200.0, *(pytest.param(height, marks=pytest.mark.slow) for height in (-200.0, -30.0))]
)
def test_keys_of_one_segment_are_far_above_those_of_the_next(height: float) -> None:
    """By less than a chunk allows, and by more; the sums of the next begin from epsilon all the same."""
    queries, keys, values, d_outputs = inputs_of(LONG)
    keys += np.where(STARTS % 2, np.float32(height), np.float32(0.0))[:, :, None, None]
    assert_causal_segments([queries, keys, values, d_outputs], 1e-4, "position")


def bidirectional_gradient(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, d_outputs: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Gradients of queries, keys and values where every position sees all."""
    shares, weights = reference.softmax(queries, -1), reference.softmax(keys, 1)
    products = np.einsum("bthe,bshe->bths", d_outputs, values)
    d_shares, d_weights = (
        np.einsum("bths,bshd->bthd", products, weights),
        np.einsum("bths,bthd->bshd", products, shares),
    )
    d_queries = shares * (d_shares - (shares * d_shares).sum(-1, keepdims=True))
    d_keys = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True))
    return d_queries, d_keys, np.einsum("bthd,bshd,bthe->bshe", shares, weights, d_outputs)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_segment_is_as_if_alone_where_every_position_sees_all(scale: float) -> None:
    def exact(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return reference.linear_attention(*inputs[:3]), *bidirectional_gradient(*inputs)

    queries, keys, values, d_outputs = inputs_of(LONG)
    inputs = [queries, keys * np.float32(scale), values, d_outputs]
    actual = [kernels.linear_attention(*inputs[:3], STARTS), *kernels.linear_attention_gradient(*inputs, STARTS)]
    assert_segments(actual, exact, inputs, 2e-5)


@pytest.mark.parametrize("normalization", kernels.NORMALIZATIONS)
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_packed_continuations_see_their_contexts(normalization: str, scale: float) -> None:
    """In one product, and position by position where keys are too far apart for it."""
    texts = [PackedText(range(4), [range(4), [0], range(6)]), PackedText([0], [range(3)]), PackedText(range(6), [])]
    n_tokens = sum(text.n_tokens for text in texts)
    arrays = PackedBatch(BatchShape(2, n_tokens, n_tokens), [[0, 1, 2]] * 2).arrays(texts)
    part_starts, context_starts, positions = packing = arrays[1:4]
    queries, keys, values, _ = inputs_of(n_tokens)
    keys *= np.float32(scale)
    expected = np.zeros(queries.shape)
    for token in range(n_tokens):
        is_seen = (part_starts[0] == part_starts[0, token]) | (part_starts[0] == context_starts[0, token])
        seen = np.flatnonzero(is_seen[: token + 1])
        assert len(seen) == positions[0, token] + 1
        outputs = reference.causal_linear_attention(
            *doubles(*(x[:, seen] for x in (queries, keys, values))), normalization
        )
        expected[:, token] = outputs[:, -1]
    actual = kernels.packed_linear_attention(queries, keys, values, *packing, normalization=normalization)
    close(actual, expected, 1e-4)
