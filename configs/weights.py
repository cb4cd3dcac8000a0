"""Reads the model from the config.json beside weights: one of ours, of GPT-Neo's, of Hugging Face's or OpenAI's.

And says what configs and weights of GPT-Neo compute otherwise here.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, ConfigError, ValueIssue, looked_from
from configs.families import peft
from configs.huggingface import family_for, is_huggingface, model_keys
from configs.kinds import ATTENTION
from configs.reader import raise_issues, read_object, shown
from configs.schema import (
    ALIASES,
    FREE_KEYS,
    LORA_KEYS,
    RUN_FIELDS,
    ModelConfig,
    MoeParams,
    is_required,
    keys_of,
    written_keys,
)

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"  # how Hugging Face's library generates text
HPARAMS_FILE = "hparams.json"  # the sizes of the model, in OpenAI's checkpoints of GPT-2
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FOLDER_FILES = ("vocab.json", "merges.txt")
# Every config.json of a run has this key, and none of GPT-Neo's has it.
KEY_OF_OURS = "temperature"
# The config.json of a run that was trained before linear attention and elish were GPT-Neo's lacks this key.
KEY_OF_FUNCTIONS = "linear_attention_normalization"
FORMER_NAMES = {"activation_function": {"elish": "elish_published"}, "moe_activation": {"elish": "elish_published"}}
FIELDS = keys_of(ModelConfig)
# Keys that GPT-Neo requires, or that change the model without changing the shape of a variable.
SIZES = (*(key for key, field in FIELDS.items() if is_required(field)), "attention_types", "local_attention_radius")
# Keys that act in layers of one kind of attention only.
KEYS_OF_ATTENTION = {
    "local": "local_attention_radius",
    "linear": "linear_attention_normalization",
    "none": "none_doubles_residual",
}
KEYS_OF_A_RUN = {*RUN_FIELDS, *ALIASES, "model"}
# Every key that GPT-Neo reads; a config with any other is none of GPT-Neo's.
KEYS_OF_GPT_NEO = {
    *("n_head", "n_embd", "n_layer", "n_ctx", "n_positions", "n_vocab", "attention_types", "datasets", "model_path"),
    *("mesh_shape", "layout", "lr", "opt_name", "warmup_steps", "gradient_clipping", "train_batch_size", "model"),
    *("eval_batch_size", "train_steps", "iterations", "predict_steps", "eval_steps", "embed_dropout", "res_dropout"),
    *("attn_dropout", "beta1", "beta2", "epsilon", "ada_epsilon1", "ada_epsilon2", "weight_decay", "input_fn", "seed"),
    *("predict_batch_size", "eval_tasks", "lr_decay", "lr_decay_end", "precision", "recompute_grad", "scale_by_depth"),
    *("tokens_per_mb_per_replica", "scale_by_in", "local_attention_radius", "z_loss", "entmax_loss", "num_mem_kv"),
    *("axial_pos_emb", "rotary_emb", "mlp_glu", "scalenorm", "rezero", "macaron", "no_weight_tie", "share_parameters"),
    *("moe_layers", "moe_params", "moe_activation", "activation_fn", "activation_function", "log_grads", "no_dataset"),
    *("shuffle_input_filenames", "predict_max_steps", "remove_partial_sequences", "mlm_training", "mlm_mask_id"),
    *("mlm_cls_token_id", "mlm_mask_prob", "mlm_same_token_prob", "mlm_random_token_prob", "mlm_mask_ignore_ids"),
    *("padding_id", "eos_id"),
}
# Members of moe_params whose defaults are other ones here.
DEFAULTS_OF_GPT_NEO = {"moe_second_policy_eval": "random", "moe_z_loss": 0.0}
EXPERTS_OF_GPT_NEO = (
    "experts: a group of tokens (moe_group_size) never spans rows here; GPT-Neo's do where n_ctx is smaller",
    "experts: each token claims capacity for both of its choices in order, so no token depends on a later one; GPT-Neo "
    "seats all first choices of a group before any second one",
    "experts: in evaluation the same tokens always reach their second expert; GPT-Neo draws them anew each time",
)
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
OTHER_FORMATS = (".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".ggml", ".ckpt", ".npz")
STATE_DICTS = (".pkl", ".pth", ".pt")  # PyTorch's files that hold a whole model, and need no folder around them


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


def names_weights(path: str) -> bool:
    """Returns whether a path is a file of local weights, or the prefix of a checkpoint's path, and no folder."""
    if not path or os.path.isdir(path):
        return False
    return weights_at(path) != path or os.path.isfile(f"{path}.index") or is_state_dict(path)


def is_state_dict(path: str) -> bool:
    """Returns whether a path is a local file of PyTorch with a whole model, as DialoGPT's are."""
    return path.lower().endswith(STATE_DICTS) and os.path.isfile(path)


