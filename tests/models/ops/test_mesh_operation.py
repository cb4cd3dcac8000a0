"""Redistribution of a tensor over another dimension of the mesh."""

from __future__ import annotations

import numpy as np
import pytest

from meshtf import mtf
from models.ops.mesh_operation import redistribute
from tests import tiny
from tests.models.ops.on_mesh import Devices, placed


@pytest.mark.parametrize("layout", ["sequence:x", "memory_length:x", "sequence:x,memory_length:y"])
def test_redistribute_keeps_every_value_in_place(devices: Devices, layout: str) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)

    def build(x: mtf.Tensor) -> list[mtf.Tensor]:
        y = redistribute(x, "sequence", "memory_length")
        assert y.shape.dimension_names == ["batch", "memory_length", "embd"]
        return [y]

    np.testing.assert_array_equal(
        tiny.evaluate(build, placed(devices, "x:2,y:2", layout), ("batch sequence embd", x))[0], x
    )
