"""GPT-NeoX, and Pythia, which has its block.

Source: Black et al. 2022, GPT-NeoX-20B; Biderman et al. 2023, Pythia; transformers' `modeling_gpt_neox.py`.
"""

from __future__ import annotations

from configs.families import rules, tensors, windows
from configs.families.family import Family, Keys, MisreadError, Rule
from configs.families.rotary import rotary
from configs.families.tensors import Tensor
from configs.schema import ModelConfig


def _read_parallel(hf_config: Keys) -> Keys:
    parallel = hf_config.get("use_parallel_residual", True)
    if not isinstance(parallel, bool):
        raise MisreadError("use_parallel_residual", parallel, "is not true or false", rules.AGAIN)
    return {"parallel_residual": "two_norms" if parallel else "off"}


def _write_parallel(model: ModelConfig) -> Keys:
    return {"use_parallel_residual": model.parallel_residual == "two_norms"}


def _attention(theirs: str, ours: str, keys: Keys) -> list[Tensor]:
    names = tuple(f"{ours}/{name}" for name in "qkv")
    fused = [Tensor(f"{theirs}.query_key_value.weight", names, "EQ", is_transposed=True, is_by_head=True)]
    if keys["qkv_bias"]:
        biases = tuple(f"{name}_bias" for name in names)
        fused.append(Tensor(f"{theirs}.query_key_value.bias", biases, "Q", is_by_head=True))
    bias = f"{ours}/compute_output_bias/o_b" if keys["attn_output_bias"] else ""
    return [*fused, *tensors.linear(f"{theirs}.dense", f"{ours}/o", bias, "QE")]


def _tensors(keys: Keys) -> list[Tensor]:
    found = tensors.tables("embed_in")
    for layer in range(keys["n_layer"]):
        theirs, ours = f"layers.{layer}", f"h{layer}"
        found += tensors.norm(f"{theirs}.input_layernorm", f"{ours}/norm_1")
        found += _attention(f"{theirs}.attention", f"{ours}/attn", keys)
        found += tensors.norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm_2")
        mlp = f"{theirs}.mlp"
        found += tensors.feed_forward(f"{mlp}.dense_h_to_4h", f"{mlp}.dense_4h_to_h", f"{ours}/mlp")
    output = tensors.output_layer("embed_out", keys, "lm_head.weight")  # as version 5 calls it in memory
    return [*found, *tensors.norm("final_layer_norm", "ln_f"), *output]


GPT_NEOX = Family(
    model_type="gpt_neox",
    title="GPT-NeoX and Pythia",
    architecture="GPTNeoXForCausalLM",
    bare="",
    ranker="",
    rules=(
        *rules.llama_sizes(),
        rules.width("intermediate_size"),
        rules.dropouts({"attention_dropout": "attn_dropout", "hidden_dropout": "res_dropout"}),
        rules.number("layer_norm_eps", "norm_epsilon", 1e-5),
        rules.tied_output(default=False),
        rules.activation("hidden_act", "gelu"),
        windows.no_window(),
        rotary(base=("rotary_emb_base",), share=("rotary_pct",), default_share=0.25),
        Rule(("use_parallel_residual",), _read_parallel, _write_parallel),
        rules.flag("attention_bias", "qkv_bias", "attn_output_bias", default=True),
        rules.implied(scale_attn_weights=True, head_bias=False),
        *rules.DECODER_ALONE,
        rules.inert("classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"),
    ),
    tensors=_tensors,
    prefix="gpt_neox.",
)
