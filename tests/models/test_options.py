"""Every option of the model: logits against NumPy, causality, and the cache against the whole forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from configs.schema import ModelConfig, MoeParams, RotaryScaling
from meshtf import mtf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference
from tests.models.decoding import cached_logits

# Small groups, so that experts exceed their capacity.
MIXTURE = MoeParams(
    moe_num_experts=4,
    moe_hidden_size=24,
    moe_group_size=6,
    moe_capacity_factor_eval=0.5,
    moe_loss_coef=0.1,
    moe_z_loss=0.1,
    moe_second_policy_train="all",
)
LLAMA_3 = RotaryScaling(
    type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
YARN = RotaryScaling(type="yarn", factor=4.0, original_max_position_embeddings=64)
ALONE: dict[str, dict[str, object]] = {
    "rotary": {"rotary_emb": True},
    "axial": {"axial_pos_emb": (2, 8)},
    "memory": {"num_mem_kv": 3},
    "biases": {"qkv_bias": True},
    "scaled": {"scale_attn_weights": True},
    "interleaved rotary": {"rotary_emb": True, "rotary_style": "interleaved", "rotary_dim": 4, "rotary_base": 500.0},
    "linear scaling": {"rotary_emb": True, "rotary_scaling": RotaryScaling(type="linear", factor=2.0)},
    "yarn": {"rotary_emb": True, "rotary_scaling": YARN, "head_dim": 16},
    "capped": {"attention_softcap": 0.8, "num_mem_kv": 2},
    "scaled otherwise": {"attention_scale": 0.3, "attn_output_bias": False},
    "wide heads": {"head_dim": 12, "rotary_emb": True},
    "one key head": {"n_kv_head": 1, "head_dim": 6, "num_mem_kv": 2},
    "glu": {"mlp_glu": True},
    "macaron": {"macaron": True},
    "scalenorm": {"scalenorm": True},
    "rezero": {"rezero": True},
    "shared": {"share_parameters": True},
    "untied": {"no_weight_tie": True},
    "linear": {"attention_types": ("linear", "linear")},
    "linear by feature": {"attention_types": ("linear", "linear"), "linear_attention_normalization": "feature"},
    "none": {"attention_types": ("none", "global")},
    "none doubled": {"attention_types": ("none", "global"), "none_doubles_residual": True, "rezero": True},
    "parametric": {"activation_function": "aria"},
    "whole features": {"activation_function": "softmax"},
    "rmsnorm": {"norm": "rmsnorm", "norm_epsilon": 0.01},
    "unit offset": {"norm": "rmsnorm", "norm_unit_offset": True},
    "epsilon of layernorm": {"norm_epsilon": 0.01},
    "norms after": {"norm_placement": "after"},
    "norms before and after": {"norm_placement": "both", "scalenorm": True, "norm_epsilon": 0.01},
    "parallel with one norm": {"parallel_residual": "one_norm", "attention_types": ("none", "global")},
    "parallel with two norms": {"parallel_residual": "two_norms", "norm_placement": "both"},
    "narrow": {"n_inner": 24},
    "narrow glu without biases": {"n_inner": 24, "mlp_glu": True, "mlp_bias": False},
    "gated": {"gated_mlp": True, "activation_function": "silu"},
    "without biases": {"mlp_bias": False, "macaron": True},
    "without a final norm": {"final_norm": False},
    "untied with a final norm": {"no_weight_tie": True, "final_norm": True, "head_bias": False},
    "tied with a bias": {"head_bias": True},
    "scaled embeddings": {"embedding_scale": 32**0.5},
    "capped logits": {"logit_softcap": 0.5},
    "adapters of queries and values": {"lora_rank": 3, "lora_alpha": 6.0},
    "muP": {"mup_base_width": 8, "scale_attn_weights": True, "num_mem_kv": 2},
    "exact gelu": {"activation_function": "gelu_exact"},
    "experts": {"moe_layers": (1,), "moe_params": MIXTURE},
    "one expert a token": {
        "moe_layers": (0, 1),
        "moe_params": dataclasses.replace(MIXTURE, moe_gating="top_1"),
    },
}
TOGETHER: dict[str, dict[str, object]] = {
    "grouped, wide, capped, partly rotated": {
        "n_kv_head": 2,
        "head_dim": 12,
        "rotary_emb": True,
        "rotary_dim": 8,
        "rotary_scaling": LLAMA_3,
        "attention_softcap": 1.5,
        "qk_norm": "head",
        "qkv_bias": True,
        "num_mem_kv": 2,
    },
    "multi-query, interleaved, linear": {
        "n_kv_head": 1,
        "attention_types": ("linear", "local"),
        "rotary_emb": True,
        "rotary_style": "interleaved",
        "attention_scale": 0.4,
        "qk_norm": "projection",
        "attn_output_bias": False,
    },
    "GPT-2": {"qkv_bias": True, "scale_attn_weights": True, "attention_types": ("global", "global")},
    "rotary, glu, memory, linear": {
        "rotary_emb": True,
        "mlp_glu": True,
        "num_mem_kv": 2,
        "attention_types": ("global", "linear"),
        "activation_function": "psoftplus",
    },
    "axial, macaron, rezero, untied, shared": {
        "axial_pos_emb": (4, 4),
        "macaron": True,
        "rezero": True,
        "no_weight_tie": True,
        "share_parameters": True,
        "qkv_bias": True,
    },
    "adapters of every layer, glu, macaron, shared": {
        "lora_rank": 3,
        "lora_alpha": 5.0,
        "lora_targets": ("q", "k", "v", "o", "c_fc", "c_proj"),
        "lora_dropout": 0.2,
        "mlp_glu": True,
        "macaron": True,
        "share_parameters": True,
    },
    "adapters of groups and gates, experts, linear": {
        "lora_rank": 2,
        "lora_targets": ("k", "o", "c_gate", "c_proj"),
        "n_kv_head": 2,
        "gated_mlp": True,
        "attention_types": ("linear", "local"),
        "moe_layers": (0,),
        "moe_params": MIXTURE,
    },
    "Gemma 2": {
        "norm": "rmsnorm",
        "norm_epsilon": 1e-3,
        "norm_unit_offset": True,
        "norm_placement": "both",
        "n_inner": 48,
        "gated_mlp": True,
        "mlp_bias": False,
        "embedding_scale": 32**0.5,
        "logit_softcap": 0.5,
    },
    "OLMo 2 with experts, shared": {
        "norm": "rmsnorm",
        "norm_placement": "after",
        "gated_mlp": True,
        "no_weight_tie": True,
        "final_norm": True,
        "head_bias": False,
        "moe_layers": (1,),
        "moe_params": MIXTURE,
        "share_parameters": True,
    },
    "GPT-J with experts, none": {
        "mup_base_width": 16,
        "parallel_residual": "one_norm",
        "rotary_emb": True,
        "no_weight_tie": True,
        "final_norm": True,
        "attention_types": ("none", "global"),
        "moe_layers": (1,),
        "moe_params": MIXTURE,
    },
    "scalenorm, experts, none": {
        "scalenorm": True,
        "moe_layers": (0,),
        "moe_params": MIXTURE,
        "attention_types": ("none", "global"),
        "macaron": True,
    },
}
MASKED: dict[str, dict[str, object]] = {
    "global and local": {"num_mem_kv": 2},
    "linear": {"attention_types": ("linear", "local"), "rotary_emb": True},
}


def slow_items(table: Mapping[str, dict[str, object]]) -> list:
    return [pytest.param(changes, id=name, marks=pytest.mark.slow) for name, changes in table.items()]


def items(table: Mapping[str, dict[str, object]]) -> list:
    return [pytest.param(changes, id=name) for name, changes in table.items()]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A model with disturbed initial values: its logits with and without the cache, and its variables."""

    model: ModelConfig
    function: Callable[[np.ndarray], list[np.ndarray]]
    values: dict[str, np.ndarray]


