"""Converts weights between Hugging Face's files and the variables of this project.

Reading and writing both follow the tables of `configs/families/`, which map tensors to variables.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import CheckpointError
from configs.families.family import Keys
from configs.families.tensors import Tensor
from configs.huggingface import family_for, family_of, model_keys
from configs.reader import read_object
from configs.schema import ModelConfig, written_keys
from configs.weights import config_beside
from runtime.checkpoint.weight_files import find_tensors, weight_files
from runtime.checkpoint.weight_sources import Region, StoredTensor, Weights, in_parts

# The output layer under its two names; it is the token table, which it must equal.
TIED = ("lm_head.weight", "lm_head.decoder.weight", "embed_out.weight")
COMPARED_AT_ONCE = 1 << 22  # numbers


def count_layers(block: re.Pattern[str], names: Iterable[str]) -> int:
    """Returns the number of layers; the first group of `block` is the number of the layer that a tensor belongs to."""
    return 1 + max((int(found[1]) for found in map(block.match, names) if found), default=-1)


def read_weights(folder: str) -> Weights:
    """Returns the variables in a Hugging Face folder, by name; they are read on demand.

    Raises:
        ConfigError: its config.json describes an unsupported model.
        CheckpointError: a file is broken, or a tensor is missing, unknown, duplicate, of integers, or not of the
            config's shape; on reading, a tensor holds NaN or infinity.
    """
    file = config_beside(folder)
    hf_config = read_object(Path(file), issues=[])
    keys, files = model_keys(hf_config, file), weight_files(folder)
    tensors = family_of(hf_config, file).tensors(keys)
    found = _renamed(find_tensors(files), tensors)
    for name in (tensor.name for tensor in tensors if tensor.name not in found):
        if name in files.claims:
            raise CheckpointError(
                f"{files.claims[name]}: has no tensor {name}, though {files.index} says so; copy both files again"
            )
        raise CheckpointError(
            f"{folder}: has no tensor {name}; copy the folder again: its config.json describes a model with it"
        )
    return variables_of(tensors, found, keys, "config.json")


def _renamed(found: dict[str, StoredTensor], tensors: Sequence[Tensor]) -> dict[str, StoredTensor]:
    """Returns what was found, by the first of the names of each tensor."""
    names = {other: tensor.name for tensor in tensors for other in tensor.other_names if tensor.name not in found}
    return {names.get(name, name): stored for name, stored in found.items()}


def variables_of(tensors: Sequence[Tensor], found: dict[str, StoredTensor], keys: Keys, source: str) -> Weights:
    """Returns the variables in tensors, by name.

    Args:
        tensors: those of the model.
        found: all tensors that are there, by name.
        keys: the sizes of the model, as in a model config.
        source: what describes the model, for messages.

    Raises:
        CheckpointError: a tensor is unknown, or not of the shape that it should be.
    """
    weights: dict[str, StoredTensor] = {}
    for tensor in tensors:
        weights |= _split(tensor, found.pop(tensor.name), keys, source)
    _check_tied(found, weights["gpt2/wte"])
    for stored in found.values():
        raise CheckpointError(
            f"{stored.place}: is not a tensor of the model that {source} describes; give weights that fit it, "
            "of a language model without another head"
        )
    return weights


def _split(tensor: Tensor, stored: StoredTensor, keys: Keys, source: str) -> dict[str, StoredTensor]:
    """Returns the variables in a tensor."""
    shape, their_shape = tensor.shape(keys), tensor.stored_shape(keys)
    if stored.shape != their_shape:
        raise CheckpointError(
            f"{stored.place}: is {list(stored.shape)} there and {list(their_shape)} by {source}; give "
            "weights that fit it"
        )

    return {
        f"gpt2/{name}": in_parts(stored.place, shape, functools.partial(read_variable, tensor, stored, keys, index))
        for index, name in enumerate(tensor.variables)
    }


def read_variable(tensor: Tensor, stored: StoredTensor, keys: Keys, index: int, region: Region) -> np.ndarray:
    """Returns a region of one of the variables in a tensor, and reads no more than it needs."""
    *before, last = region
    width, count = tensor.shape(keys)[-1], len(tensor.variables)
    if not tensor.is_by_head:
        return _read_ours(tensor, stored, (*before, slice(last.start + index * width, last.stop + index * width)))
    size = tensor.head_size(keys)
    first, end = last.start // size, -(-last.stop // size)  # the heads that the region touches
    value = _read_ours(tensor, stored, (*before, slice(first * count * size, end * count * size)))
    own = value.reshape(*value.shape[:-1], end - first, count, size)[..., index, :].reshape(*value.shape[:-1], -1)
    return own[..., last.start - first * size : last.stop - first * size]


def _read_ours(tensor: Tensor, stored: StoredTensor, region: Region) -> np.ndarray:
    """Returns a region of a tensor, both as [in, out]."""
    return stored.read_part(region[::-1]).T if tensor.is_transposed else stored.read_part(region)


def _check_tied(found: dict[str, StoredTensor], token_table: StoredTensor) -> None:
    """Removes the output layer from the tensors, after checking that it equals the token table."""
    for name in TIED:
        output = found.pop(name, None)
        if output and (output.shape != token_table.shape or not _are_equal(output, token_table)):
            raise CheckpointError(
                f"{output.place}: differs from the token table; give weights that tie the two: Neomesh's output "
                "layer is the token table"
            )


def _are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Compares two tables some rows at a time."""
    n_rows, width = one.shape
    step = max(1, COMPARED_AT_ONCE // width)
    regions = [(slice(row, min(row + step, n_rows)), slice(0, width)) for row in range(0, n_rows, step)]
    return all(np.array_equal(one.read_part(region), other.read_part(region)) for region in regions)


def write_weights(path: str, weights: Weights, model: ModelConfig) -> None:
    """Writes one safetensors file, a tensor at a time.

    Args:
        path: the file.
        weights: the variables of the model, by name; missing biases of queries, keys and values become 0.
        model: its settings, which fit a Hugging Face architecture.

    Raises:
        CheckpointError: a variable is missing, unknown or of another shape.
    """
    keys, family = written_keys(model), family_for(model)
    tensors = family.tensors(keys)
    parts = _parts(tensors, weights, keys)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        shape = tensor.stored_shape(keys)
        end = begin + 4 * math.prod(shape)
        name = tensor.name if tensor.is_head else f"{family.prefix}{tensor.name}"
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            file.write(
                join_variables(tensor, [parts[name] for name in tensor.variables], keys).astype("<f4", order="C").data
            )


def _parts(tensors: Sequence[Tensor], weights: Weights, keys: Keys) -> dict[str, StoredTensor]:
    """Returns the variable of every name in the table, checked."""
    left, parts = dict(weights), {}
    for tensor in tensors:
        shape = tensor.shape(keys)
        for name in tensor.variables:
            absent = _zeros(shape) if name.endswith(("/q_bias", "/k_bias", "/v_bias")) else None
            parts[name] = left.pop(f"gpt2/{name}", absent)
            _check_part(f"gpt2/{name}", parts[name], shape)
    for stored in left.values():
        raise CheckpointError(f"{stored.place}: the model of the config lacks it; give the config that was trained")
    return parts


def _zeros(shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor("a bias of 0", shape, lambda: np.zeros(shape, np.float32))


def _check_part(name: str, stored: StoredTensor | None, shape: tuple[int, ...]) -> None:
    if stored is None:
        raise CheckpointError(f"{name}: is not among the weights; give the config that was trained")
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.place}: is {list(stored.shape)} there and {list(shape)} by the config; give the config that "
            "was trained"
        )


def join_variables(tensor: Tensor, parts: Sequence[StoredTensor], keys: Keys) -> np.ndarray:
    """Returns a tensor from the variables in it."""
    values = [part.read() for part in parts]
    if tensor.is_by_head:
        by_head = [value.reshape(*value.shape[:-1], -1, tensor.head_size(keys)) for value in values]
        value = np.stack(by_head, axis=-2).reshape(*values[0].shape[:-1], -1)
    else:
        value = np.concatenate(values, axis=-1)
    return value.T if tensor.is_transposed else value
