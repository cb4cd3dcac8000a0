"""GPT-2.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners; transformers'
`modeling_gpt2.py` for names.
"""

from __future__ import annotations

from configs.families import rules, tensors, windows
from configs.families.family import Family, Keys, MisreadError, Rule
from configs.families.tensors import Tensor
from configs.schema import RANKING, ModelConfig


def _read_scaling(hf_config: Keys) -> Keys:
    scales = hf_config.get("scale_attn_weights", True)
    if not isinstance(scales, bool):
        raise MisreadError("scale_attn_weights", scales, "is not true or false", rules.AGAIN)
    return {"scale_attn_weights": scales}


def _write_scaling(model: ModelConfig) -> Keys:
    if model.scale_attn_weights:
        return {"scale_attn_weights": True}
    # transformers 4 scales anyway unless attention is "eager"; transformers 5 never does.
    return {"scale_attn_weights": False, "_attn_implementation": "eager"}


def _attention(theirs: str, ours: str) -> list[Tensor]:
    return [
        Tensor(f"{theirs}.c_attn.weight", tuple(f"{ours}/{name}" for name in "qkv"), "EE"),
        Tensor(f"{theirs}.c_attn.bias", tuple(f"{ours}/{name}_bias" for name in "qkv"), "E"),
        *tensors.linear(f"{theirs}.c_proj", f"{ours}/o", f"{ours}/compute_output_bias/o_b", "EE", is_transposed=False),
    ]


def _tensors(keys: Keys) -> list[Tensor]:
    found = tensors.tables("wte", "wpe")
    for layer in range(keys["n_layer"]):
        theirs, ours = f"h.{layer}", f"h{layer}"
        found += tensors.norm(f"{theirs}.ln_1", f"{ours}/norm_1") + _attention(f"{theirs}.attn", f"{ours}/attn")
        found += tensors.norm(f"{theirs}.ln_2", f"{ours}/norm_2")
        mlp = f"{theirs}.mlp"
        found += tensors.feed_forward(f"{mlp}.c_fc", f"{mlp}.c_proj", f"{ours}/mlp", is_transposed=False)
    return [*found, *tensors.norm("ln_f", "ln_f"), *tensors.heads(keys.get("objective") == RANKING)]


GPT_2 = Family(
    model_type="gpt2",
    title="GPT-2",
    architecture="GPT2LMHeadModel",
    bare="GPT2Model",
    ranker="GPT2ForSequenceClassification",
    rules=(
        *rules.sizes(
            {
                "n_embd": "n_embd",
                "n_head": "n_head",
                "n_layer": "n_layer",
                "n_positions": "n_ctx",
                "vocab_size": "n_vocab",
            }
        ),
        rules.dropouts({"embd_pdrop": "embed_dropout", "resid_pdrop": "res_dropout", "attn_pdrop": "attn_dropout"}),
        rules.number("layer_norm_epsilon", "norm_epsilon", 1e-5),
        rules.fixed("tie_word_embeddings", True, is_written=True),
        rules.fixed("scale_attn_by_inverse_layer_idx", False),
        rules.fixed("reorder_and_upcast_attn", False),
        *rules.DECODER_ALONE,
        rules.width("n_inner", is_nullable=True),
        rules.activation("activation_function", "gelu_new"),
        Rule(("scale_attn_weights",), _read_scaling, _write_scaling),
        windows.no_window(),
        rules.implied(qkv_bias=True),
        rules.inert("n_ctx", "n_special", "predict_special_tokens", "output_past", "summary_type", "summary_use_proj"),
        rules.inert("summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    ),
    tensors=_tensors,
    prefix="transformer.",
    tolerated=frozenset({"qkv_bias"}),
)
