"""Reads checkpoints: TensorFlow's format under GPT-Neo's variable names, each variable whole whatever the mesh was."""

from __future__ import annotations

import dataclasses
import difflib
import posixpath
import re
import time
from collections.abc import Iterable, Iterator

import numpy as np

from configs.errors import CheckpointError
from meshtf import tf
from runtime.checkpoint.position import TrainingPosition
from runtime.mesh.placement import VariableSlices, VariableStore

STATE_FILE = "checkpoint"
STEP_NAME = "global_step"
# Hugging Face's converter skips names that hold "global_step", and fails on names that it does not know.
EXAMPLES_NAME = "global_step_examples"
DATASET_EXAMPLES_PREFIX = "global_step_examples_of/"  # a dataset's name follows
SLOT = re.compile(r"/adam_[mv]$|_slot_(vr|vc|v|m)$")  # optimiser state, also that of GPT-Neo's Adafactor


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """The content of the file `checkpoint`.

    Attributes:
        newest: path prefix of the checkpoint to resume from.
        times_seconds: when each finished checkpoint was written, by path prefix, the newest last.
        permanent_seconds: when the last of the permanent checkpoints was written.
    """

    newest: str
    times_seconds: dict[str, float]
    permanent_seconds: float


def read_state(model_path: str) -> CheckpointState | None:
    """Reads the file `checkpoint`, also GPT-Neo's or one written by hand; None: there is no such file.

    Raises:
        CheckpointError: it cannot be read, or names no checkpoint.
    """
    path = posixpath.join(model_path, STATE_FILE)
    try:
        return _parse_state(model_path, path) if tf.io.gfile.exists(path) else None
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {first_line(error)}; check the network and the permissions, and start again"
        ) from error


def _parse_state(model_path: str, path: str) -> CheckpointState:
    try:
        state = tf.train.get_checkpoint_state(model_path)
    except ValueError:
        state = None
    if state is None:
        raise CheckpointError(f"{path}: names no checkpoint; rewrite it, or remove it to start from step 0")
    paths, times = list(state.all_model_checkpoint_paths), list(state.all_model_checkpoint_timestamps)
    known = dict(zip(paths, times, strict=True)) if len(paths) == len(times) else dict.fromkeys(paths, time.time())
    newest = state.model_checkpoint_path
    known[newest] = known.pop(newest, time.time())
    finished = {path: seconds for path, seconds in known.items() if tf.io.gfile.exists(f"{path}.index")}
    return CheckpointState(newest, finished, state.last_preserved_timestamp)


def latest_checkpoint(model_path: str) -> str | None:
    """Returns the path prefix of the newest finished checkpoint; None: nothing was saved there.

    Raises:
        CheckpointError: the file `checkpoint` names only missing ones, and starting from step 0 would hide that.
    """
    state = read_state(model_path)
    if state is None:
        return None
    if not state.times_seconds:
        raise CheckpointError(
            f"{posixpath.join(model_path, STATE_FILE)}: names {state.newest}, which is missing; restore its files, or "
            f"remove the file {STATE_FILE} to start from step 0"
        )
    return list(state.times_seconds)[-1]


def checkpoint_step(path: str) -> int:
    """Returns the step of a checkpoint, from its name.

    Raises:
        CheckpointError: the name holds no step.
    """
    match = re.search(r"-(\d+)$", path)
    if match is None:
        raise CheckpointError(f"{path}: the name does not end in a step; name checkpoints as model.ckpt-STEP")
    return int(match.group(1))


