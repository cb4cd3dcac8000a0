"""Converts weights of GPT-Neo and GPT-2 between Hugging Face's files and the variables of this project.

Reading and writing both follow one table, `tensors_of`, which maps tensors to variables.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import CheckpointError
from configs.huggingface import GPT_2, family_for, family_of, model_keys
from configs.reader import read_object
from configs.schema import RANKING, ModelConfig, written_keys
from configs.weights import config_beside
from runtime.checkpoint.weight_files import PREFIX, find_tensors, weight_files
from runtime.checkpoint.weight_sources import StoredTensor, Weights

# The output layer under its two names; it is the token table, which it must equal.
TIED = ("lm_head.weight", "lm_head.decoder.weight")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face file.

    Attributes:
        name: its name without the prefix.
        variables: the variables in it, without `gpt2/`; several are concatenated along the last dimension.
        dims: the dimensions of each variable, a letter each: V vocab, C n_ctx, E embd, F feed-forward, 1 one.
        is_transposed: whether the tensor is [out, in], as in PyTorch's Linear; variables and GPT-2's are [in, out].
    """

    name: str
    variables: tuple[str, ...]
    dims: str
    is_transposed: bool = False


SCORE = Tensor("score.weight", ("score",), "1E")


def _norm(theirs: str, ours: str) -> list[Tensor]:
    return [Tensor(f"{theirs}.weight", (f"{ours}/g",), "E"), Tensor(f"{theirs}.bias", (f"{ours}/b",), "E")]


def _gpt_2_attention(theirs: str, ours: str) -> list[Tensor]:
    return [
        Tensor(f"{theirs}.c_attn.weight", tuple(f"{ours}/{name}" for name in "qkv"), "EE"),
        Tensor(f"{theirs}.c_attn.bias", tuple(f"{ours}/{name}_bias" for name in "qkv"), "E"),
        Tensor(f"{theirs}.c_proj.weight", (f"{ours}/o",), "EE"),
        Tensor(f"{theirs}.c_proj.bias", (f"{ours}/compute_output_bias/o_b",), "E"),
    ]


def _gpt_neo_attention(theirs: str, ours: str) -> list[Tensor]:
    inner = f"{theirs}.attention"
    return [
        *(Tensor(f"{inner}.{name}_proj.weight", (f"{ours}/{name}",), "EE", is_transposed=True) for name in "qkv"),
        Tensor(f"{inner}.out_proj.weight", (f"{ours}/o",), "EE", is_transposed=True),
        Tensor(f"{inner}.out_proj.bias", (f"{ours}/compute_output_bias/o_b",), "E"),
    ]


def _feed_forward(theirs: str, ours: str, is_transposed: bool) -> list[Tensor]:
    main = f"{ours}/conv1d_main"
    return [
        Tensor(f"{theirs}.c_fc.weight", (f"{main}/c_fc/kernel",), "EF", is_transposed),
        Tensor(f"{theirs}.c_fc.bias", (f"{main}/c_fc/bias",), "F"),
        Tensor(f"{theirs}.c_proj.weight", (f"{main}/c_proj/kernel",), "FE", is_transposed),
        Tensor(f"{theirs}.c_proj.bias", (f"{main}/c_proj/bias",), "E"),
    ]


def tensors_of(model_type: str, n_layer: int, ranks: bool = False) -> list[Tensor]:
    """Returns every tensor of a GPT-Neo or GPT-2 model of Hugging Face, with or without the layer of a ranker."""
    is_gpt_2 = model_type == GPT_2.model_type
    attention = _gpt_2_attention if is_gpt_2 else _gpt_neo_attention
    tensors = [Tensor("wte.weight", ("wte",), "VE"), Tensor("wpe.weight", ("wpe",), "CE")]
    for layer in range(n_layer):
        theirs, ours = f"h.{layer}", f"h{layer}"
        tensors += _norm(f"{theirs}.ln_1", f"{ours}/norm_1") + attention(f"{theirs}.attn", f"{ours}/attn")
        tensors += _norm(f"{theirs}.ln_2", f"{ours}/norm_2")
        tensors += _feed_forward(f"{theirs}.mlp", f"{ours}/mlp", is_transposed=not is_gpt_2)
    return [*tensors, *_norm("ln_f", "ln_f"), *([SCORE] if ranks else [])]


