"""Each kernel against NumPy in float64, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import tf
from models.kernels import cross_entropy, gradients, noise, norms, optimizers
from models.kernels.optimizers import AdamConstants
from models.norms import LAYER_NORM_EPSILON
from tests.models import reference


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0.0, std, shape).astype(np.float32)


def close(actual: object, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


def slope(function: object, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The derivative of an element-wise function by central differences."""
    return (function(x + step) - function(x - step)) / (2 * step)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm(mean: float) -> None:
    x, gain, bias = normal(2, 3, 24) + np.float32(mean), normal(24, seed=1), normal(24, seed=2)
    y, means, inverse_std = norms.layer_norm(LAYER_NORM_EPSILON)(x, gain, bias)
    exact = x.astype(np.float64)
    close(means, exact.mean(-1))
    close(inverse_std, 1.0 / np.sqrt(exact.var(-1) + 1e-5), 2e-4 if mean else 1e-5)
    close(y, reference.layer_norm(exact, gain, bias), 2e-4 if mean else 1e-5)


def layer_norm_gradients(x: np.ndarray, gain: np.ndarray, dy: np.ndarray) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    _, mean, inverse_std = norms.layer_norm(LAYER_NORM_EPSILON)(x, gain, np.zeros_like(gain))
    sums = norms.layer_norm_gradient_sums(x, mean, inverse_std, gain, dy)
    return norms.layer_norm_gradient(x.shape[-1])(x, mean, inverse_std, gain, dy, *sums)


def test_layer_norm_gradient() -> None:
    x, gain, dy = (normal(*shape, seed=7).astype(np.float64) for shape in ((2, 3, 6), (6,), (2, 3, 6)))
    dx, d_gain, d_bias = layer_norm_gradients(*(value.astype(np.float32) for value in (x, gain, dy)))
    expected = np.empty_like(x)
    for index in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[index] = 1.0
        expected[index] = slope(lambda t, moved=moved: (reference.layer_norm(x + t * moved, gain, 0.0) * dy).sum(), 0.0)
    close(dx, expected)
    close(d_gain, (reference.layer_norm(x, 1.0, 0.0) * dy).sum((0, 1)))
    close(d_bias, dy.sum((0, 1)))


def test_layer_norm_of_bfloat16_has_float32_statistics() -> None:
    x = tf.cast(normal(2, 3, 64) + np.float32(30.0), tf.bfloat16)
    y, mean, inverse_std = norms.layer_norm(LAYER_NORM_EPSILON)(x, tf.ones(64, tf.bfloat16), tf.zeros(64, tf.bfloat16))
    exact = np.asarray(tf.cast(x, tf.float64))
    assert (y.dtype, mean.dtype, inverse_std.dtype) == (tf.bfloat16, tf.float32, tf.float32)
    close(mean, exact.mean(-1))
    close(tf.cast(y, tf.float32), reference.layer_norm(exact, 1.0, 0.0), 2**-8)


def log_z_and_label_logit(logits: np.ndarray, labels: np.ndarray, n_slices: int) -> tuple[np.ndarray, np.ndarray]:
    """As `models/ops/` puts it together from slices of the vocabulary."""
    slices = np.split(logits, n_slices, -1)
    largest = np.max([cross_entropy.largest_logit(part) for part in slices], 0)
    starts = [np.int32(index * slices[0].shape[-1]) for index in range(n_slices)]
    parts = [
        cross_entropy.exponential_sum_and_label_logit(part, labels, largest, start)
        for part, start in zip(slices, starts, strict=True)
    ]
    total, label_logit = (sum(np.asarray(part[index]) for part in parts) for index in (0, 1))
    return largest + np.log(total), label_logit