def restore(path: str, store: VariableStore, train_batch_size: int) -> TrainingPosition:
    """Restores every variable of a store from a checkpoint written on any mesh.

    Stored variables may have another floating-point type: GPT-Neo writes bfloat16 for `precision` bfloat16.

    Args:
        path: prefix of the checkpoint.
        store: the variables, of any layout.
        train_batch_size: gives the number of examples read where the checkpoint lacks it, as GPT-Neo's do.

    Raises:
        CheckpointError: a variable is missing, has another shape, or a file cannot be read.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        _check_variables(path, reader, store)
        for stored in store:
            _restore_variable(path, stored, reader.get_variable_to_dtype_map()[stored.name])
        return _position(path, reader, train_batch_size)
    except (tf.errors.OpError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: cannot be read: {first_line(error)}; remove the files of this checkpoint to resume from "
            "the previous one, or give another model_path"
        ) from error


def read_variables(path: str, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the whole value of variables of a checkpoint.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        for name in names:
            yield name, reader.get_tensor(name)
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {first_line(error)}; check the disk and the network") from error


def _position(path: str, reader: tf.train.CheckpointReader, train_batch_size: int) -> TrainingPosition:
    step = int(reader.get_tensor(STEP_NAME)) if reader.has_tensor(STEP_NAME) else checkpoint_step(path)
    if not reader.has_tensor(EXAMPLES_NAME):
        return TrainingPosition(step, step * train_batch_size)
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(DATASET_EXAMPLES_PREFIX)]
    counts = {name.removeprefix(DATASET_EXAMPLES_PREFIX): int(reader.get_tensor(name)) for name in sorted(names)}
    return TrainingPosition(step, int(reader.get_tensor(EXAMPLES_NAME)), counts or None)


def first_line(error: Exception) -> str:
    """Returns the first line of TensorFlow's message, without the name of the operation."""
    line = getattr(error, "message", str(error)).strip().splitlines()[0]
    return re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\].*", "", line)


def missing_variable(source: str, name: str, found: Iterable[str], remedy: str) -> CheckpointError:
    """Returns the error for a variable that a source of weights lacks, with the nearest name found there."""
    nearest = difflib.get_close_matches(name, found, 1)
    hint = f"; the nearest name there is {nearest[0]}" if nearest else ""
    return CheckpointError(f"{source}: has no variable {name}{hint}; {remedy}")


def weight_names(names: Iterable[str]) -> list[str]:
    """Returns those names that belong to the model's variables, sorted: no optimiser state and no position."""
    return sorted(name for name in names if name.startswith("gpt2/") and not SLOT.search(name))


def _check_nothing_left(path: str, names: Iterable[str], store: VariableStore) -> None:
    """Refuses weights that the config's model lacks, such as those of a deeper model."""
    known = {stored.name for stored in store}
    for name in weight_names(names):
        if name not in known:
            raise CheckpointError(
                f"{path}: holds {name}, which the model of the config lacks; give the config that was trained, or "
                "another model_path"
            )


def _check_variables(path: str, reader: tf.train.CheckpointReader, store: VariableStore) -> None:
    shapes = reader.get_variable_to_shape_map()
    for stored in store:
        if stored.name not in shapes and SLOT.search(stored.name):
            raise CheckpointError(
                f"{path}: has no {stored.name}, which the optimiser needs; give the former opt_name and "
                "beta1, or start another run with --init_from"
            )
        if stored.name not in shapes:
            raise missing_variable(path, stored.name, shapes, "give the config that was trained, or another model_path")
        there = tuple(shapes[stored.name])
        if there != stored.whole_shape:
            raise CheckpointError(
                f"{path}: variable {stored.name} is {list(there)} there and {list(stored.whole_shape)} in the config; "
                "give the config that was trained, or another model_path"
            )
    _check_nothing_left(path, shapes, store)


def _restore_variable(path: str, stored: VariableSlices, dtype: tf.DType) -> None:
    """Restores the slices, and reads those that several processors hold once."""
    read: dict[tuple[int, ...], tf.Tensor] = {}
    for index, (begin, piece) in enumerate(zip(stored.begins, stored.slices, strict=True)):
        if begin not in read:
            read[begin] = _read_slice(path, stored, index, dtype)
        piece.assign(read[begin])


def _read_slice(path: str, stored: VariableSlices, index: int, dtype: tf.DType) -> tf.Tensor:
    with tf.device("/device:CPU:0"):
        (value,) = tf.raw_ops.RestoreV2(
            prefix=path, tensor_names=[stored.name], shape_and_slices=[stored.specification(index)], dtypes=[dtype]
        )
        return tf.cast(value, tf.float32)
