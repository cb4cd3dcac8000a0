"""GPT-Neo.

Source: Black et al. 2021, GPT-Neo; transformers' `modeling_gpt_neo.py` for names.
"""

from __future__ import annotations

from configs.families import rules, tensors
from configs.families.family import Family, Keys, MisreadError, Rule
from configs.families.tensors import Tensor
from configs.kinds import ATTENTION
from configs.schema import RANKING, ModelConfig

WINDOW = rules.size("window_size", "local_attention_radius", default=256)


def _read_window(hf_config: Keys) -> Keys:
    WINDOW.read(hf_config)  # also where no layer uses it
    is_used = "local" in _layers(hf_config)
    return WINDOW.read(hf_config) if is_used else {}


def _layers(hf_config: Keys) -> list[str]:
    types = hf_config.get("attention_types")
    return list(ATTENTION.parse(types)) if rules.is_understood(types, ATTENTION) else ["unknown"]


def _read_layers(hf_config: Keys) -> Keys:
    """Returns the attention of the layers, which a config.json may give twice."""
    types, layers, named = hf_config.get("attention_types"), _layers(hf_config), hf_config.get("attention_layers")
    if not {"global", "local"}.issuperset(layers):
        problem = 'is not a list of [pattern, repeats], such as [[["global", "local"], 12]]'
        raise MisreadError("attention_types", types, problem, rules.AGAIN)
    if len(layers) != hf_config.get("num_layers"):
        problem = f"expands to {len(layers)} layers, not to num_layers"
        raise MisreadError("attention_types", types, problem, rules.AGAIN)
    if named is not None and named != layers:
        raise MisreadError("attention_layers", named, "is not what attention_types expands to", rules.AGAIN)
    return {"attention_types": types}


def _write_layers(model: ModelConfig) -> Keys:
    types = ATTENTION.write(model.attention_types)
    return {"attention_types": types, "attention_layers": list(model.attention_types)}


def _attention(theirs: str, ours: str) -> list[Tensor]:
    projections = (tensors.linear(f"{theirs}.{name}_proj", f"{ours}/{name}", "", "EE") for name in "qkv")
    output = tensors.linear(f"{theirs}.out_proj", f"{ours}/o", f"{ours}/compute_output_bias/o_b", "EE")
    return [*(tensor for found in projections for tensor in found), *output]


def _tensors(keys: Keys) -> list[Tensor]:
    found = tensors.tables("wte", "wpe")
    for layer in range(keys["n_layer"]):
        theirs, ours = f"h.{layer}", f"h{layer}"
        found += tensors.norm(f"{theirs}.ln_1", f"{ours}/norm_1")
        found += _attention(f"{theirs}.attn.attention", f"{ours}/attn")
        found += tensors.norm(f"{theirs}.ln_2", f"{ours}/norm_2")
        found += tensors.feed_forward(f"{theirs}.mlp.c_fc", f"{theirs}.mlp.c_proj", f"{ours}/mlp")
    return [*found, *tensors.norm("ln_f", "ln_f"), *tensors.heads(keys.get("objective") == RANKING)]


GPT_NEO = Family(
    model_type="gpt_neo",
    title="GPT-Neo",
    architecture="GPTNeoForCausalLM",
    bare="GPTNeoModel",
    ranker="GPTNeoForSequenceClassification",
    rules=(
        *rules.sizes(
            {
                "hidden_size": "n_embd",
                "num_heads": "n_head",
                "num_layers": "n_layer",
                "max_position_embeddings": "n_ctx",
                "vocab_size": "n_vocab",
            }
        ),
        rules.dropouts(
            {"embed_dropout": "embed_dropout", "resid_dropout": "res_dropout", "attention_dropout": "attn_dropout"}
        ),
        Rule(("window_size",), _read_window, WINDOW.write),
        rules.number("layer_norm_epsilon", "norm_epsilon", 1e-5),
        rules.fixed("tie_word_embeddings", True, is_written=True),
        *rules.DECODER_ALONE,
        rules.width("intermediate_size", is_nullable=True),
        rules.activation("activation_function", "gelu_new"),
        Rule(("attention_types", "attention_layers"), _read_layers, _write_layers),
        rules.inert("classifier_dropout", "summary_type", "summary_use_proj", "summary_activation"),
        rules.inert("summary_proj_to_labels", "summary_first_dropout"),
    ),
    tensors=_tensors,
    prefix="transformer.",
    attention=frozenset({"global", "local"}),
)
