"""The kernels of normalisations against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from meshtf import tf
from models.kernels import gradients, norms
from tests.models import reference
from tests.models.arrays import close, normal, slope

EPSILON = 1e-5


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_layer_norm(mean: float) -> None:
    x, gain, bias = normal(2, 3, 24) + np.float32(mean), normal(24, seed=1), normal(24, seed=2)
    y, means, inverse_std = norms.layer_norm(EPSILON)(x, gain, bias)
    exact = x.astype(np.float64)
    close(means, exact.mean(-1))
    close(inverse_std, 1.0 / np.sqrt(exact.var(-1) + 1e-5), 2e-4 if mean else 1e-5)
    close(y, reference.layer_norm(exact, gain, bias), 2e-4 if mean else 1e-5)


def layer_norm_gradients(x: np.ndarray, gain: np.ndarray, dy: np.ndarray) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    _, mean, inverse_std = norms.layer_norm(EPSILON)(x, gain, np.zeros_like(gain))
    sums = norms.layer_norm_gradient_sums(x, mean, inverse_std, gain, dy)
    return norms.layer_norm_gradient(x.shape[-1])(x, mean, inverse_std, gain, dy, *sums)


def test_layer_norm_gradient() -> None:
    x, gain, dy = (normal(*shape, seed=7).astype(np.float64) for shape in ((2, 3, 6), (6,), (2, 3, 6)))
    dx, d_gain, d_bias = layer_norm_gradients(*(value.astype(np.float32) for value in (x, gain, dy)))
    expected = np.empty_like(x)
    for index in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[index] = 1.0
        expected[index] = slope(lambda t, moved=moved: (reference.layer_norm(x + t * moved, gain, 0.0) * dy).sum())
    close(dx, expected)
    close(d_gain, (reference.layer_norm(x, 1.0, 0.0) * dy).sum((0, 1)))
    close(d_bias, dy.sum((0, 1)))


def test_layer_norm_of_bfloat16_has_float32_statistics() -> None:
    x = tf.cast(normal(2, 3, 64) + np.float32(30.0), tf.bfloat16)
    y, mean, inverse_std = norms.layer_norm(EPSILON)(x, tf.ones(64, tf.bfloat16), tf.zeros(64, tf.bfloat16))
    exact = np.asarray(tf.cast(x, tf.float64))
    assert (y.dtype, mean.dtype, inverse_std.dtype) == (tf.bfloat16, tf.float32, tf.float32)
    close(mean, exact.mean(-1))
    close(tf.cast(y, tf.float32), reference.layer_norm(exact, 1.0, 0.0), 2**-8)


@pytest.mark.parametrize("gain_offset", [0.0, 1.0])
def test_rms_norm_of_bfloat16_rounds_once(gain_offset: float) -> None:
    x = tf.cast(normal(2, 3, 64) + np.float32(30.0), tf.bfloat16)
    gain = tf.cast(normal(64, seed=1) / np.float32(300.0), tf.bfloat16)
    y, inverse_rms = norms.rms_norm(1e-6, gain_offset)(x, gain)
    exact, exact_gain = (np.asarray(tf.cast(value, tf.float64)) for value in (x, gain))
    assert (y.dtype, inverse_rms.dtype) == (tf.bfloat16, tf.float32)
    close(inverse_rms, 1.0 / np.sqrt((exact**2).mean(-1) + 1e-6))
    # In bfloat16, 1 + gain would lose most of the gain's bits.
    expected = reference.rms_norm(exact, gain_offset + exact_gain, 1e-6)
    rounded = np.asarray(tf.cast(tf.cast(expected.astype(np.float32), tf.bfloat16), tf.float32))
    assert (np.asarray(tf.cast(y, tf.float32)) == rounded).mean() > 0.99


def test_sums() -> None:
    x = normal(2, 3, 40) * np.float32(3.0)
    mean = x.mean(-1)
    close(norms.sum_of_embd(x), x.sum(-1, dtype=np.float64))
    close(norms.sum_of_squares_about(x, mean), ((x - mean[..., None].astype(np.float64)) ** 2).sum(-1))
    close(gradients.sum_of_squares(x, mean), (x.astype(np.float64) ** 2).sum() + (mean.astype(np.float64) ** 2).sum())
    # A sum kept in bfloat16 would stay at 256; 304 is a bfloat16 number.
    assert float(gradients.sum_of_squares(tf.ones((304, 1), tf.bfloat16))) == 304.0
