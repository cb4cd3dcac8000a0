"""Converts Hugging Face's config.json of GPT-Neo and GPT-2 to the keys of a model config, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import ConfigError, ValueIssue
from configs.kinds import ATTENTION, Kind
from configs.reader import raise_issues, shown
from configs.schema import RANKING, ModelConfig, keys_of


@dataclass(frozen=True)
class Family:
    """One of Hugging Face's architectures, and the names that its config.json uses.

    Attributes:
        architecture: the class with the output layer of a language model.
        bare: the class without an output layer, which is tied to the token embedding anyway.
        ranker: the class with a linear layer that scores a text.
        sizes: our key for each of its sizes.
        width: its key for the feed-forward width; null means four times the width of the model.
        dropouts: our key for each of its dropouts.
    """

    model_type: str
    architecture: str
    bare: str
    ranker: str
    sizes: Mapping[str, str]
    width: str
    dropouts: Mapping[str, str]


GPT_NEO = Family(
    "gpt_neo",
    "GPTNeoForCausalLM",
    "GPTNeoModel",
    "GPTNeoForSequenceClassification",
    {
        "hidden_size": "n_embd",
        "num_heads": "n_head",
        "num_layers": "n_layer",
        "max_position_embeddings": "n_ctx",
        "vocab_size": "n_vocab",
    },
    "intermediate_size",
    {"embed_dropout": "embed_dropout", "resid_dropout": "res_dropout", "attention_dropout": "attn_dropout"},
)
GPT_2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GPT2ForSequenceClassification",
    {"n_embd": "n_embd", "n_head": "n_head", "n_layer": "n_layer", "n_positions": "n_ctx", "vocab_size": "n_vocab"},
    "n_inner",
    {"embd_pdrop": "embed_dropout", "resid_pdrop": "res_dropout", "attn_pdrop": "attn_dropout"},
)
FAMILIES = {family.model_type: family for family in (GPT_NEO, GPT_2)}

# Their "gelu" is absent, since it is exact and ours is the tanh approximation. Of several names, the first is written.
ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "mish": "mish",
    "linear": "id",
}
# Keys that must have these values, which are also their defaults.
FIXED = {
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
# Options that neither of the architectures has.
OURS_ALONE = (
    "rotary_emb",
    "axial_pos_emb",
    "num_mem_kv",
    "mlp_glu",
    "macaron",
    "scalenorm",
    "rezero",
    "share_parameters",
    "no_weight_tie",
    "moe_layers",
    "mlm_training",
)
DEFAULT_RADIUS = 256
MODEL_KEYS = keys_of(ModelConfig)
WITHOUT = "give weights trained without it"
AGAIN = "copy the file again"


def is_huggingface(config: Mapping[str, Any]) -> bool:
    """Returns whether a config.json is one of Hugging Face's; those of 2019 have no model_type."""
    return "model_type" in config or "vocab_size" in config


def family_of(hf_config: Mapping[str, Any], file: str) -> Family:
    """Returns the architecture of a config.json.

    Raises:
        ConfigError: it is neither GPT-Neo nor GPT-2.
    """
    model_type = hf_config.get("model_type", GPT_2.model_type)
    if model_type not in list(FAMILIES):  # a list, since model_type may be unhashable
        raise ConfigError(
            f"{file}: model_type = {json.dumps(model_type)}: is another architecture; give weights of GPT-Neo "
            "(gpt_neo) or GPT-2 (gpt2)"
        )
    return FAMILIES[model_type]


