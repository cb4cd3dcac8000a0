"""Initializes a run from weights of another run, of GPT-Neo, of Hugging Face, of OpenAI or of DialoGPT."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from configs.errors import CheckpointError, UserError
from configs.families import peft
from configs.schema import ModelConfig, is_adapter
from configs.weights import is_state_dict, no_adapters, no_weights, weights_at
from models.variables import Role
from runtime.checkpoint.adapters import Base, fingerprint, merged, read_base
from runtime.checkpoint.huggingface import read_weights
from runtime.checkpoint.openai import is_openai, openai_weights
from runtime.checkpoint.peft import read_adapters
from runtime.checkpoint.reader import EMA_SUFFIX, missing_variable, no_averages, weight_names
from runtime.checkpoint.state_dict import read_state_dict
from runtime.checkpoint.weight_files import is_huggingface_folder
from runtime.checkpoint.weight_sources import StoredTensor, Weights, checkpoint_tensors, find_checkpoint, in_parts
from runtime.mesh.placement import VariableSlices, VariableStore

TOKEN_TABLE, POSITION_TABLE, HEAD = "gpt2/wte", "gpt2/wpe", "gpt2/score"
REMEDY = "give the config of these weights, or other weights"


def load_initial_weights(path: str, store: VariableStore, head_id: int | None = None) -> None:
    """Sets the variables of the model, but no adapters and no optimiser state.

    The config.json beside the weights is compared when the config of the run is loaded.

    Args:
        path: the prefix of a checkpoint of this project, of GPT-Neo or of OpenAI's GPT-2, its folder, a Hugging
            Face folder, or a file of PyTorch with a whole model, such as DialoGPT's.
        store: the variables of the run, in any layout.
        head_id: the token whose embedding a new head of a ranking model begins as, if the weights have none, as in
            DialogRPT's program; None: they must have one.

    Raises:
        ConfigError: the config.json there cannot be used.
        CheckpointError: there are no weights, they belong to another model, or a file is broken. Nothing is set then,
            unless a file is truncated or a tensor holds NaN.
    """
    weights = find_weights(path)
    head = next((stored for stored in store if stored.name == HEAD), None)
    if head_id is not None and HEAD not in weights and head is not None:
        if head.variable.role is Role.FROZEN:
            raise CheckpointError(
                f"{path}: has no layer that scores texts, and lora_rank trains no new one; give weights of a ranking "
                "model, or leave lora_rank out"
            )
        weights = {**weights, HEAD: _head_of(weights, head_id)}
    set_weights(weights, store, path)


def _head_of(weights: Weights, token_id: int) -> StoredTensor:
    table = weights[TOKEN_TABLE]
    print(f"{HEAD}: begins as the embedding of the token {token_id}", file=sys.stderr, flush=True)
    shape = (1, *table.shape[1:])
    return in_parts(table.place, shape, lambda region: table.read_part((slice(token_id, token_id + 1), *region[1:])))


def set_weights(weights: Weights, store: VariableStore, source: str) -> None:
    """Sets the variables of a model, each exactly once; adapters and the optimiser's slots stay as they are.

    Args:
        weights: the values, by variable name.
        store: the variables, in any layout.
        source: what messages call the source of the weights.

    Raises:
        CheckpointError: a variable is missing, unknown or of another shape.
    """
    variables = {stored.name: stored for stored in _parameters(store) if not is_adapter(stored.name)}
    _assign(_with_fewer_positions(weights, variables), variables, source)


def set_adapters(adapters: Weights, store: VariableStore, source: str) -> None:
    """Sets the adapters of a store, each exactly once; arguments and errors as of `set_weights`."""
    _assign(adapters, {stored.name: stored for stored in _parameters(store) if is_adapter(stored.name)}, source)


def _parameters(store: VariableStore) -> Iterator[VariableSlices]:
    return (stored for stored in store if stored.variable.is_parameter)


def _assign(weights: Weights, variables: Mapping[str, VariableSlices], source: str) -> None:
    for stored in variables.values():
        _check_variable(source, stored, weights)
    for name, tensor in weights.items():
        if name not in variables:
            raise CheckpointError(f"{tensor.place}: the model of the config lacks it; {REMEDY}")
    for name, stored in variables.items():
        stored.assign_parts(weights[name].read_part)


def check_initial_weights(path: str, model: ModelConfig) -> None:
    """Checks what can be told of weights before a model is built and before any text is tokenized for it.

    Raises:
        ConfigError: the path is empty.
        CheckpointError: there are none, they cannot be read, or they are of a model of another width or vocabulary.
    """
    weights, shape = find_weights(path), (model.n_vocab, model.n_embd)
    if TOKEN_TABLE in weights and weights[TOKEN_TABLE].shape != shape:
        raise _misfit(weights[TOKEN_TABLE], shape)


def find_weights(path: str) -> Weights:
    """Returns the weights at a path of any of these kinds, or at one of their files.

    Raises:
        ConfigError: the path is empty.
        CheckpointError: there are none, or they cannot be read.
    """
    place = weights_at(path)
    if is_huggingface_folder(place):
        return read_weights(place)
    if is_state_dict(place):
        return read_state_dict(place)
    checkpoint = find_checkpoint(place)
    if checkpoint is None:
        raise no_weights(path)
    tensors = checkpoint_tensors(checkpoint)
    if is_openai(tensors):
        return openai_weights(checkpoint, tensors)
    return _weights_of(checkpoint, {name: tensors[name] for name in weight_names(tensors)})


def _weights_of(checkpoint: str, own: Weights) -> Weights:
    """Returns the weights of a checkpoint of ours: what it holds, or its base with its adapters added."""
    base = read_base(checkpoint)
    return own if base is None else merged(find_base(base, checkpoint), own, base.scale)


def find_base(base: Base, source: str) -> Weights:
    """Returns the weights that the adapters in `source` belong to.

    Raises:
        CheckpointError: they cannot be read, or have changed.
    """
    what = f"is the base of the adapters in {source}"
    remedy = "give its place with --init_from, and where nothing is trained the adapters with --adapter"
    try:
        weights = find_weights(base.path)
    except UserError as error:
        raise CheckpointError(f"{base.path}: {what}, and cannot be read; put it back, or {remedy} ({error})") from error
    if fingerprint(weights) != base.fingerprint:
        raise CheckpointError(f"{base.path}: {what}, and has changed since; put back what it was, or {remedy}")
    return weights


def own_adapters(checkpoint: str, suffix: str = "") -> Weights:
    """Returns the adapters in a checkpoint of ours, by variable name, or with a suffix what stands beside them."""
    tensors = checkpoint_tensors(checkpoint)
    names = [name for name in weight_names(tensors) if is_adapter(name)]
    if any(name + suffix not in tensors for name in names):
        raise no_averages(checkpoint)
    return {name: tensors[name + suffix] for name in names}


def find_adapters(path: str, model: ModelConfig, weights: Weights) -> Weights:
    """Returns the adapters at a path, by variable name.

    Args:
        path: a folder of PEFT, or a run of ours, or one of its checkpoints.
        model: the model that gets them.
        weights: those that they are put on.

    Raises:
        ConfigError: adapter_config.json is not understood.
        CheckpointError: there are none, they are broken, or they belong to other weights.
    """
    if os.path.isfile(os.path.join(path, peft.CONFIG_FILE)):
        return read_adapters(path, model)
    checkpoint = find_checkpoint(weights_at(path))
    base = None if checkpoint is None else read_base(checkpoint)
    if base is None:
        raise no_adapters(path)
    if fingerprint(weights) != base.fingerprint:
        raise CheckpointError(f"{path}: its adapters belong to {base.path}; give those weights as --init_from")
    return own_adapters(checkpoint)


def find_averages(checkpoint: str) -> Weights:
    """Returns the averages of the weights of a checkpoint, under the names of the weights.

    Raises:
        CheckpointError: it has none, or cannot be read.
    """
    tensors = checkpoint_tensors(checkpoint)
    names = weight_names(tensors)
    if any(name + EMA_SUFFIX not in tensors for name in names):
        raise no_averages(checkpoint)
    return _weights_of(checkpoint, {name: tensors[name + EMA_SUFFIX] for name in names})


def _with_fewer_positions(weights: Weights, variables: Mapping[str, VariableSlices]) -> Weights:
    """Returns the weights with the first positions only, if the config has a smaller n_ctx, and says so."""
    if POSITION_TABLE not in weights or POSITION_TABLE not in variables:
        return weights
    table, shape = weights[POSITION_TABLE], variables[POSITION_TABLE].whole_shape
    if table.shape[1:] != shape[1:] or table.shape[0] <= shape[0]:
        return weights
    print(f"{table.place}: using the first {shape[0]} of its {table.shape[0]} positions", file=sys.stderr, flush=True)
    return {**weights, POSITION_TABLE: in_parts(table.place, shape, table.read_part)}


def _check_variable(source: str, stored: VariableSlices, weights: Weights) -> None:
    tensor = weights.get(stored.name)
    if tensor is None:
        raise missing_variable(source, stored.name, weights, REMEDY)
    if tensor.shape != stored.whole_shape:
        raise _misfit(tensor, stored.whole_shape)


def _misfit(tensor: StoredTensor, shape: Sequence[int]) -> CheckpointError:
    return CheckpointError(f"{tensor.place}: is {list(tensor.shape)} there and {list(shape)} by the config; {REMEDY}")