def config_beside(path: str) -> str:
    """Returns the path of the config.json, or else the hparams.json, beside a folder or the prefix of a checkpoint."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    config, hparams = (os.path.join(folder, name) for name in (CONFIG_FILE, HPARAMS_FILE))
    return hparams if os.path.isfile(hparams) and not os.path.isfile(config) else config


def tokenizer_beside(path: str) -> str | None:
    """Returns the folder of the tokenizer beside local weights, a file or a folder; None: there is none."""
    if not path or "://" in path:
        return None
    folder = os.path.dirname(config_beside(weights_at(path)))
    is_there = any(
        all(os.path.isfile(os.path.join(folder, name)) for name in names)
        for names in ((TOKENIZER_FILE,), TOKENIZER_FOLDER_FILES)
    )
    return (folder or os.curdir) if is_there else None


def is_huggingface_folder(path: str) -> bool:
    """Returns whether a path is a local folder with a config.json of Hugging Face's."""
    file = os.path.join(path, CONFIG_FILE)
    return os.path.isfile(file) and is_huggingface(read_object(Path(file), issues=[]))


def no_weights(path: str) -> CheckpointError:
    """Returns the error for a path without weights, with what there is instead."""
    if path.lower().endswith(ARCHIVES) and os.path.isfile(path):
        return CheckpointError(f"{path}: is an archive; unpack it, and give the folder that holds the weights")
    if is_state_dict(path):
        return CheckpointError(f"{path}: is without a config.json; give a config too, such as --model dialogpt_small")
    others = [path, *sorted(glob.glob(os.path.join(glob.escape(path), "*")))]
    state_dicts = [other for other in others if is_state_dict(other)]
    if state_dicts:
        return CheckpointError(f"{path}: is a folder around weights; did you mean {state_dicts[0]}?")
    found = sorted(other for other in others if other.lower().endswith(OTHER_FORMATS) and os.path.isfile(other))
    if found:
        return CheckpointError(f"{found[0]}: is of a format that is not read; give the weights as model.safetensors")
    inside = (glob.glob(os.path.join(glob.escape(path), depth, pattern)) for depth in DEPTHS for pattern in PATTERNS)
    folders = sorted({os.path.dirname(file) for files in inside for file in files if "__MACOSX" not in file})
    remedy = "give a checkpoint (its path without .index), the folder of one, or a Hugging Face folder"
    remedy = f"did you mean {folders[0]}?" if folders else f"{remedy}{looked_from(path)}"
    return CheckpointError(f"{path}: holds no weights; {remedy}")


def _check_there(path: str) -> None:
    """Raises an error if there is neither a file of weights nor a config.json, without opening the weights."""
    if os.path.isdir(path):
        is_there = any(glob.glob(os.path.join(glob.escape(path), pattern)) for pattern in PATTERNS)
    else:
        is_config_alone = os.path.isfile(config_beside(path)) and not os.path.exists(path)
        is_there = os.path.isfile(f"{path}.index") or is_config_alone or is_state_dict(path)
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
        keys = _flat_keys(config)
        keys.pop("none_doubles_residual", None)  # said when the checkpoint is read, since most have no config beside
        return _valid_keys(keys, file, SIZES)
    _check_names(config, file)
    return _valid_keys(_flat_keys(config), file, FIELDS)


def adapter_keys(adapter: str, weights: str) -> dict[str, Any]:
    """Returns the keys of a model config, with JSON values, of the adapters that are put on weights.

    Args:
        adapter: a folder of PEFT, or a run of ours, or one of its checkpoints.
        weights: as in `initial_model_keys`.

    Raises:
        ConfigError: adapter_config.json is not understood.
        CheckpointError: there are no adapters, or nothing tells which model they belong to.
    """
    file = os.path.join(adapter, peft.CONFIG_FILE)
    if os.path.isfile(file):
        model = _model_of(weights)
        return peft.lora_keys(read_object(Path(file), issues=[]), family_for(model), written_keys(model), file)
    file = config_beside(weights_at(adapter))
    config = read_object(Path(file), issues=[]) if os.path.isfile(file) else {}
    if not config.get("lora_rank"):
        raise no_adapters(adapter)
    return {key: config[key] for key in LORA_KEYS if key in config}


def no_adapters(path: str) -> CheckpointError:
    """Returns the error for a path without adapters."""
    return CheckpointError(
        f"{path}: holds no adapters; give a folder of PEFT with {peft.CONFIG_FILE}, or a run that was trained with "
        "lora_rank"
    )


