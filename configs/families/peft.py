"""Adapters of PEFT, Hugging Face's library for fine-tuning: its adapter_config.json, and the layers that it names.

Source: Hu et al. 2021, LoRA; Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, for
`use_rslora`; peft's `tuners/lora/config.py` for keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.errors import ConfigError
from configs.families.family import Family, Keys
from configs.families.tensors import Tensor
from configs.reader import raise_issues, shown
from configs.schema import LORA_TARGETS, ModelConfig, lora_target, written_keys

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."  # of the names of all tensors
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # after the name of a layer
IN_LAYER = re.compile(r"^.*?\.\d+\.")  # what stands before the name of a module in its layer

# Options that change what adapters compute; only null, false and nothing are known.
UNKNOWN_OPTIONS = (
    *("modules_to_save", "use_dora", "lora_bias", "layer_replication", "trainable_token_indices", "target_parameters"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"),
    "velora_config",
)
# Of first values: those that leave the base as it is.
FIRST_VALUES = (True, False, None, "gaussian", "eva", "orthogonal")
# Keys without an effect on the numbers, or that the tensors of the folder tell too.
INERT = (
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "megatron_config", "megatron_core", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_share(value: Any) -> bool:
    return value == 0 or (_is_number(value) and value < 1)


def _is_pattern(value: Any, is_member: Callable[[Any], bool]) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and all(_is_expression(key) and is_member(own) for key, own in value.items())


def _is_expression(text: Any) -> bool:
    try:
        return isinstance(text, str) and re.compile(text) is not None
    except re.error:
        return False


def _are_modules(value: Any) -> bool:
    return _is_expression(value) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


# The keys that are read: whether a value can be used, and what it should be.
READ: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda value: value == "LORA", "only LORA is known"),
    "r": (_is_rank, "must be a whole number above 0"),
    "lora_alpha": (_is_number, "must be a number above 0"),
    "lora_dropout": (_is_share, "must be a number in [0, 1)"),
    "use_rslora": (lambda value: value in (None, True, False), "must be true or false"),
    "rank_pattern": (lambda value: _is_pattern(value, _is_rank), "must give whole numbers above 0 by module"),
    "alpha_pattern": (lambda value: _is_pattern(value, _is_number), "must give numbers above 0 by module"),
    "target_modules": (_are_modules, "must be a list of names, or a regular expression"),
    "exclude_modules": (lambda value: value is None or _are_modules(value), "must be a list of names, or null"),
    "bias": (lambda value: value in (None, "none"), "biases that are trained are not known"),
    "init_lora_weights": (lambda value: value in FIRST_VALUES, "changes the base; convert it to plain adapters"),
}
DEFAULTS = {"lora_dropout": 0.0, "init_lora_weights": True}


@dataclass(frozen=True)
class AdaptedModule:
    """A linear layer of theirs that has an adapter.

    Attributes:
        name: of the module, without the prefix of the model.
        tensor: its kernel.
        rank: of the adapter.
        scale: what its output is multiplied by.
    """

    name: str
    tensor: Tensor
    rank: int
    scale: float


def adapted_modules(peft_config: Keys, family: Family, model_keys: Keys, file: str) -> list[AdaptedModule]:
    """Returns the linear layers that have adapters by an adapter_config.json.

    Args:
        peft_config: the contents of the file.
        family: the family of the model.
        model_keys: the keys of its config.
        file: the path, for messages.

    Raises:
        ConfigError: a key is not understood, or no layer has an adapter; one line for each.
    """
    raise_issues(f"{file}: {issue}" for issue in _find_issues(peft_config))
    modules = linear_modules(family, model_keys)
    chosen, left_out = peft_config["target_modules"], peft_config.get("exclude_modules") or []
    named = {name: tensor for name, tensor in modules.items() if _matches(chosen, f"{family.prefix}{name}")}
    adapted = [
        _module(peft_config, f"{family.prefix}{name}", name, tensor)
        for name, tensor in named.items()
        if not _matches(left_out, f"{family.prefix}{name}")
    ]
    if not adapted:
        known = dict.fromkeys(IN_LAYER.sub("", name) for name in modules)
        raise ConfigError(
            f"{file}: target_modules = {shown(chosen)}: names no linear layer of blocks of {family.title}; give "
            f"adapters of {', '.join(known)}, or the weights that these belong to"
        )
    return adapted


def _find_issues(peft_config: Keys) -> Iterator[str]:
    for key, (is_known, problem) in READ.items():
        value = peft_config.get(key, DEFAULTS.get(key))
        if not _is_usable(value, is_known):
            yield f"{key} = {shown(value)}: {problem}; give other adapters"
    for key, value in peft_config.items():
        if key in UNKNOWN_OPTIONS and value not in (None, False, [], {}):
            yield f"{key} = {shown(value)}: is not known, and changes what adapters compute; train them without it"
        elif key not in (*READ, *UNKNOWN_OPTIONS, *INERT):
            yield (
                f"{key} = {shown(value)}: is not known of PEFT, and may change what adapters compute; remove the key "
                "if it does not"
            )


def _is_usable(value: Any, is_known: Callable[[Any], bool]) -> bool:
    try:
        return is_known(value)
    except TypeError:  # of another type altogether
        return False


def linear_modules(family: Family, model_keys: Keys) -> dict[str, Tensor]:
    """Returns the kernels that may have adapters, by the name of their module."""
    return {
        tensor.name.removesuffix(".weight"): tensor
        for tensor in family.tensors(model_keys)
        if all(lora_target(variable) in LORA_TARGETS for variable in tensor.variables)
    }


def _matches(chosen: str | Sequence[str], name: str) -> bool:
    if isinstance(chosen, str):
        return chosen == "all-linear" or re.fullmatch(chosen, name) is not None
    return any(name == part or name.endswith(f".{part}") for part in chosen)


def _module(peft_config: Keys, full_name: str, name: str, tensor: Tensor) -> AdaptedModule:
    rank, alpha = (
        next((own for part, own in patterns.items() if re.match(rf"(.*\.)?({part})$", full_name)), otherwise)
        for patterns, otherwise in (
            (peft_config.get("rank_pattern") or {}, peft_config["r"]),
            (peft_config.get("alpha_pattern") or {}, peft_config["lora_alpha"]),
        )
    )
    return AdaptedModule(name, tensor, rank, alpha / (math.sqrt(rank) if peft_config.get("use_rslora") else rank))


def lora_keys(peft_config: Keys, family: Family, model_keys: Keys, file: str) -> dict[str, Any]:
    """Returns the keys of a model config, with JSON values, that the adapters come to; arguments as above.

    Adapters of several ranks become adapters of the largest, whose further columns are 0.
    """
    modules = adapted_modules(peft_config, family, model_keys, file)
    rank = max(module.rank for module in modules)
    names = {lora_target(variable) for module in modules for variable in module.tensor.variables}
    return {
        "lora_rank": rank,
        "lora_alpha": float(modules[0].scale * rank),
        "lora_dropout": peft_config.get("lora_dropout", 0.0),
        "lora_targets": [target for target in LORA_TARGETS if target in names],
    }


def adapters_of(model: ModelConfig, family: Family) -> list[AdaptedModule]:
    """Returns the linear layers of theirs that the adapters of a model belong to.

    Where theirs holds several of ours, the rank is that of all of ours together: theirs has one first matrix, and the
    adapters of ours have each their own.
    """
    found = []
    for name, tensor in linear_modules(family, written_keys(model)).items():
        n_own = sum(lora_target(variable) in model.lora_targets for variable in tensor.variables)
        if n_own:
            found.append(AdaptedModule(name, tensor, n_own * model.lora_rank, model.lora_scale))
    return found


def peft_config(model: ModelConfig, family: Family, base: str) -> dict[str, Any]:
    """Returns the adapter_config.json of the adapters of a model.

    Args:
        model: its settings.
        family: the family that it is written as.
        base: the path of the weights that they belong to.
    """
    modules = {IN_LAYER.sub("", module.name): module for module in adapters_of(model, family)}
    others = {name: module for name, module in modules.items() if module.rank != model.lora_rank}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if model.ranks else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": model.lora_rank,
        "lora_alpha": _plain(model.lora_alpha),
        "lora_dropout": model.lora_dropout,
        "target_modules": list(modules),
        "rank_pattern": {re.escape(name): module.rank for name, module in others.items()},
        "alpha_pattern": {re.escape(name): _plain(module.scale * module.rank) for name, module in others.items()},
        "fan_in_fan_out": not any(module.tensor.is_transposed for module in modules.values()),
        "bias": "none",
    }


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number


def up_tensor(tensor: Tensor) -> Tensor:
    """Returns the second matrix of an adapter as a tensor, [out, rank], of variables [rank, out] as its kernel has."""
    return replace(tensor, is_transposed=True)
