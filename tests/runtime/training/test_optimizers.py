"""Optimisers against NumPy on several meshes: updates, clipping, decay, and the norms of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from configs.schema import TrainingConfig
from meshtf import mtf
from models import variables
from models.ops.gradients import ScatteredSum
from runtime.checkpoint.reader import weight_names
from runtime.mesh.placement import Placement, place
from runtime.mesh.weights import SHARD, sharded_dim
from runtime.training.optimizers import build_update, gradient_norms
from tests import tiny
from tests.models import reference

Devices = tuple[str, ...]
Slots = dict[str, np.ndarray]

# Dimensions and sizes of each variable. Adafactor factors two dimensions of at least 128: here the larger one comes
# first, last, or is as large as the other; and there are variables with too small a dimension, with one and with none.
SHAPES = {
    "gpt2/wte": {"vocab": 160, "embd": 128},
    "gpt2/wpe": {"embed_sequence": 127, "embd": 128},
    "gpt2/ln_f/g": {"embd": 128},
    "gpt2/h0/norm_1/g": {"embd": 128},
    "gpt2/h0/norm_rezero_1/g": {},
    "gpt2/h0/attn/q": {"embd": 128, "heads": 128},
    "gpt2/h0/attn/compute_output_bias/o_b": {"embd": 128},
    "gpt2/h0/mlp/conv1d_main/c_proj/bias": {"embd": 128},
    "gpt2/h1/wi/kernel": {"experts": 2, "embd": 128, "intermediate_expanded": 132},
    "gpt2/h1/wo/kernel": {"experts": 2, "intermediate_expanded": 132, "embd": 128},
    "gpt2/h0/mlp/conv1d_main/c_fc/kernel": {"embd": 128, "intermediate_expanded": 130},
    "gpt2/h1/top_2_gating/kernel": {"embd": 128, "all_experts": 2},
}
MATRICES_OF_MUON = [name for name in SHAPES if name.endswith(("/q", "/wi/kernel", "/wo/kernel", "/c_fc/kernel"))]
EXEMPT_FROM_ADAMS_DECAY = [name for name in SHAPES if "norm" in name or name.endswith(("o_b", "bias"))]
VECTORS = [name for name, sizes in SHAPES.items() if len(sizes) < 2]

NUMBERS = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3}
TRAINING = TrainingConfig(train_batch_size=1, train_steps=1, weight_decay=0.3, **NUMBERS)
RATE = 0.1
MESHES = [("", ""), ("x:2,y:2", "vocab:x,embd:y,heads:x"), ("x:2,y:2", "intermediate_expanded:x,experts:y,heads:y")]
SHARDED = ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y")  # replicas that share the updates


def gradients_of(step: int) -> list[np.ndarray]:
    """Random gradients; the first row of the table has none, like a token that does not occur."""
    generator = np.random.default_rng(step)
    gradients = [np.float32(generator.normal(0.0, 0.1, tuple(sizes.values()))) for sizes in SHAPES.values()]
    gradients[0][0] = 0.0
    return gradients


def initializer_of(name: str) -> variables.Initializer:
    return variables.zeros if name.endswith(("bias", "o_b")) else variables.normal(0.3)


def stepper(training: TrainingConfig, placement: Placement, width: float = 1.0) -> Callable[..., list[np.ndarray]]:
    """A function from (rate [1], update number, gradients) to the global norm; it updates the variables."""

    def build(rate: mtf.Tensor, number: mtf.Tensor, *gradients: mtf.Tensor) -> list[mtf.Tensor]:
        rate = mtf.reduce_sum(rate)
        trainable = [
            variables.get_variable(rate.mesh, name, gradient.shape, initializer_of(name)).operation
            for name, gradient in zip(SHAPES, gradients, strict=True)
        ]
        dims = [sharded_dim(placement.implementation(1), gradient.shape) for gradient in gradients]
        shared = [
            gradient if dim is None else ScatteredSum(gradient, dim, SHARD).outputs[0]
            for gradient, dim in zip(gradients, dims, strict=True)
        ]
        return [build_update(trainable, shared, training, rate, number, width)]

    names = ["batch", "", *(" ".join(sizes) for sizes in SHAPES.values())]
    values = [np.array([RATE], np.float32), np.array(0, np.int32), *gradients_of(0)]
    return tiny.compiled(build, placement, *zip(names, values, strict=True))


@dataclasses.dataclass(frozen=True)
class Updated:
    """The result of some updates: the norms of the gradients, and the variables before and after."""

    norms: list[float]
    before: Slots
    after: Slots


def updated(
    training: TrainingConfig, devices: Devices, mesh: tuple[str, str], n_steps: int = 3, width: float = 1.0
) -> Updated:
    placement = place(tiny.mesh_config(*mesh), devices if mesh[0] else devices[:1])
    step = stepper(training, placement, width)
    placement.store.initialize(seed=1)
    before, rate = tiny.values_of(placement.store), np.array([RATE], np.float32)
    norms = [float(step(rate, np.int32(number), *gradients_of(number))[0]) for number in range(n_steps)]
    return Updated(norms, before, tiny.values_of(placement.store))


def assert_updated(actual: Updated, expected_step: Callable[..., Slots], limit: float | None = None) -> None:
    """Compares every variable and slot with a NumPy loop.

    Args:
        actual: the result to check.
        expected_step: from the name of a variable, its value and slots by suffix (the value's is empty), its gradient,
            and the number of the update from 1, to the value and slots.
        limit: of the global norm.
    """
    left = dict(actual.after)
    assert weight_names(left) == sorted(SHAPES)  # the slots are known as such
    scales = [1.0 if limit is None else min(1.0, limit / norm) for norm in actual.norms]
    for index, name in enumerate(SHAPES):
        expected = {"": np.float64(actual.before[name])}
        for number, scale in enumerate(scales):
            gradient = scale * np.float64(gradients_of(number)[index])
            expected = expected_step(name, expected, gradient, number + 1)
        for suffix, value in expected.items():
            error = np.abs(left.pop(name + suffix) - value).max()
            assert error <= 1e-5 * np.abs(value).max(), (name + suffix, error)
    assert left == {}


def adam_step(name: str, slots_before: Slots, gradient: np.ndarray, number: int) -> Slots:
    decay = 0.0 if name in EXEMPT_FROM_ADAMS_DECAY else 0.3
    moments = slots_before.get("/adam_m", np.zeros(1)), slots_before.get("/adam_v", np.zeros(1))
    new = reference.adam_step(slots_before[""], *moments, gradient, lr=RATE, decay=decay, **NUMBERS)
    return dict(zip(("", "/adam_m", "/adam_v"), new, strict=True))


@pytest.mark.parametrize("limit", [None, 0.5, 1e4], ids=["no limit", "above the limit", "below the limit"])
def test_adam_with_clipping_and_decay(devices: Devices, limit: float | None) -> None:
    result = updated(dataclasses.replace(TRAINING, gradient_clipping=limit), devices, MESHES[0])
    for number, norm in enumerate(result.norms):
        exact = np.sqrt(sum((np.float64(gradient) ** 2).sum() for gradient in gradients_of(number)))
        assert abs(norm / exact - 1.0) < 1e-6 and 0.5 < exact < 1e4
    assert_updated(result, adam_step, limit)


def adamw_step(name: str, slots_before: Slots, gradient: np.ndarray, number: int) -> Slots:
    m = 0.8 * slots_before.get("/adam_m", 0.0) + 0.2 * gradient
    v = 0.9 * slots_before.get("/adam_v", 0.0) + 0.1 * gradient**2
    unbiased_m, unbiased_v = m / (1.0 - 0.8**number), v / (1.0 - 0.9**number)
    decay = 0.0 if name in VECTORS else 0.3
    value = slots_before[""] - RATE * (unbiased_m / (np.sqrt(unbiased_v) + 1e-3) + decay * slots_before[""])
    return {"": value, "/adam_m": m, "/adam_v": v}


@pytest.mark.parametrize("mesh", [*MESHES[:2], pytest.param(MESHES[2], marks=pytest.mark.slow), SHARDED], ids=str)
def test_adamw(devices: Devices, mesh: tuple[str, str]) -> None:
    training = dataclasses.replace(TRAINING, opt_name="adamw", gradient_clipping=0.5)
    assert_updated(updated(training, devices, mesh), adamw_step, 0.5)


def test_adamws_first_step_is_the_rate_times_the_sign_of_the_gradient(devices: Devices) -> None:
    numbers = {"beta1": 0.0, "beta2": 0.9999, "epsilon": 1e-12, "weight_decay": 0.0}
    result = updated(dataclasses.replace(TRAINING, opt_name="adamw", **numbers), devices, MESHES[0], n_steps=1)
    for name, gradient in zip(SHAPES, gradients_of(0), strict=True):
        step = result.after[name] - result.before[name]
        np.testing.assert_allclose(step, -RATE * np.sign(gradient), rtol=0, atol=1e-6, err_msg=name)


def lion_step(name: str, slots_before: Slots, gradient: np.ndarray, number: int) -> Slots:
    m, decay = slots_before.get("/lion_m", np.zeros_like(gradient)), 0.0 if name in VECTORS else 0.3
    value = slots_before[""] - RATE * (np.sign(0.8 * m + 0.2 * gradient) + decay * slots_before[""])
    return {"": value, "/lion_m": 0.9 * m + 0.1 * gradient}


@pytest.mark.parametrize("mesh", [*MESHES[:2], SHARDED], ids=str)
def test_lion(devices: Devices, mesh: tuple[str, str]) -> None:
    training = dataclasses.replace(TRAINING, opt_name="lion", gradient_clipping=0.5)
    assert_updated(updated(training, devices, mesh), lion_step, 0.5)


def muon_step(name: str, slots_before: Slots, gradient: np.ndarray, number: int) -> Slots:
    if name not in MATRICES_OF_MUON:
        return adamw_step(name, slots_before, gradient, number)
    m = 0.6 * slots_before.get("/muon_m", 0.0) + gradient
    *experts, rows, columns = gradient.shape
    ahead = (gradient + 0.6 * m).reshape(-1, rows, columns)
    direction = np.stack([reference.newton_schulz(matrix) for matrix in ahead]).reshape(gradient.shape)
    update = 0.2 * np.sqrt(max(rows, columns)) * direction + 0.3 * slots_before[""]
    return {"": slots_before[""] - RATE * update, "/muon_m": m}


@pytest.mark.parametrize(
    "mesh",
    [
        MESHES[0],
        pytest.param(MESHES[1], id="both sides split, or the shorter one: exchanged"),
        pytest.param(MESHES[2], id="the longer side split, and the experts"),
        pytest.param(("x:4", "embd:x"), id="a longer side that cannot be divided: gathered"),
        pytest.param(SHARDED, id="shared by replicas"),
    ],
    ids=str,
)
def test_muon(devices: Devices, mesh: tuple[str, str]) -> None:
    training = dataclasses.replace(TRAINING, opt_name="muon", gradient_clipping=0.5, muon_momentum=0.6)
    assert_updated(updated(training, devices, mesh), muon_step, 0.5)


def test_the_singular_values_of_muons_update_are_near_its_scale(devices: Devices) -> None:
    training = dataclasses.replace(TRAINING, opt_name="muon", weight_decay=0.0)
    result = updated(training, devices, MESHES[0], n_steps=1)
    gradients = dict(zip(SHAPES, gradients_of(0), strict=True))
    for name in ("gpt2/h1/wi/kernel", "gpt2/h1/wo/kernel"):
        for before, after, gradient in zip(result.before[name], result.after[name], gradients[name], strict=True):
            values = np.linalg.svd(np.float64(after) - before, compute_uv=False) / (RATE * 0.2 * np.sqrt(132))
            own = np.linalg.svd(np.float64(gradient) / np.linalg.norm(gradient), compute_uv=False)
            n_large = (own > 0.01).sum()  # five steps do not lift those of a random matrix that are almost 0
            assert n_large > 100 and values.max() < 1.21 and np.sort(values)[-n_large:].min() > 0.67


@pytest.mark.parametrize(
    ("opt_name", "mesh", "step"),
    [("adamw", MESHES[0], adamw_step), ("muon", MESHES[1], muon_step), ("adamw", SHARDED, adamw_step)],
    ids=["adamw", "muon", "shared by replicas"],
)
def test_averages_of_the_variables(
    devices: Devices, opt_name: str, mesh: tuple[str, str], step: Callable[..., Slots]
) -> None:
    def averaged_step(name: str, slots_before: Slots, gradient: np.ndarray, number: int) -> Slots:
        new = step(name, slots_before, gradient, number)
        average = new[""] if number == 1 else 0.7 * slots_before["/ema"] + 0.3 * new[""]
        return {**new, "/ema": average}

    training = dataclasses.replace(TRAINING, opt_name=opt_name, muon_momentum=0.6, ema_decay=0.7)
    assert_updated(updated(training, devices, mesh), averaged_step)


@pytest.mark.parametrize(
    ("opt_name", "mesh", "step"),
    [
        ("adam", MESHES[0], adam_step),
        ("adamw", MESHES[1], adamw_step),
        ("lion", MESHES[0], lion_step),
        ("muon", MESHES[1], muon_step),
    ],
    ids=["adam", "adamw", "lion", "muon"],
)
def test_mup_lowers_the_rate_of_matrices_and_not_their_decay(
    devices: Devices, opt_name: str, mesh: tuple[str, str], step: Callable[..., Slots]
) -> None:
    """At four times the base width, by 4, and that of Muon's own matrices by 2; epsilon falls by 4 too."""

    def slower_step(name: str, slots_before: Slots, gradient: np.ndarray, number: int) -> Slots:
        new = step(name, slots_before, gradient, number)
        if name not in [*MATRICES_OF_MUON, "gpt2/h1/top_2_gating/kernel"]:
            return new
        is_muons = opt_name == "muon" and name in MATRICES_OF_MUON
        decayed = slots_before[""] * (1.0 - RATE * 0.3)
        return {**new, "": decayed + (new[""] - decayed) / (2.0 if is_muons else 4.0)}

    training = dataclasses.replace(TRAINING, opt_name=opt_name, muon_momentum=0.6, epsilon=4e-3)
    assert_updated(updated(training, devices, mesh, width=4.0), slower_step)


def root_of_mean_square(x: np.ndarray) -> float:
    return np.sqrt((x**2).mean())


def second_moment(slots_before: Slots, squares: np.ndarray, share: float) -> tuple[np.ndarray, Slots]:
    """The estimate of each element's squared gradient, and the slots that hold it."""
    by_size = sorted(range(squares.ndim), key=lambda axis: -squares.shape[axis])
    if squares.ndim < 2 or squares.shape[by_size[1]] < 128:
        v = (1.0 - share) * slots_before.get("_slot_v", 0.0) + share * squares
        return v, {"_slot_v": v}
    largest, second = by_size[:2]
    vr = (1.0 - share) * slots_before.get("_slot_vr", 0.0) + share * squares.mean(largest)
    vc = (1.0 - share) * slots_before.get("_slot_vc", 0.0) + share * squares.mean(second)
    r = np.expand_dims(vr, largest)
    return r / r.mean(second, keepdims=True) * np.expand_dims(vc, second), {"_slot_vr": vr, "_slot_vc": vc}


def adafactor_step_of(training: TrainingConfig) -> Callable[..., Slots]:
    def step(name: str, slots_before: Slots, gradient: np.ndarray, number: int) -> Slots:
        decay_rate = 1.0 - number**-0.8 if training.ada_decay_rate is None else training.ada_decay_rate
        moment, slots = second_moment(slots_before, gradient**2 + training.ada_epsilon1, 1.0 - decay_rate)
        direction = gradient / np.sqrt(moment)
        direction = direction / max(1.0, root_of_mean_square(direction))
        update = direction * max(root_of_mean_square(slots_before[""]), training.ada_epsilon2) * RATE
        if training.beta1:
            update = training.beta1 * slots_before.get("_slot_m", 0.0) + (1.0 - training.beta1) * update
            slots = slots | {"_slot_m": update}
        decay = 0.0 if name in VECTORS else training.weight_decay
        return {"": slots_before[""] - update - RATE * decay * slots_before[""], **slots}

    return step


ADAFACTORS = {
    "with a mean of updates": {"beta1": 0.8},
    "without one, decay rate given": {"beta1": 0.0, "ada_decay_rate": 0.7, "ada_epsilon1": 1e-4, "ada_epsilon2": 0.5},
}


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("with a mean of updates", MESHES[0]),
        ("without one, decay rate given", MESHES[1]),
        pytest.param("with a mean of updates", MESHES[2], marks=pytest.mark.slow),
        ("with a mean of updates", SHARDED),
    ],
    ids=str,
)
def test_adafactor(devices: Devices, name: str, mesh: tuple[str, str]) -> None:
    training = dataclasses.replace(TRAINING, opt_name="adafactor", gradient_clipping=0.5, **ADAFACTORS[name])
    assert_updated(updated(training, devices, mesh), adafactor_step_of(training), 0.5)