def count_layers(block: re.Pattern[str], names: Iterable[str]) -> int:
    """Returns the number of layers; the first group of `block` is the number of the layer that a tensor belongs to."""
    return 1 + max((int(found[1]) for found in map(block.match, names) if found), default=-1)


def _shape(tensor: Tensor, keys: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the shape of one variable of the tensor, for the keys of a model config."""
    sizes = {"V": keys["n_vocab"], "C": keys["n_ctx"], "E": keys["n_embd"], "F": 4 * keys["n_embd"], "1": 1}
    return tuple(sizes[dim] for dim in tensor.dims)


def _their_shape(tensor: Tensor, keys: Mapping[str, Any]) -> tuple[int, ...]:
    *rows, last = _shape(tensor, keys)
    shape = (*rows, last * len(tensor.variables))
    return shape[::-1] if tensor.is_transposed else shape


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
    found = find_tensors(files)
    tensors = tensors_of(family_of(hf_config, file).model_type, keys["n_layer"], keys.get("objective") == RANKING)
    for name in (tensor.name for tensor in tensors if tensor.name not in found):
        if name in files.claims:
            raise CheckpointError(
                f"{files.claims[name]}: has no tensor {name}, though {files.index} says so; copy both files again"
            )
        raise CheckpointError(
            f"{folder}: has no tensor {name}; copy the folder again: its config.json describes a model with it"
        )
    return variables_of(tensors, found, keys, "config.json")


def variables_of(
    tensors: Sequence[Tensor], found: dict[str, StoredTensor], keys: Mapping[str, Any], source: str
) -> Weights:
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
        weights |= _split(tensor, found.pop(tensor.name), _shape(tensor, keys), _their_shape(tensor, keys), source)
    _check_tied(found, weights["gpt2/wte"])
    for stored in found.values():
        raise CheckpointError(
            f"{stored.place}: is not a tensor of the model that {source} describes; give weights that fit it, "
            "of a language model without another head"
        )
    return weights


def _split(
    tensor: Tensor, stored: StoredTensor, shape: tuple[int, ...], their_shape: tuple[int, ...], source: str
) -> dict[str, StoredTensor]:
    """Returns the variables in a tensor."""
    if stored.shape != their_shape:
        raise CheckpointError(
            f"{stored.place}: is {list(stored.shape)} there and {list(their_shape)} by {source}; give "
            "weights that fit it"
        )

    def read(index: int) -> np.ndarray:
        value = stored.read()
        return np.split(value.T if tensor.is_transposed else value, len(tensor.variables), axis=-1)[index]

    return {
        f"gpt2/{name}": StoredTensor(stored.place, shape, lambda index=index: read(index))
        for index, name in enumerate(tensor.variables)
    }


def _check_tied(found: dict[str, StoredTensor], token_table: StoredTensor) -> None:
    """Removes the output layer from the tensors, after checking that it equals the token table."""
    for name in TIED:
        output = found.pop(name, None)
        if output and (output.shape != token_table.shape or not np.array_equal(output.read(), token_table.read())):
            raise CheckpointError(
                f"{output.place}: differs from the token table; give weights that tie the two: Neomesh's output "
                "layer is the token table"
            )


def write_weights(path: str, weights: Weights, model: ModelConfig) -> None:
    """Writes one safetensors file, a tensor at a time.

    Args:
        path: the file.
        weights: the variables of the model, by name; missing biases of queries, keys and values become 0.
        model: its settings, which fit a Hugging Face architecture.

    Raises:
        CheckpointError: a variable is missing, unknown or of another shape.
    """
    keys = written_keys(model)
    tensors = tensors_of(family_for(model).model_type, model.n_layer, model.ranks)
    parts = _parts(tensors, weights, keys)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        shape = _their_shape(tensor, keys)
        end = begin + 4 * math.prod(shape)
        name = tensor.name if tensor is SCORE else f"{PREFIX}{tensor.name}"
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            file.write(_join(tensor, [parts[name] for name in tensor.variables]).astype("<f4", order="C").data)


def _parts(tensors: Sequence[Tensor], weights: Weights, keys: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Returns the variable of every name in the table, checked."""
    left, parts = dict(weights), {}
    for tensor in tensors:
        shape = _shape(tensor, keys)
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


def _join(tensor: Tensor, parts: Sequence[StoredTensor]) -> np.ndarray:
    value = np.concatenate([part.read() for part in parts], axis=-1)
    return value.T if tensor.is_transposed else value
