"""Dropout and its gradient on several layouts over four devices."""

from __future__ import annotations

import numpy as np

from meshtf import mtf, tf
from models.ops.dropout import Noise, dropout
from runtime.mesh.placement import Placement
from tests import tiny
from tests.models.arrays import normal
from tests.models.ops.on_mesh import Devices, placed, with_gradients

KEY = 11


def noise(mesh: mtf.Mesh, batch_dim: mtf.Dimension) -> Noise:
    return Noise(mtf.constant(mesh, KEY, dtype=tf.int32), mtf.mtf_range(mesh, batch_dim, tf.int32))


def dropout_and_gradient(placement: Placement, x: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
    def build(x: mtf.Tensor, dy: mtf.Tensor) -> list[mtf.Tensor]:
        return with_gradients(dropout(x, 0.5, noise(x.mesh, x.shape.dims[0])), dy, x)

    return tiny.evaluate(build, placement, ("batch sequence embd", x), ("batch sequence embd", dy))


def test_dropout_and_its_gradient_have_one_mask_on_any_mesh(devices: Devices) -> None:
    x, dy = normal(4, 4, 8), normal(4, 4, 8, seed=1)
    y, dx = dropout_and_gradient(placed(devices, "", ""), x, dy)
    factor = np.where(y != 0, 2.0, 0.0)
    assert 32 < (factor == 0).sum() < 96
    np.testing.assert_array_equal(y, x * factor)
    np.testing.assert_array_equal(dx, dy * factor)
    for layout in ("batch:x,embd:y", "sequence:y"):
        on_mesh = dropout_and_gradient(placed(devices, "x:2,y:2", layout), x, dy)
        np.testing.assert_array_equal(on_mesh, [y, dx])


def test_dropout_with_rate_0_is_the_tensor_itself() -> None:
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    x = mtf.zeros(mesh, mtf.Shape([mtf.Dimension("batch", 2), mtf.Dimension("embd", 3)]))
    assert dropout(x, 0.0, noise(mesh, x.shape.dims[0])) is x
