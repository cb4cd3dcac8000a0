"""Reads checkpoints: TensorFlow's format under GPT-Neo's variable names, each variable whole whatever the mesh was."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import posixpath
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from configs.errors import CheckpointError
from configs.schema import is_adapter
from meshtf import tf
from models.variables import Role
from runtime.checkpoint.position import TrainingPosition
from runtime.mesh.placement import VariableSlices, VariableStore, overwrite

STATE_FILE = "checkpoint"
STEP_NAME = "global_step"
# Hugging Face's converter skips names that hold "global_step", and fails on names that it does not know.
EXAMPLES_NAME = "global_step_examples"
# Our checkpoints hold it since linear attention and elish are GPT-Neo's.
FUNCTIONS_NAME = "global_step_functions"
# Checkpoints of adapters hold it: the weights that they belong to, as `adapters.Base` writes them.
BASE_NAME = "global_step_base"
DATASET_EXAMPLES_PREFIX = "global_step_examples_of/"  # a dataset's name follows
FINISHED = re.compile(r"^[^.].*-\d+\.index$")  # the index is written last
# What TensorFlow raises for a file that is cut off, empty, overwritten or missing, not for a network or permissions.
DAMAGE = (tf.errors.DataLossError, tf.errors.OutOfRangeError, tf.errors.NotFoundError, ValueError, IndexError)
DAMAGED_SHARD = re.compile(r"TensorBundle at .* shard (\d+) ")  # in TensorFlow's message of a tensor's checksum
STEP_IN_NAME = re.compile(r"-(\d+)$")
EMA_SUFFIX = "/ema"  # of the averages of variables, by `ema_decay`
# Optimiser state, also that of GPT-Neo's Adafactor.
SLOT = re.compile(r"/(adam_[mv]|lion_m|muon_m|ema)$|_slot_(vr|vc|v|m)$")


class DamagedError(CheckpointError):
    """The files of a checkpoint are damaged or missing; an earlier checkpoint may be whole."""

    def __init__(self, problem: str) -> None:
        """Keeps what is wrong apart from what to do."""
        super().__init__(f"{problem}; restore its files, or give another path")
        self.problem = problem


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """The finished checkpoints of a folder.

    Attributes:
        times_seconds: when each was written, by path prefix, the newest last.
        permanent_seconds: when the last of the permanent checkpoints was written.
        problem: what is wrong with the file `checkpoint`, so that all in the folder count, or the newest that it names
            is not there; None: nothing.
    """

    times_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    permanent_seconds: float = 0.0
    problem: str | None = None


def read_state(folder: str) -> CheckpointState:
    """Finds the checkpoints that the file `checkpoint` names, also GPT-Neo's or one written by hand, or else all.

    It may name them by the path that the folder once had, so only the last part of a path counts: a copied run leaves
    the original alone.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    with _reading_state(folder) as place:
        has_state = tf.io.gfile.exists(place)  # also shows whether it may be read, which a list of names does not
        named = _named_checkpoints(folder) if has_state else f"{folder}: has no file {STATE_FILE}"
        if isinstance(named, CheckpointState):
            return named
        finished = _finished_checkpoints(folder)
        times = {path: tf.io.gfile.stat(f"{path}.index").mtime_nsec / 1e9 for path in finished}
        return CheckpointState(times, problem=named if times or has_state else None)


@contextlib.contextmanager
def _reading_state(folder: str) -> Iterator[str]:
    """Yields the path of the file `checkpoint`, and names it where the folder cannot be read."""
    place = posixpath.join(folder, STATE_FILE)
    try:
        yield place
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"{place}: cannot be read: {first_line(error)}; check the network and the permissions, and start again"
        ) from error


def checkpoints_to_try(folder: str) -> list[str]:
    """Returns the checkpoints that the file `checkpoint` names, the newest first, and then those before them.

    The file does not name those that stay for good.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    named = list(reversed(read_state(folder).times_seconds))
    first_step = min((step_in_name(path) or 0 for path in named), default=0)
    with _reading_state(folder):
        before = [path for path in _finished_checkpoints(folder) if checkpoint_step(path) < first_step]
    return [*named, *reversed(before)]


def _finished_checkpoints(folder: str) -> list[str]:
    """Returns all finished checkpoints of a folder, by step."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    paths = [posixpath.join(folder, name.removesuffix(".index")) for name in names if FINISHED.search(name)]
    return sorted(paths, key=checkpoint_step)


