"""Writes checkpoints from the slices of the mesh, beside training: a step waits for the copy of the slices at most.

A checkpoint takes three steps: the tensors, then the index (TensorFlow renames it into place once all tensors are
written), then the line in the file `checkpoint` (renamed into place too). If the process is killed at any moment, the
newest finished checkpoint stays the newest. Of several processes each writes its own slices, and the first merges them
once a file of each says that they are written: a barrier would meet the collectives of the steps.

A large checkpoint is written to a disk in pieces, each in the memory of the one before it: memory that a system has
never used, or has returned to its host, takes the cores several times as long to fill.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from configs.errors import CheckpointError
from meshtf import tf
from models.variables import Role
from runtime.checkpoint.background import BackgroundWork
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import (
    BASE_NAME,
    DATASET_EXAMPLES_PREFIX,
    EXAMPLES_NAME,
    FUNCTIONS_NAME,
    STEP_NAME,
    first_line,
)
from runtime.checkpoint.retention import CheckpointRetention
from runtime.checkpoint.weight_sources import Weights
from runtime.cluster.process_group import ALONE, ProcessGroup
from runtime.mesh.placement import VariableStore
from runtime.run.lock import FencingToken
from storage.files import drop_from_cache, flush_to_disk, is_local, write_text, writing_to

LEFTOVER = re.compile(r"^model\.ckpt-.*\.tempstate\d+$|^\.[0-9a-f]{32}\.part$")
LEFTOVER_PARTS = re.compile(r"^model\.ckpt-\d+\.parts/?$")  # a folder
PART_DONE = "done"  # in the folder of a part: how many entries it holds
WRITING_SECONDS = 1800.0  # until all other processes have written their parts, as the first one sees it
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 1.0  # between two looks
HOST = "/device:CPU:0"
# The smallest piece, and the most pieces of a checkpoint; each process writes at least one.
PIECE_BYTES, MOST_PIECES = 64 * 2**20, 16

# Name, slice specification and value of a tensor to write.
_Entry = tuple[str, str, tf.Tensor]


class CheckpointWriter:
    """Writes the checkpoints of one run: copies the slices, and leaves the copies to a thread.

    All processes of the run make it together.
    """

    def __init__(
        self,
        model_path: str,
        store: VariableStore,
        group: ProcessGroup = ALONE,
        keep_checkpoints: int = 10,
        keep_every_steps: int | None = None,
    ) -> None:
        self._model_path = model_path
        self._store = store
        self._group = group
        self._token = FencingToken(model_path)
        self._retention = CheckpointRetention(model_path, keep_checkpoints, keep_every_steps)
        self._n_pieces = max(1, MOST_PIECES // group.size) if is_local(model_path) else 1
        self._work, self._is_abandoned = BackgroundWork("checkpoint writer"), threading.Event()
        if group.is_first:
            _remove_leftovers(model_path)
        group.barrier()  # no process writes a part before that

    def save(self, position: TrainingPosition, before_writing: Callable[[], None] = lambda: None) -> str:
        """Copies every variable, and writes the copies and the position beside what follows.

        Waits until the checkpoint before it is written. Frozen variables that come from a base are left out, and the
        base is named.

        Args:
            position: where training is.
            before_writing: called in the thread that writes.

        Returns:
            The path prefix, where the checkpoint will be.

        Raises:
            CheckpointError: the one before it cannot be written; an earlier one stays the newest.
            UserError: another process writes there.
        """
        self._work.wait()
        path = posixpath.join(self._model_path, f"model.ckpt-{position.step}")
        entries = _slice_entries(self._store)
        if self._group.is_first:
            entries += [*_position_entries(position), *_base_entries(self._store)]

        def write() -> None:
            before_writing()
            self._write(path, entries)

        self._work.start(write)
        return path

    def check(self) -> None:
        """Raises what `save` raises for the checkpoint before it, if that has failed."""
        self._work.check()

    def wait(self) -> None:
        """Returns once this process has written all of its checkpoints, the first process those of all.

        Raises:
            UserError: one cannot be written, see `save`.
        """
        self._work.wait()

    def finish(self) -> None:
        """Returns once the newest checkpoint is finished; all processes call it together.

        Raises:
            UserError: it cannot be written, see `save`.
        """
        self.wait()
        self._group.barrier()

    def abandon(self) -> None:
        """Returns once this process writes nothing more; does not wait for parts of other processes.

        Raises:
            UserError: the newest checkpoint is not finished.
        """
        self._is_abandoned.set()
        self.wait()

    def _write(self, path: str, entries: Sequence[_Entry]) -> None:
        if self._group.is_first:
            self._token.check()
        with _writing(path):
            tf.io.gfile.makedirs(self._model_path)
            earlier = _data_files(path)
            if self._group.size == 1:
                _write_pieces(path, entries, self._n_pieces)
            else:
                self._write_part(path, entries)
            if self._group.is_first:
                _remove_replaced(path, earlier)
                self._retention.add(path)

    def _write_part(self, path: str, entries: Sequence[_Entry]) -> None:
        """Writes the slices of this process; once all have, the first process merges them."""
        parts = [f"{path}.parts/{index}-of-{self._group.size}/part" for index in range(self._group.size)]
        own = parts[self._group.index]
        tf.io.gfile.makedirs(posixpath.dirname(own))
        if entries:
            _write_pieces(own, entries, self._n_pieces)
        write_text(_done_file(own), str(len(entries)))
        if self._group.is_first:
            deadline_seconds = time.monotonic() + WRITING_SECONDS
            written = [part for index, part in enumerate(parts) if self._holds_entries(part, index, deadline_seconds)]
            _merge(written, path)

    def _holds_entries(self, part: str, index: int, deadline_seconds: float) -> bool:
        """Waits for the part of a process; returns whether it had anything to write.

        Raises:
            CheckpointError: its part is not visible here by the deadline, or training ends without it.
        """
        pause_seconds = FIRST_PAUSE_SECONDS
        while (n_entries := _n_entries(part)) is None:
            if self._is_abandoned.wait(pause_seconds):
                raise CheckpointError(
                    f"{part}: process {index} has not written its part, and training ends; run the same command "
                    "again to resume from the checkpoint before it"
                )
            if time.monotonic() > deadline_seconds:
                raise CheckpointError(
                    f"{part}: process {index} has not written its part, or it is not visible here; give a model_path "
                    "in a folder that all machines share, or in a bucket"
                )
            pause_seconds = min(2.0 * pause_seconds, LONGEST_PAUSE_SECONDS)
        return n_entries > 0


def _done_file(part: str) -> str:
    return posixpath.join(posixpath.dirname(part), PART_DONE)


def _n_entries(part: str) -> int | None:
    """Returns how many entries a process has written; None: it has not finished, or not all of it is visible here."""
    if not tf.io.gfile.exists(_done_file(part)):
        return None
    with tf.io.gfile.GFile(_done_file(part)) as file:
        n_entries = int(file.read() or 0)
    return n_entries if not n_entries or tf.io.gfile.exists(f"{part}.index") else None


def write_weights_checkpoint(model_path: str, weights: Weights, step: int) -> None:
    """Writes a checkpoint of weights alone, each variable whole, into a folder without any; all are in memory once."""
    path = posixpath.join(model_path, f"model.ckpt-{step}")
    entries = [(name, "", tf.constant(stored.read())) for name, stored in weights.items()]
    _write_tensors(path, [*entries, *_number_entries({STEP_NAME: step, FUNCTIONS_NAME: 1})])
    CheckpointRetention(model_path, keep_checkpoints=1).add(path)


def _remove_leftovers(model_path: str) -> None:
    """Removes the unfinished files of a killed process, which a bucket would charge for forever."""
    if not tf.io.gfile.isdir(model_path):
        return
    with writing_to(model_path, tf.errors.OpError):
        for name in tf.io.gfile.listdir(model_path):
            path = posixpath.join(model_path, name)
            if LEFTOVER_PARTS.search(name):
                tf.io.gfile.rmtree(path)
            elif LEFTOVER.search(name):
                tf.io.gfile.remove(path)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {first_line(error)}; make room there, or give another path"
        ) from error


def _merge(parts: Sequence[str], path: str) -> None:
    with tf.device(HOST):
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=False)
    _flush(path)
    tf.io.gfile.rmtree(f"{path}.parts")


def _write_pieces(path: str, entries: Sequence[_Entry], most_pieces: int) -> None:
    pieces = list(_pieces(entries, most_pieces))
    if len(pieces) == 1:
        _write_tensors(path, entries)
        return
    prefixes = [f"{path}.parts/{number}" for number in range(len(pieces))]
    try:
        for prefix, piece in zip(prefixes, pieces, strict=True):
            _write_tensors(prefix, piece)
            for written in _data_files(prefix):
                drop_from_cache(written)
        _merge(prefixes, path)
    except (tf.errors.OpError, OSError):
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.rmtree(f"{path}.parts")
        raise


def _pieces(entries: Sequence[_Entry], most_pieces: int) -> Iterator[list[_Entry]]:
    """Splits entries where a piece is full."""
    sizes = [tensor.shape.num_elements() * tensor.dtype.size for _, _, tensor in entries]
    full_bytes = max(PIECE_BYTES, sum(sizes) / most_pieces)
    piece, n_bytes = [], 0
    for entry, size in zip(entries, sizes, strict=True):
        piece.append(entry)
        n_bytes += size
        if n_bytes >= full_bytes:
            yield piece
            piece, n_bytes = [], 0
    if piece:
        yield piece


def _write_tensors(path: str, entries: Sequence[_Entry]) -> None:
    names, specifications, tensors = map(list, zip(*entries, strict=True))
    with tf.device(HOST):
        tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=specifications, tensors=tensors)
    _flush(path)


def _flush(path: str) -> None:
    for written in [f"{path}.index", *_data_files(path)]:
        flush_to_disk(written)


def _remove_replaced(path: str, earlier: Mapping[str, int]) -> None:
    """Removes the files of an earlier checkpoint of the same step that had another number of them."""
    files = _data_files(path)
    numbers = {file.rpartition("-of-")[2] for file, _ in files.items() - earlier.items()}
    for file in files if numbers else ():
        if file.rpartition("-of-")[2] not in numbers:
            tf.io.gfile.remove(file)


def _data_files(path: str) -> dict[str, int]:
    """Returns the files of data of a checkpoint, and when each was written, in nanoseconds."""
    return {file: tf.io.gfile.stat(file).mtime_nsec for file in tf.io.gfile.glob(f"{path}.data-*")}


def _slice_entries(store: VariableStore) -> list[_Entry]:
    return [
        (stored.name, stored.specification(index), _host_copy(stored.slices[index]))
        for stored in store
        if store.base is None or stored.variable.role is not Role.FROZEN
        for index in stored.distinct_slices()
    ]


def _host_copy(piece: tf.Variable) -> tf.Tensor:
    """Returns the value of a slice in the memory of the host, which the next step does not change."""
    with tf.device(HOST):
        value = tf.identity(piece)  # of another kind of device a copy, of a CPU the same memory
        is_on_cpu = tf.DeviceSpec.from_string(piece.device).device_type == "CPU"
        return tf.raw_ops.DeepCopy(x=value) if is_on_cpu else value


def _base_entries(store: VariableStore) -> list[_Entry]:
    return [] if store.base is None else [(BASE_NAME, "", tf.constant(store.base))]


def _position_entries(position: TrainingPosition) -> list[_Entry]:
    per_dataset = {DATASET_EXAMPLES_PREFIX + name: n for name, n in (position.examples_per_dataset or {}).items()}
    numbers = {STEP_NAME: position.step, EXAMPLES_NAME: position.examples, FUNCTIONS_NAME: 1, **per_dataset}
    return _number_entries(numbers)


def _number_entries(numbers: Mapping[str, int]) -> list[_Entry]:
    return [(name, "", tf.constant(number, tf.int64)) for name, number in numbers.items()]
