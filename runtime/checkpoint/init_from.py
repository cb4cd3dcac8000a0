"""Initializes a run from weights of another run, of GPT-Neo, of Hugging Face, of OpenAI or of DialoGPT."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from configs.errors import CheckpointError
from configs.schema import ModelConfig
from configs.weights import is_state_dict, no_weights, weights_at
from runtime.checkpoint.huggingface import read_weights
from runtime.checkpoint.openai import is_openai, openai_weights
from runtime.checkpoint.reader import EMA_SUFFIX, missing_variable, no_averages, weight_names
from runtime.checkpoint.state_dict import read_state_dict
from runtime.checkpoint.weight_files import is_huggingface_folder
from runtime.checkpoint.weight_sources import StoredTensor, Weights, checkpoint_tensors, find_checkpoint, in_parts
from runtime.mesh.placement import VariableSlices, VariableStore

TOKEN_TABLE, POSITION_TABLE, HEAD = "gpt2/wte", "gpt2/wpe", "gpt2/score"
REMEDY = "give the config of these weights, or other weights"


def load_initial_weights(path: str, store: VariableStore, head_id: int | None = None) -> None:
    """Sets the variables of the model, but no optimiser state.

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
    if head_id is not None and HEAD not in weights and any(stored.name == HEAD for stored in store):
        weights = {**weights, HEAD: _head_of(weights, head_id)}
    set_weights(weights, store, path)


def _head_of(weights: Weights, token_id: int) -> StoredTensor:
    table = weights[TOKEN_TABLE]
    print(f"{HEAD}: begins as the embedding of the token {token_id}", file=sys.stderr, flush=True)
    shape = (1, *table.shape[1:])
    return in_parts(table.place, shape, lambda region: table.read_part((slice(token_id, token_id + 1), *region[1:])))


def set_weights(weights: Weights, store: VariableStore, source: str) -> None:
    """Sets the trainable variables of a store, each exactly once.

    Args:
        weights: the values, by variable name.
        store: the variables, in any layout.
        source: what messages call the source of the weights.

    Raises:
        CheckpointError: a variable is missing, unknown or of another shape.
    """
    variables = {stored.name: stored for stored in store if stored.variable.trainable}
    weights = _with_fewer_positions(weights, variables)
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
    return {name: tensors[name] for name in weight_names(tensors)}


def find_averages(checkpoint: str) -> Weights:
    """Returns the averages of the weights of a checkpoint, under the names of the weights.

    Raises:
        CheckpointError: it has none, or cannot be read.
    """
    tensors = checkpoint_tensors(checkpoint)
    names = weight_names(tensors)
    if any(name + EMA_SUFFIX not in tensors for name in names):
        raise no_averages(checkpoint)
    return {name: tensors[name + EMA_SUFFIX] for name in names}


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
