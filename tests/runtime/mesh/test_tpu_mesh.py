"""The program of a TPU, built without a TPU."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.framework import kernels

from configs.errors import ConfigError, DeviceError
from configs.load import load_config
from configs.schema import NO_SHARDING, SHARD_OPTIMIZER, SHARD_PARAMETERS, SHARDINGS, RunConfig
from meshtf import mtf, tf
from models.variables import SlicedVariable
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import restore
from runtime.checkpoint.writer import CheckpointWriter
from runtime.generation.packed_batches import BatchShape
from runtime.generation.packed_programs import build_packed_scores
from runtime.generation.programs import build_generate
from runtime.mesh.multi_process import place_process
from runtime.mesh.placement import DeviceMesh
from runtime.mesh.placement import place as place_on_devices
from runtime.mesh.tpu_discovery import Tpu
from runtime.mesh.tpu_mesh import CrossReplicaOps, Replica, ReplicaGroups, ReplicaPlacement, groups_along
from runtime.mesh.tpu_replicate import place_on_tpu
from runtime.training import steps
from runtime.training.optimizers import ADAM_SLOTS
from runtime.training.steps import build_eval_step
from runtime.training.tpu_steps import (
    DeviceLoop,
    _Destinations,
    run_device_loop,
    steps_per_loop,
)
from tests import tiny
from tests.runtime.spmd_worker import MIXTURE, MODELS, ONE_LAYER
from tests.runtime.tpu_worker import stacked_inputs
from tests.runtime.tpus import SLICES, Built, place

TOGETHER = {"CrossReplicaSum", "AllToAll", "CollectivePermute", "XlaReduceScatter"}
# Operations outside of the replicated program.
PLUMBING = {"Placeholder", "Const", "Identity", "NoOp", "TPUReplicatedInput", "TPUReplicatedOutput"}
PLUMBING |= {"TPUCompilationResult"}
LAYOUT = "batch:x,heads:y,vocab:y,intermediate_expanded:y"
SHIPPED = (
    "gpt2_small",
    "gpt3_small_256",
    "gpt3_medium_256",
    "gpt3_large_256",
    "gpt3_PAR_small_256",
    "gpt3_XL_256_Pile",
    "gpt3_2-7B_256",
    "gpt3_6-7B_256",
    "gpt3_13B_256",
    "gpt3_13B_256_Pile",
    "llama_125m",
    "pythia_160m",
    "qwen3_0.6b",
    "llama3_8b",
)


# Groups.


def differs_along(shape: mtf.Shape, axes: Sequence[int], one: int, other: int) -> bool:
    """Returns whether two processors differ only along these axes."""
    places = [mtf.pnum_to_processor_coordinates(shape, number) for number in (one, other)]
    return all(axis in axes or a == b for axis, (a, b) in enumerate(zip(*places, strict=True)))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_groups_along_axes(sizes: list[int], data: st.DataObject) -> None:
    shape = mtf.Shape([mtf.Dimension(f"axis{index}", size) for index, size in enumerate(sizes)])
    axes = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    groups = groups_along(shape, axes)
    assert sorted(itertools.chain(*groups)) == list(range(shape.size))
    assert len({len(group) for group in groups}) == 1
    for group in groups:
        assert group == [number for number in range(shape.size) if differs_along(shape, axes, group[0], number)]


# The program.


def check_operations(built: Built) -> None:
    """Checks that every core can compile its program, and that only input and output are outside."""
    inside = {node.op for node in built.replicated_nodes()} - TOGETHER - {"TPUReplicateMetadata"}
    for operation in inside:
        known = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(operation).kernel}
        assert "XLA_CPU_JIT" in known, operation
    assert {node.op for node in built.graph.node if "_tpu_replicate" not in node.attr} <= PLUMBING
    for node in built.replicated_nodes():
        assert not node.attr["_XlaMustCompile"].b, node.name


def check_groups(built: Built) -> None:
    """Checks the groups of the collectives against those that NumPy finds."""
    shape = built.placement.shape
    numbers = np.arange(shape.size).reshape(shape.to_integer_list)
    known = []
    for n_axes in range(1, len(shape.dims) + 1):
        for axes in itertools.combinations(range(len(shape.dims)), n_axes):
            others = [axis for axis in range(len(shape.dims)) if axis not in axes]
            group_size = int(np.prod([shape.dims[axis].size for axis in axes]))
            known.append(numbers.transpose([*others, *axes]).reshape(-1, group_size).tolist())
    kinds = ("CrossReplicaSum", "AllToAll", "XlaReduceScatter")
    found = [groups for kind in kinds for groups in built.constants_of(kind, 1)]
    assert found
    for groups in found:
        assert groups in known
        assert sorted(itertools.chain(*groups)) == list(range(shape.size))


def check_slices(built: Built, config: RunConfig) -> None:
    """Checks that each variable is split as the layout says, and is a single input of all cores."""
    sizes, layout = dict(config.mesh.mesh_shape), dict(config.mesh.layout)
    inputs = [node for node in built.graph.node if node.op == "TPUReplicatedInput" and node.attr["is_packed"].b]
    assert len(inputs) == len(built.placement.store.variables)
    for variable, shape in built.placement.store.variables.values():
        assert shape == [dim.size // sizes.get(layout.get(dim.name, ""), 1) for dim in variable.shape.dims]


def check(config: RunConfig, slice_name: str) -> Built:
    """Builds the program, and checks all that can be seen in it."""
    built = Built.of(config, slice_name)
    check_operations(built)
    check_groups(built)
    check_slices(built, config)
    return built


@pytest.fixture(scope="module")
def small() -> Built:
    """Returns a config for 8 cores, with microbatches and recomputed layers."""
    training = {"tokens_per_mb_per_replica": tiny.MODEL.n_ctx}
    return check(tiny.run_config(tiny.mesh_config("x:4,y:2", LAYOUT), {"recompute_grad": True}, training), "v3-8")


def test_the_program_of_a_small_tpu(small: Built) -> None:
    kinds = [node.op for node in small.replicated_nodes()]
    assert kinds.count("While") == 2  # over the steps, and over the microbatches
    assert {"CrossReplicaSum", "AllToAll"} <= set(kinds)


def test_replicas_are_assigned_to_cores_in_order(small: Built) -> None:
    (metadata,) = (node for node in small.graph.node if node.op == "TPUReplicateMetadata")
    assert metadata.attr["num_replicas"].i == 8
    coordinates = np.reshape(metadata.attr["device_assignment"].list.i, (8, 4))
    np.testing.assert_array_equal(coordinates, small.placement.assignment.core_assignment[:, 0])
    numbers = next(node for node in small.graph.node if node.op == "TPUReplicatedInput")
    constants = {node.name: node for node in small.graph.node if node.op == "Const"}
    values = [int(tf.make_ndarray(constants[name].attr["value"].tensor)) for name in numbers.input]
    assert values == list(range(8))


def test_experts_move_by_all_to_all() -> None:
    mesh, model = tiny.mesh_config("x:4,y:2", "batch:x,experts:x,expert_hidden:y"), MODELS["one_mixture"]
    check(tiny.run_config(mesh, model), "v3-8")


@pytest.mark.parametrize("shard", SHARDINGS)
def test_a_program_does_not_grow_with_the_tpu(shard: str) -> None:
    counts, model = [], {**ONE_LAYER, "n_embd": 128, "n_ctx": 128}
    for slice_name, mesh_shape in (("v3-8", "x:4,y:2"), ("v3-256", "x:128,y:2")):
        config = tiny.run_config(tiny.mesh_config(mesh_shape, LAYOUT, shard), model, {"train_batch_size": 256})
        counts.append(sum(1 for _ in Built.of(config, slice_name).replicated_nodes()))
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_gradients_are_scattered_and_slots_split() -> None:
    config = tiny.run_config(tiny.mesh_config("x:4,y:2", LAYOUT, SHARD_OPTIMIZER), ONE_LAYER)
    built = Built.of(config, "v3-8")
    check_operations(built)
    check_groups(built)
    shapes = {name: shape for name, (_, shape) in built.placement.store.variables.items()}
    matrices = [name for name, shape in shapes.items() if len(shape) > 1 and not name.endswith(ADAM_SLOTS)]
    kinds = [node.op for node in built.replicated_nodes()]
    assert kinds.count("XlaReduceScatter") == len(matrices) - 2  # queries, keys and values together
    for name in matrices:
        for slot in ADAM_SLOTS:
            assert 4 * np.prod(shapes[name + slot]) == np.prod(shapes[name])


def test_weights_are_gathered_behind_barriers_in_both_passes() -> None:
    """XLA would compute two equal gathers once, and keep the result from the forward to the backward pass."""
    counts = []
    for shard in (NO_SHARDING, SHARD_PARAMETERS):
        built = Built.of(tiny.run_config(tiny.mesh_config("x:4,y:2", LAYOUT, shard), ONE_LAYER), "v3-8")
        check_operations(built)
        check_groups(built)
        counts.append(Counter(node.op for node in built.replicated_nodes()))
    whole, split = counts
    n_kernels = 6  # of a layer
    assert split["AllToAll"] - whole["AllToAll"] == 2 * n_kernels + 3  # the tables, and the token table as output layer
    assert split["XlaOptimizationBarrier"] >= 2 * n_kernels + 3


def test_a_reduce_scatter_is_the_devices_own() -> None:
    groups = [[0, 1, 2], [3, 4, 5]]
    scatter = tf.function(lambda x: CrossReplicaOps().reduce_scatter(x, groups, 1), jit_compile=True)
    program = scatter.experimental_get_compiler_ir(tf.ones([4, 6]))(stage="hlo")
    (line,) = [line for line in program.splitlines() if " reduce-scatter(" in line]
    assert "f32[4,2]" in line and "replica_groups={{0,1,2},{3,4,5}}" in line and "dimensions={1}" in line
    assert " add(" in program


def fitted(name: str, slice_name: str) -> RunConfig:
    """A shipped config on this TPU: as much of its last axis as there is, and the rest for the others.

    The batch grows with the first axis, so that each core has as many microbatches as in the config.
    """
    n_cores = int(slice_name.removeprefix("v3-"))
    config = load_config(name, [], None)
    (first, first_size), *others = config.mesh.mesh_shape
    last = [(axis, min(size, n_cores)) for axis, size in others]
    replicas = n_cores // math.prod(size for _, size in last)
    mesh_shape = ",".join(f"{axis}:{size}" for axis, size in ((first, replicas), *last))
    batch_size = config.training.train_batch_size * replicas // first_size
    return load_config(name, [f"mesh_shape={mesh_shape}", f"train_batch_size={batch_size}"], None)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_programs_of_the_shipped_configs(name: str) -> None:
    counts = {
        slice_name: sum(1 for _ in check(fitted(name, slice_name), slice_name).replicated_nodes())
        for slice_name in SLICES
    }
    assert counts["v3-32"] == pytest.approx(counts["v3-256"], rel=0.02)


def test_the_shipped_configs_are_all_known() -> None:
    paths = (Path(__file__).parents[3] / "configs").glob("*.json")
    with_mesh = [path.stem for path in paths if '"mesh_shape"' in path.read_text()]
    assert sorted(with_mesh) == sorted(SHIPPED)


def test_evaluation_and_generation_are_compiled_programs() -> None:
    config = tiny.run_config(tiny.mesh_config("x:4,y:2", LAYOUT), ONE_LAYER)
    placement = place(config.mesh, "v3-8")
    steps = {"token_loss": build_eval_step(config, placement), "tokens": build_generate(config, placement, 4, 16)}
    steps["is_greedy"] = build_packed_scores(config, placement, BatchShape(8, 32, 16))
    for name, step in steps.items():
        assert name in step.function.structured_outputs
        built = Built(placement, step, step.function.graph.as_graph_def())
        check_operations(built)
        check_groups(built)
    assert steps["token_loss"].function.structured_outputs["token_loss"].shape == (8, 16)
    assert steps["tokens"].function.structured_outputs["tokens"].shape == (4, config.model.n_ctx)
    assert steps["is_greedy"].function.structured_outputs["log_probs"].shape == (8, 16)


# As XLA compiles it.


class ShapesOnly:
    """Collectives of a replica without others: tensors of the right shape."""

    def cross_replica_sum(self, x: tf.Tensor, groups: ReplicaGroups) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        return x

    def reduce_scatter(self, x: tf.Tensor, groups: ReplicaGroups, dimension: int) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        return tf.split(x, len(groups[0]), dimension)[0]

    def all_to_all(self, x: tf.Tensor, groups: ReplicaGroups, split_dimension: int, concat_dimension: int) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        return tf.concat(tf.split(x, len(groups[0]), split_dimension), concat_dimension)

    def collective_permute(self, x: tf.Tensor, pairs: ReplicaGroups) -> tf.Tensor:
        """See `runtime.mesh.tpu_mesh.CrossReplicaOps`."""
        return x


PROGRAMS = {
    "model": ({**tiny.ALL_DROPOUTS, "recompute_grad": True}, "x:2,y:2", LAYOUT, "adam", "off"),
    "embd": ({"precision": "bfloat16", "rotary_emb": True}, "x:2,y:2", "batch:x,embd:y", "adafactor", "parameters"),
    "memory": ({"num_mem_kv": 4}, "x:2,y:2", "memory_length:x,batch:y", "adamw", "off"),
    "sequence": (
        {"n_layer": 3, "attention_types": ("linear", "global", "local"), **tiny.ALL_DROPOUTS},
        "x:4",
        "sequence:x",
        "adam",
        "off",
    ),
    "experts": ({"moe_layers": (1,), "moe_params": MIXTURE}, "x:4", "batch:x,experts:x", "adam", "off"),
    "entmax": ({"entmax_loss": True}, "x:4", "batch:x", "adam", "optimizer"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_xla_compiles_a_whole_program(name: str, devices: tuple[str, ...]) -> None:
    model, mesh_shape, layout, opt_name, shard = PROGRAMS[name]
    training = {"opt_name": opt_name, "tokens_per_mb_per_replica": tiny.MODEL.n_ctx}
    config = tiny.run_config(tiny.mesh_config(mesh_shape, layout, shard), model, training)
    process = place_process(config.mesh, 0, 4, devices[0])
    mesh_impl = process.implementation(tiny.BATCH_SIZE)

    def handle_of(variable: SlicedVariable, _: DeviceMesh) -> tf.Tensor:
        return process.store.slices_of(variable, mesh_impl).slices[0].handle

    def run(processor: tf.Tensor, n_steps: tf.Tensor, *stacked: tf.Tensor) -> dict[str, tf.Tensor]:
        replica = Replica(processor, ShapesOnly(), handle_of)
        placement = ReplicaPlacement(process.shape, process.layout, process.devices, process.store, replica)
        return run_device_loop(config, placement, n_steps, *stacked)

    number, inputs = tf.TensorSpec((), tf.int32), stacked_inputs(process, config.data.has_segments)
    function = tf.function(run, jit_compile=True, autograph=False).get_concrete_function(number, number, *inputs)
    process.store.initialize(seed=1)
    loss = function(tf.constant(0), tf.constant(2), *map(tf.constant, inputs))["loss"].numpy()
    assert np.isfinite(loss).all() and loss[2] == 0
    # With `shard`, the parts of variables that other cores would send are missing here, and the loss may rise.
    assert loss[1] < loss[0] if shard == "off" else loss[1] != loss[0]


# Variables and inputs.


def test_slices_are_on_their_cores_and_form_a_single_input(devices: tuple[str, ...], tmp_path: Path) -> None:
    config = tiny.run_config(tiny.mesh_config("x:2,y:2", LAYOUT), ONE_LAYER)
    coordinates = np.array([[(0, column, 0, core) for column in range(2) for core in range(2)]])
    four_cores = Tpu(tf.tpu.experimental.Topology(None, [1, 2, 1, 2], coordinates), "worker")
    placement = dataclasses.replace(place_on_tpu(config.mesh, four_cores), devices=devices)
    step = build_eval_step(config, placement)
    (table,) = (stored for stored in placement.store if stored.name == "gpt2/wte")
    assert table.begins == ((0, 0), (32, 0), (0, 0), (32, 0))
    assert [piece.device[-5:] for piece in table.slices] == [device[-5:] for device in devices]
    packed = [node for node in step.function.graph.as_graph_def().node if "_composite_device" in node.attr]
    assert len(packed) == len(list(placement.store))
    placement.store.initialize(seed=1)
    path = tiny.save(CheckpointWriter(str(tmp_path), placement.store), TrainingPosition(3, 24))
    alone = place_on_devices(tiny.mesh_config("", ""), devices[:1])
    steps.build_eval_step(config, alone)
    assert restore(path, alone.store, 8) == TrainingPosition(3, 24)
    expected = tiny.values_of(placement.store)
    for name, value in tiny.values_of(alone.store).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_batch_that_the_mesh_does_not_divide_is_refused() -> None:
    config = tiny.run_config(tiny.mesh_config("x:4,y:2", LAYOUT), training={"train_batch_size": 6})
    with pytest.raises(ConfigError, match="train_batch_size = 6: is split over 4 devices"):
        Built.of(config, "v3-8")


def test_each_host_is_sent_the_rows_of_its_cores_once() -> None:
    placement = place(tiny.mesh_config("x:4,y:8", LAYOUT), "v3-32")
    destinations = _Destinations.of(placement, 16)
    assert len(set(destinations.rows)) == len(destinations.rows) == 4
    for processor, place_of_rows in enumerate(destinations.of_processors):
        host, rows = destinations.rows[place_of_rows]
        assert host == placement.hosts[processor]
        assert rows == range(4 * (processor // 8), 4 * (processor // 8) + 4)


def test_a_call_is_padded_and_split_into_rows(devices: tuple[str, ...]) -> None:
    destinations = _Destinations(((devices[1], range(0, 2)), (devices[2], range(2, 4))), (0, 1))
    seen = {}

    def run(n_steps: tf.Tensor, rows: list, *scalars: tf.Tensor) -> dict[str, tf.Tensor]:
        seen.update(n_steps=int(n_steps), rows=rows, scalars=scalars)
        return {"loss": scalars[0] * 2}

    loop = DeviceLoop(run, 3, destinations, devices[0])
    tokens = np.arange(2 * 4 * 5, dtype=np.int32).reshape(2, 4, 5)
    rates, numbers = np.array([0.5, 0.25], np.float32), np.array([7, 8], np.int32)
    outputs = loop(tokens, tokens + 1, tokens * np.float32(0.5), rates, numbers, numbers + 1)
    np.testing.assert_array_equal(outputs["loss"], [1.0, 0.5])
    assert seen["n_steps"] == 2
    for (device, rows), sent in zip(destinations.rows, seen["rows"], strict=True):
        for part, whole in zip(sent, (tokens, tokens + 1, tokens * np.float32(0.5)), strict=True):
            assert part.device.endswith(device[-5:]) and part.dtype == whole.dtype
            np.testing.assert_array_equal(part, np.concatenate([whole, np.zeros_like(whole[:1])])[:, rows])
    np.testing.assert_array_equal(seen["scalars"][2], [8, 9, 0])


@settings(max_examples=50)
@given(st.integers(1, 3000), st.integers(1, 4096), st.sampled_from([16, 1024, 2048, 1 << 20]))
def test_a_call_runs_a_divisor_of_iterations_that_fits(iterations: int, batch_size: int, n_ctx: int) -> None:
    config = tiny.run_config(None, {"n_ctx": n_ctx}, {"iterations": iterations, "train_batch_size": batch_size})
    fitting = [n for n in range(1, iterations + 1) if iterations % n == 0 and n * batch_size * n_ctx <= 1 << 26]
    assert steps_per_loop(config) == max(fitting, default=1)


# What does not fit.


def test_a_mesh_for_another_number_of_cores_is_refused() -> None:
    with pytest.raises(DeviceError) as error:
        place(tiny.mesh_config("x:16", "batch:x"), "v3-8")
    assert str(error.value) == (
        "mesh_shape = x:16: needs 16 TPU cores, 8 are there; give a mesh_shape whose sizes multiply to 8 "
        "(--set mesh_shape=x:8), that many TPU cores, or --set elastic_mesh=true"
    )


def test_a_placement_describes_its_mesh_and_cores() -> None:
    placement = place(tiny.mesh_config("x:16,y:2", "batch:x,heads:y"), "v3-32")
    assert placement.describe() == "x:16,y:2 (batch:x,heads:y) on 32 TPU cores of 4 hosts"
    assert place(tiny.mesh_config("", ""), "v3-8").describe() == "all:8 (batch:all) on 8 TPU cores of 1 hosts"