PROMPT_LENGTH = 7
TOKENS_BS = tiny.batch()[0][:2]


def compiled(changes: Mapping[str, object], devices: tuple[str, ...]) -> Compiled:
    model = dataclasses.replace(tiny.MODEL, **changes)
    placement = place(tiny.mesh_config("", ""), devices[:1])

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        whole = gpt2.logits(Context(tokens.mesh, model, Dims.of(model, 2, 16)), tokens)
        return [whole, *(cached_logits(model, tokens, PROMPT_LENGTH) if model.is_causal else ())]

    function = tiny.compiled(build, placement, ("batch sequence", TOKENS_BS))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return Compiled(model, function, tiny.values_of(placement.store))


def check_causality(compiled: Compiled, before_BSV: np.ndarray) -> None:
    for position in (0, 5, 15):
        changed_BS = TOKENS_BS.copy()
        changed_BS[:, position] = (changed_BS[:, position] + 1) % compiled.model.n_vocab
        after_BSV = compiled.function(changed_BS)[0]
        np.testing.assert_allclose(after_BSV[:, :position], before_BSV[:, :position], rtol=0, atol=1e-6)
        assert np.abs(after_BSV[:, position] - before_BSV[:, position]).max() > 1e-4


@pytest.mark.parametrize("changes", [*items(TOGETHER), *slow_items(ALONE)])
def test_causal_options(devices: tuple[str, ...], changes: dict[str, object]) -> None:
    model = compiled(changes, devices)
    whole_BSV, *cached_BV = model.function(TOKENS_BS)
    expected = reference.logits(model.model, model.values, TOKENS_BS)
    assert expected.std() > 0.1
    np.testing.assert_allclose(whole_BSV, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.stack(cached_BV, 1), whole_BSV[:, PROMPT_LENGTH - 1 :], rtol=1e-5, atol=1e-5)
    check_causality(model, whole_BSV)