def _named_checkpoints(folder: str) -> CheckpointState | str:
    """Returns the finished checkpoints that the file `checkpoint` names; if there are none, what is wrong with it."""
    place = posixpath.join(folder, STATE_FILE)
    try:
        state = tf.train.get_checkpoint_state(folder)
    except ValueError:
        state = None
    if state is None:
        return f"{place}: names no checkpoint"
    paths, times = list(state.all_model_checkpoint_paths), list(state.all_model_checkpoint_timestamps)
    known = dict(zip(paths, times, strict=True)) if len(paths) == len(times) else dict.fromkeys(paths, time.time())
    newest = state.model_checkpoint_path
    known[newest] = known.pop(newest, time.time())
    here = {posixpath.join(folder, _last_part(path)): seconds for path, seconds in known.items()}
    finished = {path: seconds for path, seconds in here.items() if tf.io.gfile.exists(f"{path}.index")}
    problem = f"{place}: names {_last_part(newest)}, which is not there"
    if not finished:
        return problem
    is_newest_there = posixpath.join(folder, _last_part(newest)) in finished
    return CheckpointState(finished, state.last_preserved_timestamp, None if is_newest_there else problem)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def latest_checkpoint(folder: str) -> str | None:
    """Returns the path prefix of the newest finished checkpoint; None: nothing was saved there.

    Raises:
        CheckpointError: something was, but it is missing, and starting from step 0 would hide that.
    """
    state = read_state(folder)
    if state.problem and not state.times_seconds:
        raise CheckpointError(f"{state.problem}; restore the files of the checkpoint, or give another path")
    return next(reversed(state.times_seconds), None)


def checkpoint_step(path: str) -> int:
    """Returns the step of a checkpoint, from its name.

    Raises:
        CheckpointError: the name holds no step.
    """
    step = step_in_name(path)
    if step is None:
        raise CheckpointError(f"{path}: the name does not end in a step; name checkpoints as model.ckpt-STEP")
    return step


def step_in_name(path: str) -> int | None:
    """Returns the step that the name of a checkpoint ends in; None: it does not."""
    found = STEP_IN_NAME.search(path)
    return found and int(found[1])


def restore(path: str, store: VariableStore, train_batch_size: int, suffix: str = "") -> TrainingPosition:
    """Restores every variable of a store from a checkpoint written on any mesh, or all but those of its base.

    Stored variables may have another floating-point type: GPT-Neo writes bfloat16 for `precision` bfloat16.

    Args:
        path: prefix of the checkpoint.
        store: the variables, of any layout.
        train_batch_size: gives the number of examples read where the checkpoint lacks it, as GPT-Neo's do.
        suffix: of the names there; `EMA_SUFFIX`: of the averages of the variables, where the store has no slots.

    Raises:
        DamagedError: a file is damaged or missing.
        CheckpointError: a variable is missing, has another shape, or a file cannot be read.
    """
    with _reading(path):
        reader = tf.train.load_checkpoint(path)
        held = _held_variables(path, reader, store)
        _check_variables(path, reader, held, suffix)
        _check_nothing_left(path, reader.get_variable_to_shape_map(), store)
    for stored in held:
        name = stored.name + suffix
        with _reading(path, name):
            _restore_variable(path, stored, name, reader.get_variable_to_dtype_map())
    return _position(path, reader, train_batch_size)


def _held_variables(path: str, reader: tf.train.CheckpointReader, store: VariableStore) -> list[VariableSlices]:
    """Returns the variables that should be in a checkpoint: where it names a base, those that are not frozen."""
    if not reader.has_tensor(BASE_NAME):
        return list(store)
    if not any(is_adapter(stored.name) for stored in store):
        raise CheckpointError(
            f"{path}: holds adapters alone, and the config has no lora_rank; give the config that was trained, or "
            f"start another run with --init_from {path}"
        )
    return [stored for stored in store if stored.variable.role is not Role.FROZEN]


