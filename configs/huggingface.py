"""Converts Hugging Face's config.json to the keys of a model config and back, by the table of families."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from configs.errors import ConfigError
from configs.families.family import Family, Keys, MisreadError
from configs.families.gpt2 import GPT_2
from configs.families.rules import INERT, MODEL_KEYS, PLAIN_WEIGHTS, kind_of
from configs.families.table import FAMILIES
from configs.reader import raise_issues, shown
from configs.schema import FREE_KEYS, RANKING, ModelConfig, is_required

# Keys of ours that act only with an option that no family has, or, the last one, with one that its rule tells.
IDLE_KEYS = ("linear_attention_normalization", "none_doubles_residual", "moe_activation", "local_attention_radius")
COMPARED_KEYS = tuple(key for key in MODEL_KEYS if key not in {*FREE_KEYS, *IDLE_KEYS})
# Keys that say nothing of their own where another one differs.
DEPENDENT_KEYS = {
    "local_attention_radius": "attention_types",
    "rotary_base": "rotary_emb",
    "rotary_dim": "rotary_emb",
    "rotary_style": "rotary_emb",
    "rotary_scaling": "rotary_emb",
    "final_norm": "no_weight_tie",
    "head_bias": "no_weight_tie",
}
# What keys come to that may leave a setting to others.
EFFECTIVE: Mapping[str, Callable[[ModelConfig], Any]] = {
    "n_kv_head": lambda model: model.kv_heads,
    "head_dim": lambda model: model.features_per_head,
    "n_inner": lambda model: model.feed_forward_width,
    "rotary_dim": lambda model: model.rotated_features if model.rotary_emb else None,
    "final_norm": lambda model: model.has_final_norm,
    "head_bias": lambda model: model.has_head_bias,
}


def is_huggingface(config: Mapping[str, Any]) -> bool:
    """Returns whether a config.json is one of Hugging Face's; those of 2019 have no model_type."""
    return "model_type" in config or "vocab_size" in config


def family_of(hf_config: Mapping[str, Any], file: str) -> Family:
    """Returns the architecture of a config.json.

    Raises:
        ConfigError: no family of the table has it.
    """
    model_type = hf_config.get("model_type", GPT_2.model_type)
    if model_type not in list(FAMILIES):  # a list, since model_type may be unhashable
        *others, last = (f"{family.title} ({name})" for name, family in FAMILIES.items())
        raise ConfigError(
            f"{file}: model_type = {shown(model_type)}: is another architecture; give weights of {', '.join(others)} "
            f"or {last}"
        )
    return FAMILIES[model_type]


def model_keys(hf_config: Mapping[str, Any], file: str = "config.json") -> dict[str, Any]:
    """Returns the keys of a model config, with JSON values, that describe the same model.

    Args:
        hf_config: the contents of config.json.
        file: its path, for messages.

    Raises:
        ConfigError: we cannot build the model, or a key is not understood; one line for each option.
    """
    family = family_of(hf_config, file)
    keys, issues = _read(family, hf_config)
    issues += [*_find_form_issues(hf_config, family), *_find_unknown(hf_config, family)]
    raise_issues(f"{file}: {_told(issue)}" for issue in issues)
    ranking = {"objective": RANKING} if _is_ranker(hf_config, family) else {}
    return _defaults() | keys | ranking


def _defaults() -> dict[str, Any]:
    """Returns what a model has of our options that no rule of its family names."""
    fields = {key: MODEL_KEYS[key] for key in COMPARED_KEYS}
    return {
        key: kind_of(key).write(field.default)
        for key, field in fields.items()
        if not is_required(field) and not field.metadata["default_text"]
    }


def _read(family: Family, hf_config: Keys) -> tuple[dict[str, Any], list[MisreadError]]:
    keys: dict[str, Any] = {}
    issues = []
    for rule in family.rules:
        try:
            keys |= rule.read(hf_config)
        except MisreadError as issue:
            issues.append(issue)
    return keys, issues


def _is_ranker(hf_config: Keys, family: Family) -> bool:
    return bool(family.ranker) and hf_config.get("architectures") == [family.ranker]