def test_adafactors_slots_have_the_names_and_shapes_of_mesh_tensorflow(devices: Devices) -> None:
    training = dataclasses.replace(TRAINING, opt_name="adafactor")
    after = updated(training, devices, MESHES[0], n_steps=1).after
    slots = {name: value.shape for name, value in after.items() if "_slot_v" in name and value.ndim != 1}
    assert slots == {
        "gpt2/wpe_slot_v": (127, 128),
        "gpt2/h0/norm_rezero_1/g_slot_v": (),
        "gpt2/h1/wi/kernel_slot_vr": (2, 128),
        "gpt2/h1/wi/kernel_slot_vc": (2, 132),
        "gpt2/h1/wo/kernel_slot_vr": (2, 128),
        "gpt2/h1/wo/kernel_slot_vc": (2, 132),
        "gpt2/h1/top_2_gating/kernel_slot_v": (128, 2),
    }
    assert after["gpt2/wte_slot_vr"].shape == (128,) and after["gpt2/wte_slot_vc"].shape == (160,)
    assert {name for name in after if name.endswith("_slot_m")} == {f"{name}_slot_m" for name in SHAPES}


@pytest.mark.parametrize(
    ("opt_name", "mesh", "value"),
    [
        ("adam", MESHES[1], np.nan),
        ("adamw", MESHES[0], np.inf),
        ("adafactor", MESHES[1], -np.inf),
        ("lion", MESHES[0], np.nan),
        ("muon", MESHES[1], np.inf),
        pytest.param("adam", MESHES[0], 1e30, id="too large to be squared"),
        ("adam", SHARDED, np.nan),
    ],
    ids=str,
)
def test_gradients_that_are_not_finite_change_nothing(
    devices: Devices, opt_name: str, mesh: tuple[str, str], value: float
) -> None:
    placement = place(tiny.mesh_config(*mesh), devices if mesh[0] else devices[:1])
    training = dataclasses.replace(TRAINING, opt_name=opt_name, gradient_clipping=0.5 if opt_name == "adam" else None)
    step = stepper(training, placement)
    placement.store.initialize(seed=1)
    step(np.array([RATE], np.float32), np.int32(0), *gradients_of(0))
    before, corrupted = tiny.values_of(placement.store), gradients_of(1)
    corrupted[5][3, 70] = value
    (norm,) = step(np.array([RATE], np.float32), np.int32(1), *corrupted)
    assert not np.isfinite(norm)
    after = tiny.values_of(placement.store)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


