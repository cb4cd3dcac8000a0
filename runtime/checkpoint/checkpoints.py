"""Checkpoints in TensorFlow's format under GPT-Neo's names, written from the slices; a variable is whole in the file
whatever the mesh was.

A checkpoint is three steps: the tensors, then the index (renamed into place by TensorFlow when all tensors are
written), then the line in the file `checkpoint` (renamed into place too). Killed at any moment, the newest finished
checkpoint stays the newest. Of many processes each writes the slices that it holds; the first makes one index of all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import posixpath
import re
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from configs.errors import CheckpointError
from meshtf import tf
from runtime.checkpoint.position import TrainingPosition
from runtime.cluster.process_group import ALONE, ProcessGroup
from runtime.mesh.placement import VariableSlices, VariableStore
from runtime.run.directory import Claim
from storage.files import OwnFile, flush_to_disk, write_text

STATE_FILE = "checkpoint"
STEP_NAME = "global_step"
# Hugging Face's converter passes over names that hold "global_step", and must not find a name that it does not know.
EXAMPLES_NAME = "global_step_examples"
DATASET_EXAMPLES_PREFIX = "global_step_examples_of/"  # a dataset's name follows
SLOT = re.compile(r"/adam_[mv]$|_slot_(vr|vc|v|m)$")  # what optimisers keep, also GPT-Neo's Adafactor
LEFTOVER = re.compile(r"^model\.ckpt-.*\.tempstate\d+$|^\.[0-9a-f]{32}\.part$")
KEPT = 10
KEPT_FOR_GOOD_SECONDS = 2 * 3600
PART_DONE = "done"  # in the folder of a part: how many entries it holds
SHOW_SECONDS = 60.0  # that a shared folder may take to show what another machine has written


@dataclasses.dataclass(frozen=True)
class _State:
    """What the file `checkpoint` says.

    Attributes:
        newest: path prefix of the checkpoint to go on from.
        times_seconds: when each finished checkpoint was written, by path prefix, the newest last.
        kept_for_good_seconds: when the last of those was written that stay for good.
    """

    newest: str
    times_seconds: dict[str, float]
    kept_for_good_seconds: float


def _read_state(model_path: str) -> _State | None:
    """What the file says, also one of GPT-Neo's or one written by hand; None: there is no such file."""
    path = posixpath.join(model_path, STATE_FILE)
    try:
        return _state_in(model_path, path) if tf.io.gfile.exists(path) else None
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {_first_line(error)}; see to the network and to who may read it, and start again"
        ) from error


def _state_in(model_path: str, path: str) -> _State:
    try:
        state = tf.train.get_checkpoint_state(model_path)
    except ValueError:
        state = None
    if state is None:
        raise CheckpointError(f"{path}: names no checkpoint; write it again, or remove it to begin from step 0")
    paths, times = list(state.all_model_checkpoint_paths), list(state.all_model_checkpoint_timestamps)
    known = dict(zip(paths, times, strict=True)) if len(paths) == len(times) else dict.fromkeys(paths, time.time())
    newest = state.model_checkpoint_path
    known[newest] = known.pop(newest, time.time())
    finished = {path: seconds for path, seconds in known.items() if tf.io.gfile.exists(f"{path}.index")}
    return _State(newest, finished, state.last_preserved_timestamp)


def latest_checkpoint(model_path: str) -> str | None:
    """Path prefix of the newest finished checkpoint; None: nothing was saved there.

    Raises:
        CheckpointError: the file `checkpoint` names none that is there: better to stop than to begin from step 0.
    """
    state = _read_state(model_path)
    if state is None:
        return None
    if not state.times_seconds:
        raise CheckpointError(
            f"{posixpath.join(model_path, STATE_FILE)}: names {state.newest}, which is not there; put its files "
            f"back, or remove the file {STATE_FILE} to begin from step 0"
        )
    return list(state.times_seconds)[-1]


def checkpoint_step(path: str) -> int:
    """The step that a checkpoint was written at, from its name."""
    match = re.search(r"-(\d+)$", path)
    if match is None:
        raise CheckpointError(f"{path}: the name does not end in a step; name checkpoints as model.ckpt-STEP")
    return int(match.group(1))


