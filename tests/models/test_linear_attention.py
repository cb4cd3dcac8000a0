"""Linear attention: its kernels and operations against NumPy in float64, forward and backward, and by single steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import mtf, tf
from models.kernels import linear_attention as kernels
from models.kernels.compile import Kernel
from models.ops.linear_attention import (
    causal_linear_attention,
    linear_attention,
    linear_attention_step,
    linear_state,
)
from runtime.mesh import Placement, place
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


# -------------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("length", [1, 2, 130])
def test_causal_outputs(length: int) -> None:
    inputs = inputs_of(length)[:3]
    close(kernels.causal_linear_attention(*inputs), reference.causal_linear_attention(*doubles(*inputs)))


def test_by_hand() -> None:
    queries, keys = np.zeros((1, 2, 1, 1), np.float32), np.log(np.array([1.0, 3.0], np.float32)).reshape(1, 2, 1, 1)
    values = np.array([2.0, 6.0], np.float32).reshape(1, 2, 1, 1)
    close(kernels.causal_linear_attention(queries, keys, values)[0, :, 0, 0], [2.0 / (1 + 1e-6), 20.0 / (4 + 1e-6)])
    close(kernels.linear_attention(queries, keys, values)[0, :, 0, 0], [5.0, 5.0])


@pytest.mark.parametrize(("kernel", "gradient_kernel", "exact"), [CAUSAL, EVERYWHERE])
@pytest.mark.parametrize("length", [1, 13])
def test_gradient(length: int, kernel: Kernel, gradient_kernel: Kernel, exact: Callable[..., np.ndarray]) -> None:
    *inputs, d_outputs = inputs_of(length, n_heads=1, n_features=3)
    close(kernel(*inputs), exact(*doubles(*inputs)))
    expected = reference.slopes(lambda *inputs: (exact(*inputs) * d_outputs).sum(), doubles(*inputs))
    for one, other in zip(gradient_kernel(*inputs, d_outputs), expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("n_features", [2, 16])
def test_blocks_longer_and_shorter_than_the_features_give_one_gradient(n_features: int) -> None:
    """Twice a sequence is as it was when its first half is so far below that it does not count."""
    *inputs, d_outputs = inputs_of(8, n_heads=1, n_features=n_features)
    far = [np.concatenate([x * 0 + shift, x], 1) for x, shift in zip(inputs, (0, -80, 1), strict=True)]
    d_far = np.concatenate([d_outputs * 0, d_outputs], 1)
    close(kernels.causal_linear_attention(*far)[:, 8:], kernels.causal_linear_attention(*inputs))
    expected = kernels.causal_linear_attention_gradient(*inputs, d_outputs)
    for one, other in zip(kernels.causal_linear_attention_gradient(*far, d_far), expected, strict=True):
        close(one[:, 8:], other)


@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_any_keys_are_stable(shift: float) -> None:
    """Keys that rise and fall by hundreds within a few positions."""
    queries, keys, values, d_outputs = inputs_of(40)
    keys = keys * np.float32(100.0) + np.float32(shift)
    queries = queries * np.float32(100.0)
    outputs = kernels.causal_linear_attention(queries, keys, values)
    close(outputs, reference.causal_linear_attention(*doubles(queries, keys, values)), 1e-4)
    for gradient in kernels.causal_linear_attention_gradient(queries, keys, values, d_outputs):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e3
    assert np.isfinite(kernels.linear_attention(queries, keys, values)).all()


def test_epsilon_counts_where_keys_are_small() -> None:
    queries, keys, values, _ = inputs_of(9)
    outputs = kernels.causal_linear_attention(queries, keys - 14, values)
    close(outputs, reference.causal_linear_attention(*doubles(queries, keys - 14, values)))
    assert np.abs(outputs).max() < 0.8 * np.abs(kernels.causal_linear_attention(queries, keys, values)).max()


@given(st.integers(0, 39))
@settings(max_examples=10, deadline=None)
def test_a_position_sees_none_behind_it(changed: int) -> None:
    *inputs, _ = inputs_of(40)
    before = np.asarray(kernels.causal_linear_attention(*inputs))
    for x in inputs:
        x[:, changed] += 3.0
    after = np.asarray(kernels.causal_linear_attention(*inputs))
    np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
    assert (after[:, changed] != before[:, changed]).any()


@pytest.mark.parametrize("exact", [reference.causal_linear_attention, reference.linear_attention])
def test_bfloat16_is_summed_in_float32(exact: Callable[..., np.ndarray]) -> None:
    kernel, gradient_kernel, _ = CAUSAL if exact is reference.causal_linear_attention else EVERYWHERE
    inputs = [tf.cast(x, tf.bfloat16) for x in inputs_of(64, n_heads=1)]
    outputs = kernel(*inputs[:3])
    assert outputs.dtype == tf.bfloat16
    close(tf.cast(outputs, tf.float32), exact(*(np.asarray(tf.cast(x, tf.float64)) for x in inputs[:3])), 2**-8)
    assert {x.dtype for x in gradient_kernel(*inputs)} == {tf.bfloat16}


# ----------------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize(("mesh_shape", "layout"), [("x:2,y:2", "batch:x,heads:y"), ("x:4", "sequence:x")])
@pytest.mark.parametrize("attend", [causal_linear_attention, linear_attention])
def test_operation(devices: Devices, mesh_shape: str, layout: str, attend: Callable[..., mtf.Tensor]) -> None:
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


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("layout", ["batch:x,heads:y", "sequence:x"])
def test_steps_after_a_prompt_equal_the_whole_sequence(devices: Devices, layout: str, scale: float) -> None:
    n_prompt = 6
    queries, keys, values, _ = inputs_of(9)
    keys = keys * np.float32(scale)
    prompt = [(SEQUENCE, x[:, :n_prompt]) for x in (keys, values)]
    steps = [("batch heads features_per_head", x[:, at]) for at in range(n_prompt, 9) for x in (queries, keys, values)]

    def build(*tensors: mtf.Tensor) -> list[mtf.Tensor]:
        state, rows, outputs = linear_state(*tensors[:2]), iter(tensors[2:]), []
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
        for row in zip(rows, rows, rows, strict=True):
            output, state = linear_attention_step(*row, state)
            outputs.append(output)
        assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
        return outputs

    outputs = tiny.evaluate(build, placed(devices, "x:2,y:2", layout), *prompt, *steps)
    whole = reference.causal_linear_attention(*doubles(queries, keys, values))
    close(np.stack(outputs, 1), whole[:, n_prompt:])
    close(np.stack(outputs, 1), np.asarray(kernels.causal_linear_attention(queries, keys, values))[:, n_prompt:])