@pytest.mark.parametrize("n_slices", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_cross_entropy(n_slices: int, shift: float) -> None:
    logits, labels = normal(2, 5, 12, std=3.0) + np.float32(shift), np.arange(10, dtype=np.int32).reshape(2, 5) + 2
    log_z, label_logit = log_z_and_label_logit(logits, labels, n_slices)
    cross_entropy, exact_log_z = reference.losses(logits.astype(np.float64), labels)
    close(log_z, exact_log_z)
    close(log_z - label_logit, cross_entropy, 1e-5 if shift == 0 else 1e-4)


@pytest.mark.parametrize("n_slices", [1, 3])
def test_cross_entropy_gradient_with_z_loss(n_slices: int) -> None:
    z_loss = 0.1
    logits, labels = normal(2, 5, 12, std=3.0), np.array([[0, 3, 4, 11, 11], [7, 8, 1, 2, 5]], np.int32)
    exact = logits.astype(np.float64)

    def loss(logits: np.ndarray) -> np.ndarray:
        cross_entropy, log_z = reference.losses(logits, labels)
        return cross_entropy + z_loss * log_z**2

    expected = np.stack([slope(lambda t, unit=unit: loss(exact + t * unit), 0.0) for unit in np.eye(12)], -1)
    log_z = reference.losses(exact, labels)[1].astype(np.float32)
    d_log_z, d_label_logit = 1.0 + 2.0 * z_loss * log_z, np.full((2, 5), -1.0, np.float32)
    actual = [
        cross_entropy.cross_entropy_gradient(
            part, labels, log_z, d_log_z, d_label_logit, np.int32(12 // n_slices * index)
        )
        for index, part in enumerate(np.split(logits, n_slices, -1))
    ]
    close(np.concatenate(actual, -1), expected)


def dropped(rate: float, key: int = 3, shape: tuple[int, ...] = (8, 64, 128)) -> np.ndarray:
    rows, starts = np.arange(shape[0], dtype=np.int32), np.zeros(len(shape) - 1, np.int32)
    return np.asarray(noise.dropout(rate)(np.ones(shape, np.float32), np.int32(key), rows, starts))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales_the_rest(rate: float) -> None:
    factors = dropped(rate)
    np.testing.assert_allclose(np.unique(factors), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    # Five standard deviations of the share of 65536 draws; each row and each feature has its share too.
    bound = 5.0 * np.sqrt(rate * (1.0 - rate))
    assert abs((factors == 0).mean() - rate) < bound / np.sqrt(factors.size)
    assert np.abs((factors == 0).mean((1, 2)) - rate).max() < bound / np.sqrt(64 * 128)
    assert np.abs((factors == 0).mean((0, 1)) - rate).max() < bound / np.sqrt(8 * 64)


def test_dropout_differs_by_key_and_by_row() -> None:
    zeros = {key: dropped(0.5, key) == 0 for key in (3, 4, 2**31 - 1, -(2**31))}
    masks = [mask for key in zeros for mask in zeros[key]]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert abs((mask == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(mask.size)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_slice_has_the_numbers_of_the_whole(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=4), label="shape"))
    begins = [data.draw(st.integers(0, size - 1)) for size in shape]
    sizes = [data.draw(st.integers(1, size - begin)) for begin, size in zip(begins, shape, strict=True)]
    rows = tf.constant(data.draw(st.permutations(range(100, 100 + shape[0]))), tf.int32)
    own_rows = rows[begins[0] : begins[0] + sizes[0]]
    key, origin = tf.constant(5), tf.zeros(len(shape) - 1, tf.int32)
    whole = noise.uniform(key, rows, origin, shape)
    part = noise.uniform(key, own_rows, tf.constant(begins[1:], tf.int32), tuple(sizes))
    np.testing.assert_array_equal(part, whole[tuple(map(slice, begins, np.add(begins, sizes)))])


def test_uniform_numbers_are_uniform() -> None:
    numbers = np.asarray(noise.uniform(tf.constant(1), tf.range(64), tf.zeros(2, tf.int32), (64, 32, 64)))
    assert numbers.dtype == np.float32 and numbers.min() >= 0.0 and numbers.max() < 1.0
    counts = np.bincount((numbers * 256).astype(int).ravel(), minlength=256)
    chi_square = ((counts - numbers.size / 256) ** 2 / (numbers.size / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    for shifted in (numbers[1:] * numbers[:-1], numbers[:, 1:] * numbers[:, :-1], numbers[..., 1:] * numbers[..., :-1]):
        assert abs(shifted.mean() - 0.25) < 5 * 0.23 / np.sqrt(shifted.size)


def test_dropout_of_bfloat16_keeps_the_dtype_and_the_mask() -> None:
    rows, starts = np.arange(8, dtype=np.int32), np.zeros(2, np.int32)
    y = noise.dropout(0.5)(tf.ones((8, 64, 128), tf.bfloat16), np.int32(3), rows, starts)
    assert y.dtype == tf.bfloat16
    np.testing.assert_array_equal(np.asarray(tf.cast(y, tf.float32)), dropped(0.5))


def test_sums() -> None:
    x = normal(2, 3, 40) * np.float32(3.0)
    mean = x.mean(-1)
    close(norms.sum_of_embd(x), x.sum(-1, dtype=np.float64))
    close(norms.sum_of_squares_about(x, mean), ((x - mean[..., None].astype(np.float64)) ** 2).sum(-1))
    close(gradients.sum_of_squares(x, mean), (x.astype(np.float64) ** 2).sum() + (mean.astype(np.float64) ** 2).sum())
    # A sum kept in bfloat16 would stay at 256; 304 is a bfloat16 number.
    assert float(gradients.sum_of_squares(tf.ones((304, 1), tf.bfloat16))) == 304.0


def test_adam_by_hand() -> None:
    scale, rate = np.float32(0.5), np.float32(0.01)
    value, m, v, gradient = (np.array([x], np.float32) for x in (2.0, 0.5, 4.0, 6.0))
    constants = AdamConstants(beta1=0.9, beta2=0.75, epsilon=0.5, weight_decay=0.1)
    updated = optimizers.adam(constants)(scale, rate, value, m, v, gradient)
    # gradient 3; m = .9 * .5 + .1 * 3; v = .75 * 4 + .25 * 9; value = 2 - .01 * (.75 / (sqrt(5.25) + .5) + .1 * 2)
    close(tf.concat(updated, 0), np.array([2.0 - 0.01 * (0.75 / (5.25**0.5 + 0.5) + 0.2), 0.75, 5.25]), 1e-6)


def test_adam_of_two_variables_over_some_steps() -> None:
    numbers = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3}
    kernel = optimizers.adam(AdamConstants(**numbers, weight_decay=0.2))
    first = [(normal(*shape), np.zeros(shape), np.zeros(shape)) for shape in ((3, 5), (4,))]
    expected, actual = first, [np.float32(part) for parts in zip(*first, strict=True) for part in parts]
    for step in range(1, 5):
        gradients, lr = [normal(3, 5, seed=step), normal(4, seed=step)], 0.1 / step
        actual = kernel(np.float32(1.0), np.float32(lr), *actual, *gradients)
        expected = [
            reference.adam_step(*parts, gradient, lr=lr, **numbers, decay=0.2)
            for parts, gradient in zip(expected, gradients, strict=True)
        ]
    for one, other in zip(actual, [part for parts in zip(*expected, strict=True) for part in parts], strict=True):
        close(one, other)
