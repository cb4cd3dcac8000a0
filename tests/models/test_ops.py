"""Each mesh operation on several layouts over four devices against NumPy, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from meshtf import mtf, tf
from models.norms import LAYER_NORM_EPSILON
from models.ops.dropout import Noise, dropout
from models.ops.embedding import embedding_lookup
from models.ops.gradients import global_norm
from models.ops.mesh_operation import redistribute
from models.ops.norms import layer_norm
from runtime.mesh.placement import Placement, place
from tests import tiny
from tests.models import reference

Devices = tuple[str, ...]
KEY = 11


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def placed(devices: Devices, mesh_shape: str, layout: str) -> Placement:
    return place(tiny.mesh_config(mesh_shape, layout), devices if mesh_shape else devices[:1])


def with_gradients(outputs: mtf.Tensor, d_outputs: mtf.Tensor, *inputs: mtf.Tensor) -> list[mtf.Tensor]:
    """The outputs, and the gradient of their product with `d_outputs` for each input."""
    return [outputs, *mtf.gradients([mtf.reduce_sum(outputs * d_outputs)], list(inputs))]


def noise(mesh: mtf.Mesh, batch_dim: mtf.Dimension) -> Noise:
    return Noise(mtf.constant(mesh, KEY, dtype=tf.int32), mtf.mtf_range(mesh, batch_dim, tf.int32))


def slope(function: Callable[[float], float], step: float = 1e-6) -> float:
    return (function(step) - function(-step)) / (2 * step)


@pytest.mark.parametrize(
    ("mesh_shape", "layout"), [("x:4", "vocab:x"), ("x:2,y:2", "batch:x,embd:y"), ("x:2,y:2", "batch:x,vocab:y")]
)
def test_embedding(devices: Devices, mesh_shape: str, layout: str) -> None:
    table, d_embedded = normal(8, 6), normal(4, 3, 6)
    ids = np.array(
        [[0, 7, 7], [7, 1, 2], [3, 3, 6], [5, 0, 7]], np.int32
    )  # repeated in a row and over rows; 4 is missing

    def build(ids: mtf.Tensor, table: mtf.Tensor, d_embedded: mtf.Tensor) -> list[mtf.Tensor]:
        return with_gradients(embedding_lookup(table, ids), d_embedded, table)

    inputs = [("batch sequence", ids), ("vocab embd", table), ("batch sequence embd", d_embedded)]
    embedded, d_table = tiny.evaluate(build, placed(devices, mesh_shape, layout), *inputs)
    expected = np.zeros((8, 6))
    np.add.at(expected, ids, d_embedded)
    np.testing.assert_array_equal(embedded, table[ids])
    close(d_table, expected)


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


@pytest.mark.parametrize("layout", ["sequence:x", "memory_length:x", "sequence:x,memory_length:y"])
def test_relabel_moves_no_value_to_another_place(devices: Devices, layout: str) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)

    def build(x: mtf.Tensor) -> list[mtf.Tensor]:
        y = redistribute(x, "sequence", "memory_length")
        assert y.shape.dimension_names == ["batch", "memory_length", "embd"]
        return [y]

    np.testing.assert_array_equal(
        tiny.evaluate(build, placed(devices, "x:2,y:2", layout), ("batch sequence embd", x))[0], x
    )


def test_global_norm_counts_every_element_once(devices: Devices) -> None:
    gradients = [normal(8, 4), normal(4, seed=1), normal(6, seed=2)]
    placement = placed(devices, "x:2,y:2", "vocab:x,embd:y")  # both split, one split, and none
    names = ["vocab embd", "embd", "intermediate_expanded"]
    (norm,) = tiny.evaluate(lambda *xs: [global_norm(xs)], placement, *zip(names, gradients, strict=True))
    close(norm, np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients)))