class CheckpointWriter:
    """Writes checkpoints of one run, and removes old ones: the last 10 stay, and one for each two hours."""

    def __init__(self, model_path: str, store: VariableStore, group: ProcessGroup = ALONE) -> None:
        self._model_path = model_path
        self._store = store
        self._group = group
        self._claim, self._state_file = Claim(model_path), OwnFile(posixpath.join(model_path, STATE_FILE))
        state = _read_state(model_path)
        self._times_seconds = dict(state.times_seconds) if state else {}
        self._kept_for_good_seconds = state.kept_for_good_seconds if state else time.time()
        if group.is_first:
            _remove_leftovers(model_path)

    def save(self, position: TrainingPosition) -> str:
        """Writes every variable and the position; returns the path prefix.

        Raises:
            CheckpointError: it cannot be written; the one before it stays the newest.
            UserError: another process writes there.
        """
        path = posixpath.join(self._model_path, f"model.ckpt-{position.step}")
        if self._group.is_first:
            self._claim.check()
        with _writing(path):
            tf.io.gfile.makedirs(self._model_path)
            if self._group.size == 1:
                _write_tensors(path, [*_whole_scalars(position), *_distinct_slices(self._store)])
            else:
                _write_part(path, self._store, position, self._group)
            if self._group.is_first:
                self._remember(path)
            self._group.barrier()
        return path

    def _remember(self, path: str) -> None:
        self._times_seconds.pop(path, None)
        self._times_seconds[path] = time.time()
        expired = []
        while len(self._times_seconds) > KEPT:
            old_path = next(iter(self._times_seconds))
            old_seconds = self._times_seconds.pop(old_path)
            if old_seconds > self._kept_for_good_seconds + KEPT_FOR_GOOD_SECONDS:
                self._kept_for_good_seconds = old_seconds
            else:
                expired.append(old_path)
        self._write_state()
        # Only once nothing names them any more.
        for old_path in expired:
            tf.compat.v1.train.remove_checkpoint(old_path)

    def _write_state(self) -> None:
        state = tf.compat.v1.train.generate_checkpoint_state_proto(
            self._model_path,
            list(self._times_seconds)[-1],
            list(self._times_seconds),
            list(self._times_seconds.values()),
            self._kept_for_good_seconds,
        )
        # Names without the folder, so that the folder can be moved.
        state.model_checkpoint_path = posixpath.basename(state.model_checkpoint_path)
        names = [posixpath.basename(path) for path in state.all_model_checkpoint_paths]
        state.all_model_checkpoint_paths[:] = names
        self._state_file.write(str(state))


def _remove_leftovers(model_path: str) -> None:
    """Removes what a killed process was writing: in a bucket it would be paid for without end."""
    if not tf.io.gfile.isdir(model_path):
        return
    for name in tf.io.gfile.listdir(model_path):
        if LEFTOVER.search(name):
            tf.io.gfile.remove(posixpath.join(model_path, name))


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        raise CheckpointError(
            f"{path}: cannot be written: {_first_line(error)}; make room there, or give another path"
        ) from error


# Name, specification of the slice, and value of what is written.
_Entry = tuple[str, str, tf.Tensor]


def _write_part(path: str, store: VariableStore, position: TrainingPosition, group: ProcessGroup) -> None:
    """Writes the slices of this process; when all have done so, the first makes one checkpoint of them."""
    parts = [f"{path}.parts/{index}-of-{group.size}/part" for index in range(group.size)]
    folder = posixpath.dirname(parts[group.index])
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)  # of a save that was cut short
    tf.io.gfile.makedirs(folder)
    entries = [*_distinct_slices(store), *(_whole_scalars(position) if group.is_first else [])]
    if entries:
        _write_tensors(parts[group.index], entries)
    write_text(f"{folder}/{PART_DONE}", str(len(entries)))
    group.barrier()
    if group.is_first:
        _merge([part for index, part in enumerate(parts) if _holds_entries(part, index)], path)


def _holds_entries(part: str, index: int) -> bool:
    """Whether a process had anything to write.

    Raises:
        CheckpointError: what it wrote is not to be seen here, not even after a while, as a shared folder may need.
    """
    done = posixpath.join(posixpath.dirname(part), PART_DONE)
    deadline_seconds = time.monotonic() + SHOW_SECONDS
    while True:
        if tf.io.gfile.exists(done):
            with tf.io.gfile.GFile(done) as file:
                has_entries = int(file.read() or 0) > 0
            if not has_entries or tf.io.gfile.exists(f"{part}.index"):
                return has_entries
        if time.monotonic() > deadline_seconds:
            raise CheckpointError(
                f"{part}: the part of process {index} is not there, though it has been written; give a model_path "
                "in a folder that all machines share, or in a bucket"
            )
        time.sleep(0.5)


def _merge(parts: Sequence[str], path: str) -> None:
    with tf.device("/device:CPU:0"):
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=False)
    _flush(path)
    # Now, while all wait for this process: also what is left of saves that were cut short.
    for folder in tf.io.gfile.glob(posixpath.join(posixpath.dirname(path), "*.parts")):
        tf.io.gfile.rmtree(folder)


