"""Initializes a run from weights of another run, of GPT-Neo or of Hugging Face."""

from __future__ import annotations

from configs.errors import CheckpointError
from configs.weights import no_weights, weights_at
from runtime.checkpoint.huggingface import is_huggingface_folder, read_weights
from runtime.checkpoint.reader import missing_variable
from runtime.checkpoint.weight_sources import Weights, checkpoint_weights, find_checkpoint
from runtime.mesh.placement import VariableSlices, VariableStore

REMEDY = "give the config of these weights, or other weights"


def load_initial_weights(path: str, store: VariableStore) -> None:
    """Sets the variables of the model, but no optimiser state.

    The config.json beside the weights is compared when the config of the run is loaded.

    Args:
        path: the prefix of a checkpoint of this project or of GPT-Neo, its folder, or a Hugging Face folder.
        store: the variables of the run, in any layout.

    Raises:
        ConfigError: the config.json there cannot be used.
        CheckpointError: there are no weights, they belong to another model, or a file is broken. Nothing is set then,
            unless a file is truncated or a tensor holds NaN.
    """
    set_weights(find_weights(path), store, path)


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
    for stored in variables.values():
        _check_variable(source, stored, weights)
    for name, tensor in weights.items():
        if name not in variables:
            raise CheckpointError(f"{tensor.place}: the model of the config lacks it; {REMEDY}")
    for name, stored in variables.items():
        stored.assign_whole(weights[name].read())


def find_weights(path: str) -> Weights:
    """Returns the weights at a path of any of the three kinds, or at one of their files.

    Raises:
        ConfigError: the path is empty.
        CheckpointError: there are none, or they cannot be read.
    """
    place = weights_at(path)
    if is_huggingface_folder(place):
        return read_weights(place)
    checkpoint = find_checkpoint(place)
    if checkpoint is None:
        raise no_weights(path)
    return checkpoint_weights(checkpoint)


def _check_variable(source: str, stored: VariableSlices, weights: Weights) -> None:
    tensor = weights.get(stored.name)
    if tensor is None:
        raise missing_variable(source, stored.name, weights, REMEDY)
    if tensor.shape != stored.whole_shape:
        raise CheckpointError(
            f"{tensor.place}: is {list(tensor.shape)} there and {list(stored.whole_shape)} by the config; {REMEDY}"
        )
