"""The plan against hand-counted figures: parameters, slots, activations, operations and bytes sent."""

from __future__ import annotations

import dataclasses
import functools
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError, UserError
from configs.schema import ModelConfig, MoeParams, RunConfig
from models.ops import output_layer
from models.softmax_attention import mean_seen
from runtime.planning.diagram import build_figure, cells, draw_plan
from runtime.planning.dry_run import DryStep, build_dry_step, dry_placement
from runtime.planning.flops import flops_of_processor, flops_of_token
from runtime.planning.memory import Memory, estimate_memory
from runtime.planning.plan import Plan, format_bytes, format_plan, make_plan, resident_bytes, total_sent
from tests import tiny
from tests.pictures import check_texts

B, S, E, V, FLOAT = 8, 16, 32, 64, 4
ONE_LAYER = {"n_layer": 1, "attention_types": ("global",)}
MIXTURE = {"moe_layers": (0,), "moe_params": MoeParams(moe_num_experts=4, moe_hidden_size=48)}
# What is kept of each token besides its features: statistics of norms and of the loss, the token, its label.
MOST_NUMBERS_A_TOKEN = 20


@functools.cache
def _dry_step(config: RunConfig) -> DryStep:
    return build_dry_step(config, dry_placement(config.mesh, _n_devices(config)))


def dry_step(
    model: Mapping[str, object] = {}, training: Mapping[str, object] = {}, mesh_shape: str = "", layout: str = ""
) -> DryStep:
    config = tiny.run_config(tiny.mesh_config(mesh_shape, layout), {**ONE_LAYER, **model}, training)
    return _dry_step(config)


def _n_devices(config: RunConfig) -> int:
    return int(np.prod([size for _, size in config.mesh.mesh_shape or ()]))


def sent(step: DryStep) -> dict[tuple[str, str], float]:
    return total_sent(step.transfers)


BLOCK = 4 * E * E + E + 2 * 2 * E + 2 * E * 4 * E + 4 * E + E  # projections, o_b, two norms, two kernels, their biases
ENDS = V * E + S * E + 2 * E  # both tables and ln_f


def test_parameters_and_the_slots_of_adam() -> None:
    memory = estimate_memory(dry_step())
    assert memory.parameters == FLOAT * (BLOCK + ENDS)
    assert memory.optimizer == 2 * memory.parameters


def test_the_slots_of_adafactor() -> None:
    model = {"n_embd": 128, "n_head": 4, "n_vocab": 256}
    memory = estimate_memory(dry_step(model, {"opt_name": "adafactor", "beta1": 0.0}))
    factored = 256 + 128 + 4 * (128 + 128) + 2 * (128 + 4 * 128)  # wte, projections, kernels: rows and columns
    whole = 16 * 128 + 128 + 3 * 2 * 128 + 4 * 128 + 128  # wpe has only 16 rows; o_b, norms, biases
    assert memory.optimizer == FLOAT * (factored + whole)


def test_a_device_holds_its_slices_only() -> None:
    step = dry_step(mesh_shape="x:2,y:4", layout="batch:x,heads:y,intermediate_expanded:y,vocab:y")
    split = 4 * E * E + 2 * E * 4 * E + 4 * E + V * E
    assert estimate_memory(step).parameters == FLOAT * (BLOCK + ENDS - split + split // 4)


def test_a_plan_creates_no_variables() -> None:
    config = tiny.run_config()
    placement = dry_placement(config.mesh, 1)
    build_dry_step(config, placement)
    assert list(placement.store) == []


def test_a_batch_that_the_mesh_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="train_batch_size = 6: is split over 4 devices"):
        dry_step(training={"train_batch_size": 6}, mesh_shape="x:4", layout="batch:x")


def test_segments_are_one_more_input_of_int32() -> None:
    config = tiny.run_config(model={**ONE_LAYER, "n_vocab": WORDS})
    plain, masked = (
        build_dry_step(dataclasses.replace(config, data=data), dry_placement(config.mesh, 1))
        for data in (config.data, tiny.MASKED)
    )
    positions = FLOAT * B * S * E  # of each row, where those of a stream are the same in all
    surplus = estimate_memory(masked).total - estimate_memory(plain).total
    assert 4 * B * S <= surplus <= 2 * 4 * B * S + positions
    assert flops_of_processor(masked) == flops_of_processor(plain)


# With a large vocabulary the peak is at the loss: logits, their exponentials, and the gradients of table and state.
WORDS = 4096
LOGITS = 2 * B * S * WORDS
HEAD = LOGITS + WORDS * E + B * S * E