def model_keys(hf_config: Mapping[str, Any], file: str = "config.json") -> dict[str, Any]:
    """Returns the keys of a model config, with JSON values, that describe the same model.

    Args:
        hf_config: the contents of config.json.
        file: its path, for messages.

    Raises:
        ConfigError: we cannot build the model; one line for each option.
    """
    family = family_of(hf_config, file)
    issues = [*_find_size_issues(hf_config, family), *_find_option_issues(hf_config, family)]
    raise_issues(f"{file}: {issue}" for issue in issues)
    sizes = {ours: hf_config[theirs] for theirs, ours in family.sizes.items()}
    activation = ACTIVATIONS[hf_config.get("activation_function", "gelu_new")]
    absent = {key: _kind(key).write(MODEL_KEYS[key].default) for key in OURS_ALONE}
    ranking = {"objective": RANKING} if hf_config.get("architectures") == [family.ranker] else {}
    return sizes | {"activation_function": activation} | _attention_keys(hf_config, family) | absent | ranking


def _kind(key: str) -> Kind:
    return MODEL_KEYS[key].metadata["kind"]


def _is_understood(value: Any, kind: Kind) -> bool:
    try:
        kind.parse(value)
    except ConfigError:
        return False
    return True


def _find_size_issues(hf_config: Mapping[str, Any], family: Family) -> Iterator[str]:
    has_window = family is GPT_NEO and "window_size" in hf_config
    sizes = dict(family.sizes) | ({"window_size": "local_attention_radius"} if has_window else {})
    for theirs, ours in sizes.items():
        size, kind = hf_config.get(theirs), _kind(ours)
        try:
            kind.parse(size)
        except ValueIssue as issue:
            remedy = issue.remedy.removesuffix(", without quotes")
            yield _lacking(theirs, size, "is not a size", f"{AGAIN}, it must {remedy}")


def _find_option_issues(hf_config: Mapping[str, Any], family: Family) -> Iterator[str]:
    for key, value in FIXED.items():
        given = hf_config.get(key, value)
        if type(given) is not type(value) or given != value:
            yield _lacking(key, given, f"only {json.dumps(value)} is known", WITHOUT)
    yield from _find_width_issues(hf_config, family)
    activation = hf_config.get("activation_function", "gelu_new")
    if activation not in list(ACTIVATIONS):
        yield _lacking("activation_function", activation, f"known are {', '.join(ACTIVATIONS)}", WITHOUT)
    yield from _find_attention_issues(hf_config, family)
    yield from _find_form_issues(hf_config, family)


def _find_width_issues(hf_config: Mapping[str, Any], family: Family) -> Iterator[str]:
    width, embd_key = hf_config.get(family.width), next(iter(family.sizes))
    n_embd = hf_config.get(embd_key)
    if width is not None and _is_understood(n_embd, _kind("n_embd")) and width != 4 * n_embd:
        yield _lacking(family.width, width, f"only four times {embd_key} is known", WITHOUT)


def _find_attention_issues(hf_config: Mapping[str, Any], family: Family) -> Iterator[str]:
    if family is GPT_NEO:
        yield from _find_layer_issues(hf_config)
    elif not isinstance(hf_config.get("scale_attn_weights", True), bool):
        yield _lacking("scale_attn_weights", hf_config["scale_attn_weights"], "is not true or false", AGAIN)


def _find_layer_issues(hf_config: Mapping[str, Any]) -> Iterator[str]:
    """Yields issues of the attention of GPT-Neo's layers, which its config may give twice."""
    attention_types = hf_config.get("attention_types")
    layers = list(ATTENTION.parse(attention_types)) if _is_understood(attention_types, ATTENTION) else ["unknown"]
    if not {"global", "local"}.issuperset(layers):
        problem = 'is not a list of [pattern, repeats], such as [[["global", "local"], 12]]'
        yield _lacking("attention_types", attention_types, problem, AGAIN)
        return
    if len(layers) != hf_config.get("num_layers"):
        problem = f"expands to {len(layers)} layers, not to num_layers"
        yield _lacking("attention_types", attention_types, problem, AGAIN)
    named = hf_config.get("attention_layers")
    if named is not None and named != layers:
        yield _lacking("attention_layers", named, "is not what attention_types expands to", AGAIN)


