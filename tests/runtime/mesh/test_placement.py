"""From devices to a mesh: what is chosen, what is split, and what is said when they do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from configs.errors import DeviceError
from meshtf import mtf, tf
from models.variables import SlicedVariable, normal
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import VariableStore, place
from tests import tiny

N_GPUS = len(tf.config.list_physical_devices("GPU"))
without_gpu = pytest.mark.skipif(N_GPUS > 0, reason="a GPU is there")


def refusal(*arguments: object, of=choose_devices) -> str:
    with pytest.raises(DeviceError) as error:
        of(*arguments)
    return str(error.value)


# Devices.


@without_gpu
def test_without_a_gpu_it_is_the_cpu() -> None:
    assert choose_devices(None, None) == ("/device:CPU:0",)


@pytest.mark.skipif(N_GPUS == 0, reason="no GPU is there")
def test_all_gpus_that_are_there() -> None:
    assert choose_devices(None, None) == tuple(f"/device:GPU:{index}" for index in range(N_GPUS))
    assert choose_devices(["device:GPU:0"], None) == ("/device:GPU:0",)


@pytest.mark.parametrize("name", ["device:CPU:0", "/device:CPU:0", " device:CPU:0 "])
def test_devices_by_name(name: str) -> None:
    assert choose_devices([name], None) == ("/device:CPU:0",)


@without_gpu
def test_a_device_that_is_not_there() -> None:
    assert refusal(["device:GPU:3"], None) == (
        "--gpu_ids device:GPU:3: no such device; GPUs that TensorFlow sees: none; name one that is there, or leave "
        "--gpu_ids out to run on what is there"
    )


def test_a_device_named_twice() -> None:
    assert refusal(["device:CPU:0", "/device:CPU:0"], None) == (
        "--gpu_ids device:CPU:0 /device:CPU:0: a device is named twice; name each once"
    )


@pytest.mark.parametrize("count", [0, -2])
def test_a_number_of_devices_below_one(count: int) -> None:
    assert refusal(None, count) == (
        f"--cpu_devices {count}: must be at least 1; give the number of virtual CPU devices"
    )


# Placement.


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


def test_a_mesh_of_another_size(devices: tuple[str, ...]) -> None:
    assert refusal(tiny.mesh_config("x:4,y:2", "batch:x"), devices, of=place) == (
        "mesh_shape = x:4,y:2: needs 8 devices, 4 are there; give a mesh_shape whose sizes multiply to 4 "
        "(--set mesh_shape=x:4), or that many devices"
    )


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


# Variables.


def whole_and_slices(devices: tuple[str, ...], layout: str) -> tuple[VariableStore, np.ndarray]:
    placement = place(tiny.mesh_config("x:2,y:2", layout), devices)
    dims = mtf.Shape([mtf.Dimension("embd", 4), mtf.Dimension("vocab", 6)])
    variable = SlicedVariable(mtf.Mesh(mtf.Graph(), "mesh"), "table", dims, normal(1.0), trainable=True)
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
def test_slices_make_up_the_whole_and_copies_are_written_once(
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


def test_first_values_depend_on_seed_and_name_only(devices: tuple[str, ...]) -> None:
    _, split = whole_and_slices(devices, "embd:x,vocab:y")
    _, other_layout = whole_and_slices(devices, "vocab:x")
    np.testing.assert_array_equal(split, other_layout)
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    shape = mtf.Shape([mtf.Dimension("embd", 4), mtf.Dimension("vocab", 6)])
    other = SlicedVariable(mesh, "other", shape, normal(1.0), trainable=True)
    assert not np.any(other.initial_value(3) == split)
    assert not np.any(other.initial_value(4) == other.initial_value(3))