def _find_form_issues(hf_config: Keys, family: Family) -> Iterator[MisreadError]:
    """Yields issues of quantized weights, and of models without a language-model head."""
    try:
        PLAIN_WEIGHTS.read(hf_config)
    except MisreadError as issue:
        yield issue
    architectures = hf_config.get("architectures")
    known = [name for name in (family.architecture, family.bare, family.ranker) if name]
    if architectures is not None and not _holds_only(architectures, known):
        remedy = "give weights of a language model or a ranker" if family.ranker else "give weights of a language model"
        yield MisreadError("architectures", architectures, f"known are {', '.join(known)}", remedy)


def _holds_only(names: Any, known: Sequence[str]) -> bool:
    return isinstance(names, list) and all(name in known for name in names)


def _find_unknown(hf_config: Keys, family: Family) -> Iterator[MisreadError]:
    """Yields what no rule reads: it may change the numbers of the model."""
    known = INERT.union(PLAIN_WEIGHTS.keys, *(rule.keys for rule in family.rules))
    for key, value in hf_config.items():
        if key not in known:
            problem = f"is not known of {family.title}, and may change what the model computes"
            yield MisreadError(key, value, problem, "remove the key if it does not, or give other weights")


def _told(issue: MisreadError) -> str:
    return f"{issue.key} = {shown(issue.value)}: {issue.problem}; {issue.remedy}"


def family_for(model: ModelConfig) -> Family:
    """Returns the architecture that a model is exported as: the one that lacks least of it, and adds least to it."""

    def distance(family: Family) -> float:
        lacking = _differing_keys(model, family)
        return len(lacking) - 0.5 * len(family.tolerated.intersection(lacking))

    return min(FAMILIES.values(), key=distance)


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
    # A ranker of theirs reads the score at the last token that is no padding; the end of text ends no text to rank.
    ranking = {"id2label": {"0": "score"}, "label2id": {"score": 0}, "pad_token_id": eos_id} if model.ranks else {}
    return {
        "model_type": family.model_type,
        "architectures": [family.ranker if model.ranks else family.architecture],
        **ranking,
        **_write(family, model),
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
    }


def _write(family: Family, model: ModelConfig) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for rule in family.rules:
        written |= rule.write(model)
    return written


def _differing_keys(model: ModelConfig, family: Family) -> list[str]:
    """Returns our keys that a config.json of the family cannot say: those that change when it is read back."""
    keys, _ = _read(family, _write(family, model))
    values = {key: kind_of(key).parse(value) for key, value in (_defaults() | keys).items()}
    back = ModelConfig(**values)
    differing = {key for key in (*COMPARED_KEYS, *DEPENDENT_KEYS) if not _is_same(key, model, back)}
    if model.ranks and not family.ranker:
        differing.add("objective")
    idle = {key for key, other in DEPENDENT_KEYS.items() if other in differing}
    if "local" not in model.attention_types:
        idle.add("local_attention_radius")
    return [key for key in MODEL_KEYS if key in differing - idle]


def _is_same(key: str, model: ModelConfig, back: ModelConfig) -> bool:
    if key in ("scale_attn_weights", "attention_scale"):  # two ways to say one scale
        is_said_so = (key == "attention_scale") == (model.attention_scale is not None)
        return not is_said_so or math.isclose(model.logit_scale, back.logit_scale, rel_tol=1e-9)
    return _effective(key, model) == _effective(key, back)


def _effective(key: str, model: ModelConfig) -> Any:
    """Returns what a setting comes to, also where it is left to others."""
    return EFFECTIVE[key](model) if key in EFFECTIVE else getattr(model, key)


def _find_misfits(model: ModelConfig, family: Family) -> Iterator[str]:
    remedy = f"{family.architecture} lacks it; export a SavedModel, or train without it"
    for key in _differing_keys(model, family):
        if key not in family.tolerated:
            yield f"{key} = {_shown_setting(model, key, family)}: {remedy}"


def _shown_setting(model: ModelConfig, key: str, family: Family) -> str:
    others = sorted(set(model.attention_types) - family.attention)
    if key == "attention_types" and others:
        return ", ".join(others)
    value = EFFECTIVE[key](model) if key in EFFECTIVE else kind_of(key).write(getattr(model, key))
    return value if key == "activation_function" else json.dumps(value)
