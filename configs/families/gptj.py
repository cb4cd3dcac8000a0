"""GPT-J.

Source: Wang and Komatsuzaki 2021, GPT-J-6B; transformers' `modeling_gptj.py`.
"""

from __future__ import annotations

from configs.families import rules, tensors, windows
from configs.families.family import Family, Keys, Rule
from configs.families.tensors import Tensor
from configs.schema import ModelConfig


def _read_rotary(hf_config: Keys) -> Keys:
    return {"rotary_emb": True, **rules.size("rotary_dim", "rotary_dim").read(hf_config)}


def _write_rotary(model: ModelConfig) -> Keys:
    return {"rotary_dim": model.rotary_dim or model.features_per_head}


def _tensors(keys: Keys) -> list[Tensor]:
    found = tensors.tables("wte")
    for layer in range(keys["n_layer"]):
        theirs, ours = f"h.{layer}", f"h{layer}"
        found += tensors.norm(f"{theirs}.ln_1", f"{ours}/norm_1")
        found += tensors.projections(f"{theirs}.attn", f"{ours}/attn", keys, "out_proj")
        found += tensors.feed_forward(f"{theirs}.mlp.fc_in", f"{theirs}.mlp.fc_out", f"{ours}/mlp")
    return [*found, *tensors.norm("ln_f", "ln_f"), *tensors.output_layer("lm_head", keys)]


GPT_J = Family(
    model_type="gptj",
    title="GPT-J",
    architecture="GPTJForCausalLM",
    bare="",
    ranker="",
    rules=(
        *rules.sizes({"n_embd": "n_embd", "n_head": "n_head", "n_layer": "n_layer", "n_positions": "n_ctx"}),
        *rules.sizes({"vocab_size": "n_vocab"}),
        rules.width("n_inner", is_nullable=True),
        rules.dropouts({"embd_pdrop": "embed_dropout", "resid_pdrop": "res_dropout", "attn_pdrop": "attn_dropout"}),
        rules.number("layer_norm_epsilon", "norm_epsilon", 1e-5),
        rules.tied_output(default=False),
        rules.activation("activation_function", "gelu_new"),
        windows.no_window(),
        Rule(("rotary_dim",), _read_rotary, _write_rotary),
        rules.implied(rotary_style="interleaved", parallel_residual="one_norm", scale_attn_weights=True),
        rules.implied(attn_output_bias=False, head_bias=True),
        *rules.DECODER_ALONE,
        rules.inert("n_ctx", "rotary", "scale_attn_weights", "summary_type", "summary_use_proj", "summary_activation"),
        rules.inert("summary_proj_to_labels", "summary_first_dropout"),
    ),
    tensors=_tensors,
    prefix="transformer.",
)