def _model_of(weights: str) -> ModelConfig:
    keys = initial_model_keys(weights)
    if any(is_required(field) and key not in keys for key, field in FIELDS.items()):
        raise CheckpointError(f"{weights}: has no {CONFIG_FILE} that tells its model, which adapters of PEFT need")
    return ModelConfig(**{key: FIELDS[key].metadata["kind"].parse(value) for key, value in keys.items()})


def initial_end_ids(path: str) -> list[int]:
    """Returns the ids that end a text by what lies beside weights: generation_config.json, or else config.json.

    Those outside of the token table are left out, since no text can hold them.

    Raises:
        ConfigError: one of the files cannot be read, or its eos_token_id is none.
    """
    place = weights_at(path)
    file = config_beside(place)
    if "://" in place or not os.path.isfile(file):
        return []
    config = read_object(Path(file), issues=[])
    if not is_huggingface(config):
        ends = config.get("end_ids")
        return ends if isinstance(ends, list) else []
    generation = os.path.join(os.path.dirname(file), GENERATION_FILE)
    if os.path.isfile(generation):
        file, config = generation, config | read_object(Path(generation), issues=[])
    ends = config.get("eos_token_id")
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in listed):
        raise ConfigError(f"{file}: eos_token_id = {shown(ends)}: is neither an id nor a list of ids; copy it again")
    n_vocab = config.get("vocab_size", max(listed, default=0) + 1)
    return [end for end in listed if not isinstance(n_vocab, int) or end < n_vocab]


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
    given = _unaliased(config) | _as_gpt_neo_read(config) | former_functions(config)
    keys = {}
    for key, field in FIELDS.items():
        has_no_default = is_required(field) or field.metadata["default_text"]
        if key not in FREE_KEYS and (key in given or not has_no_default):
            keys[key] = given[key] if key in given else field.metadata["kind"].write(field.default)
    if "n_layer" in keys:
        keys.setdefault("attention_types", [[["global"], keys["n_layer"]]])
    return _without_idle(keys)


def attention_keys(kinds: Collection[str], is_causal: bool) -> list[str]:
    """Returns the keys that change what layers of these kinds of attention compute."""
    return [key for kind, key in KEYS_OF_ATTENTION.items() if kind in kinds and (is_causal or kind != "linear")]


def former_functions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a config.json of ours means by functions that have changed since; empty if it knows today's."""
    if KEY_OF_FUNCTIONS in config or KEY_OF_OURS not in config:
        return {}
    renamed = {key: names[config[key]] for key, names in FORMER_NAMES.items() if str(config.get(key)) in names}
    return renamed | {KEY_OF_FUNCTIONS: "feature"}


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
    kinds = () if any(_find_value_issue("attention_types", types)) else ATTENTION.parse(types)
    idle |= {*KEYS_OF_ATTENTION.values()} - {*attention_keys(kinds, keys.get("mlm_training") is not True)}
    return {key: value for key, value in keys.items() if key not in idle}


def config_notes(file: Path, model: ModelConfig) -> list[str]:
    """Returns what experts of a model config compute otherwise than in GPT-Neo; nothing if it is none of GPT-Neo's."""
    raw = read_object(file, issues=[])
    if not model.moe_layers or not {ALIASES.get(key, key) for key in raw} <= KEYS_OF_GPT_NEO:
        return []
    given = raw.get("moe_params")
    return [f"{file}: {note}" for note in (*_default_notes(model.moe_params, _members(given)), *EXPERTS_OF_GPT_NEO)]


def weight_notes(path: str, model: ModelConfig) -> list[str]:
    """Returns what a model computes otherwise from a checkpoint of GPT-Neo than GPT-Neo did."""
    return [f"{path}: {note}" for note in _weight_notes(model)]


def _weight_notes(model: ModelConfig) -> Iterator[str]:
    if "none" in model.attention_types and not model.none_doubles_residual:
        yield (
            "GPT-Neo doubled the residual stream in layers of attention none, and this model does not; set "
            "none_doubles_residual to true to compute what GPT-Neo did"
        )
    if "rrelu" in _activations(model):
        yield "GPT-Neo drew the slope of rrelu once a process, and no checkpoint holds it; evaluation has the mean here"
    if model.moe_layers:
        yield from (*_default_notes(model.moe_params, ()), *EXPERTS_OF_GPT_NEO)


def _activations(model: ModelConfig) -> set[str]:
    return {model.activation_function} | ({model.moe_activation} if model.moe_layers else set())


def _members(value: Any) -> Collection[str]:
    return value if isinstance(value, Mapping) else ()


def _default_notes(params: MoeParams, given: Collection[str]) -> Iterator[str]:
    for key, default in DEFAULTS_OF_GPT_NEO.items():
        value = getattr(params, key)
        if key not in given and value != default:
            yield f"moe_params: {key} is {value}; GPT-Neo's default is {default}"
