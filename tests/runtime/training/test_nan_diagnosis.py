"""What is not finite is found by name: on one device, in microbatches, in blocks that are computed again, on a mesh."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from runtime.mesh.placement import Placement, place
from runtime.training.nan_diagnosis import Diagnosis
from runtime.training.steps import build_diagnosis, build_train_step
from tests import tiny

Devices = tuple[str, ...]
Look = Callable[[], Diagnosis]
ON_MESH = tiny.mesh_config("x:2", "heads:x,vocab:x,intermediate_expanded:x")
ONE_LAYER = {"n_layer": 1, "attention_types": ("global",)}
CONFIGS = {
    "plain": tiny.run_config(model=ONE_LAYER),
    "in parts, computed again": tiny.run_config(
        model={**ONE_LAYER, "recompute_grad": True}, training={"tokens_per_mb_per_replica": 32}
    ),
    "on a mesh": tiny.run_config(ON_MESH, model=ONE_LAYER),
}
N_VARIABLES = 17


@pytest.fixture(scope="module", params=CONFIGS)
def spoilable(request: pytest.FixtureRequest, devices: Devices) -> tuple[Placement, Look]:
    config = CONFIGS[request.param]
    placement = place(config.mesh, devices[: 2 if config.mesh.mesh_shape else 1])
    step = build_diagnosis(config, placement)
    tokens, labels, weights, _, _, key = tiny.step_inputs()
    return placement, lambda: Diagnosis.of(step(tokens, labels, weights, key))


def spoil(placement: Placement, name: str, value: float) -> None:
    """Sets the first number of one variable, and all others as they begin."""
    placement.store.initialize(seed=1)
    (stored,) = (stored for stored in placement.store if stored.name == name)
    spoilt = tiny.whole_value(stored)
    spoilt.flat[0] = value
    stored.assign_whole(spoilt)


def test_of_a_sound_step_nothing(spoilable: tuple[Placement, Look]) -> None:
    placement, look = spoilable
    placement.store.initialize(seed=1)
    assert look() == Diagnosis(None, (), N_VARIABLES)
    assert look().describe().startswith("computed once more, every tensor and gradient of the step is finite: ")


def test_a_variable_is_the_first(spoilable: tuple[Placement, Look]) -> None:
    placement, look = spoilable
    spoil(placement, "gpt2/h0/attn/k", np.nan)
    found = look()
    assert found.first[0] == "the variable gpt2/h0/attn/k" and len(found.gradients) == N_VARIABLES
    assert found.describe() == (
        "the first tensor that is not finite is the variable gpt2/h0/attn/k; every variable has a gradient that is not "
        "finite or too large"
    )


def test_an_operation_is_the_first(spoilable: tuple[Placement, Look]) -> None:
    """A gain that makes too large whatever is above 1.1."""
    placement, look = spoilable
    spoil(placement, "gpt2/h0/norm_1/g", 3e38)
    name, count = look().first
    assert name == "layer_norm behind gpt2/h0/norm_1/b" and 0 < count < tiny.BATCH_SIZE * tiny.MODEL.n_ctx
    assert f"is {name} ({count} numbers); every variable has" in look().describe()


def test_gradients_come_in_the_order_of_the_way_back(spoilable: tuple[Placement, Look]) -> None:
    placement, look = spoilable
    spoil(placement, "gpt2/h0/attn/q", 1e30)
    found = look()
    assert found.first is None and found.gradients[0] == "gpt2/h0/attn/k"
    assert "gpt2/h0/attn/o" not in found.gradients and "gpt2/h0/norm_1/g" in found.gradients
    told = found.describe()
    assert told.startswith("every tensor on the way to the loss is finite; gradients that are not finite or too large")
    assert ", on the way back: gpt2/h0/attn/k, " in told


def test_a_step_that_is_not_finite_changes_nothing(devices: Devices) -> None:
    """So that what is looked at afterwards are the variables that it failed with."""
    config = CONFIGS["plain"]
    placement = place(config.mesh, devices[:1])
    step = build_train_step(config, placement)
    spoil(placement, "gpt2/h0/attn/k", np.inf)
    before = {stored.name: [piece.numpy() for piece in stored.slices] for stored in placement.store}
    assert not np.isfinite(step(*tiny.step_inputs())["grad_norm"])
    for stored in placement.store:
        np.testing.assert_array_equal([piece.numpy() for piece in stored.slices], before[stored.name])
