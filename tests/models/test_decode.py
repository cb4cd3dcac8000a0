"""Decoding with the cache against the whole forward pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from configs.schema import ModelConfig, MoeParams
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.mesh.placement import place
from tests import tiny
from tests.models.decoding import cached_logits

MODEL = dataclasses.replace(tiny.MODEL, n_layer=3, attention_types=("global", "local", "none"))


MIXTURE = MoeParams(moe_num_experts=4, moe_hidden_size=24, moe_group_size=6, moe_capacity_factor_eval=0.5)
ROUTING: dict[str, dict[str, object]] = {
    "top 1": {"moe_gating": "top_1"},
    "top 2": {"moe_second_policy_eval": "all"},
    "top 2, no second choice": {"moe_second_policy_eval": "none"},
    "top 2, threshold": {"moe_second_policy_eval": "threshold", "moe_second_threshold_eval": 0.4},
}


def check_cache(devices: tuple[str, ...], model: ModelConfig, prompt_length: int, tolerance: float) -> None:
    """Decodes with the cache, and compares the logits with those of the whole forward pass."""
    placement = place(tiny.mesh_config("", ""), devices[:1])

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        whole = gpt2.logits(Context(tokens.mesh, model, Dims.of(model, 2, 16)), tokens)
        return [mtf.cast(logits, tf.float32) for logits in (whole, *cached_logits(model, tokens, prompt_length))]

    tokens_BS = tiny.batch()[0][:2]
    function = tiny.compiled(build, placement, ("batch sequence", tokens_BS))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    whole_BSV, *cached_BV = function(tokens_BS)
    cached_BSV = np.stack(cached_BV, axis=1)
    assert cached_BSV.shape == (2, 17 - prompt_length, MODEL.n_vocab)
    np.testing.assert_allclose(cached_BSV, whole_BSV[:, prompt_length - 1 :], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 0.15, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("prompt_length", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_the_cache_gives_the_logits_of_the_whole_forward_pass(
    devices: tuple[str, ...], precision: str, tolerance: float, prompt_length: int
) -> None:
    check_cache(devices, dataclasses.replace(MODEL, precision=precision), prompt_length, tolerance)


@pytest.mark.parametrize("routing", ROUTING.values(), ids=ROUTING)
def test_every_routing_of_experts_decodes(devices: tuple[str, ...], routing: dict[str, object]) -> None:
    """Softmax attention and experts in one layer: its cache holds the state of both."""
    params = dataclasses.replace(MIXTURE, **routing)
    changes = {"n_layer": 1, "attention_types": ("local",), "moe_layers": (0,), "moe_params": params}
    model = dataclasses.replace(tiny.MODEL, **changes)
    check_cache(devices, model, prompt_length=13, tolerance=1e-5)