def intermediate(memory: Memory) -> int:
    return memory.activations + memory.workspace


def assert_kept(memory: Memory, n_features: int, n_rows: int = B) -> None:
    """Checks that `n_features` numbers are kept, and a few for each token."""
    surplus = intermediate(memory) - FLOAT * n_features
    assert 0 <= surplus <= FLOAT * MOST_NUMBERS_A_TOKEN * n_rows * S


def test_a_layer_without_attention_keeps_its_input_norm_hidden_features_and_activations() -> None:
    memory = estimate_memory(dry_step({"attention_types": ("none",), "n_vocab": WORDS}))
    assert_kept(memory, (1 + 1 + 4 + 4 + 2) * B * S * E + HEAD)  # and input and output of ln_f


def test_a_layer_with_attention_keeps_queries_keys_values_and_their_stacked_weights_too() -> None:
    memory = estimate_memory(dry_step({"n_vocab": WORDS}))
    assert_kept(memory, (12 + 6) * B * S * E + 3 * E * E + HEAD)  # and its input, norm and output


def test_recomputed_blocks_keep_their_inputs_only() -> None:
    model = {"n_layer": 3, "attention_types": ("global",) * 3, "recompute_grad": True, "n_vocab": WORDS}
    assert_kept(estimate_memory(dry_step(model)), (3 + 2) * B * S * E + HEAD)


def test_selective_recomputation_keeps_inputs_products_and_the_outputs_of_attention() -> None:
    model = {"n_layer": 3, "attention_types": ("global",) * 3, "recompute": "attention", "n_vocab": WORDS}
    of_layer = 1 + 3 + 1 + 1 + 4  # input; queries, keys and values; outputs of attention, of o and of c_fc
    assert_kept(estimate_memory(dry_step(model)), (3 * of_layer + 2) * B * S * E + HEAD)
    step, plain = dry_step(model), dry_step({**model, "recompute": "none"})
    assert flops_of_processor(step) == flops_of_processor(plain)


