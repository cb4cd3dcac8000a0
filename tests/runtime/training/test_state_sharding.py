"""State and parameters split over the replicas: the update of one device, less memory, and what is sent for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from configs.schema import SHARD_OPTIMIZER, SHARD_PARAMETERS, RunConfig
from meshtf import mtf
from models.ops.attention import SoftmaxAttentionGradient
from models.ops.gathered import Gathered
from models.ops.gradients import GlobalNorm, ScatteredSum
from models.ops.order import After
from models.variables import SlicedVariable
from runtime.generation.engine import build_engine
from runtime.mesh.placement import VariableStore, place
from runtime.mesh.weights import SHARD, sharded_dim
from runtime.planning.dry_run import DryStep, build_dry_step, dry_placement
from runtime.planning.memory import estimate_memory
from runtime.planning.plan import total_sent
from runtime.training.optimizers import ADAM_SLOTS
from runtime.training.state_sharding import describe_sharding
from runtime.training.steps import build_eval_step, build_train_step
from tests import tiny
from tests.runtime.spmd_worker import MODELS, TENSOR_PARALLEL

Devices = tuple[str, ...]
MICROBATCHES = {"tokens_per_mb_per_replica": tiny.MODEL.n_ctx}
EVERYTHING = {**tiny.ALL_DROPOUTS, "recompute_grad": True}
FLOAT = 4


def sharded(
    mesh_shape: str,
    layout: str,
    model: Mapping[str, object] = {},
    training: Mapping[str, object] = {},
    shard: str = SHARD_OPTIMIZER,
) -> RunConfig:
    return tiny.run_config(tiny.mesh_config(mesh_shape, layout, shard), model, training)


def alone(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, mesh=tiny.mesh_config("", ""))


@pytest.mark.parametrize("shard", [SHARD_OPTIMIZER, SHARD_PARAMETERS])
def test_replicas_that_split_heads_too_give_the_update_of_one_device(devices: Devices, shard: str) -> None:
    config = sharded("x:2,y:2", TENSOR_PARALLEL, EVERYTHING, MICROBATCHES, shard)
    tiny.assert_same_update(tiny.one_update(config, devices), tiny.one_device_update(devices, has_dropout=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh_shape", "layout", "training"),
    [
        ("dense", "x:4", "batch:x", {}),
        ("dense", "x:2,y:2", "batch:y,embd:x", {}),
        ("linear", "x:2,y:2", "batch:x,sequence:y", {}),
        ("shared", "x:4", "batch:x", {}),
        ("grouped", "x:2,y:2", "batch:x,heads:y", {}),
        ("mixture", "x:2,y:2", "batch:x,experts:y", {}),
        ("mixture", "x:2,y:2", "batch:x,experts:x,expert_hidden:y", {}),
        ("recomputed", "x:4", "batch:x", {"gradient_clipping": 0.1, "ema_decay": 0.9, "opt_name": "adamw"}),
        ("gated", "x:2,y:2", "batch:y,embd:x", {"opt_name": "muon"}),
    ],
)
@pytest.mark.parametrize("shard", [SHARD_OPTIMIZER, SHARD_PARAMETERS])
def test_any_model_gives_the_update_of_one_device(
    devices: Devices, shard: str, model: str, mesh_shape: str, layout: str, training: Mapping[str, object]
) -> None:
    config = sharded(mesh_shape, layout, MODELS[model], training, shard)
    tiny.assert_same_update(tiny.one_update(config, devices), tiny.one_update(alone(config), devices))


@pytest.mark.parametrize("training", [{}, pytest.param(MICROBATCHES, marks=pytest.mark.slow)], ids=["whole", "micro"])
@pytest.mark.parametrize("shard", [SHARD_OPTIMIZER, SHARD_PARAMETERS])
def test_bfloat16_differs_by_its_rounding_only(devices: Devices, shard: str, training: Mapping[str, object]) -> None:
    config = sharded("x:4", "batch:x", {"precision": "bfloat16"}, training, shard)
    actual, expected = tiny.one_update(config, devices), tiny.one_update(alone(config), devices)
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=0, atol=1e-2)
    np.testing.assert_allclose(actual.grad_norm, expected.grad_norm, rtol=1e-2)
    for name in expected.before:
        if name.endswith("/adam_m"):
            value = expected.after[name]
            np.testing.assert_allclose(actual.after[name], value, rtol=0, atol=2e-2 * np.abs(value).max(), err_msg=name)


# What is split, and what is sent.


def n_elements(step: DryStep, is_matrix: bool) -> int:
    """Parameters in matrices, or else in vectors."""
    variables = step.graph.trainable_variables
    return sum(variable.shape.size for variable in variables if (len(variable.shape) > 1) == is_matrix)


def dry_step(
    shard: str, model: Mapping[str, object] = {}, training: Mapping[str, object] = {}, layout: str = "batch:x"
) -> DryStep:
    config = tiny.run_config(tiny.mesh_config("x:4", layout, shard), model, training)
    return build_dry_step(config, dry_placement(config.mesh, 4))


@pytest.mark.parametrize("microbatch_count", [1, 2])
def test_gradients_are_reduced_by_scatter_and_parameters_gathered(microbatch_count: int) -> None:
    training = {} if microbatch_count == 1 else MICROBATCHES
    step = dry_step(SHARD_OPTIMIZER, training=training)
    sent = total_sent(step.transfers)
    matrices = FLOAT * n_elements(step, is_matrix=True) * 3 / 4
    assert sent[("x", "reduce_scatter")] == microbatch_count * matrices
    assert sent[("x", "allconcat")] == matrices
    vectors = 2 * FLOAT * n_elements(step, is_matrix=False) * 3 / 4
    assert vectors <= sent[("x", "allreduce")] <= vectors + 2 * FLOAT * 10  # and loss and norm
    whole = total_sent(dry_step("off", training=training).transfers)
    assert set(whole) == {("x", "allreduce")}
    assert whole[("x", "allreduce")] == pytest.approx(2 * matrices + vectors, abs=2 * FLOAT * 10)


def test_gradients_of_bfloat16_are_sent_as_such() -> None:
    step = dry_step(SHARD_OPTIMIZER, {"precision": "bfloat16", "no_weight_tie": True})
    sent = total_sent(step.transfers)[("x", "reduce_scatter")]
    tables = sum(v.shape.size for v in step.graph.trainable_variables if v.name in ("gpt2/wte", "gpt2/wpe"))
    matrices = n_elements(step, is_matrix=True)
    assert 2 * matrices * 3 / 4 <= sent <= (2 * matrices + 2 * tables) * 3 / 4


def test_each_gradient_is_scattered_where_the_backward_pass_makes_it() -> None:
    operations = dry_step(SHARD_OPTIMIZER, {"n_layer": 8, "attention_types": ("global",) * 8}).graph.operations
    scattered = [index for index, operation in enumerate(operations) if operation.name.startswith("scattered_sum")]
    assert len(scattered) == 8 * 4 + 2  # queries, keys and values together
    makers = [operations.index(operations[index].inputs[0].operation) for index in scattered]
    assert all(
        operations[made + 1 : index] == [] or made + 1 == index for made, index in zip(makers, scattered, strict=True)
    )
    attended = [index for index, operation in enumerate(operations) if isinstance(operation, SoftmaxAttentionGradient)]
    between = np.searchsorted(attended, scattered)
    assert np.bincount(between).tolist() == [3, *[4] * 7, 3]  # a layer's own, and both tables at the end


def test_the_backward_pass_waits_for_all_gradients_but_the_last_to_be_scattered() -> None:
    operations = dry_step(SHARD_OPTIMIZER, EIGHT_LAYERS).graph.operations
    of_layers = [operation for operation in operations if isinstance(operation, ScatteredSum)][:-2]
    for before, current in zip(of_layers, of_layers[2:], strict=False):
        late = [x.operation for x in current.inputs[0].operation.inputs if isinstance(x.operation, After)]
        assert [each.inputs[1] for each in late] == before.outputs


EIGHT_LAYERS = {"n_layer": 8, "attention_types": ("global",) * 8}


def test_memory_of_the_plan() -> None:
    steps = [dry_step(shard, EIGHT_LAYERS) for shard in ("off", SHARD_OPTIMIZER, SHARD_PARAMETERS)]
    vectors = FLOAT * n_elements(steps[0], is_matrix=False)
    off, state, all_of_it = map(estimate_memory, steps)
    assert state.parameters == off.parameters
    assert all_of_it.parameters == (off.parameters - vectors) / 4 + vectors
    assert state.optimizer == all_of_it.optimizer == (off.optimizer - 2 * vectors) / 4 + 2 * vectors
    assert all_of_it.total < state.total < off.total
    whole, *parts = map(gradient_bytes, steps)
    assert parts == [(whole - vectors) / 4 + vectors] * 2


def gradient_bytes(step: DryStep) -> int:
    """The bytes of all gradients that one processor updates with."""
    (norm,) = (operation for operation in step.graph.operations if isinstance(operation, GlobalNorm))
    return sum(map(step.slice_bytes, norm.inputs))


# Parameters that are gathered.


def gathered_by_name(step: DryStep) -> list[str]:
    """The names of the variables that are gathered, in the order of the graph."""
    gathered = [operation for operation in step.graph.operations if isinstance(operation, Gathered)]
    return [variable_behind(operation.inputs[0]).name.removeprefix("gpt2/") for operation in gathered]


def variable_behind(x: mtf.Tensor) -> SlicedVariable:
    while not isinstance(x.operation, SlicedVariable):
        x = x.operation.inputs[0]
    return x.operation


KERNELS = ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/conv1d_main/c_fc/kernel", "mlp/conv1d_main/c_proj/kernel")
BACKWARD = ("mlp/conv1d_main/c_proj/kernel", "mlp/conv1d_main/c_fc/kernel", "attn/o", "attn/q", "attn/k", "attn/v")


def of_layer(number: int, kernels: Sequence[str]) -> list[str]:
    return [f"h{number}/{kernel}" for kernel in kernels]


def test_each_block_gathers_its_weights_in_both_passes() -> None:
    found = gathered_by_name(dry_step(SHARD_PARAMETERS))
    forward = ["wte", "wpe", *of_layer(0, KERNELS), *of_layer(1, KERNELS)]
    assert found == [*forward, "wte", *of_layer(1, BACKWARD), *of_layer(0, BACKWARD)]


def test_a_recomputed_block_is_differentiated_with_the_weights_it_was_computed_with() -> None:
    found = gathered_by_name(dry_step(SHARD_PARAMETERS, {"recompute_grad": True}))
    forward = ["wte", "wpe", *of_layer(0, KERNELS), *of_layer(1, KERNELS)]
    assert found == [*forward, "wte", *of_layer(1, KERNELS), *of_layer(0, KERNELS)]


@pytest.mark.parametrize("model", [{}, {"recompute_grad": True}], ids=["kept", "recomputed"])
def test_weights_wait_for_what_is_multiplied_by_them_and_are_read_in_one_block(model: Mapping[str, object]) -> None:
    operations = dry_step(SHARD_PARAMETERS, {**EIGHT_LAYERS, **model}).graph.operations
    place = {operation: index for index, operation in enumerate(operations)}
    for operation in operations:
        if isinstance(operation, Gathered):
            _, *others = operation.inputs[0].operation.inputs
            readers = [place[each] for each in operations if operation.outputs[0] in each.inputs]
            assert others
            assert max(readers) - place[operation] < len(operations) / 4


def test_parameters_are_sent_once_for_each_pass() -> None:
    step = dry_step(SHARD_PARAMETERS, {"no_weight_tie": True})
    sent = total_sent(step.transfers)
    once = FLOAT * n_elements(step, is_matrix=True) * 3 / 4
    tables = FLOAT * sum(v.shape.size for v in step.graph.trainable_variables if v.name in ("gpt2/wte", "gpt2/wpe"))
    head = FLOAT * sum(v.shape.size for v in step.graph.trainable_variables if "linear_out/kernel" in v.name)
    assert sent[("x", "reduce_scatter")] == once
    assert sent[("x", "allconcat")] == 2 * once - (tables + head) * 3 / 4


def test_parameters_lie_split_in_every_program(devices: Devices) -> None:
    config = sharded("x:4", "batch:x", shard=SHARD_PARAMETERS)
    placement = place(config.mesh, devices)
    build_eval_step(config, placement)
    build_engine(config, placement, 4)
    build_train_step(config, placement)
    stored = {each.name: each for each in placement.store}
    assert stored["gpt2/wte"].begins == ((0, 0), (16, 0), (32, 0), (48, 0))
    assert {len(set(each.begins)) for each in placement.store if len(each.whole_shape) > 1} == {4}
    line = describe_sharding(config, placement)
    assert line.startswith("shard = parameters: parameters and optimizer state are split over 4 replicas; whole: ")


def test_the_first_whole_dimension_that_the_replicas_divide_is_split(devices: Devices) -> None:
    mesh_impl = place(tiny.mesh_config("x:2,y:2", TENSOR_PARALLEL), devices).implementation(8)
    for sizes, expected in (
        ({"embd": 6, "heads": 8}, "embd"),
        ({"vocab": 8, "embd": 6}, "embd"),
        ({"embd": 7, "score": 4}, "score"),
        ({"embd": 7, "heads": 8}, None),  # 7 is odd, and heads are split
        ({"expert_batch": 4, "embd": 6}, None),  # lies over the axis of the batch already
        ({"embd": 6}, None),
        ({}, None),
    ):
        dim = sharded_dim(mesh_impl, mtf.Shape([mtf.Dimension(name, size) for name, size in sizes.items()]))
        assert (dim and dim.name) == expected
    without = place(tiny.mesh_config("x:4", "heads:x"), devices).implementation(8)
    assert sharded_dim(without, mtf.Shape([mtf.Dimension("embd", 8), mtf.Dimension("vocab", 8)])) is None


def addresses(store: VariableStore) -> list[int]:
    """Where the slices of the matrices lie in memory."""
    return [tiny.address(piece) for stored in store if len(stored.whole_shape) > 1 for piece in stored.slices]


@pytest.mark.parametrize("opt_name", ["adam", "lion"])
@pytest.mark.parametrize("shard", ["off", SHARD_OPTIMIZER, SHARD_PARAMETERS])
def test_an_update_stays_in_the_memory_of_variables_and_slots(devices: Devices, shard: str, opt_name: str) -> None:
    config = sharded("x:4", "batch:x", training={"opt_name": opt_name}, shard=shard)
    placement = place(config.mesh, devices)
    step = build_train_step(config, placement)
    placement.store.initialize(seed=1)
    before = addresses(placement.store)
    step(*tiny.step_inputs())
    n_moved = sum(own != other for own, other in zip(addresses(placement.store), before, strict=True))
    assert n_moved < len(before) / 10  # a slice that is still being read elsewhere is replaced


def test_slots_lie_split_and_a_line_says_so(devices: Devices) -> None:
    config = sharded("x:4", "batch:x", {"n_ctx": 18, "n_embd": 36, "n_head": 4, "n_inner": 30})
    placement = place(config.mesh, devices)
    build_train_step(config, placement)
    stored = {each.name: each for each in placement.store}
    for slot in ADAM_SLOTS:
        assert stored[f"gpt2/wte{slot}"].begins == ((0, 0), (16, 0), (32, 0), (48, 0))
        assert [dim.name for dim in stored[f"gpt2/wte{slot}"].variable.shape.dims] == [SHARD, "embd"]
        assert stored[f"gpt2/wte{slot}"].slices[0].shape == (16, 36)
        assert stored[f"gpt2/ln_f/g{slot}"].slices[0].shape == (36,)
    line = describe_sharding(config, placement)
    assert line == "shard = optimizer: optimizer state is split over 4 replicas; whole: 16 vectors"
    assert describe_sharding(alone(config), placement) is None
    odd = sharded("x:4", "batch:x", {"n_embd": 18, "n_head": 3, "n_inner": 30, "n_vocab": 63})
    placement = place(odd.mesh, devices)
    build_train_step(odd, placement)
    line = describe_sharding(odd, placement)
    assert "whole: gpt2/wte, " in line and "gpt2/wpe" not in line and line.endswith(", 16 vectors")
    one = place(alone(odd).mesh, devices[:1])
    assert describe_sharding(odd, one) == "shard = optimizer: has no effect, since the batch is not split"
