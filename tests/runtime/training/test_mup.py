"""muP: one step of Adam at two widths by hand, initial values, and the ordinary model at the base width."""

from __future__ import annotations

import re

import numpy as np
import pytest

from configs.schema import ModelConfig, MoeParams
from runtime.mesh.placement import place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.models import reference

EXPERTS = {"moe_layers": (1,), "moe_params": MoeParams(moe_num_experts=4, moe_hidden_size=24)}
LLAMA = {
    **{"norm": "rmsnorm", "gated_mlp": True, "mlp_bias": False, "attn_output_bias": False, "rotary_emb": True},
    **{"scale_attn_weights": True, "n_kv_head": 2, "no_weight_tie": True, "final_norm": True, "head_bias": False},
}
# Of the tiny model's variables, the matrices between two layers whose sizes grow.
HIDDEN = [f"gpt2/h{layer}/attn/{name}" for layer in range(2) for name in "qkvo"] + [
    f"gpt2/h{layer}/mlp/conv1d_main/{name}/kernel" for layer in range(2) for name in ("c_fc", "c_proj")
]


@pytest.mark.parametrize("base_width", [8, 32])
def test_one_step_of_adam_by_hand(devices: tuple[str, ...], base_width: int) -> None:
    config = tiny.run_config(model={"mup_base_width": base_width, "scale_attn_weights": True})
    updated = tiny.one_update(config, devices)
    values = {name: np.float64(value) for name, value in updated.before.items() if "/adam_" not in name}
    loss = reference.training_loss(config.model, values, *tiny.batch())
    cross_entropy = reference.losses(reference.logits(config.model, values, tiny.batch()[0]), tiny.batch()[1])[0]
    np.testing.assert_allclose(updated.loss, cross_entropy.mean(), rtol=1e-5)
    width = 32 / base_width
    for name, value in values.items():
        gradient = np.float64(updated.gradient(name))
        decay = 0.0 if re.search("norm|bias", name) else 0.1
        moved = 0.1 * gradient / (np.sqrt(0.05) * np.abs(gradient) + 1e-3 / width)
        expected = value - 0.01 * (moved / (width if name in HIDDEN else 1.0) + decay * value)
        np.testing.assert_allclose(updated.after[name], expected, rtol=0, atol=1e-6, err_msg=name)
    for name in ("gpt2/wte", "gpt2/h0/attn/q", "gpt2/h1/mlp/conv1d_main/c_proj/kernel"):
        direction = np.random.default_rng(0).normal(size=values[name].shape)
        beside = values | {name: values[name] + 1e-6 * direction}
        slope = (reference.training_loss(config.model, beside, *tiny.batch()) - loss) / 1e-6
        np.testing.assert_allclose((updated.gradient(name) * direction).sum(), slope, rtol=1e-3, atol=1e-5)


def initial_values(model: dict[str, object], devices: tuple[str, ...]) -> dict[str, np.ndarray]:
    placement = place(tiny.mesh_config("", ""), devices[:1])
    build_train_step(tiny.run_config(model=model), placement)
    placement.store.initialize(seed=1)
    return tiny.values_of(placement.store)


@pytest.mark.parametrize("scale_by_in", [False, True])
def test_the_spread_of_initial_values_at_four_times_the_width(devices: tuple[str, ...], scale_by_in: bool) -> None:
    sizes = {"n_embd": 128, "n_vocab": 256, "mup_base_width": 32, "num_mem_kv": 40}
    values = initial_values(sizes | EXPERTS | {"no_weight_tie": True, "scale_by_in": scale_by_in}, devices)
    dense = 0.02 * (128**-0.5 if scale_by_in else 0.5)
    expected = {
        "wte": 0.02,
        "wte_final_linear/conv1d_main/linear_out/kernel": 0.02 * (32**-0.5 if scale_by_in else 1.0),
        "h0/attn/q": 128**-0.5 * 8**-0.5,  # a head has 8 features at the base width
        "h0/attn/k": 128**-0.5,
        "h0/attn/v": 128**-0.5,
        "h0/attn/o": 128**-0.5,
        "h0/attn/attention/mem_k": 8**-0.5,
        "h0/mlp/conv1d_main/c_fc/kernel": dense,
        "h0/mlp/conv1d_main/c_proj/kernel": dense * (0.5 if scale_by_in else 1.0),
        "h1/top_2_gating/kernel": 128**-0.5 / 2,
        "h1/wi/kernel": 128**-0.5,
        "h1/wo/kernel": 24**-0.5,
    }
    for name, spread in expected.items():
        value = values[f"gpt2/{name}"]
        assert abs(value.std() / spread - 1.0) < 4.0 * (2 * value.size) ** -0.5, (name, value.std(), spread)


def losses(model: dict[str, object], training: dict[str, object], devices: tuple[str, ...]) -> list[float]:
    placement = place(tiny.mesh_config("", ""), devices[:1])
    step = build_train_step(tiny.run_config(model=model, training=training), placement)
    placement.store.initialize(seed=1)
    *batch, rate, _, key = tiny.step_inputs()
    return [float(step(*batch, rate, np.int32(number), key)["loss"]) for number in range(3)]


@pytest.mark.parametrize(
    ("model", "opt_name"),
    [(EXPERTS | {"num_mem_kv": 2, "scale_by_in": True}, "adam"), (LLAMA, "adamw"), ({"head_dim": 6}, "muon")],
    ids=["experts, adam", "Llama, adamw", "wide heads, muon"],
)
def test_at_the_base_width_nothing_changes(devices: tuple[str, ...], model: dict[str, object], opt_name: str) -> None:
    ordinary, with_mup = (losses(model | mup, {"opt_name": opt_name}, devices) for mup in ({}, {"mup_base_width": 32}))
    assert ordinary[0] > ordinary[2] and with_mup == ordinary
    assert losses(model | {"mup_base_width": 8}, {"opt_name": opt_name}, devices) != ordinary


@pytest.mark.parametrize(
    "mesh",
    [
        ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y"),
        pytest.param(("x:2,y:2", "batch:x,embd:y"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_update_is_the_same_on_a_mesh(devices: tuple[str, ...], mesh: tuple[str, str]) -> None:
    model = LLAMA | {"mup_base_width": 8}
    one, many = (tiny.one_update(tiny.run_config(tiny.mesh_config(*own), model), devices) for own in (("", ""), mesh))
    tiny.assert_same_update(many, one)


def test_the_scale_of_attention_logits() -> None:
    """1 / head_dim, and at the base width as ever."""
    sizes = {"n_layer": 1, "n_ctx": 4, "n_vocab": 8, "mup_base_width": 64}
    for width, expected in ((64, 1 / 4), (256, 1 / 16), (1024, 1 / 64)):
        assert ModelConfig(n_embd=width, n_head=4, scale_attn_weights=True, **sizes).logit_scale == expected
        assert ModelConfig(n_embd=width, n_head=4, attention_scale=0.5, **sizes).logit_scale == 2 * expected
        assert ModelConfig(n_embd=width, n_head=4, **sizes).logit_scale == 4 * expected
        more_heads = ModelConfig(n_embd=width, n_head=width // 16, head_dim=16, scale_attn_weights=True, **sizes)
        assert more_heads.logit_scale == 1 / 4
