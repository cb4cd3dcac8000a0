"""Automatic layouts: the candidates, the one chosen, and that it trains."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import DeviceError
from configs.layout import Layout, find_layout_issues
from configs.schema import MeshConfig, MoeParams, RunConfig
from runtime.planning import auto_layout
from runtime.planning.auto_layout import candidate_layouts, mesh_shapes
from runtime.planning.cost import cost_of
from runtime.planning.machines import Machine
from tests import tiny

MESH = (("x", 2), ("y", 2))
MIXTURE = {"moe_layers": (0,), "moe_params": MoeParams(moe_num_experts=4, moe_hidden_size=48)}
# Work alone decides, as with links that cost nothing; or memory.
FREE_LINKS = Machine(1e12, 1e9, 1e18, 0.0)
SLOW_LINKS = Machine(1e12, 1e12, 1e6, 0.0)


def config_of(**model: object) -> RunConfig:
    return tiny.run_config(model={"n_layer": 1, "attention_types": ("global",), **model})


def layouts_of(config: RunConfig) -> list[Layout]:
    return [layout for _, layout in candidate_layouts(config, [MESH])]


@pytest.mark.parametrize("model", [{}, MIXTURE, {"n_head": 1}, {"n_kv_head": 1}, {"n_vocab": 63}])
def test_candidates_are_valid_and_distinct(model: dict[str, object]) -> None:
    config = config_of(**model)
    layouts = layouts_of(config)
    sizes = {"heads": ("n_head", config.model.n_head), "vocab": ("n_vocab", config.model.n_vocab)}
    assert [issue for layout in layouts for issue in find_layout_issues(MESH, layout, sizes)] == []
    assert len({frozenset(layout) for layout in layouts}) == len(layouts)
    assert all({axis for _, axis in layout} == {axis for axis, _ in MESH} for layout in layouts)


def test_candidates_include_the_usual_splits() -> None:
    found = [set(layout) for layout in layouts_of(config_of(**MIXTURE))]
    tensor_parallel = {("heads", "y"), ("intermediate_expanded", "y"), ("vocab", "y")}
    assert {("batch", "x")} | tensor_parallel | {("expert_hidden", "y")} in found
    assert {("batch", "x"), ("experts", "x")} | tensor_parallel | {("expert_hidden", "y")} in found
    assert {("batch", "x"), ("embd", "y"), ("memory_length", "y")} in found


@pytest.mark.parametrize(("n_kv_head", "has_its_own"), [(None, False), (1, False), (2, True)])
def test_keys_and_values_are_split_with_their_heads_where_that_divides_them(
    n_kv_head: int | None, has_its_own: bool
) -> None:
    layouts = [dict(layout) for layout in layouts_of(config_of(n_kv_head=n_kv_head))]
    split = [layout for layout in layouts if "heads" in layout]
    assert split and all((layout.get("kv_heads") == layout["heads"]) == has_its_own for layout in split)


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        ([(2, 7)], {(2, 7): {"x"}}),  # 7 divides nothing of the tiny model
        ([(7, 2)], {(7, 2): {"y"}}),
        ([(2, 1)], {(2, 1): {"x"}}),
        ([(14, 1), (7, 2)], {(7, 2): {"y"}}),
        ([(7, 7)], {(7, 7): set()}),
    ],
)
def test_work_is_split_over_as_many_processors_as_can_be(
    sizes: list[tuple[int, int]], split: dict[tuple[int, int], set[str]]
) -> None:
    meshes = [tuple(zip("xy", shape, strict=True)) for shape in sizes]
    found: dict[tuple[int, int], set[str]] = {}
    for mesh_shape, layout in candidate_layouts(config_of(), meshes):
        of_mesh = tuple(size for _, size in mesh_shape)
        large = {axis for _, axis in layout if dict(mesh_shape)[axis] > 1}
        assert found.setdefault(of_mesh, large) == large
    assert found == split


def test_a_dense_model_has_no_experts_to_split() -> None:
    dimensions = {dimension for layout in layouts_of(config_of()) for dimension, _ in layout}
    assert not dimensions & {"experts", "expert_hidden"}


@given(st.integers(1, 512))
def test_mesh_shapes_use_every_device(n_devices: int) -> None:
    shapes = list(mesh_shapes(n_devices))
    assert shapes[0] == (("x", n_devices),)
    assert len(set(shapes)) == len(shapes)
    for shape in shapes:
        sizes = [size for _, size in shape]
        assert math.prod(sizes) == n_devices and sizes == sorted(sizes, reverse=True)
        assert len(shape) == 1 or min(sizes) >= 2


def test_mesh_shapes_of_eight() -> None:
    assert list(mesh_shapes(8)) == [(("x", 8),), (("x", 4), ("y", 2))]


def test_with_free_links_all_work_is_divided() -> None:
    layout = dict(auto_layout.auto_layout(config_of(), MESH, FREE_LINKS))
    assert layout["batch"] != layout["heads"] == layout["intermediate_expanded"] == layout["vocab"]


@pytest.mark.slow
def test_with_slow_links_activations_are_not_sent() -> None:
    layout = dict(auto_layout.auto_layout(config_of(n_ctx=64), (("x", 2),), SLOW_LINKS))
    assert "heads" not in layout and "embd" not in layout


def test_a_model_that_does_not_fit_whole_is_split() -> None:
    config = config_of(n_embd=128)
    whole, split = (
        cost_of(config, (("x", 2),), layout).memory_bytes
        for layout in ((("batch", "x"),), (("heads", "x"), ("intermediate_expanded", "x"), ("vocab", "x")))
    )
    assert split < whole
    tight = dataclasses.replace(SLOW_LINKS, memory_bytes=(whole + split) / 2)
    assert "heads" in dict(auto_layout.auto_layout(config, (("x", 2),), tight))


def test_the_error_says_the_least_memory_needed_if_nothing_fits() -> None:
    tiny_machine = dataclasses.replace(FREE_LINKS, memory_bytes=2048)
    with pytest.raises(DeviceError) as raised:
        auto_layout.auto_layout(config_of(attention_types=("none",)), (("x", 2),), tiny_machine)
    assert str(raised.value).startswith("tiny on x:2: needs at least ")
    assert str(raised.value).endswith(
        " per device, which has 2.00 KiB; use more devices, set recompute, or lower tokens_per_mb_per_replica"
    )


@pytest.mark.slow
def test_the_mesh_is_chosen_with_the_layout() -> None:
    mesh_shape, layout = auto_layout.auto_layout_and_mesh_shape(config_of(), 16, FREE_LINKS)
    assert math.prod(size for _, size in mesh_shape) == 16  # a batch of 8 cannot be divided by all of them
    assert {axis for _, axis in layout} == {"x", "y"} == {axis for axis, _ in mesh_shape}


@pytest.mark.slow
def test_the_chosen_layout_trains(devices: tuple[str, ...]) -> None:
    layout = auto_layout.auto_layout(tiny.run_config(), MESH, FREE_LINKS)
    update = tiny.one_update(tiny.run_config(MeshConfig(mesh_shape=MESH, layout=layout)), devices)
    np.testing.assert_allclose(update.loss, tiny.one_device_update(devices, has_dropout=False).loss, atol=1e-5)