GROUPS = {
    "embeddings": ["wte", "wpe"],
    "norms": ["ln_f/g", "h0/norm_1/g", "h0/norm_rezero_1/g"],
    "attention": ["h0/attn/q", "h0/attn/compute_output_bias/o_b"],
    "feed_forward": ["h0/mlp/conv1d_main/c_proj/bias", "h0/mlp/conv1d_main/c_fc/kernel"],
    "experts": ["h1/wi/kernel", "h1/wo/kernel", "h1/top_2_gating/kernel"],
}


@pytest.mark.parametrize("mesh", MESHES[:2], ids=str)
def test_the_norms_of_each_gradient_and_group(devices: Devices, mesh: tuple[str, str]) -> None:
    names = []

    def build(*gradients: mtf.Tensor) -> list[mtf.Tensor]:
        trainable = [
            variables.get_variable(gradient.mesh, name, gradient.shape, variables.ones).operation
            for name, gradient in zip(SHAPES, gradients, strict=True)
        ]
        norms = gradient_norms(trainable, gradients)
        names[:] = norms
        return list(norms.values())

    placement = place(tiny.mesh_config(*mesh), devices if mesh[0] else devices[:1])
    dims = [" ".join(sizes) for sizes in SHAPES.values()]
    norms = tiny.evaluate(build, placement, *zip(dims, gradients_of(0), strict=True))
    expected = dict(zip(SHAPES, [np.linalg.norm(np.float64(grad)) for grad in gradients_of(0)], strict=True))
    groups = [np.linalg.norm([expected[f"gpt2/{name}"] for name in members]) for members in GROUPS.values()]
    assert names == [*(f"grads/norm/{name[5:]}" for name in SHAPES), *(f"grads/group/{name}" for name in GROUPS)]
    np.testing.assert_allclose(norms, [*expected.values(), *groups], rtol=1e-6)
