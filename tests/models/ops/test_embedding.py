"""The embedding lookup on several layouts over four devices against NumPy, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

from meshtf import mtf
from models.ops.embedding import embedding_lookup
from tests import tiny
from tests.models.arrays import close, normal
from tests.models.ops.on_mesh import Devices, placed, with_gradients


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
