"""Weights in files: tensors that are read on demand, so that a large model is never in memory twice."""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from configs.errors import CheckpointError
from meshtf import tf
from runtime.checkpoint.reader import STATE_FILE, checkpoint_step, latest_checkpoint, weight_names

INDEX = re.compile(r"-\d+\.index$")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        place: the file and the tensor's name, for messages.
        shape: the shape, known without reading the tensor.
        read: returns the tensor as float32.
    """

    place: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Weights = Mapping[str, StoredTensor]


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
        names = tf.io.gfile.listdir(path) if tf.io.gfile.isdir(path) else []
    prefixes = [posixpath.join(path, name.removesuffix(".index")) for name in names if INDEX.search(name)]
    newest = max(prefixes, key=checkpoint_step, default=None)
    return _named_checkpoint(path, newest) if STATE_FILE in names else newest


def _named_checkpoint(path: str, newest: str | None) -> str | None:
    """Returns the checkpoint that the file `checkpoint` of a folder names."""
    try:
        return latest_checkpoint(path)
    except CheckpointError:
        remedy = "copy the checkpoint too" if newest is None else f"name one by its path, such as {newest}"
        raise CheckpointError(
            f"{posixpath.join(path, STATE_FILE)}: names no checkpoint that is there; {remedy}"
        ) from None


def checkpoint_weights(path: str) -> Weights:
    """Returns the model's variables in a checkpoint of this project or of GPT-Neo, by name, without optimiser slots.

    GPT-Neo writes bfloat16 for `precision` bfloat16.

    Raises:
        CheckpointError: it cannot be read.
    """
    with reading(path):
        reader = tf.train.load_checkpoint(path)
        shapes = reader.get_variable_to_shape_map()
    return {name: _checkpoint_tensor(path, reader, name, shapes[name]) for name in weight_names(shapes)}


def _checkpoint_tensor(path: str, reader: tf.train.CheckpointReader, name: str, shape: list[int]) -> StoredTensor:
    place = f"{path}: {name}"

    def read() -> np.ndarray:
        with reading(place):
            return finite(place, np.asarray(reader.get_tensor(name)).astype(np.float32))

    return StoredTensor(place, tuple(shape), read)
