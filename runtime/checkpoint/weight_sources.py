"""Weights in files: tensors that are read on demand, so that a large model is never in memory twice.

And what the program that wrote a checkpoint computed by them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from configs.errors import CheckpointError
from configs.schema import ModelConfig
from configs.weights import FORMER_NAMES, KEY_OF_FUNCTIONS, weight_notes
from meshtf import tf
from runtime.checkpoint.reader import EXAMPLES_NAME, FUNCTIONS_NAME, latest_checkpoint, read_state

OPENAI_CHECKPOINT = "model.ckpt"  # which has no step
Region = tuple[slice, ...]  # a range of each dimension, with its first and one past its last index


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        place: the file and the tensor's name, for messages.
        shape: the shape, known without reading the tensor.
        read: returns the tensor as float32.
        part: returns a region of it as float32, and reads no more of the file; None: the file can only be read whole.
    """

    place: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    part: Callable[[Region], np.ndarray] | None = None

    def read_part(self, region: Region) -> np.ndarray:
        """Returns a region of the tensor as float32."""
        return self.read()[region] if self.part is None else self.part(region)


Weights = Mapping[str, StoredTensor]


def in_parts(place: str, shape: tuple[int, ...], part: Callable[[Region], np.ndarray]) -> StoredTensor:
    """Returns a tensor that is read by regions; all of it is one too."""
    return StoredTensor(place, shape, lambda: part(tuple(slice(0, size) for size in shape)), part)


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turns the errors of file readers into one that names the place.

    Raises:
        CheckpointError: the file is truncated or broken.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # each library has its own exceptions, and torch's unpickler raises any
        reason = (getattr(error, "message", None) or str(error) or type(error).__name__).strip().splitlines()[0]
        raise CheckpointError(
            f"{place}: cannot be read: {reason}; copy the file again, or give other weights"
        ) from error


def finite(place: str, value: np.ndarray) -> np.ndarray:
    """Returns the values of a tensor after checking that they are finite.

    Raises:
        CheckpointError: one of them is NaN or infinite.
    """
    if not np.isfinite(value).all():
        raise CheckpointError(
            f"{place}: holds NaN or infinity; give weights from before the training diverged, or copy the file again"
        )
    return value


def find_checkpoint(path: str) -> str | None:
    """Returns the prefix of a TensorFlow checkpoint: the path itself, or the newest in that folder; None: no such.

    Raises:
        CheckpointError: the path cannot be read, or its file `checkpoint` names only missing ones.
    """
    with reading(path):
        if tf.io.gfile.exists(f"{path}.index"):
            return path
        if tf.io.gfile.exists(f"{path}/{OPENAI_CHECKPOINT}.index"):
            return f"{path}/{OPENAI_CHECKPOINT}"
        state, newest = read_state(path), latest_checkpoint(path)
    if state.problem:
        print(f"{state.problem}; using the newest checkpoint there, {newest}", file=sys.stderr, flush=True)
    return newest


def checkpoint_tensors(path: str) -> Weights:
    """Returns every variable of a checkpoint, by the name that it has there; they are read on demand.

    GPT-Neo writes bfloat16 for `precision` bfloat16.

    Raises:
        CheckpointError: it cannot be read.
    """
    with reading(path):
        reader = tf.train.load_checkpoint(path)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    return {name: _checkpoint_tensor(path, name, tuple(shape), dtypes[name]) for name, shape in shapes.items()}


def _checkpoint_tensor(path: str, name: str, shape: tuple[int, ...], dtype: tf.DType) -> StoredTensor:
    place = f"{path}: {name}"

    def part(region: Region) -> np.ndarray:
        with reading(place), tf.device("/device:CPU:0"):
            (value,) = tf.raw_ops.RestoreV2(
                prefix=path, tensor_names=[name], shape_and_slices=[_notation(shape, region)], dtypes=[dtype]
            )
            return finite(place, value.numpy().astype(np.float32))

    return in_parts(place, shape, part)


def _notation(shape: tuple[int, ...], region: Region) -> str:
    """Returns TensorFlow's notation of a region: the whole shape, then `begin,size` by dimension; of a scalar none."""
    ranges = ":".join(f"{piece.start},{piece.stop - piece.start}" for piece in region)
    return " ".join([*map(str, shape), ranges]) if shape else ""


def check_functions(path: str, model: ModelConfig) -> list[str]:
    """Checks that a model computes what the weights of a checkpoint were trained for.

    Args:
        path: prefix of the checkpoint.
        model: the model that gets its weights.

    Returns:
        Lines about what a model computes otherwise from GPT-Neo's weights than GPT-Neo did.

    Raises:
        CheckpointError: it was written before linear attention and elish were GPT-Neo's, and no key of the model keeps
            what they were.
    """
    with reading(path):
        names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    if FUNCTIONS_NAME in names:
        return []
    if EXAMPLES_NAME not in names:
        return weight_notes(path, model)
    for key, former in _changed(model).items():
        raise CheckpointError(
            f"{path}: {key} = {getattr(model, key)}: was another function when these weights were trained; set {key} "
            f"to {former} to keep it, or train again"
        )
    return []


def _changed(model: ModelConfig) -> dict[str, str]:
    """Returns the keys of a model whose functions are others now, and what keeps the former ones."""
    changed = {}
    if "linear" in model.attention_types and model.is_causal and model.linear_attention_normalization == "position":
        changed[KEY_OF_FUNCTIONS] = "feature"
    for key in ("activation_function", *(["moe_activation"] if model.moe_layers else [])):
        if getattr(model, key) in FORMER_NAMES[key]:
            changed[key] = FORMER_NAMES[key][getattr(model, key)]
    return changed