@pytest.mark.slow
@pytest.mark.parametrize("changes", items(TOGETHER))
def test_gradients_along_random_directions(devices: tuple[str, ...], changes: dict[str, object]) -> None:
    config = tiny.run_config(model=changes | {"lora_dropout": 0.0})
    updated = tiny.one_update(config, devices)
    values = {name: value.astype(np.float64) for name, value in updated.before.items() if "/adam_" not in name}
    generator, size = np.random.default_rng(0), 1e-6
    for name in [name for name in values if f"{name}/adam_m" in updated.after]:
        value = values[name]
        direction = generator.normal(size=value.shape)
        ends = [values | {name: value + sign * size * direction} for sign in (1, -1)]
        above, below = (reference.training_loss(config.model, end, *tiny.batch()) for end in ends)
        slope, gradient = (above - below) / (2 * size), updated.gradient(name)
        assert abs((gradient * direction).sum() - slope) < 2e-5 * max(1.0, np.linalg.norm(gradient)), name


@pytest.mark.parametrize("changes", [*items({"linear": MASKED["linear"]}), *slow_items(MASKED)])
def test_bidirectional_options(devices: tuple[str, ...], changes: dict[str, object]) -> None:
    model = compiled({"mlm_training": True, **changes}, devices)
    (logits_BSV,) = model.function(TOKENS_BS)
    expected = reference.logits(model.model, model.values, TOKENS_BS)
    np.testing.assert_allclose(logits_BSV, expected, rtol=1e-5, atol=1e-5)
    changed_BS = TOKENS_BS.copy()
    changed_BS[:, 15] = (changed_BS[:, 15] + 1) % model.model.n_vocab
    seen_by_all = "linear" in model.model.attention_types or "global" in model.model.attention_types
    assert seen_by_all and np.abs(model.function(changed_BS)[0] - logits_BSV).max((0, 2)).min() > 1e-5


def test_a_bidirectional_local_layer_sees_its_radius_on_both_sides(devices: tuple[str, ...]) -> None:
    changes = {"mlm_training": True, "n_layer": 1, "attention_types": ("local",), "local_attention_radius": 4}
    model = compiled(changes, devices)
    changed_BS = TOKENS_BS.copy()
    changed_BS[:, 8] = (changed_BS[:, 8] + 1) % model.model.n_vocab
    differs = (model.function(changed_BS)[0] != model.function(TOKENS_BS)[0]).any((0, 2))
    assert np.flatnonzero(differs).tolist() == list(range(5, 12))
