"""Reads and writes the folders of PEFT: adapter_config.json, and the matrices of the adapters."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from configs.errors import CheckpointError, ConfigError
from configs.families import peft
from configs.families.peft import DOWN, UP, AdaptedModule
from configs.families.tensors import Tensor
from configs.huggingface import family_for, huggingface_config
from configs.reader import read_object
from configs.schema import ADAPTER_DOWN, ADAPTER_UP, ModelConfig, RunConfig, lora_target, written_keys
from runtime.checkpoint.huggingface import join_variables, read_variable
from runtime.checkpoint.weight_files import TensorFiles, find_tensors, short_name
from runtime.checkpoint.weight_sources import StoredTensor, Weights
from storage.files import new_folder, write_text

ADAPTER_NAME = re.compile(r"(\.lora_[AB])\.\w+\.weight$")  # with the name that an adapter has in memory


def read_adapters(folder: str, model: ModelConfig) -> Weights:
    """Returns the adapters in a folder of PEFT, by the names of our variables.

    A layer of `lora_targets` without an adapter there gets one that is 0.

    Args:
        folder: with adapter_config.json.
        model: whose keys of LoRA are those of `configs.families.peft.lora_keys`.

    Raises:
        ConfigError: an option is not understood, or the model has muP, which no base of PEFT's has.
        CheckpointError: a file is missing or broken, or a tensor is missing, unknown or of another shape.
    """
    if model.width_multiplier != 1.0:
        raise ConfigError(
            f"{folder}: mup_base_width = {model.mup_base_width}: adapters of PEFT belong to the exported model, which "
            "has other weights of queries; give the folder of --export_format hf as --model or --init_from"
        )
    file = os.path.join(folder, peft.CONFIG_FILE)
    keys, family = written_keys(model), family_for(model)
    modules = peft.adapted_modules(read_object(Path(file), issues=[]), family, keys, file)
    found = _find_matrices(folder)
    adapters = _zeros(peft.linear_modules(family, keys), model)
    for module in modules:
        if module.name + DOWN in found or module.name + UP in found:
            adapters |= _read_module(module, found, model, folder)
    for stored in found.values():
        raise CheckpointError(
            f"{stored.place}: belongs to no linear layer of blocks that {file} names; give plain adapters of LoRA"
        )
    return adapters


def _find_matrices(folder: str) -> dict[str, StoredTensor]:
    paths = [path for name in peft.WEIGHT_FILES if os.path.isfile(path := os.path.join(folder, name))]
    if not paths:
        raise CheckpointError(f"{folder}: holds neither {' nor '.join(peft.WEIGHT_FILES)}; copy the folder again")
    found = find_tensors(TensorFiles(paths[:1]))
    names = {name: short_name(name.removeprefix(peft.PREFIX)) for name in found}
    return {ADAPTER_NAME.sub(r"\1.weight", names[name]): stored for name, stored in found.items()}


def _zeros(modules: dict[str, Tensor], model: ModelConfig) -> dict[str, StoredTensor]:
    keys, zeros = written_keys(model), {}
    for name, tensor in modules.items():
        n_in, n_out = tensor.shape(keys)
        for variable in _adapted_variables(tensor, model):
            for end, shape in ((ADAPTER_DOWN, (n_in, model.lora_rank)), (ADAPTER_UP, (model.lora_rank, n_out))):
                zeros[f"gpt2/{variable}{end}"] = _stored(f"{name}: no adapter", np.zeros(shape, np.float32))
    return zeros


def _adapted_variables(tensor: Tensor, model: ModelConfig) -> list[str]:
    return [variable for variable in tensor.variables if lora_target(variable) in model.lora_targets]


def _stored(place: str, value: np.ndarray) -> StoredTensor:
    return StoredTensor(place, value.shape, lambda: value)


def _read_module(
    module: AdaptedModule, found: dict[str, StoredTensor], model: ModelConfig, folder: str
) -> dict[str, StoredTensor]:
    """Takes the two matrices of an adapter out of those found, and returns our variables in them."""
    keys, tensor = written_keys(model), module.tensor
    n_in, n_out = tensor.shape(keys)
    down = _taken(f"{module.name}{DOWN}", (module.rank, n_in), found, folder)
    up = _taken(f"{module.name}{UP}", (n_out * len(tensor.variables), module.rank), found, folder)
    whole_up, ratio = (slice(0, module.rank), slice(0, n_out)), np.float32(module.scale / model.lora_scale)
    own_down = _widened(down.read().T, 1, model.lora_rank)
    variables: dict[str, StoredTensor] = {}
    for index, variable in enumerate(tensor.variables):
        own_up = read_variable(peft.up_tensor(tensor), up, keys, index, whole_up) * ratio
        variables[f"gpt2/{variable}{ADAPTER_DOWN}"] = _stored(down.place, own_down)
        variables[f"gpt2/{variable}{ADAPTER_UP}"] = _stored(up.place, _widened(own_up, 0, model.lora_rank))
    return variables


def _taken(name: str, shape: tuple[int, ...], found: dict[str, StoredTensor], folder: str) -> StoredTensor:
    stored = found.pop(name, None)
    if stored is None:
        raise CheckpointError(f"{folder}: has no tensor {name}, though its other half is there; copy the folder again")
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.place}: is {list(stored.shape)} there and {list(shape)} by {peft.CONFIG_FILE} and the model; "
            "give the weights that the adapters belong to"
        )
    return stored


def _widened(value: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Returns a matrix with zeros after it, up to the rank of the model."""
    missing = [(0, 0), (0, 0)]
    missing[axis] = (0, rank - value.shape[axis])
    return np.pad(value, missing)


