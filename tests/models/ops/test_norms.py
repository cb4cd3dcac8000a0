"""Normalisations on several layouts over four devices against NumPy, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from meshtf import mtf
from models.ops.norms import layer_norm, rms_norm
from tests import tiny
from tests.models import reference
from tests.models.arrays import close, normal, slope
from tests.models.ops.on_mesh import Devices, placed, with_gradients

EPSILON = 1e-5


@pytest.mark.parametrize(("mesh_shape", "layout"), [("x:4", "embd:x"), ("x:2,y:2", "batch:x,embd:y")])
def test_layer_norm(devices: Devices, mesh_shape: str, layout: str) -> None:
    x, gain, bias, dy = normal(2, 3, 8) + np.float32(5), normal(8, seed=1), normal(8, seed=2), normal(2, 3, 8, seed=3)

    def build(x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, dy: mtf.Tensor) -> list[mtf.Tensor]:
        return with_gradients(layer_norm(x, gain, bias, EPSILON), dy, x, gain, bias)

    inputs = [("batch sequence embd", x), ("embd", gain), ("embd", bias), ("batch sequence embd", dy)]
    y, dx, d_gain, d_bias = tiny.evaluate(build, placed(devices, mesh_shape, layout), *inputs)
    exact = x.astype(np.float64)
    close(y, reference.layer_norm(exact, gain, bias))
    close(dx, slopes(lambda x: (reference.layer_norm(x, gain, bias) * dy).sum(), exact))
    close(d_gain, (reference.layer_norm(exact, 1.0, 0.0) * dy).sum((0, 1)))
    close(d_bias, dy.sum((0, 1)))


def slopes(function: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """The derivative of a scalar function for each element of x."""
    found = np.empty_like(x)
    for index in np.ndindex(x.shape):
        unit = np.zeros_like(x)
        unit[index] = 1.0
        found[index] = slope(lambda t, unit=unit: function(x + t * unit))
    return found


@pytest.mark.parametrize("gain_offset", [0.0, 1.0])
@pytest.mark.parametrize(
    ("mesh_shape", "layout", "normed"),
    [
        ("", "", "embd"),
        ("x:4", "embd:x", "embd"),
        ("x:2,y:2", "batch:x,embd:y", "embd"),
        ("x:2,y:2", "batch:x,heads:y", "embd"),
        ("x:2,y:2", "batch:x,heads:y", "heads embd"),
        ("x:2,y:2", "heads:x,embd:y", "heads embd"),
    ],
)
def test_rms_norm(devices: Devices, mesh_shape: str, layout: str, normed: str, gain_offset: float) -> None:
    x, dy = normal(2, 4, 8) + np.float32(2), normal(2, 4, 8, seed=3)
    n_dims = len(normed.split())
    gain = normal(*x.shape[-n_dims:], seed=1)

    def build(x: mtf.Tensor, gain: mtf.Tensor, dy: mtf.Tensor) -> list[mtf.Tensor]:
        return with_gradients(rms_norm(x, gain, 0.01, gain_offset), dy, x, gain)

    inputs = [("batch heads embd", x), (normed, gain), ("batch heads embd", dy)]
    y, dx, d_gain = tiny.evaluate(build, placed(devices, mesh_shape, layout), *inputs)
    exact, whole_gain = x.astype(np.float64), gain + gain_offset
    close(y, reference.rms_norm(exact, whole_gain, 0.01, n_dims))
    close(dx, slopes(lambda x: (reference.rms_norm(x, whole_gain, 0.01, n_dims) * dy).sum(), exact))
    close(d_gain, (reference.rms_norm(exact, 1.0, 0.01, n_dims) * dy).sum(tuple(range(3 - n_dims))))
