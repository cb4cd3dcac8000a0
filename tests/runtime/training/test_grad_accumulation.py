"""Microbatches: the sums of their results, and what is sent, once per step and not once per microbatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import MoeParams, RunConfig
from meshtf import mtf, tf
from models.ops.mesh_operation import redistribute
from models.ops.precision import rounded
from runtime.mesh.multi_process import place_process
from runtime.mesh.placement import Placement, place
from runtime.training.grad_accumulation import n_microbatches, sum_over_microbatches
from runtime.training.steps import build_train_step
from tests import tiny

Devices = tuple[str, ...]
LAYOUTS = [("", ""), ("x:4", "batch:x"), ("x:2,y:2", "batch:x,heads:y"), ("x:2,y:2", "heads:x,batch:y")]
ROWS = np.random.default_rng(5).normal(size=(16, 4)).astype(np.float32)
WEIGHTS = np.random.default_rng(6).normal(size=(4, 6)).astype(np.float32)


def config_of(batch_size: int, n_ctx: int, tokens: int | None) -> RunConfig:
    training = {"train_batch_size": batch_size, "tokens_per_mb_per_replica": tokens}
    return tiny.run_config(model={"n_ctx": n_ctx}, training=training)


@pytest.mark.parametrize(
    ("batch_size", "batch_split", "n_ctx", "tokens", "count"),
    [
        (512, 64, 2048, 2048, 8),  # gpt3_2-7B_256
        (512, 128, 2048, None, 1),
        (8, 1, 16, 32, 4),
        (8, 2, 16, 32, 2),
        (8, 1, 16, 1000, 1),  # more than the batch
        (8, 1, 16, 5, 8),  # less than one sequence
        (8, 1, 16, 16 * 3, 4),  # 3 sequences do not divide 8, 2 do
        (12, 1, 16, 16 * 5, 3),  # 4 do
        (14, 1, 16, 16 * 6, 7),  # 2 do
        (13, 1, 16, 16 * 12, 13),  # only 1 does
    ],
)
def test_number_of_microbatches(batch_size: int, batch_split: int, n_ctx: int, tokens: int | None, count: int) -> None:
    assert n_microbatches(config_of(batch_size, n_ctx, tokens), batch_split) == count


@given(st.integers(1, 96), st.sampled_from([1, 2, 4, 8]), st.integers(1, 64), st.integers(1, 4096))
@settings(max_examples=100, deadline=None)
def test_a_microbatch_is_the_largest_that_divides_and_fits(
    per_replica: int, batch_split: int, n_ctx: int, tokens: int
) -> None:
    count = n_microbatches(config_of(per_replica * batch_split, n_ctx, tokens), batch_split)
    fitting = [size for size in range(1, per_replica + 1) if size * n_ctx <= max(tokens, n_ctx)]
    assert per_replica == count * max(size for size in fitting if per_replica % size == 0)


def summed(
    devices: Devices, layout: tuple[str, str], microbatch_count: int, build: Callable[..., Sequence[mtf.Tensor]]
) -> list[np.ndarray]:
    """The sums over microbatches of ROWS [batch, heads] of what `build` computes with WEIGHTS [heads, columns]."""
    mesh_shape, rules = layout
    placement = place(tiny.mesh_config(mesh_shape, rules), devices if mesh_shape else devices[:1])

    def sums(rows: mtf.Tensor, weights: mtf.Tensor) -> list[mtf.Tensor]:
        return sum_over_microbatches({"rows": rows}, lambda part: build(part["rows"], weights), microbatch_count)

    return tiny.evaluate(sums, placement, ("batch heads", ROWS), ("heads columns", WEIGHTS))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("microbatch_count", [2, 4])
def test_each_row_is_in_one_microbatch(devices: Devices, layout: tuple[str, str], microbatch_count: int) -> None:
    def build(rows: mtf.Tensor, _: mtf.Tensor) -> list[mtf.Tensor]:
        of_part = mtf.reduce_sum(rows, reduced_dim=rows.shape.dims[0])
        return [of_part, mtf.square(of_part)]

    total, squares = summed(devices, layout, microbatch_count, build)
    parts = [ROWS[number::microbatch_count].sum(0, dtype=np.float64) for number in range(microbatch_count)]
    np.testing.assert_allclose(total, sum(parts), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(squares, sum(part**2 for part in parts), rtol=1e-5, atol=1e-6)


def linear_outputs(rows: mtf.Tensor, weights: mtf.Tensor) -> list[mtf.Tensor]:
    """Sums over a microbatch that are stacked, unstacked, scaled, added and moved before they are returned."""
    batch_dim, heads_dim = rows.shape.dims
    dims = [mtf.Dimension("kinds", 2), heads_dim]
    sums, of_squares = (mtf.reduce_sum(x, reduced_dim=batch_dim) for x in (rows, mtf.square(rows)))
    first, second = mtf.unstack(mtf.stack([sums, of_squares], "kinds"), dims[0])
    products = mtf.einsum([rows, weights], [batch_dim, *weights.shape.dims[1:]])  # a sum over heads
    of_both = mtf.reduce_sum(products, reduced_dim=batch_dim)
    return [first + second * 3.0, redistribute(second, "heads", "whole"), redistribute(sums, "heads", "batch"), of_both]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deferred_allreduces(devices: Devices, layout: tuple[str, str]) -> None:
    rows = ROWS.astype(np.float64)
    sums, of_squares = rows.sum(0), (rows**2).sum(0)
    expected = [sums + 3.0 * of_squares, of_squares, sums, (rows @ WEIGHTS).sum(0)]
    for actual, value in zip(summed(devices, layout, 4, linear_outputs), expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5)


def test_gradients_of_rounded_variables_are_summed_in_float32(devices: Devices) -> None:
    small = 2.0**-10  # bfloat16 has 8 bits: 1 + small is 1
    rows = np.full((16, 1), small, np.float32)
    rows[0] = 1.0

    def build(rows: mtf.Tensor, weight: mtf.Tensor) -> list[mtf.Tensor]:
        def gradient(part: mtf.Tensor) -> list[mtf.Tensor]:
            product = mtf.einsum([mtf.cast(part, tf.bfloat16), rounded(weight, tf.bfloat16)], part.shape)
            return mtf.gradients([mtf.reduce_sum(mtf.cast(product, tf.float32))], [weight])

        return sum_over_microbatches({"rows": rows}, lambda part: gradient(part["rows"]), 4)

    placement = place(tiny.mesh_config("x:4", "batch:x"), devices)
    (total,) = tiny.evaluate(build, placement, ("batch heads", rows), ("heads", np.ones(1, np.float32)))
    assert total == 1.0 + 15 * small


Nodes = Mapping[str, Sequence[tf.compat.v1.NodeDef]]


def nodes_of(config: RunConfig, placement: Placement) -> Nodes:
    """The nodes of a training step by the function that they are in; "" is the step itself."""
    graph = build_train_step(config, placement).function.graph.as_graph_def()
    return {"": graph.node} | {function.signature.name: function.node_def for function in graph.library.function}


def n_collectives(nodes: Nodes, *, in_loop: bool) -> int:
    functions = [part for name, part in nodes.items() if ("while_body" in name) == in_loop]
    return sum(node.op.startswith("Collective") for part in functions for node in part)


def in_microbatches(mesh_shape: str, layout: str, **model: object) -> RunConfig:
    changes = {"n_layer": 1, "attention_types": ("global",), **model}
    return tiny.run_config(tiny.mesh_config(mesh_shape, layout), changes, {"tokens_per_mb_per_replica": 16})


MIXTURE = {"moe_layers": (0,), "moe_params": MoeParams(moe_num_experts=4, moe_hidden_size=24)}
MODELS = [{}, {"precision": "bfloat16"}, {"mlp_glu": True}, MIXTURE, {"share_parameters": True, "n_layer": 2}]
MODELS[-1]["attention_types"] = ("global", "global")


@pytest.mark.parametrize("model", [MODELS[0], *[pytest.param(model, marks=pytest.mark.slow) for model in MODELS[1:]]])
def test_processes_that_share_a_batch_send_once_per_step(model: Mapping[str, object]) -> None:
    config = in_microbatches("x:2", "batch:x", **model)
    placement = place_process(config.mesh, 1, 2, "/device:CPU:0")
    nodes = nodes_of(config, placement)
    n_gradients = sum(stored.variable.trainable for stored in placement.store)
    assert n_collectives(nodes, in_loop=True) == 0
    # And the sum of the weights, the loss with and without auxiliary terms, and the experts' metrics.
    assert n_gradients < n_collectives(nodes, in_loop=False) <= n_gradients + 5


@pytest.mark.slow
def test_experts_exchange_rows_of_each_microbatch_and_nothing_else() -> None:
    config = in_microbatches("x:2", "batch:x,experts:x", **MIXTURE)
    nodes = nodes_of(config, place_process(config.mesh, 1, 2, "/device:CPU:0"))
    assert n_collectives(nodes, in_loop=True) == 6  # rows and gates there, rows back, and their gradients


def test_one_microbatch_is_in_memory_at_a_time(devices: Devices) -> None:
    config = in_microbatches("", "")
    nodes = nodes_of(config, place(config.mesh, devices[:1]))
    (loop,) = [node for node in nodes[""] if node.op in ("While", "StatelessWhile")]
    assert loop.attr["parallel_iterations"].i == 1
