"""Weights as files hold them: tensors with a place and a shape, each read when it is wanted, so that a large model is
never held twice.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from configs.errors import CheckpointError
from meshtf import tf
from runtime.checkpoints import SLOT, STATE_FILE, checkpoint_step, latest_checkpoint


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
      place: the file, and the tensor's name there.
      shape: known without reading it.
      read: gives it as float32.
    """

    place: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Weights = Mapping[str, StoredTensor]


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turns whatever the readers of files raise into one error that names the place.

    Raises:
      CheckpointError: the file there is cut off or broken.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # each library has its own, torch's unpickler any at all
        reason = (getattr(error, "message", None) or str(error) or type(error).__name__).strip().splitlines()[0]
        raise CheckpointError(
            f"{place} -- cannot be read: {reason} -- copy the file again, or give other weights"
        ) from error


def find_checkpoint(path: str) -> str | None:
    """The prefix of a TensorFlow checkpoint: the path itself, or the newest of that folder; None: there is none."""
    if tf.io.gfile.exists(f"{path}.index"):
        return path
    if tf.io.gfile.exists(posixpath.join(path, STATE_FILE)):
        return latest_checkpoint(path)
    indices = tf.io.gfile.glob(posixpath.join(path, "*-*.index"))
    return max((index.removesuffix(".index") for index in indices), key=checkpoint_step, default=None)


def checkpoint_weights(path: str) -> Weights:
    """The model's variables in a TensorFlow checkpoint of this project or of GPT-Neo, by name; no optimiser slots.

    GPT-Neo keeps them in bfloat16 for `precision` bfloat16.

    Raises:
      CheckpointError: it cannot be read.
    """
    with reading(path):
        reader = tf.train.load_checkpoint(path)
        shapes = reader.get_variable_to_shape_map()
    names = sorted(name for name in shapes if name.startswith("gpt2/") and not SLOT.search(name))
    return {name: _checkpoint_tensor(path, reader, name, shapes[name]) for name in names}


def _checkpoint_tensor(path: str, reader: tf.train.CheckpointReader, name: str, shape: list[int]) -> StoredTensor:
    place = f"{path}: {name}"

    def read() -> np.ndarray:
        with reading(place):
            return np.asarray(reader.get_tensor(name)).astype(np.float32)

    return StoredTensor(place, tuple(shape), read)