def test_logits_are_counted_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 blocks; a term of the table's gradient is smaller than theirs together, and larger than one."""
    monkeypatch.setattr(output_layer, "SMALLEST_BLOCK", 1)
    monkeypatch.setattr(output_layer, "BLOCK_BYTES", LOGITS * FLOAT // 2 // 16)
    model = {**ONE_LAYER, "attention_types": ("none",), "n_vocab": WORDS}
    config = tiny.run_config(model=model)
    memory = estimate_memory(build_dry_step(config, dry_placement(config.mesh, 1)))
    block, term = LOGITS // 2 // 16, WORDS * E
    assert_kept(memory, (1 + 1 + 4 + 4 + 2 + 1) * B * S * E + WORDS * E + block + term)


def test_microbatches_keep_a_part_of_the_activations_and_the_sum_of_the_gradients() -> None:
    step = dry_step({"n_vocab": WORDS, "n_ctx": 16 * S}, {"tokens_per_mb_per_replica": 2 * 16 * S})
    memory = estimate_memory(step)
    assert step.microbatch_count == 4
    assert memory.gradients == memory.parameters
    assert_kept(memory, 19 * 16 * 2 * S * E + 3 * E * E + 16 * LOGITS // 4 + WORDS * E, n_rows=16 * 8)


def test_activations_are_split_as_the_layout_says() -> None:
    layout = {"mesh_shape": "x:4,y:2", "layout": "batch:x,heads:y,intermediate_expanded:y,vocab:y"}
    memory = estimate_memory(dry_step({"n_vocab": WORDS, "n_ctx": 16 * S}, **layout))
    whole, halved = (
        1 + 1 + 1 + 1 + 3,
        (4 + 4 + 4) // 2,
    )  # inputs, norms, those of ln_f and its gradient; hidden features, q, k, v, output
    n_features = (whole + halved) * 16 * 2 * S * E + 3 * E * E // 2 + 16 * LOGITS // 8 + WORDS * E // 2
    assert_kept(memory, n_features, n_rows=16 * 2)


def test_an_update_in_place_needs_no_memory() -> None:
    memory = estimate_memory(dry_step({"n_embd": 256, "n_vocab": 8}, {"train_batch_size": 1}))
    ends = 8 * 256 + 16 * 256 + 2 * 256  # wte, wpe and ln_f: the peak is before the last gradients are known
    assert (memory.gradients, memory.workspace) == (memory.parameters - FLOAT * ends, 0)


def model_of(**changes: object) -> ModelConfig:
    return dataclasses.replace(tiny.MODEL, **{**ONE_LAYER, **changes})


@pytest.mark.parametrize(
    ("changes", "forward"),
    [
        ({}, 8 * E * E + 4 * E * 8.5 + 16 * E * E + 2 * E * V),  # a position sees 8.5 of 16 in the mean
        ({"attention_types": ("none",)}, 16 * E * E + 2 * E * V),
        ({"attention_types": ("linear",)}, 8 * E * E + 4 * E * 8 + 16 * E * E + 2 * E * V),
        # 1 + 2 + 3 + 4 positions, and 12 times 5
        ({"attention_types": ("local",)}, 8 * E * E + 4 * E * 70 / 16 + 16 * E * E + 2 * E * V),
        ({"num_mem_kv": 3}, 8 * E * E + 4 * E * 11.5 + 16 * E * E + 2 * E * V),
        ({"n_kv_head": 2, "head_dim": 12}, 2 * E * 12 * (4 + 2 + 2 + 4) + 4 * 48 * 8.5 + 16 * E * E + 2 * E * V),
        ({"mlp_glu": True}, 8 * E * E + 4 * E * 8.5 + 24 * E * E + 2 * E * V),
        ({"n_inner": 40}, 8 * E * E + 4 * E * 8.5 + 4 * E * 40 + 2 * E * V),
        ({"gated_mlp": True, "n_inner": 40}, 8 * E * E + 4 * E * 8.5 + 6 * E * 40 + 2 * E * V),
        ({"macaron": True}, 8 * E * E + 4 * E * 8.5 + 32 * E * E + 2 * E * V),
        (MIXTURE, 8 * E * E + 4 * E * 8.5 + 2 * E * 4 + 2 * 4 * E * 48 + 2 * E * V),
    ],
)
def test_flops_of_a_token(changes: dict[str, object], forward: float) -> None:
    flops = flops_of_token(model_of(**changes))
    assert (flops.forward, flops.backward, flops.recomputed) == (forward, 2 * forward, 0)


SLOW_OPTIONS = [pytest.param(option, marks=pytest.mark.slow) for option in ("macaron", "no_weight_tie")]


@pytest.mark.parametrize("option", ["", "mlp_glu", "gated_mlp", "share_parameters", "recompute_grad", *SLOW_OPTIONS])
def test_the_graph_has_the_products_of_flops_of_token(option: str) -> None:
    changes = {"n_layer": 2, "attention_types": ("global",) * 2, "mlm_training": True} | (
        {option: True} if option else {}
    )
    step = dry_step(changes)
    recomputed_logits = 2 * 2 * S * E  # by the gradient of attention
    unread = 2 * 2 * 4 * E * E if option == "recompute_grad" else 0  # of the last products, whose outputs nothing reads
    expected = flops_of_token(model_of(**changes)).total + recomputed_logits - unread
    assert flops_of_processor(step) == pytest.approx(B * S * expected, rel=1e-9)


def test_frozen_kernels_have_no_gradients() -> None:
    adapters = {"lora_rank": 4, "lora_targets": ("q", "v"), "mlm_training": True}
    changes = {"n_layer": 2, "attention_types": ("global",) * 2} | adapters
    step = dry_step(changes)
    attention = 2 * 2 * S * E  # recomputed logits
    first_inputs = 3 * 2 * E * E + 2 * 2 * E * 4  # the first layer's inputs have none either
    expected = flops_of_token(model_of(**changes)).total + attention - first_inputs
    assert flops_of_processor(step) == pytest.approx(B * S * expected, rel=1e-9)
    kernels = {
        tuple(one.shape.dims) for one in step.graph.all_variables if len(one.shape) == 2 and "lora" not in one.name
    }
    operations = [operation for operation in step.graph.operations if operation not in step.graph.all_variables]
    computed = {tuple(x.shape.dims) for operation in operations for x in operation.outputs}
    assert len(kernels) == 6 and not kernels & computed  # wte, wpe, q to v, o, c_fc, c_proj
    memory, whole = estimate_memory(step), estimate_memory(dry_step({**changes, "lora_rank": 0}))
    assert memory.optimizer == 2 * FLOAT * 2 * 2 * (E * 4 + 4 * E) and memory.gradients <= memory.optimizer / 2
    assert memory.parameters == whole.parameters + memory.optimizer / 2 and memory.total < whole.total


def test_the_mesh_divides_all_work_that_is_split() -> None:
    whole = flops_of_processor(dry_step())
    layout = "batch:x,heads:y,intermediate_expanded:y"
    part = flops_of_processor(dry_step(mesh_shape="x:4,y:2", layout=layout))
    logits = 6 * E * V * B * S
    assert part == pytest.approx((whole - logits) / 8 + logits / 4)


def test_microbatches_do_the_same_work() -> None:
    whole, in_microbatches = (flops_of_processor(dry_step(training=t)) for t in ({}, {"tokens_per_mb_per_replica": S}))
    assert in_microbatches == pytest.approx(whole)


@given(st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_visible_positions(n_positions: int, radius: int, is_causal: bool) -> None:
    ages = np.subtract.outer(np.arange(n_positions), np.arange(n_positions))
    is_visible = (np.abs(ages) < radius) & ((ages >= 0) | (not is_causal))
    assert mean_seen(n_positions, radius, is_causal) == pytest.approx(is_visible.sum() / n_positions)


def test_one_device_sends_nothing() -> None:
    assert dry_step().transfers == ()


def test_data_parallel_devices_send_the_gradients() -> None:
    gradients = FLOAT * (BLOCK + ENDS)
    (key, amount), *others = sent(dry_step(mesh_shape="x:4", layout="batch:x")).items()
    assert (key, others) == (("x", "allreduce"), [])
    assert 0 <= amount - 2 * 3 / 4 * gradients < 100  # a few scalars


def test_tensor_parallel_devices_send_each_halfs_sum_forward_and_backward() -> None:
    amount = sent(dry_step(mesh_shape="y:2", layout="heads:y,intermediate_expanded:y"))["y", "allreduce"]
    assert 0 <= amount - 4 * FLOAT * B * S * E < 100


def test_microbatches_send_activations_of_each_and_gradients_once() -> None:
    layout = {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,intermediate_expanded:y"}
    whole, in_microbatches = (
        sent(dry_step(**layout)),
        sent(dry_step(training={"tokens_per_mb_per_replica": S}, **layout)),
    )
    for axis in ("x", "y"):
        assert in_microbatches[axis, "allreduce"] == pytest.approx(whole[axis, "allreduce"], abs=100)


def test_muon_orthogonalises_each_matrix_of_a_block() -> None:
    muon, adamw = (dry_step(training={"opt_name": name}) for name in ("muon", "adamw"))
    # Five times X X^T, its square and its product with X: four square matrices, and two that are four times as long.
    products = 4 * (2 + 2 + 2) * E**3 + 2 * (8 + 2 + 8) * E**3
    assert flops_of_processor(muon) - flops_of_processor(adamw) == 5 * products
    assert estimate_memory(muon).optimizer == FLOAT * (2 * (BLOCK + ENDS) - 12 * E * E)
    assert muon.transfers == ()


def test_muon_sends_products_of_slices_and_exchanges_the_side_that_is_split() -> None:
    def more(layout: str) -> dict[str, float]:
        muon, adamw = (
            sent(dry_step(training={"opt_name": name}, mesh_shape="y:2", layout=layout)) for name in ("muon", "adamw")
        )
        return {kind: amount - adamw.get((axis, kind), 0) for (axis, kind), amount in muon.items()}

    products = FLOAT * (5 * E * E + 1)  # of a matrix, and its norm
    assert more("heads:y") == {"allreduce": 4 * products}
    moved = 2 * 2 * 1 / 2 * FLOAT * E * 4 * E / 2  # half of the slice of each kernel, there and back
    assert more("embd:y") == {"allreduce": 6 * products, "alltoall": moved}


def test_experts_on_the_axis_of_the_batch_exchange_rows() -> None:
    layout = {"mesh_shape": "x:2", "layout": "batch:x,experts:x"}
    model = {**MIXTURE, "moe_params": dataclasses.replace(MIXTURE["moe_params"], moe_capacity_factor_train=1.0)}
    n_slots = 2 * S // 4  # of an expert: two choices of each token over four experts
    rows = 4 * 4 * n_slots * (E + 1)  # experts, rows of a device, slots, features and the gate
    exchanged = sent(dry_step(model, **layout))["x", "alltoall"]
    assert exchanged == 1 / 2 * FLOAT * rows * 2 + 1 / 2 * FLOAT * 4 * 4 * n_slots * E * 2


@pytest.fixture(scope="module")
def plan() -> Plan:
    mesh = tiny.mesh_config("x:4,y:2", "batch:x,heads:y,intermediate_expanded:y,vocab:y")
    config = tiny.run_config(mesh, {**ONE_LAYER, **MIXTURE})
    return make_plan(config, dry_placement(config.mesh, 8))


def test_experts_that_a_token_does_not_use_are_not_active(plan: Plan) -> None:
    assert plan.n_parameters - plan.n_active_parameters == 2 * 2 * E * 48


def test_the_alternatives_are_the_other_recomputation_and_the_smallest_microbatches(plan: Plan) -> None:
    assert list(plan.memories) == [
        "as configured",
        "recompute = attention",
        "recompute = block",
        "tokens_per_mb_per_replica = 16",
    ]
    assert plan.memory is plan.memories["as configured"]


def test_the_table_names_every_figure(plan: Plan) -> None:
    text = format_plan(plan)
    assert text.startswith("tiny on x:4,y:2 (batch:x,heads:y,intermediate_expanded:y,vocab:y)\n")
    wanted = [f"{plan.n_parameters:,}, {plan.n_active_parameters:,} active", *plan.memories, "forward", "backward"]
    wanted += [format_bytes(resident_bytes(plan)), format_bytes(plan.memory.total)]
    assert [part for part in wanted if part not in text] == []
    rows = [line.split() for line in text.split("sent by a device")[1].splitlines()[1:]]
    assert [row[:3] for row in rows] == [["allreduce", "x", "4"], ["allreduce", "y", "2"]]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.50 KiB"), (300 << 20, "300 MiB"), (5 << 30, "5.00 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_the_picture_has_a_cell_for_each_dimension_of_each_tensor(plan: Plan) -> None:
    dimensions, rows = cells(plan)
    by_tensor = {name: dict(zip(dimensions, row, strict=True)) for name, row in zip(plan.tensors, rows, strict=True)}
    logits = {key: axis for key, axis in by_tensor["the logits"].items() if axis is not None}
    assert logits == {"batch": "x", "sequence": "", "vocab": "y"}
    assert "the experts' kernels" in by_tensor


def test_a_dense_model_has_no_tensors_of_experts() -> None:
    config = tiny.run_config(model={**ONE_LAYER, "attention_types": ("none",)})
    dense = make_plan(config, dry_placement(config.mesh, 1))
    assert not [name for name in dense.tensors if "expert" in name]
    assert "nothing is sent" in format_plan(dense)


AXIS = "model_parallel_axis_of_a_long_name"
VARIANTS = {
    "as made": {},
    "one device": {"mesh_shape": (), "layout": (), "sent_bytes": {}},
    "long names": {
        "name": "n" * 300,
        "mesh_shape": ((AXIS, 8), ("$y", 2)),
        "layout": (("batch", AXIS), ("heads", "$y")),
        "sent_bytes": {(AXIS, f"kind{number}"): 1e9 for number in range(12)} | {("$y", "allreduce"): 1.0},
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_no_two_texts_of_the_picture_meet(plan: Plan, changes: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = build_figure(dataclasses.replace(plan, **changes))
    check_texts(figure)
    assert len(figure.axes) == (3 if changes.get("sent_bytes", True) else 2)


def test_the_picture_shows_bytes_in_round_numbers_and_by_axis(plan: Plan) -> None:
    memory = Memory(*[3 << 30] * len(dataclasses.fields(Memory)))
    sent = {("x", "allreduce"): 1.5 * 2**30, ("y", "allreduce"): 2.0**30, ("y", "alltoall"): 2.0**20}
    figure = build_figure(dataclasses.replace(plan, memories={"as configured": memory}, sent_bytes=sent))
    _, memories, by_axis = figure.axes
    assert [label.get_text() for label in memories.get_xticklabels()][:4] == ["0", "2", "4", "6"]
    assert memories.get_xlabel() == "peak memory of a device in a step (GiB)"
    assert {" 15.00 GiB"} == {text.get_text() for text in memories.texts}
    assert [label.get_text() for label in by_axis.get_yticklabels()] == ["x (of 4)", "y (of 2)"]
    assert [bar.get_width() for bar in by_axis.patches] == [1.5, 1 + 2**-10]
    assert [text.get_text() for text in by_axis.texts] == [
        " 1.50 GiB allreduce",
        " 1.00 GiB allreduce + 1.00 MiB alltoall",
    ]


def test_no_color_stands_for_an_axis_and_for_a_kind_of_memory(plan: Plan) -> None:
    layout, memories, by_axis = build_figure(plan).axes
    of_axes, of_memory = ({bar.get_facecolor() for bar in axes.patches} for axes in (by_axis, memories))
    assert len(of_axes) == 2 and of_axes < {bar.get_facecolor() for bar in layout.patches}
    assert len(of_memory) == len(dataclasses.fields(Memory)) and not of_axes & of_memory


def test_the_picture_is_a_png(plan: Plan, tmp_path: Path) -> None:
    draw_plan(plan, str(tmp_path / "plan.png"))
    png = (tmp_path / "plan.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == (1320, 1152)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        draw_plan(plan, str(tmp_path / "file" / "plan.png"))