def _find_form_issues(hf_config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Yields issues of quantized weights, and of models without a language-model head."""
    quantization = hf_config.get("quantization_config")
    if quantization is not None:
        remedy = "give the weights from before they were quantized"
        yield _lacking("quantization_config", quantization, "only plain numbers are known as weights", remedy)
    architectures = hf_config.get("architectures")
    known = [family.architecture, family.bare, family.ranker]
    if architectures is not None and not _holds_only(architectures, known):
        remedy = "give weights of a language model or a ranker"
        yield _lacking("architectures", architectures, f"known are {', '.join(known)}", remedy)


def _holds_only(names: Any, known: Sequence[str]) -> bool:
    return isinstance(names, list) and all(name in known for name in names)


def _lacking(key: str, value: Any, problem: str, remedy: str) -> str:
    return f"{key} = {shown(value)}: {problem}; {remedy}"


def _attention_keys(hf_config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    if family is GPT_2:
        attention_types = [[["global"], hf_config["n_layer"]]]
        scales = hf_config.get("scale_attn_weights", True)
        return {"attention_types": attention_types, "qkv_bias": True, "scale_attn_weights": scales}
    keys = {"attention_types": hf_config["attention_types"], "qkv_bias": False, "scale_attn_weights": False}
    if "local" in ATTENTION.parse(hf_config["attention_types"]):
        keys["local_attention_radius"] = hf_config.get("window_size", DEFAULT_RADIUS)
    return keys


def family_for(model: ModelConfig) -> Family:
    """Returns the architecture that a model is exported as: GPT-2 has biases and scaled logits, GPT-Neo neither."""
    return GPT_2 if model.qkv_bias or model.scale_attn_weights else GPT_NEO


def huggingface_config(model: ModelConfig, eos_id: int) -> dict[str, Any]:
    """Returns the config.json with which Hugging Face's class computes the same model.

    Args:
        model: the settings of the model.
        eos_id: the id that ends a document, and begins one.

    Raises:
        ConfigError: the architecture lacks options of the model; one line an option.
    """
    family = family_for(model)
    raise_issues(_find_misfits(model, family))
    theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    # A ranker of theirs reads the score at the last token that is no padding; the end of text ends no text to rank.
    ranking = {"id2label": {"0": "score"}, "label2id": {"score": 0}, "pad_token_id": eos_id} if model.ranks else {}
    return {
        "model_type": family.model_type,
        "architectures": [family.ranker if model.ranks else family.architecture],
        **ranking,
        **{key: getattr(model, ours) for key, ours in (family.sizes | family.dropouts).items()},
        **_attention_options(model, family),
        "activation_function": theirs[model.activation_function],
        "layer_norm_epsilon": FIXED["layer_norm_epsilon"],
        "tie_word_embeddings": FIXED["tie_word_embeddings"],
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
    }


def _attention_options(model: ModelConfig, family: Family) -> dict[str, Any]:
    if family is GPT_2 and model.scale_attn_weights:
        return {"scale_attn_weights": True}
    if family is GPT_2:
        # transformers 4 scales anyway unless attention is "eager"; transformers 5 never does.
        return {"scale_attn_weights": False, "_attn_implementation": "eager"}
    return {
        "attention_types": ATTENTION.write(model.attention_types),
        "attention_layers": list(model.attention_types),
        "window_size": model.local_attention_radius,
    }


def _find_misfits(model: ModelConfig, family: Family) -> Iterator[str]:
    remedy = f"{family.architecture} lacks it; export a SavedModel, or train without it"
    fitting = {"global"} if family is GPT_2 else {"global", "local"}
    if not fitting.issuperset(model.attention_types):
        others = sorted(set(model.attention_types) - fitting)
        yield f"attention_types = {', '.join(others)}: {remedy}"
    if model.activation_function not in ACTIVATIONS.values():
        yield f"activation_function = {model.activation_function}: {remedy}"
    for key in OURS_ALONE:
        if getattr(model, key):
            yield f"{key} = {json.dumps(getattr(model, key))}: {remedy}"
