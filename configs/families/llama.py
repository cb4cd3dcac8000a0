"""Llama, and the families that share its block: Mistral, Qwen 2 and Qwen 3.

Source: Touvron et al. 2023, LLaMA; Jiang et al. 2023, Mistral 7B; Yang et al. 2024, Qwen2; Yang et al. 2025, Qwen3;
transformers' `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py` and `modeling_qwen3.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.families import rules, tensors, windows
from configs.families.family import Family, Keys, Rule
from configs.families.rotary import rotary
from configs.families.tensors import Tensor

BLOCK = rules.implied(norm="rmsnorm", gated_mlp=True, scale_attn_weights=True, head_bias=False)


def common_rules(
    epsilon: float = 1e-6, tied: bool = False, activation: tuple[str, str] = ("hidden_act", "silu")
) -> Sequence[Rule]:
    """Returns the rules of Llama's block: sizes, norms, rotary positions and the output layer."""
    return (
        *rules.llama_sizes(),
        rules.width("intermediate_size"),
        rules.dropouts({"attention_dropout": "attn_dropout"}),
        rules.number("rms_norm_eps", "norm_epsilon", epsilon),
        rules.tied_output(default=tied),
        rules.activation(*activation),
        rotary(),
        *rules.DECODER_ALONE,
        BLOCK,
    )


def _tensors(keys: Keys) -> list[Tensor]:
    found = tensors.tables("embed_tokens")
    for layer in range(keys["n_layer"]):
        theirs, ours = f"layers.{layer}", f"h{layer}"
        found += tensors.rms_norm(f"{theirs}.input_layernorm", f"{ours}/norm_1")
        found += tensors.projections(f"{theirs}.self_attn", f"{ours}/attn", keys)
        found += tensors.query_key_norms(f"{theirs}.self_attn", f"{ours}/attn", keys)
        found += tensors.rms_norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm_2")
        found += tensors.gated_mlp(f"{theirs}.mlp", f"{ours}/mlp", keys)
    return [*found, *tensors.rms_norm("norm", "ln_f"), *tensors.output_layer("lm_head", keys)]


def _family(model_type: str, title: str, name: str, own: Sequence[Rule], *attention: str) -> Family:
    return Family(
        model_type=model_type,
        title=title,
        architecture=f"{name}ForCausalLM",
        bare="",
        ranker="",
        rules=(*common_rules(), *own),
        tensors=_tensors,
        prefix="model.",
        attention=frozenset({"global", *attention}),
    )


LLAMA = _family(
    "llama",
    "Llama",
    "Llama",
    (
        rules.key_heads(default=None),
        rules.head_size(default=None),
        rules.flag("attention_bias", "qkv_bias", "attn_output_bias", default=False),
        rules.flag("mlp_bias", "mlp_bias", default=False),
        rules.fixed("rope_interleaved", False),
        rules.inert("is_llama_config"),
        windows.no_window(),
    ),
)
MISTRAL = _family(
    "mistral",
    "Mistral",
    "Mistral",
    (
        rules.key_heads(default=8),
        rules.head_size(default=None),
        rules.implied(qkv_bias=False, attn_output_bias=False, mlp_bias=False),
        windows.one_window(),
    ),
    "local",
)
QWEN_2 = _family(
    "qwen2",
    "Qwen 2",
    "Qwen2",
    (
        rules.key_heads(default=32),
        rules.head_size(default=None),
        rules.implied(qkv_bias=True, attn_output_bias=False, mlp_bias=False),
        windows.windows_by_layer(windows.from_some_layer, has_switch=True),
        rules.fixed("use_mrope", False),
        rules.inert("max_window_layers"),
    ),
    "local",
)
QWEN_3 = _family(
    "qwen3",
    "Qwen 3",
    "Qwen3",
    (
        rules.key_heads(default=32),
        rules.head_size(default=128),
        rules.flag("attention_bias", "qkv_bias", "attn_output_bias", default=False),
        rules.implied(mlp_bias=False, qk_norm="head"),
        windows.windows_by_layer(windows.from_some_layer, has_switch=True),
        rules.inert("max_window_layers"),
    ),
    "local",
)
