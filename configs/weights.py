"""What the config.json beside weights says of their model: one of ours, of GPT-Neo's, or of Hugging Face's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from configs.errors import ConfigError, ValueIssue
from configs.huggingface import is_huggingface, model_keys
from configs.kinds import ATTENTION
from configs.schema import ALIASES, ModelConfig, is_required, keys_of

CONFIG_FILE = "config.json"
# Every config.json that a run writes has this key, and none of GPT-Neo's, which did not know it.
KEY_OF_OURS = "temperature"
# Keys of the model that weights may be trained on with another value of.
FREE_KEYS = (
    "embed_dropout",
    "res_dropout",
    "attn_dropout",
    "scale_by_depth",
    "scale_by_in",
    "precision",
    "recompute_grad",
    "z_loss",
    "entmax_loss",
    "moe_params",
)


def config_beside(path: str) -> str:
    """Returns where the config.json of weights would lie, for a folder or the prefix of a checkpoint's path."""
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path), CONFIG_FILE)


def initial_model_keys(path: str) -> dict[str, Any]:
    """Returns the keys of a model config, with JSON values, that the weights were trained with; none if unknown.

    Args:
        path: a folder, or the prefix of a checkpoint's path; what lies in a bucket is not asked.

    Raises:
        ConfigError: the config.json cannot be read, or describes a model that cannot be one of ours.
    """
    file = config_beside(path)
    if "://" in path or not os.path.isfile(file):
        return {}
    config = read_config(file)
    return model_keys(config, file) if is_huggingface(config) else _flat_keys(config)


def read_config(file: str) -> dict[str, Any]:
    """Returns what a config.json holds.

    Raises:
        ConfigError: it cannot be read, or is no JSON object.
    """
    try:
        with open(file, encoding="utf-8-sig") as opened:
            config = json.load(opened)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} -- cannot be read ({error}) -- copy the file again") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file} -- holds no JSON object -- copy the file again")
    return config


def _flat_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that make the model of a config of ours or of GPT-Neo's.

    A key that is absent had its default. One that cannot be understood is left out: GPT-Neo took anything.
    """
    given = {ALIASES.get(key, key): value for key, value in config.items()} | _as_gpt_neo_read(config)
    keys = {}
    for key, field in keys_of(ModelConfig).items():
        kind = field.metadata["kind"]
        has_no_default = is_required(field) or field.metadata["default_text"]
        if key in FREE_KEYS or (key not in given and has_no_default):
            continue
        value = given[key] if key in given else kind.write(field.default)
        if _is_understood(kind.parse, value):
            keys[key] = value
    return _without_idle(keys)


def _as_gpt_neo_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what GPT-Neo made of its own keys where that is not what they say; nothing for a config of ours.

    Source: GPT-Neo, which read `activation_fn` only, though its configs and README say `activation_function`, and took
    any `rotary_emb` but null for true.
    """
    if KEY_OF_OURS in config:
        return {}
    activation = config.get("activation_fn") or "gelu"
    return {"activation_function": activation, "rotary_emb": config.get("rotary_emb") is not None}


def _is_understood(parse: Any, value: Any) -> bool:
    try:
        parse(value)
    except ValueIssue:
        return False
    return True


def _without_idle(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys without those that nothing in the model reads."""
    idle = set() if keys.get("moe_layers") else {"moe_activation"}
    if "local" not in ATTENTION.parse(keys.get("attention_types") or [[["global"], 1]]):
        idle.add("local_attention_radius")
    return {key: value for key, value in keys.items() if key not in idle}
