"""NaN and infinity are found by name: on one device, in microbatches with recomputed blocks, and on a mesh."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from runtime.mesh.placement import Placement, place
from runtime.training.nan_diagnosis import Diagnosis
from runtime.training.steps import build_diagnosis, build_train_step
from tests import tiny

Devices = tuple[str, ...]
Diagnose = Callable[[], Diagnosis]
ON_MESH = tiny.mesh_config("x:2", "heads:x,vocab:x,intermediate_expanded:x")
ONE_LAYER = {"n_layer": 1, "attention_types": ("global",)}
CONFIGS = {
    "plain": tiny.run_config(model=ONE_LAYER),
    "in microbatches, recomputed": tiny.run_config(
        model={**ONE_LAYER, "recompute_grad": True}, training={"tokens_per_mb_per_replica": 32}
    ),
    "with segments": tiny.run_config(model=ONE_LAYER, data=tiny.MASKED),
    "on a mesh": tiny.run_config(ON_MESH, model=ONE_LAYER),
}
N_VARIABLES = 17


@pytest.fixture(scope="module", params=CONFIGS)
def corruptible(request: pytest.FixtureRequest, devices: Devices) -> tuple[Placement, Diagnose]:
    config = CONFIGS[request.param]
    placement = place(config.mesh, devices[: 2 if config.mesh.mesh_shape else 1])
    step = build_diagnosis(config, placement)
    *batch, _, _, key = tiny.step_inputs(has_segments=config.data.has_segments)
    return placement, lambda: Diagnosis.of(step(*batch, key))


def corrupt(placement: Placement, name: str, value: float) -> None:
    """Sets the first number of one variable; all others have their initial values."""
    placement.store.initialize(seed=1)
    (stored,) = (stored for stored in placement.store if stored.name == name)
    corrupted = tiny.whole_value(stored)
    corrupted.flat[0] = value
    stored.assign_whole(corrupted)


def test_a_finite_step_has_no_findings(corruptible: tuple[Placement, Diagnose]) -> None:
    placement, diagnose = corruptible
    placement.store.initialize(seed=1)
    assert diagnose() == Diagnosis(None, (), N_VARIABLES)
    assert diagnose().describe().startswith("every tensor and gradient is finite when the step runs again: ")


def test_a_variable_is_the_first(corruptible: tuple[Placement, Diagnose]) -> None:
    placement, diagnose = corruptible
    corrupt(placement, "gpt2/h0/attn/k", np.nan)
    found = diagnose()
    assert found.first[0] == "the variable gpt2/h0/attn/k" and len(found.gradients) == N_VARIABLES
    assert found.describe() == (
        "the first tensor that is not finite is the variable gpt2/h0/attn/k; every variable has a gradient that is not "
        "finite or too large"
    )


def test_an_operation_is_the_first(corruptible: tuple[Placement, Diagnose]) -> None:
    """A gain under which every value above 1.1 overflows."""
    placement, diagnose = corruptible
    corrupt(placement, "gpt2/h0/norm_1/g", 3e38)
    name, count = diagnose().first
    assert name == "h0/attn/layer_norm behind gpt2/h0/norm_1/b" and 0 < count < tiny.BATCH_SIZE * tiny.MODEL.n_ctx
    assert f"is {name} ({count} numbers); every variable has" in diagnose().describe()


def test_gradients_come_in_backward_order(corruptible: tuple[Placement, Diagnose]) -> None:
    placement, diagnose = corruptible
    corrupt(placement, "gpt2/h0/attn/q", 1e30)
    found = diagnose()
    assert found.first is None and found.gradients[0] == "gpt2/h0/attn/k"
    assert "gpt2/h0/attn/o" not in found.gradients and "gpt2/h0/norm_1/g" in found.gradients
    text = found.describe()
    assert text.startswith("every tensor of the forward pass is finite; gradients that are not finite or too large")
    assert ", in backward order: gpt2/h0/attn/k, " in text


def test_a_step_that_is_not_finite_changes_nothing(devices: Devices) -> None:
    """So that the diagnosis sees the variables that the step failed with."""
    config = CONFIGS["plain"]
    placement = place(config.mesh, devices[:1])
    step = build_train_step(config, placement)
    corrupt(placement, "gpt2/h0/attn/k", np.inf)
    before = {stored.name: [piece.numpy() for piece in stored.slices] for stored in placement.store}
    assert not np.isfinite(step(*tiny.step_inputs())["grad_norm"])
    for stored in placement.store:
        np.testing.assert_array_equal([piece.numpy() for piece in stored.slices], before[stored.name])
