"""Weights that are read by slice: every region of every tensor, and no more of its file than that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.families.tensors import Tensor
from meshtf import mtf
from models import variables
from models.variables import SlicedVariable
from runtime.checkpoint.huggingface import variables_of
from runtime.checkpoint.weight_files import TensorFiles, find_tensors
from runtime.checkpoint.weight_sources import Region, StoredTensor, in_parts
from runtime.mesh.placement import place
from tests.tiny import mesh_config

KEYS = {"n_vocab": 10, "n_ctx": 6, "n_embd": 12, "n_head": 3, "n_layer": 1}
RNG = np.random.default_rng(4)


def regions(shape: tuple[int, ...]) -> Iterator[Region]:
    """All of a tensor, halves of it, and regions that begin and end anywhere."""
    yield tuple(slice(0, size) for size in shape)
    for _ in range(20):
        ends = [np.sort(RNG.choice(size + 1, 2, replace=False)) for size in shape]
        yield tuple(slice(int(first), int(last)) for first, last in ends)


def in_file(tmp_path: Path, tensors: dict[str, np.ndarray]) -> dict[str, StoredTensor]:
    path = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return find_tensors(TensorFiles([str(path)]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_region_of_a_file_is_read(tmp_path: Path, dtype: type) -> None:
    value = RNG.normal(size=(7, 9)).astype(dtype)
    stored = in_file(tmp_path, {"other": value[:2], "a": value, "z": value[3:]})["a"]
    for region in regions(value.shape):
        np.testing.assert_array_equal(stored.read_part(region), value[region].astype(np.float32))
        assert stored.read_part(region).dtype == np.float32
    np.testing.assert_array_equal(stored.read(), value.astype(np.float32))


FUSED = {
    "side by side, [in, out]": Tensor("x", ("q", "k", "v"), "EQ"),
    "side by side, [out, in]": Tensor("x", ("q", "k", "v"), "EQ", is_transposed=True),
    "head by head, [out, in]": Tensor("x", ("q", "k", "v"), "EQ", is_transposed=True, is_by_head=True),
    "head by head, biases": Tensor("x", ("q", "k", "v"), "Q", is_by_head=True),
    "alone, [out, in]": Tensor("x", ("q",), "EF", is_transposed=True),
}


@pytest.mark.parametrize("kind", FUSED)
def test_every_region_of_a_fused_or_transposed_tensor_is_read(tmp_path: Path, kind: str) -> None:
    tensor = FUSED[kind]
    theirs = RNG.normal(size=tensor.stored_shape(KEYS)).astype(np.float32)
    value = theirs.T if tensor.is_transposed else theirs
    if tensor.is_by_head:
        by_head = value.reshape(*value.shape[:-1], 3, 3, 4)  # heads, variables, features
        expected = [by_head[..., number, :].reshape(*value.shape[:-1], 12) for number in range(3)]
    else:
        expected = np.split(value, len(tensor.variables), axis=-1)
    found = {
        "x": in_file(tmp_path, {"x": theirs})["x"],
        "wte": in_parts("t", (10, 12), lambda region: np.zeros((10, 12))),
    }
    read = variables_of([tensor, Tensor("wte", ("wte",), "VE")], found, KEYS, "config.json")
    for name, whole in zip(tensor.variables, expected, strict=True):
        assert read[f"gpt2/{name}"].shape == whole.shape
        for region in regions(whole.shape):
            np.testing.assert_array_equal(read[f"gpt2/{name}"].read_part(region), whole[region])


def test_a_slice_asks_a_file_for_no_more_than_it_holds() -> None:
    """Columns of ours are rows of a transposed tensor; of one that is fused by heads, whole heads are read."""
    asked: list[Region] = []

    def record(region: Region) -> np.ndarray:
        asked.append(region)
        return np.zeros([piece.stop - piece.start for piece in region], np.float32)

    for kind, region in (
        ("side by side, [in, out]", (slice(0, 12), slice(16, 20))),
        ("side by side, [out, in]", (slice(16, 20), slice(0, 12))),
        ("head by head, [out, in]", (slice(12, 24), slice(0, 12))),
    ):
        tensor = FUSED[kind]
        found = {"x": in_parts("x", tensor.stored_shape(KEYS), record), "wte": in_parts("t", (10, 12), record)}
        read = variables_of([tensor, Tensor("wte", ("wte",), "VE")], found, KEYS, "config.json")
        asked.clear()
        read["gpt2/k"].read_part((slice(0, 12), slice(4, 8)))
        assert asked == [region], kind


def test_each_slice_of_a_mesh_is_read_once_and_alone(devices: tuple[str, ...]) -> None:
    whole, asked = np.arange(24, dtype=np.float32).reshape(4, 6), []

    def part(region: Region) -> np.ndarray:
        asked.append(region)
        return whole[region]

    placement = place(mesh_config("x:2,y:2", "vocab:x"), devices)
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    dims = mtf.Shape([mtf.Dimension("vocab", 4), mtf.Dimension("embd", 6)])
    variable = SlicedVariable(mesh, "table", dims, variables.zeros)
    stored = placement.store.slices_of(variable, placement.implementation(1))
    stored.assign_parts(in_parts("x", whole.shape, part).read_part)
    assert asked == [(slice(0, 2), slice(0, 6)), (slice(2, 4), slice(0, 6))]
    for begin, piece in zip(stored.begins, stored.slices, strict=True):
        np.testing.assert_array_equal(piece.numpy(), whole[begin[0] : begin[0] + 2])
