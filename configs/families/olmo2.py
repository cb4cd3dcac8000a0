"""OLMo 2: RMSNorms after attention and after the feed-forward layer, and over all queries and all keys.

Source: Team OLMo 2024, 2 OLMo 2 Furious; transformers' `modeling_olmo2.py`.
"""

from __future__ import annotations

from configs.families import rules, tensors, windows
from configs.families.family import Family, Keys
from configs.families.llama import common_rules
from configs.families.tensors import Tensor


def _tensors(keys: Keys) -> list[Tensor]:
    found = tensors.tables("embed_tokens")
    for layer in range(keys["n_layer"]):
        theirs, ours = f"layers.{layer}", f"h{layer}"
        found += tensors.projections(f"{theirs}.self_attn", f"{ours}/attn", keys)
        found += tensors.query_key_norms(f"{theirs}.self_attn", f"{ours}/attn", keys)
        found += tensors.rms_norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm_1_post")
        found += tensors.gated_mlp(f"{theirs}.mlp", f"{ours}/mlp", keys)
        found += tensors.rms_norm(f"{theirs}.post_feedforward_layernorm", f"{ours}/norm_2_post")
    return [*found, *tensors.rms_norm("norm", "ln_f"), *tensors.output_layer("lm_head", keys)]


OLMO_2 = Family(
    model_type="olmo2",
    title="OLMo 2",
    architecture="Olmo2ForCausalLM",
    bare="",
    ranker="",
    rules=(
        *common_rules(epsilon=1e-5),
        rules.key_heads(default=None),
        rules.flag("attention_bias", "qkv_bias", "attn_output_bias", default=False),
        rules.implied(mlp_bias=False, qk_norm="projection", norm_placement="after"),
        windows.no_window(),
    ),
    tensors=_tensors,
    prefix="model.",
)
