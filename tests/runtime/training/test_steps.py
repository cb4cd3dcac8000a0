"""The training and evaluation step on one device: loss and gradients against NumPy, microbatches, dropout, bfloat16."""

from __future__ import annotations

import numpy as np
import pytest

from configs.errors import ConfigError
from runtime.mesh.placement import place
from runtime.training.steps import build_eval_step, build_train_step
from tests import tiny
from tests.models import reference

Devices = tuple[str, ...]


@pytest.fixture(scope="module")
def plain(devices: Devices) -> tiny.Updated:
    return tiny.one_device_update(devices, has_dropout=False)


@pytest.fixture(scope="module")
def with_dropout(devices: Devices) -> tiny.Updated:
    return tiny.one_device_update(devices, has_dropout=True)


def trainable(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in values.items() if "/adam_" not in name}


def test_the_loss_is_the_mean_cross_entropy_without_z_loss(plain: tiny.Updated) -> None:
    tokens, labels = tiny.batch()
    cross_entropy, _ = reference.losses(reference.logits(tiny.MODEL, trainable(plain.before), tokens), labels)
    assert abs(plain.loss - cross_entropy.mean()) < 1e-5


def test_gradients_along_random_directions(plain: tiny.Updated) -> None:
    values = trainable(plain.before)
    generator, size = np.random.default_rng(0), 1e-5
    for name, value in values.items():
        direction = generator.normal(size=value.shape)
        ends = [values | {name: value + sign * size * direction} for sign in (1, -1)]
        above, below = (reference.training_loss(tiny.MODEL, end, *tiny.batch()) for end in ends)
        slope, gradient = (above - below) / (2 * size), plain.gradient(name)
        assert abs((gradient * direction).sum() - slope) < 1e-5 * max(1.0, np.linalg.norm(gradient)), name


def test_grad_norm(plain: tiny.Updated) -> None:
    squares = [(plain.gradient(name).astype(np.float64) ** 2).sum() for name in trainable(plain.before)]
    assert abs(plain.grad_norm / np.sqrt(sum(squares)) - 1.0) < 1e-5


def test_the_step_takes_an_adam_step(plain: tiny.Updated) -> None:
    for name, value in trainable(plain.before).items():
        decay = 0.0 if "norm" in name or "bias" in name else 0.1
        numbers = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-3, "decay": decay}
        expected = reference.adam_step(value, np.zeros(1), np.zeros(1), plain.gradient(name), **numbers)
        np.testing.assert_allclose(plain.after[name], expected[0], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(plain.after[f"{name}/adam_v"], expected[2], rtol=1e-5, atol=1e-12, err_msg=name)


def test_every_variable_has_two_slots_and_starts_them_at_0(plain: tiny.Updated) -> None:
    names = trainable(plain.before)
    slots = {f"{name}/{slot}" for name in names for slot in ("adam_m", "adam_v")}
    assert set(plain.before) == set(names) | slots
    assert all(not plain.before[slot].any() and plain.before[slot].dtype == np.float32 for slot in slots)


def test_evaluation_gives_each_tokens_cross_entropy_without_dropout(devices: Devices) -> None:
    config = tiny.run_config(model=tiny.ALL_DROPOUTS)
    placement = place(config.mesh, devices[:1])
    step = build_eval_step(config, placement)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    tokens, labels = tiny.batch()
    cross_entropy, _ = reference.losses(reference.logits(tiny.MODEL, tiny.values_of(placement.store), tokens), labels)
    np.testing.assert_allclose(step(tokens, labels)["token_loss"], cross_entropy, rtol=1e-5, atol=1e-6)


def test_dropout_changes_with_the_noise_key_only(devices: Devices, with_dropout: tiny.Updated) -> None:
    config = tiny.run_config(model=tiny.ALL_DROPOUTS)
    placement = place(config.mesh, devices[:1])
    step = build_train_step(config, placement)
    losses = []
    for key in (7, 7, 8):
        placement.store.initialize(seed=1)
        tiny.disturb(placement.store)
        losses.append(float(step(*tiny.step_inputs(key, rate=0.0))["loss"]))
    assert losses[0] == losses[1] == with_dropout.loss
    assert 1e-3 < abs(losses[2] - losses[0]) < 1.0


@pytest.mark.parametrize(
    "tokens", [32, pytest.param(16, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
def test_microbatches_change_nothing(devices: Devices, with_dropout: tiny.Updated, tokens: int) -> None:
    config = tiny.run_config(model=tiny.ALL_DROPOUTS, training={"tokens_per_mb_per_replica": tokens})
    tiny.assert_same_update(tiny.one_update(config, devices), with_dropout)


@pytest.mark.parametrize("recompute", ["attention", pytest.param("block", marks=pytest.mark.slow)])
def test_recomputation_changes_nothing(devices: Devices, with_dropout: tiny.Updated, recompute: str) -> None:
    config = tiny.run_config(model={**tiny.ALL_DROPOUTS, "recompute": recompute})
    tiny.assert_same_update(tiny.one_update(config, devices), with_dropout)


def test_bfloat16_activations_with_float32_variables(devices: Devices, plain: tiny.Updated) -> None:
    update = tiny.one_update(tiny.run_config(model={"precision": "bfloat16"}), devices)
    assert 0.0 < abs(update.loss / plain.loss - 1.0) < 0.02
    assert abs(update.grad_norm / plain.grad_norm - 1.0) < 0.05
    for name, value in update.after.items():
        assert value.dtype == np.float32 and np.isfinite(value).all(), name
    for name in trainable(plain.before):
        difference = np.linalg.norm(update.gradient(name) - plain.gradient(name))
        assert difference < 0.1 * np.linalg.norm(plain.gradient(name)), name


def test_a_batch_that_the_devices_do_not_divide_is_refused(devices: Devices) -> None:
    config = tiny.run_config(tiny.mesh_config("x:4", ""), training={"train_batch_size": 6})
    with pytest.raises(ConfigError) as raised:
        build_train_step(config, place(config.mesh, devices))
    assert str(raised.value) == (
        "train_batch_size = 6: is split over 4 devices, which does not divide it; "
        "change train_batch_size or mesh_shape, or split something else than batch in layout"
    )
