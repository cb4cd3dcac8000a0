"""Gemma 2: norms before and after, gains of 1 + g, soft-capping, and a window in every second layer.

Source: Gemma Team 2024, Gemma 2; transformers' `modeling_gemma2.py`.
"""

from __future__ import annotations

import math

from configs.families import rules, tensors, windows
from configs.families.family import Family, Keys, Rule
from configs.families.llama import common_rules
from configs.families.tensors import Tensor
from configs.kinds import POSITIVE
from configs.schema import ModelConfig


def _read_scales(hf_config: Keys) -> Keys:
    """Returns the scale of attention, and that of embeddings, which is the square root of their width."""
    scalar = rules.understood("query_pre_attn_scalar", hf_config.get("query_pre_attn_scalar", 256), POSITIVE)
    width = hf_config.get("hidden_size")
    known = rules.is_understood(width, rules.kind_of("n_embd"))
    scale = {"attention_scale": scalar**-0.5, "scale_attn_weights": False}
    return {**scale, **({"embedding_scale": math.sqrt(width)} if known else {})}


def _write_scales(model: ModelConfig) -> Keys:
    return {"query_pre_attn_scalar": round(model.logit_scale**-2)}


def _tensors(keys: Keys) -> list[Tensor]:
    found = tensors.tables("embed_tokens")
    for layer in range(keys["n_layer"]):
        theirs, ours = f"layers.{layer}", f"h{layer}"
        found += tensors.rms_norm(f"{theirs}.input_layernorm", f"{ours}/norm_1")
        found += tensors.projections(f"{theirs}.self_attn", f"{ours}/attn", keys)
        found += tensors.rms_norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm_1_post")
        found += tensors.rms_norm(f"{theirs}.pre_feedforward_layernorm", f"{ours}/norm_2")
        found += tensors.gated_mlp(f"{theirs}.mlp", f"{ours}/mlp", keys)
        found += tensors.rms_norm(f"{theirs}.post_feedforward_layernorm", f"{ours}/norm_2_post")
    return [*found, *tensors.rms_norm("norm", "ln_f"), *tensors.output_layer("lm_head", keys)]


GEMMA_2 = Family(
    model_type="gemma2",
    title="Gemma 2",
    architecture="Gemma2ForCausalLM",
    bare="",
    ranker="",
    rules=(
        *common_rules(tied=True, activation=("hidden_activation", "gelu_pytorch_tanh")),
        rules.key_heads(default=4),
        rules.head_size(default=256),
        Rule(("query_pre_attn_scalar",), _read_scales, _write_scales),
        rules.number("attn_logit_softcapping", "attention_softcap", 50.0),
        rules.number("final_logit_softcapping", "logit_softcap", 30.0),
        rules.flag("attention_bias", "qkv_bias", "attn_output_bias", default=False),
        rules.implied(mlp_bias=False, norm_placement="both", norm_unit_offset=True),
        windows.windows_by_layer(windows.alternating),
        rules.fixed("use_bidirectional_attention", None),
        rules.inert("hidden_act", "sliding_window_size", "cache_implementation"),
    ),
    tensors=_tensors,
    prefix="model.",
    attention=frozenset({"global", "local"}),
)