def _write_tensors(path: str, entries: Sequence[_Entry]) -> None:
    names, specifications, tensors = map(list, zip(*entries, strict=True))
    with tf.device("/device:CPU:0"):
        tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=specifications, tensors=tensors)
    _flush(path)


def _flush(path: str) -> None:
    for written in tf.io.gfile.glob([f"{path}.index", f"{path}.data-*"]):
        flush_to_disk(written)


def _distinct_slices(store: VariableStore) -> list[_Entry]:
    return [
        (stored.name, stored.specification(index), stored.slices[index])
        for stored in store
        for index in stored.distinct_slices()
    ]


def _whole_scalars(position: TrainingPosition) -> list[_Entry]:
    counts = position.examples_per_dataset or {}
    return [
        (STEP_NAME, "", tf.constant(position.step, tf.int64)),
        (EXAMPLES_NAME, "", tf.constant(position.examples, tf.int64)),
        *[(DATASET_EXAMPLES_PREFIX + name, "", tf.constant(n, tf.int64)) for name, n in counts.items()],
    ]


def restore(path: str, store: VariableStore, train_batch_size: int) -> TrainingPosition:
    """Sets every variable of the store from a checkpoint written on any mesh.

    Variables may be of another floating type there: GPT-Neo keeps bfloat16 ones for `precision` bfloat16.

    Args:
        path: prefix of the checkpoint.
        store: the variables, of any layout.
        train_batch_size: from which the examples read are reckoned for a checkpoint that does not know them, as GPT-
            Neo's.

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
            f"{path}: cannot be read: {_first_line(error)}; remove this checkpoint's files to go on from the one "
            "before it, or give another model_path"
        ) from error


def read_variables(path: str, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields variables of a checkpoint, each whole.

    Raises:
        CheckpointError: a file cannot be read.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        for name in names:
            yield name, reader.get_tensor(name)
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {_first_line(error)}; see whether the disk or the network fails"
        ) from error


def _position(path: str, reader: tf.train.CheckpointReader, train_batch_size: int) -> TrainingPosition:
    step = int(reader.get_tensor(STEP_NAME)) if reader.has_tensor(STEP_NAME) else checkpoint_step(path)
    if not reader.has_tensor(EXAMPLES_NAME):
        return TrainingPosition(step, step * train_batch_size)
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(DATASET_EXAMPLES_PREFIX)]
    counts = {name.removeprefix(DATASET_EXAMPLES_PREFIX): int(reader.get_tensor(name)) for name in sorted(names)}
    return TrainingPosition(step, int(reader.get_tensor(EXAMPLES_NAME)), counts or None)


def _first_line(error: Exception) -> str:
    """What TensorFlow says, without the name of its operation after it."""
    line = getattr(error, "message", str(error)).strip().splitlines()[0]
    return re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:\w+\].*", "", line)


def _check_nothing_left(path: str, names: Iterable[str], store: VariableStore) -> None:
    """Refuses weights that the config's model has no place for, as the layers of a deeper model."""
    known = {stored.name for stored in store}
    for name in sorted(names):
        if name.startswith("gpt2/") and not SLOT.search(name) and name not in known:
            raise CheckpointError(
                f"{path}: holds {name}, which the model of the config lacks; give the config that was trained, or "
                "another model_path"
            )


def _check_variables(path: str, reader: tf.train.CheckpointReader, store: VariableStore) -> None:
    shapes = reader.get_variable_to_shape_map()
    for stored in store:
        if stored.name not in shapes and SLOT.search(stored.name):
            raise CheckpointError(
                f"{path}: has no {stored.name}, which the optimiser keeps; give opt_name and beta1 as they were, "
                "or begin another run with --init_from"
            )
        if stored.name not in shapes:
            nearest = difflib.get_close_matches(stored.name, shapes, 1)
            hint = f"; the nearest name there is {nearest[0]}" if nearest else ""
            raise CheckpointError(
                f"{path}: has no variable {stored.name}{hint}; the config must describe the model that was "
                "trained; give that config, or another model_path"
            )
        there = tuple(shapes[stored.name])
        if there != stored.whole_shape:
            raise CheckpointError(
                f"{path}: variable {stored.name} is {list(there)} there and {list(stored.whole_shape)} in the config "
                "; give the config that was trained, or another model_path"
            )
    _check_nothing_left(path, shapes, store)


def _restore_variable(path: str, stored: VariableSlices, dtype: tf.DType) -> None:
    """Sets the slices; one that many processors hold is read once."""
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