def read_variables(path: str, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the whole value of variables of a checkpoint.

    Raises:
        DamagedError: a file is damaged or missing.
        CheckpointError: a file cannot be read.
    """
    with _reading(path):
        reader = tf.train.load_checkpoint(path)
    for name in names:
        yield name, _read_tensor(path, reader, name)


def _read_tensor(path: str, reader: tf.train.CheckpointReader, name: str) -> np.ndarray:
    with _reading(path, name):
        return reader.get_tensor(name)


@contextlib.contextmanager
def _reading(path: str, name: str | None = None) -> Iterator[None]:
    """Names what cannot be read: a tensor and its file, or else the index.

    TensorFlow compares the checksum of every slice that it reads, even of a part of it, and of every block of the
    index; its message holds neither the tensor nor the file.

    Raises:
        DamagedError: a file is damaged or missing.
        CheckpointError: it cannot be read.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (tf.errors.OpError, ValueError, IndexError) as error:
        place = f"{path}.index" if name is None else f"{_data_file(path, error)}: {name}"
        problem = f"{place}: cannot be read: {first_line(error)}"
        if isinstance(error, DAMAGE) or type(error) is tf.errors.OpError:  # of an index that is cut off
            raise DamagedError(problem) from error
        raise CheckpointError(f"{problem}; check the network and the permissions, and start again") from error


def _data_file(path: str, error: Exception) -> str:
    """Returns the file that TensorFlow has found damaged; a pattern of all where its message tells none of several."""
    found = DAMAGED_SHARD.search(str(error))
    pattern = f"{path}.data-{int(found[1]):05}-of-*" if found else f"{path}.data-*"
    files = tf.io.gfile.glob(pattern)
    return files[0] if len(files) == 1 else pattern


def _position(path: str, reader: tf.train.CheckpointReader, train_batch_size: int) -> TrainingPosition:
    all_names = reader.get_variable_to_shape_map()
    names = sorted(name for name in all_names if name.startswith(STEP_NAME) and name != BASE_NAME)
    numbers = {name: int(_read_tensor(path, reader, name)) for name in names}
    step = numbers[STEP_NAME] if STEP_NAME in numbers else checkpoint_step(path)
    if EXAMPLES_NAME not in numbers:
        return TrainingPosition(step, step * train_batch_size)
    per_dataset = [name for name in names if name.startswith(DATASET_EXAMPLES_PREFIX)]
    counts = {name.removeprefix(DATASET_EXAMPLES_PREFIX): numbers[name] for name in per_dataset}
    return TrainingPosition(step, numbers[EXAMPLES_NAME], counts or None)


def first_line(error: Exception) -> str:
    """Returns the first line of TensorFlow's or the system's message, without the name of the operation."""
    reason = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
    line = reason.strip().splitlines()[0]
    return re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\].*", "", line)


def missing_variable(source: str, name: str, found: Iterable[str], remedy: str) -> CheckpointError:
    """Returns the error for a variable that a source of weights lacks, with the nearest name found there."""
    nearest = difflib.get_close_matches(name, found, 1)
    hint = f"; the nearest name there is {nearest[0]}" if nearest else ""
    return CheckpointError(f"{source}: has no variable {name}{hint}; {remedy}")


def weight_names(names: Iterable[str]) -> list[str]:
    """Returns those names that belong to the model's variables, sorted: no optimiser state and no position."""
    return sorted(name for name in names if name.startswith("gpt2/") and not SLOT.search(name))


def no_averages(path: str) -> CheckpointError:
    """Returns the error for a checkpoint without averages of its variables."""
    return CheckpointError(f"{path}: has no averages; leave out --ema, or train with ema_decay")


def _check_nothing_left(path: str, names: Iterable[str], store: VariableStore) -> None:
    """Refuses weights that the config's model lacks, such as those of a deeper model."""
    known = {stored.name for stored in store}
    for name in weight_names(names):
        if name not in known:
            raise CheckpointError(
                f"{path}: holds {name}, which the model of the config lacks; give the config that was trained, or "
                "another model_path"
            )


def _check_variables(
    path: str, reader: tf.train.CheckpointReader, variables: Sequence[VariableSlices], suffix: str
) -> None:
    shapes = reader.get_variable_to_shape_map()
    for stored in variables:
        name = stored.name + suffix
        if name not in shapes and is_adapter(name):
            raise CheckpointError(
                f"{path}: has no adapters ({name}); leave lora_rank out, or begin them in another run with "
                f"--init_from {path}"
            )
        if name not in shapes and suffix == EMA_SUFFIX:
            raise no_averages(path)
        if name not in shapes and name.endswith(EMA_SUFFIX):
            raise CheckpointError(
                f"{path}: has no averages ({name}), which ema_decay goes on from; leave out ema_decay, or start "
                "another run with --init_from"
            )
        if name not in shapes and SLOT.search(name):
            raise CheckpointError(
                f"{path}: has no {name}, which the optimiser needs; give the former opt_name and "
                "beta1, or start another run with --init_from"
            )
        if name not in shapes:
            raise missing_variable(path, name, shapes, "give the config that was trained, or another model_path")
        there = tuple(shapes[name])
        if there != stored.whole_shape:
            raise CheckpointError(
                f"{path}: variable {name} is {list(there)} there and {list(stored.whole_shape)} in the config; "
                "give the config that was trained, or another model_path"
            )


def _restore_variable(path: str, stored: VariableSlices, name: str, dtypes: Mapping[str, tf.DType]) -> None:
    """Restores the slices from the variable of that name, and reads those that several processors hold once."""
    read: dict[tuple[int, ...], tf.Tensor] = {}
    for index, (begin, piece) in enumerate(zip(stored.begins, stored.slices, strict=True)):
        if begin not in read:
            read[begin] = _read_slice(path, name, stored.specification(index), dtypes[name])
        overwrite(piece, read[begin])


def _read_slice(path: str, name: str, specification: str, dtype: tf.DType) -> tf.Tensor:
    with tf.device("/device:CPU:0"):
        (value,) = tf.raw_ops.RestoreV2(
            prefix=path, tensor_names=[name], shape_and_slices=[specification], dtypes=[dtype]
        )
        return tf.cast(value, tf.float32)
