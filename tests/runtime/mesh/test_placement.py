"""The configured mesh on devices: its shape and layout, and the slices of variables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.errors import DeviceError
from meshtf import mtf, tf
from models.variables import SlicedVariable, normal
from runtime.mesh import placement as placements
from runtime.mesh.placement import VariableStore, overwrite, place
from tests import tiny


def test_one_device_runs_any_mesh(devices: tuple[str, ...]) -> None:
    placement = place(tiny.mesh_config("x:16,y:4", "batch:x,embd:y"), devices[:1])
    assert (placement.shape.dims, placement.layout, placement.axis_size("batch")) == ([], (), 1)
    assert placement.implementation(7).size == 1
    assert placement.describe() == "one device (nothing split) on CPU:0"


def test_without_a_mesh_the_batch_is_split_over_all_devices(devices: tuple[str, ...]) -> None:
    placement = place(tiny.mesh_config("", ""), devices)
    assert placement.describe() == "all:4 (batch:all) on CPU:0, CPU:1, CPU:2, CPU:3"
    assert (placement.axis_size("batch"), placement.axis_size("embd")) == (4, 1)


def test_a_mesh_without_a_layout_splits_the_batch_over_its_first_axis(devices: tuple[str, ...]) -> None:
    placement = place(tiny.mesh_config("rows:2,columns:2", ""), devices)
    assert placement.describe() == "rows:2,columns:2 (batch:rows) on CPU:0, CPU:1, CPU:2, CPU:3"


def test_a_mesh_that_does_not_fit_the_devices_is_refused(devices: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError) as error:
        place(tiny.mesh_config("x:4,y:2", "batch:x"), devices)
    assert str(error.value) == (
        "mesh_shape = x:4,y:2: needs 8 devices, 4 are there; give a mesh_shape whose sizes multiply to 4 "
        "(--set mesh_shape=x:4), that many devices, or --set elastic_mesh=true"
    )


def test_an_elastic_mesh_fits_the_devices(devices: tuple[str, ...]) -> None:
    mesh = dataclasses.replace(tiny.mesh_config("x:4,y:2", "batch:x,heads:y"), elastic_mesh=True)
    assert place(mesh, devices).describe().startswith("x:2,y:2 (batch:x,heads:y) on ")
    assert place(mesh, devices[:3]).describe().startswith("x:3,y:1 (batch:x,heads:y) on ")
    assert place(mesh, devices[:1]).describe().startswith("one device")


@pytest.mark.parametrize(("batch_size", "per_device"), [(8, 2), (4, 1), (6, 6), (1, 1)])
def test_a_batch_that_the_mesh_does_not_divide_is_held_whole(
    devices: tuple[str, ...], batch_size: int, per_device: int
) -> None:
    mesh_impl = place(tiny.mesh_config("x:4", "batch:x,heads:x"), devices).implementation(batch_size)
    shape = mtf.Shape([mtf.Dimension("batch", batch_size), mtf.Dimension("embd", 8)])
    assert mesh_impl.slice_shape(shape) == [per_device, 8]
    assert mesh_impl.slice_shape(mtf.Shape([mtf.Dimension("heads", 8)])) == [2]


def test_dimensions_can_be_left_whole(devices: tuple[str, ...]) -> None:
    placement = place(tiny.mesh_config("x:2,y:2", "sequence:x,heads:y"), devices).without("sequence", "memory_length")
    assert placement.layout == (("heads", "y"),)
    assert placement.axis_size("sequence") == 1


def whole_and_slices(devices: tuple[str, ...], layout: str) -> tuple[VariableStore, np.ndarray]:
    placement = place(tiny.mesh_config("x:2,y:2", layout), devices)
    dims = mtf.Shape([mtf.Dimension("embd", 4), mtf.Dimension("vocab", 6)])
    variable = SlicedVariable(mtf.Mesh(mtf.Graph(), "mesh"), "table", dims, normal(1.0))
    placement.store.slices_of(variable, placement.implementation(1))
    placement.store.initialize(seed=3)
    return placement.store, variable.initial_value(3)


@pytest.mark.parametrize(
    ("layout", "slice_shape", "distinct", "specifications"),
    [
        ("embd:x,vocab:y", (2, 3), [0, 1, 2, 3], ["4 6 0,2:0,3", "4 6 0,2:3,3", "4 6 2,2:0,3", "4 6 2,2:3,3"]),
        ("vocab:y", (4, 3), [0, 1], ["4 6 0,4:0,3", "4 6 0,4:3,3"]),
        ("vocab:x", (4, 3), [0, 2], ["4 6 0,4:0,3", "4 6 0,4:3,3"]),
        ("batch:x", (4, 6), [0], ["4 6 0,4:0,6"]),
    ],
)
def test_slices_cover_the_variable_and_copies_are_written_once(
    devices: tuple[str, ...], layout: str, slice_shape: tuple[int, ...], distinct: list[int], specifications: list[str]
) -> None:
    store, whole = whole_and_slices(devices, layout)
    (stored,) = store
    assert {tuple(piece.shape) for piece in stored.slices} == {slice_shape}
    assert [piece.device[-5:] for piece in stored.slices] == ["CPU:0", "CPU:1", "CPU:2", "CPU:3"]
    assert sorted(stored.distinct_slices()) == distinct
    assert [stored.specification(index) for index in sorted(stored.distinct_slices())] == specifications
    np.testing.assert_array_equal(tiny.whole_value(stored), whole)
    assert store.n_trainable_parameters() == 24


def test_initial_values_depend_on_seed_and_name_only(devices: tuple[str, ...]) -> None:
    _, split = whole_and_slices(devices, "embd:x,vocab:y")
    _, other_layout = whole_and_slices(devices, "vocab:x")
    np.testing.assert_array_equal(split, other_layout)
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    shape = mtf.Shape([mtf.Dimension("embd", 4), mtf.Dimension("vocab", 6)])
    other = SlicedVariable(mesh, "other", shape, normal(1.0))
    assert not np.any(other.initial_value(3) == split)
    assert not np.any(other.initial_value(4) == other.initial_value(3))


@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 4), (3, 2, 9)])
def test_a_variable_of_any_shape_is_overwritten_in_its_memory(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], is_tensor: bool
) -> None:
    monkeypatch.setattr(placements, "COPIED_BYTES", 32)
    variable, value = tf.Variable(tf.zeros(shape)), np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = tiny.address(variable)
    overwrite(variable, tf.constant(value) if is_tensor else value)
    np.testing.assert_array_equal(variable.numpy(), value)
    assert tiny.address(variable) == before or not shape
