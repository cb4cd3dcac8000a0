"""Layer normalisation on several layouts over four devices against NumPy, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

from meshtf import mtf
from models.norms import LAYER_NORM_EPSILON
from models.ops.norms import layer_norm
from tests import tiny
from tests.models import reference
from tests.models.arrays import close, normal, slope
from tests.models.ops.on_mesh import Devices, placed, with_gradients


@pytest.mark.parametrize(("mesh_shape", "layout"), [("x:4", "embd:x"), ("x:2,y:2", "batch:x,embd:y")])
def test_layer_norm(devices: Devices, mesh_shape: str, layout: str) -> None:
    x, gain, bias, dy = normal(2, 3, 8) + np.float32(5), normal(8, seed=1), normal(8, seed=2), normal(2, 3, 8, seed=3)

    def build(x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, dy: mtf.Tensor) -> list[mtf.Tensor]:
        return with_gradients(layer_norm(x, gain, bias, LAYER_NORM_EPSILON), dy, x, gain, bias)

    inputs = [("batch sequence embd", x), ("embd", gain), ("embd", bias), ("batch sequence embd", dy)]
    y, dx, d_gain, d_bias = tiny.evaluate(build, placed(devices, mesh_shape, layout), *inputs)
    exact = x.astype(np.float64)
    expected = np.empty_like(exact)
    for index in np.ndindex(x.shape):
        unit = np.zeros_like(exact)
        unit[index] = 1.0
        expected[index] = slope(lambda t, unit=unit: (reference.layer_norm(exact + t * unit, gain, bias) * dy).sum())
    close(y, reference.layer_norm(exact, gain, bias))
    close(dx, expected)
    close(d_gain, (reference.layer_norm(exact, 1.0, 0.0) * dy).sum((0, 1)))
    close(d_bias, dy.sum((0, 1)))
