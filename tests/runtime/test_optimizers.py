"""The update of variables: Adam, clipping, and which variables are decayed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.schema import TrainingConfig
from meshtf import mtf
from models import variables
from runtime.mesh import place
from runtime.optimizers import build_update
from tests import tiny
from tests.models import reference

IS_DECAYED = {
    "gpt2/wte": True,
    "gpt2/wpe": True,
    "gpt2/ln_f/g": True,
    "gpt2/ln_f/b": True,
    "gpt2/h0/norm_1/g": False,
    "gpt2/h0/norm_2/b": False,
    "gpt2/h0/attn/q": True,
    "gpt2/h0/attn/compute_output_bias/o_b": False,
    "gpt2/h0/mlp/conv1d_main/c_proj/kernel": True,
    "gpt2/h0/mlp/conv1d_main/c_proj/bias": False,
}
TRAINING = TrainingConfig(train_batch_size=1, train_steps=1, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.3)
SIZE = 3


def gradients_of(step: int) -> list[np.ndarray]:
    return list(np.random.default_rng(step).normal(size=(len(IS_DECAYED), SIZE)).astype(np.float32))


def updated(
    training: TrainingConfig, devices: tuple[str, ...], n_steps: int
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Takes some steps from ones; gives the norms and every variable."""

    def build(rate: mtf.Tensor, *gradients: mtf.Tensor) -> list[mtf.Tensor]:
        rate, shape = mtf.reduce_sum(rate), gradients[0].shape
        trainable = [variables.get_variable(rate.mesh, name, shape, variables.ones).operation for name in IS_DECAYED]
        return [build_update(trainable, gradients, training, rate)]

    placement = place(tiny.mesh_config("", ""), devices[:1])
    names = ["batch", *["embd"] * len(IS_DECAYED)]
    rate = np.array([0.1], np.float32)
    step = tiny.compiled(build, placement, *zip(names, [rate, *gradients_of(1)], strict=True))
    placement.store.initialize(seed=1)
    norms = [step(rate, *gradients_of(number))[0] for number in range(1, n_steps + 1)]
    return norms, tiny.values_of(placement.store)


@pytest.mark.parametrize("limit", [None, 0.5, 100.0], ids=["no limit", "above the limit", "below the limit"])
def test_adam_with_clipping_and_decay(devices: tuple[str, ...], limit: float | None) -> None:
    n_steps = 3
    norms, values = updated(dataclasses.replace(TRAINING, gradient_clipping=limit), devices, n_steps)
    expected = {name: (np.ones(SIZE), np.zeros(SIZE), np.zeros(SIZE)) for name in IS_DECAYED}
    for number, norm in enumerate(norms, start=1):
        gradients = np.float64(gradients_of(number))
        exact_norm = np.sqrt((gradients**2).sum())
        assert abs(norm / exact_norm - 1.0) < 1e-6
        scale = 1.0 if limit is None else min(1.0, limit / exact_norm)
        for (name, is_decayed), gradient in zip(IS_DECAYED.items(), gradients * scale, strict=True):
            expected[name] = reference.adam_step(
                *expected[name], gradient, lr=0.1, beta1=0.8, beta2=0.9, epsilon=1e-3, decay=0.3 if is_decayed else 0.0
            )
    for name, numbers in expected.items():
        for suffix, number in zip(("", "/adam_m", "/adam_v"), numbers, strict=True):
            np.testing.assert_allclose(values.pop(name + suffix), number, rtol=2e-6, atol=1e-6, err_msg=name + suffix)
    assert values == {}
