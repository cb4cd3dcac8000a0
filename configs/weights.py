"""Reads the model from the config.json beside weights: one of ours, of GPT-Neo's, of Hugging Face's or OpenAI's."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, ConfigError, ValueIssue
from configs.huggingface import is_huggingface, model_keys
from configs.kinds import ATTENTION
from configs.reader import raise_issues, read_object, shown
from configs.schema import ALIASES, RUN_FIELDS, ModelConfig, is_required, keys_of

CONFIG_FILE = "config.json"
HPARAMS_FILE = "hparams.json"  # OpenAI's, beside its GPT-2
# Every config.json of a run has this key, and none of GPT-Neo's has it.
KEY_OF_OURS = "temperature"
# Keys of the model that may change when training continues from weights.
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


FIELDS = keys_of(ModelConfig)
# Keys that GPT-Neo requires, or that change the model without changing the shape of a variable.
SIZES = (*(key for key, field in FIELDS.items() if is_required(field)), "attention_types", "local_attention_radius")
KEYS_OF_A_RUN = {*RUN_FIELDS, *ALIASES, "model"}
PATTERNS = ("checkpoint", CONFIG_FILE, "*.index", "*.index.json", "*.safetensors", "*.bin")
DEPTHS = ("*", "snapshots/*")  # where an archive or a cache of Hugging Face puts a folder of weights
FILE_OF_CHECKPOINT = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")
FILES_OF_HUGGING_FACE = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
# OpenAI's names of sizes, and Hugging Face's.
HPARAMS = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
OTHER_FORMATS = (".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".ggml", ".pt", ".pth", ".ckpt", ".npz")


def weights_at(path: str) -> str:
    """Returns the folder of weights, or the prefix of a checkpoint's path; the path may name one of their files.

    Raises:
        ConfigError: the path is empty.
    """
    if not path:
        raise ConfigError("--init_from: is empty; give a path")
    if os.path.isdir(path):
        return path
    if path.endswith(FILES_OF_HUGGING_FACE) and os.path.isfile(path):
        return os.path.dirname(path) or os.curdir
    return FILE_OF_CHECKPOINT.sub("", path)


def config_beside(path: str) -> str:
    """Returns the path of the config.json, or else the hparams.json, beside a folder or the prefix of a checkpoint."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    config, hparams = (os.path.join(folder, name) for name in (CONFIG_FILE, HPARAMS_FILE))
    return hparams if os.path.isfile(hparams) and not os.path.isfile(config) else config


def no_weights(path: str) -> CheckpointError:
    """Returns the error for a path without weights, with what there is instead."""
    if path.lower().endswith(ARCHIVES) and os.path.isfile(path):
        return CheckpointError(f"{path}: is an archive; unpack it, and give the folder that holds the weights")
    others = [path, *glob.glob(os.path.join(glob.escape(path), "*"))]
    found = sorted(other for other in others if other.lower().endswith(OTHER_FORMATS) and os.path.isfile(other))
    if found:
        return CheckpointError(f"{found[0]}: is of a format that is not read; give the weights as model.safetensors")
    inside = (glob.glob(os.path.join(glob.escape(path), depth, pattern)) for depth in DEPTHS for pattern in PATTERNS)
    folders = sorted({os.path.dirname(file) for files in inside for file in files if "__MACOSX" not in file})
    remedy = "give a checkpoint (its path without .index), the folder of one, or a Hugging Face folder"
    return CheckpointError(f"{path}: holds no weights; {f'did you mean {folders[0]}?' if folders else remedy}")


def _check_there(path: str) -> None:
    """Raises an error if there is neither a file of weights nor a config.json, without opening the weights."""
    if os.path.isdir(path):
        is_there = any(glob.glob(os.path.join(glob.escape(path), pattern)) for pattern in PATTERNS)
    else:
        is_there = os.path.isfile(f"{path}.index") or (os.path.isfile(config_beside(path)) and not os.path.exists(path))
    if not is_there:
        raise no_weights(path)


