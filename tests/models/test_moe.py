"""The mixture of experts against NumPy: routing, outputs, gradients, decoding, and the same on any mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import ModelConfig, MoeParams
from meshtf import mtf, tf
from models.context import Context
from models.dims import Dims
from models.kernels import noise as noise_kernels
from models.kernels import routing as kernels
from models.kernels.routing import RoutingParams
from models.moe import MoeOutput, counts_before_tokens, mixture_of_experts, routing_params
from models.ops.dropout import Noise
from runtime.mesh.placement import Placement, place
from tests import tiny
from tests.models import reference_moe as reference
from tests.models.reference_moe import Weights

Devices = tuple[str, ...]
SCOPE, KEY = "h2", 11
LOSS_COEFFICIENT, Z_COEFFICIENT = 0.3, 0.2
MOE = MoeParams(
    moe_num_experts=4,
    moe_hidden_size=6,
    moe_group_size=5,
    moe_capacity_factor_train=0.8,  # 2 slots of a group of 5 tokens
    moe_capacity_factor_eval=0.8,
    moe_loss_coef=LOSS_COEFFICIENT,
    moe_z_loss=Z_COEFFICIENT,
    moe_second_policy_train="all",
)
MODEL = dataclasses.replace(tiny.MODEL, n_embd=8, n_ctx=12, moe_layers=(0, 1), moe_params=MOE)
ROOM_FOR_ALL = {"moe_capacity_factor_train": 4.0, "moe_capacity_factor_eval": 4.0}


def model(**changes: object) -> ModelConfig:
    """The model with some keys of `moe_params` changed."""
    return dataclasses.replace(MODEL, moe_params=dataclasses.replace(MOE, **changes))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def context(mesh: mtf.Mesh, config: ModelConfig, batch_size: int, length: int, is_training: bool = False) -> Context:
    dims = Dims.of(config, batch_size, length)
    rows = mtf.mtf_range(mesh, dims.batch, tf.int32)
    noise = Noise(mtf.constant(mesh, KEY, dtype=tf.int32), rows) if is_training else None
    return Context(mesh, config, dims, noise)


@dataclasses.dataclass(frozen=True)
class Results:
    """A mixture, and the gradients of sum(outputs * d_outputs) + aux_loss."""

    outputs: np.ndarray
    aux_loss: np.ndarray
    dropped: np.ndarray
    load: np.ndarray
    expert_counts: np.ndarray
    d_x: np.ndarray
    d_router: np.ndarray
    d_wi: np.ndarray
    d_wo: np.ndarray


def tensors(mixture: MoeOutput) -> list[mtf.Tensor]:
    return [mixture.outputs, *mixture.report, mixture.expert_counts]


def compiled_mixture(
    placement: Placement, config: ModelConfig, x: np.ndarray, is_training: bool = False
) -> tuple[Callable[[np.ndarray, np.ndarray], Results], Weights]:
    """The mixture as a function of x and d_outputs, and its weights."""

    def build(x: mtf.Tensor, d_outputs: mtf.Tensor) -> list[mtf.Tensor]:
        batch_dim, sequence_dim, _ = x.shape.dims
        where = context(x.mesh, config, batch_dim.size, sequence_dim.size, is_training)
        mixture = mixture_of_experts(where, mtf.cast(x, where.activation_dtype), SCOPE, "h2/moe")
        assert mixture.outputs.dtype == where.activation_dtype and mixture.outputs.shape == x.shape
        loss = mtf.reduce_sum(mtf.cast(mixture.outputs, tf.float32) * d_outputs) + mixture.report.aux_loss
        sources = [x, *[x.mesh.graph.name_to_variable[name].value for name in names]]
        return [mtf.cast(y, tf.int32 if y.dtype == tf.int32 else tf.float32) for y in tensors(mixture)] + mtf.gradients(
            [loss], sources
        )

    names = [f"gpt2/{SCOPE}/{name}" for name in ("top_2_gating/kernel", "wi/kernel", "wo/kernel")]
    function = tiny.compiled(build, placement, *[("batch sequence embd", x)] * 2)
    placement.store.initialize(seed=1)
    stored = tiny.values_of(placement.store)
    assert sorted(stored) == sorted(names)
    return lambda x, d_outputs: Results(*function(x, d_outputs)), Weights(
        *[stored[name].astype(np.float64) for name in names]
    )


def placed(devices: Devices, mesh_shape: str = "", layout: str = "") -> Placement:
    """On as many of the devices as the mesh needs."""
    n_devices = 4 if mesh_shape in ("x:4", "x:2,y:2") else 2 if mesh_shape else 1
    return place(tiny.mesh_config(mesh_shape, layout), devices[:n_devices])


def reference_rule(config: ModelConfig) -> reference.Rule:
    rule = routing_params(config, is_training=False)
    return reference.Rule(rule.n_choices, rule.group_size, rule.capacity)


def numeric_gradient(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient


@pytest.mark.parametrize(
    ("changes", "n_choices"),
    [({}, 2), (ROOM_FOR_ALL, 2), ({"moe_gating": "top_1"}, 1)],
    ids=["full", "room for all", "top_1"],
)
def test_outputs_losses_and_gradients(devices: Devices, changes: dict[str, object], n_choices: int) -> None:
    config, x, d_outputs = model(**changes), normal(2, 12, 8), normal(2, 12, 8, seed=1)
    function, weights = compiled_mixture(placed(devices), config, x)
    results, rule, exact = function(x, d_outputs), reference_rule(config), x.astype(np.float64)

    def loss(x: np.ndarray, weights: Weights) -> float:
        aux = reference.aux_loss(x, weights, LOSS_COEFFICIENT, Z_COEFFICIENT)
        return (reference.mixture(x, weights, rule)[0] * d_outputs).sum() + aux

    outputs, dropped = reference.mixture(exact, weights, rule)
    assert outputs.std() > 0.1 and (dropped > 0.0) == (changes is not ROOM_FOR_ALL)
    close(results.outputs, outputs)
    close(results.dropped, dropped)
    close(results.load, reference.load(exact, weights).mean(0))
    close(results.aux_loss, reference.aux_loss(exact, weights, LOSS_COEFFICIENT, Z_COEFFICIENT))
    close(results.d_x, numeric_gradient(lambda x: loss(x, weights), exact))
    for name, actual in (("router", results.d_router), ("wi", results.d_wi), ("wo", results.d_wo)):

        def loss_of(value: np.ndarray, name: str = name) -> float:
            return loss(exact, dataclasses.replace(weights, **{name: value}))

        close(actual, numeric_gradient(loss_of, getattr(weights, name)))
    if changes is ROOM_FOR_ALL:
        close(results.outputs, reference.dense_mixture(exact, weights, n_choices))


LAYOUTS = [
    ("x:2", "batch:x,experts:x"),
    ("x:2", "experts:x"),
    *[
        pytest.param(mesh_shape, layout, marks=pytest.mark.slow)
        for mesh_shape, layout in [
            ("x:2,y:2", "batch:x,experts:y"),
            ("x:2,y:2", "batch:x,experts:x"),
            ("x:4", "batch:x,experts:x"),
            ("x:2,y:2", "experts:x,expert_hidden:y"),
            ("x:2,y:2", "batch:x,sequence:y,experts:y"),
            ("x:2,y:2", "batch:x,experts:x,sequence:y,expert_hidden:y"),
            ("x:2,y:2", "batch:x,experts:x,embd:y"),
        ]
    ],
]


def assert_same(actual: Results, expected: Results) -> None:
    for field in dataclasses.fields(Results):
        ours, theirs = (getattr(results, field.name) for results in (actual, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=field.name)


@functools.cache
def on_one_device(devices: Devices, batch_size: int) -> Results:
    return trained(placed(devices), batch_size)


def trained(placement: Placement, batch_size: int) -> Results:
    """A training pass, with dropout and random second choices."""
    experts = model(moe_second_policy_train="random", moe_second_threshold_train=0.9, moe_dropout_rate=0.3)
    config = dataclasses.replace(experts, res_dropout=0.3)
    x, d_outputs = normal(batch_size, 12, 8), normal(batch_size, 12, 8, seed=1)
    return compiled_mixture(placement, config, x, is_training=True)[0](x, d_outputs)


@pytest.mark.parametrize(("mesh_shape", "layout"), LAYOUTS)
def test_the_same_on_any_mesh(devices: Devices, mesh_shape: str, layout: str) -> None:
    expected = on_one_device(devices, 4)
    assert 0.05 < expected.dropped < 0.95 and (expected.outputs == 0).mean() > 0.45
    assert_same(trained(placed(devices, mesh_shape, layout), 4), expected)


@pytest.mark.slow
def test_a_batch_that_the_mesh_does_not_divide_is_not_split(devices: Devices) -> None:
    actual = trained(placed(devices, "x:2,y:2", "batch:x,experts:x"), 3)
    assert_same(actual, on_one_device(devices, 3))


def test_rows_of_the_experts_are_split_like_the_batch_unless_the_experts_are(devices: Devices) -> None:
    def axis(layout: str, batch_size: int) -> int | None:
        implementation = placed(devices, "x:2,y:2", layout).implementation(batch_size)
        return implementation.tensor_dimension_to_mesh_axis(mtf.Dimension("expert_batch", batch_size))

    assert axis("batch:y,experts:x", 4) == axis("batch:y", 4) == 1
    assert axis("batch:y,experts:y", 4) is axis("batch:y,experts:x", 3) is axis("experts:x", 4) is None


def decoded(x: mtf.Tensor, config: ModelConfig, prompt_length: int) -> list[mtf.Tensor]:
    """Outputs of a prompt, then of single tokens: [batch, prompt, embd], [batch, embd] ..."""
    batch_dim, sequence_dim, embd_dim = x.shape.dims
    prompt = mtf.slice(x, 0, prompt_length, "sequence")
    mixture = mixture_of_experts(context(x.mesh, config, batch_dim.size, prompt_length), prompt, SCOPE, "h2/moe")
    outputs = [mixture.outputs]
    for position in range(prompt_length, sequence_dim.size):
        token = mtf.reshape(mtf.slice(x, position, 1, "sequence"), [batch_dim, embd_dim])
        mixture = mixture_of_experts(
            context(x.mesh, config, batch_dim.size, 1),
            token,
            SCOPE,
            "h2/moe",
            counts_before_tokens(mixture.expert_counts, mtf.constant(x.mesh, position, [batch_dim], tf.int32)),
        )
        outputs.append(mixture.outputs)
    return outputs


SLOW_DECODING = [("x:2", "batch:x,experts:x", 9), ("x:2,y:2", "experts:x,expert_hidden:y", 9), ("", "", 1)]


@pytest.mark.parametrize(
    ("mesh_shape", "layout", "prompt_length", "policy"),
    [("", "", 8, "random"), *[pytest.param(*case, "all", marks=pytest.mark.slow) for case in SLOW_DECODING]],
)
def test_single_tokens_equal_the_whole_sequence(
    devices: Devices, mesh_shape: str, layout: str, prompt_length: int, policy: str
) -> None:
    placement, x = placed(devices, mesh_shape, layout), normal(4, 12, 8)
    config = model(moe_second_policy_eval=policy, moe_second_threshold_eval=0.9)
    expected = compiled_mixture(placed(devices), config, x)[0](x, x)
    function = tiny.compiled(lambda x: decoded(x, config, prompt_length), placement, ("batch sequence embd", x))
    placement.store.initialize(seed=1)
    prompt, *others = function(x)
    assert expected.dropped > 0.1
    close(np.concatenate([prompt, np.stack(others, 1)], 1), expected.outputs)


def test_no_token_depends_on_a_later_one(devices: Devices) -> None:
    x, other = normal(2, 12, 8), normal(2, 12, 8, seed=1)
    function, _ = compiled_mixture(placed(devices), MODEL, x)
    results = function(x, x)
    for token in range(12):
        changed = np.concatenate([x[:, :token], other[:, token:]], 1)
        np.testing.assert_array_equal(function(changed, x).outputs[:, :token], results.outputs[:, :token])


ROUTING_RULES = [
    RoutingParams(n_choices=2, second_policy="all", second_threshold=0.0, group_size=4, capacity=1),
    RoutingParams(n_choices=2, second_policy="random", second_threshold=0.6, group_size=5, capacity=3),
    RoutingParams(n_choices=2, second_policy="threshold", second_threshold=0.3, group_size=11, capacity=5),
    RoutingParams(n_choices=2, second_policy="none", second_threshold=0.3, group_size=100, capacity=4),
    RoutingParams(n_choices=1, second_policy="all", second_threshold=0.0, group_size=4, capacity=4),
]


def reference_policy(rule: RoutingParams, rows: np.ndarray, n_tokens: int) -> Callable[[int, int, float], bool]:
    numbers = np.asarray(noise_kernels.uniform(tf.constant(KEY), rows, np.zeros(1, np.int32), (len(rows), n_tokens)))
    return {
        "all": lambda row, token, gate: True,
        "none": lambda row, token, gate: False,
        "threshold": lambda row, token, gate: gate > rule.second_threshold,
        "random": lambda row, token, gate: numbers[row, token] < gate / rule.second_threshold,
    }[rule.second_policy]


@pytest.mark.parametrize("rule", ROUTING_RULES, ids=lambda rule: f"{rule.n_choices} {rule.second_policy}")
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), spread=st.sampled_from([0.1, 1.0, 4.0]))
def test_routing(rule: RoutingParams, seed: int, spread: float) -> None:
    """Routes 3 rows of 11 tokens to 5 experts: every assignment within the capacity has its own slot."""
    rows = np.array([7, 2, 5], np.int32)
    logits = np.random.default_rng(seed).normal(0.0, spread, (3, 11, 5)).astype(np.float32)
    lengths = np.random.default_rng(seed).integers(1, 12, 3).astype(np.int32)
    inputs = (logits, np.zeros((3, 5), np.int32), np.zeros(3, np.int32), lengths, np.int32(KEY), rows)
    outputs = [np.asarray(output) for output in kernels.route(rule)(*inputs)]
    experts, destinations, sources, counts, dropped = outputs
    n_slots = min(11, -(-11 // rule.group_size) * rule.capacity)
    assert sources.shape == (5, 3, n_slots)
    policy = reference_policy(rule, rows, 11)
    in_order = reference.Rule(rule.n_choices, rule.group_size, rule.capacity, policy)
    for row in range(3):
        expected = reference.routed(logits[row].astype(np.float64), row, in_order)
        is_dropped = expected.places >= rule.capacity
        is_routed = (expected.places >= 0) & ~is_dropped
        np.testing.assert_array_equal(experts[row], expected.experts)
        np.testing.assert_array_equal(destinations[row] >= 0, is_routed)
        np.testing.assert_array_equal(destinations[row][is_routed] // n_slots, expected.experts[is_routed])
        until = reference.routed(logits[row, : lengths[row]].astype(np.float64), row, in_order)
        np.testing.assert_array_equal(counts[row], until.counts)
        close(dropped[row], is_dropped.sum() / (expected.places >= 0).sum())
        filled = np.full(5 * n_slots, -1)
        filled[destinations[row][is_routed]] = np.arange(11 * rule.n_choices).reshape(experts[row].shape)[is_routed]
        assert (filled >= 0).sum() == is_routed.sum()
        np.testing.assert_array_equal(sources[:, row].ravel(), filled)


def test_a_threshold_of_0_sends_every_second_choice() -> None:
    rule = RoutingParams(n_choices=2, second_policy="random", second_threshold=0.0, group_size=8, capacity=8)
    row = np.zeros(1, np.int32)
    inputs = (np.zeros((1, 4), np.int32), row, row + 8, np.int32(KEY), row)
    destinations = kernels.route(rule)(normal(1, 8, 4), *inputs)[1]
    assert np.asarray(destinations).min() >= 0


@pytest.mark.parametrize(
    ("changes", "training", "evaluation"),
    [
        ({}, 1, 1),
        ({"moe_capacity_factor_train": 0.5, "moe_capacity_factor_eval": 1.25}, 1, 3),
        ({"moe_min_expert_capacity": 3}, 3, 3),
        ({"moe_gating": "top_1", "moe_capacity_factor_train": 1.0}, 1, 1),
        ({"moe_min_expert_capacity": 9}, 5, 5),
        ({"moe_group_size": 1024, "moe_capacity_factor_eval": 100.0}, 3, 12),
    ],
)
def test_capacity(changes: dict[str, object], training: int, evaluation: int) -> None:
    config = model(**({"moe_capacity_factor_train": 0.625, "moe_capacity_factor_eval": 0.625} | changes))
    assert (routing_params(config, True).capacity, routing_params(config, False).capacity) == (training, evaluation)


def test_bfloat16_is_routed_in_float32(devices: Devices) -> None:
    config = dataclasses.replace(model(**ROOM_FOR_ALL), precision="bfloat16")
    x = np.asarray(tf.cast(tf.cast(normal(4, 12, 8), tf.bfloat16), tf.float32))
    function, weights = compiled_mixture(placed(devices), config, x)
    results = function(x, x)
    exact = x.astype(np.float64)
    np.testing.assert_array_equal(results.load, reference.load(exact, weights).mean(0).astype(np.float32))
    close(results.aux_loss, reference.aux_loss(exact, weights, LOSS_COEFFICIENT, Z_COEFFICIENT))
    close(results.outputs, reference.dense_mixture(exact, weights, 2), 0.03)


def test_dropout_is_for_training_only(devices: Devices) -> None:
    config, x = model(moe_dropout_rate=0.5), normal(4, 12, 8)
    plain = compiled_mixture(placed(devices), MODEL, x)[0](x, x).outputs
    evaluated, trained = (compiled_mixture(placed(devices), config, x, flag)[0](x, x).outputs for flag in (False, True))
    np.testing.assert_array_equal(evaluated, plain)
    is_kept = (trained != 0) & (plain != 0)
    assert 0.35 < is_kept.sum() / (plain != 0).sum() < 0.65
    close(trained[is_kept], 2.0 * plain[is_kept])


def test_initial_values(devices: Devices) -> None:
    config = dataclasses.replace(model(moe_hidden_size=200), n_embd=64)
    _, weights = compiled_mixture(placed(devices), config, normal(2, 3, 64))
    for value, shape, fan_in in zip(
        (weights.router, weights.wi, weights.wo), ((64, 4), (4, 64, 200), (4, 200, 64)), (64, 64, 200), strict=True
    ):
        assert value.shape == shape
        np.testing.assert_allclose(value.std(), fan_in**-0.5, rtol=0.15)