def write_adapters(directory: str, config: RunConfig, adapters: Weights, base: str) -> None:
    """Writes a folder that `PeftModel.from_pretrained` puts on the weights that the adapters belong to.

    Args:
        directory: a new or empty folder.
        config: the config of the run.
        adapters: the adapters, by variable name.
        base: the path of those weights, which the folder names.

    Raises:
        ConfigError: Hugging Face's architectures lack an option of the model.
        UserError: the folder is not empty, or cannot be written.
    """
    model = config.model
    huggingface_config(model, config.data.eos_id or 0)  # which refuses what no architecture has
    family = family_for(model)
    with new_folder(directory) as folder:
        peft_config = peft.peft_config(model, family, base)
        write_text(os.path.join(folder, peft.CONFIG_FILE), json.dumps(peft_config, indent=2) + "\n")
        matrices: dict[str, np.ndarray] = {}
        for module in peft.adapters_of(model, family):
            down, up = _joined(module, adapters, model)
            name = f"{peft.PREFIX}{family.prefix}{module.name}"
            matrices |= {name + DOWN: np.ascontiguousarray(down), name + UP: np.ascontiguousarray(up)}
        save_file(matrices, os.path.join(folder, peft.WEIGHT_FILES[0]), {"format": "pt"})


def _joined(module: AdaptedModule, adapters: Weights, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the matrices [rank, in] and [out, rank] of a module, with a part of the rank for each variable in it."""
    tensor, keys = module.tensor, written_keys(model)
    own = _adapted_variables(tensor, model)
    downs = [adapters[f"gpt2/{variable}{ADAPTER_DOWN}"].read() for variable in own]
    ups = {variable: np.zeros((module.rank, tensor.shape(keys)[-1]), np.float32) for variable in tensor.variables}
    for index, variable in enumerate(own):
        rows = slice(index * model.lora_rank, (index + 1) * model.lora_rank)
        ups[variable][rows] = adapters[f"gpt2/{variable}{ADAPTER_UP}"].read()
    parts = [_stored(variable, up) for variable, up in ups.items()]
    return np.concatenate(downs, axis=1).T, join_variables(peft.up_tensor(tensor), parts, keys)