def initial_model_keys(path: str) -> dict[str, Any]:
    """Returns the keys of a model config, with JSON values, that the weights were trained with; none if unknown.

    Every value is one that the key may have.

    Args:
        path: a folder, the prefix of a checkpoint's path, or a file of either; buckets are not read.

    Raises:
        ConfigError: the path is empty, or the config.json cannot be read or describes a model that we cannot build.
        CheckpointError: there are no weights.
    """
    place = weights_at(path)
    if "://" in place:
        return {}
    _check_there(place)
    file = config_beside(place)
    if not os.path.isfile(file):
        return {}
    config = read_object(Path(file), issues=[])
    if os.path.basename(file) == HPARAMS_FILE:
        config = {theirs: config[ours] for ours, theirs in HPARAMS.items() if ours in config} | {"model_type": "gpt2"}
    if is_huggingface(config):
        return _valid_keys(model_keys(config, file), file, FIELDS)
    if KEY_OF_OURS not in config:
        return _valid_keys(_flat_keys(config), file, SIZES)
    _check_names(config, file)
    return _valid_keys(_flat_keys(config), file, FIELDS)


def _check_names(config: Mapping[str, Any], file: str) -> None:
    """Raises an error for unknown keys, by which another version may have built another model."""
    unknown = [f"{file}: {key} = {shown(config[key])}" for key in config if key not in KEYS_OF_A_RUN]
    raise_issues(f"{place}: is not a known key; correct it, or use the version that wrote it" for place in unknown)


def _valid_keys(keys: Mapping[str, Any], file: str, needed: Collection[str]) -> dict[str, Any]:
    """Returns the keys whose values can be parsed.

    Raises:
        ConfigError: a needed key is invalid.
    """
    issues = {key: issue for key, value in keys.items() for issue in _find_value_issue(key, value)}
    raise_issues(f"{file}: {key} = {shown(keys[key])}: {issue}" for key, issue in issues.items() if key in needed)
    return {key: value for key, value in keys.items() if key not in issues}


def _find_value_issue(key: str, value: Any) -> Iterator[ValueIssue]:
    try:
        FIELDS[key].metadata["kind"].parse(value)
    except ValueIssue as issue:
        yield issue


def _flat_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model keys of a config of ours or of GPT-Neo's, with defaults for absent ones."""
    given = _unaliased(config) | _as_gpt_neo_read(config)
    keys = {}
    for key, field in FIELDS.items():
        has_no_default = is_required(field) or field.metadata["default_text"]
        if key not in FREE_KEYS and (key in given or not has_no_default):
            keys[key] = given[key] if key in given else field.metadata["kind"].write(field.default)
    if "n_layer" in keys:
        keys.setdefault("attention_types", [[["global"], keys["n_layer"]]])
    return _without_idle(keys)


def _unaliased(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with aliased keys under their own names too."""
    aliased = {name: config[alias] for alias, name in ALIASES.items() if alias in config and config.get(name) is None}
    return dict(config) | aliased


def _as_gpt_neo_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that GPT-Neo read in its own way; none for a config of ours.

    Source: GPT-Neo, which read `activation_fn` only, though its configs and README say `activation_function`, and took
    any `rotary_emb` but null for true.
    """
    if KEY_OF_OURS in config:
        return {}
    activation = config.get("activation_fn") or "gelu"
    return {"activation_function": activation, "rotary_emb": config.get("rotary_emb") is not None}


def _without_idle(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys without those that have no effect on the model."""
    idle = set() if keys.get("moe_layers") else {"moe_activation"}
    types = keys.get("attention_types")
    if any(_find_value_issue("attention_types", types)) or "local" not in ATTENTION.parse(types):
        idle.add("local_attention_radius")
    return {key: value for key, value in keys.items() if key not in idle}
