"""Writes checkpoints from the slices of the mesh.

A checkpoint takes three steps: the tensors, then the index (TensorFlow renames it into place once all tensors are
written), then the line in the file `checkpoint` (renamed into place too). If the process is killed at any moment, the
newest finished checkpoint stays the newest. Of several processes each writes its own slices, and the first merges them.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import time
from collections.abc import Iterator, Sequence

from configs.errors import CheckpointError
from meshtf import tf
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import (
    DATASET_EXAMPLES_PREFIX,
    EXAMPLES_NAME,
    FUNCTIONS_NAME,
    STEP_NAME,
    first_line,
)
from runtime.checkpoint.retention import CheckpointRetention
from runtime.cluster.process_group import ALONE, ProcessGroup
from runtime.mesh.placement import VariableStore
from runtime.run.lock import FencingToken
from storage.files import flush_to_disk, write_text, writing_to

LEFTOVER = re.compile(r"^model\.ckpt-.*\.tempstate\d+$|^\.[0-9a-f]{32}\.part$")
PART_DONE = "done"  # in the folder of a part: how many entries it holds
VISIBLE_SECONDS = 60.0  # until a shared folder shows what another machine has written

# Name, slice specification and value of a tensor to write.
_Entry = tuple[str, str, tf.Tensor]


class CheckpointWriter:
    """Writes the checkpoints of one run."""

    def __init__(
        self,
        model_path: str,
        store: VariableStore,
        group: ProcessGroup = ALONE,
        keep_checkpoints: int = 10,
    ) -> None:
        self._model_path = model_path
        self._store = store
        self._group = group
        self._token, self._retention = FencingToken(model_path), CheckpointRetention(model_path, keep_checkpoints)
        if group.is_first:
            _remove_leftovers(model_path)

    def save(self, position: TrainingPosition) -> str:
        """Writes every variable and the position; returns the path prefix.

        Raises:
            CheckpointError: it cannot be written; the previous one stays the newest.
            UserError: another process writes there.
        """
        path = posixpath.join(self._model_path, f"model.ckpt-{position.step}")
        if self._group.is_first:
            self._token.check()
        with _writing(path):
            tf.io.gfile.makedirs(self._model_path)
            if self._group.size == 1:
                _write_tensors(path, [*_position_entries(position), *_slice_entries(self._store)])
            else:
                _write_part(path, self._store, position, self._group)
            if self._group.is_first:
                self._retention.add(path)
            self._group.barrier()
        return path


def _remove_leftovers(model_path: str) -> None:
    """Removes the unfinished files of a killed process, which a bucket would charge for forever."""
    if not tf.io.gfile.isdir(model_path):
        return
    with writing_to(model_path, tf.errors.OpError):
        for name in tf.io.gfile.listdir(model_path):
            if LEFTOVER.search(name):
                tf.io.gfile.remove(posixpath.join(model_path, name))


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {first_line(error)}; make room there, or give another path"
        ) from error


def _write_part(path: str, store: VariableStore, position: TrainingPosition, group: ProcessGroup) -> None:
    """Writes the slices of this process; once all have, the first process merges them."""
    parts = [f"{path}.parts/{index}-of-{group.size}/part" for index in range(group.size)]
    folder = posixpath.dirname(parts[group.index])
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)  # from an interrupted save
    tf.io.gfile.makedirs(folder)
    entries = [*_slice_entries(store), *(_position_entries(position) if group.is_first else [])]
    if entries:
        _write_tensors(parts[group.index], entries)
    write_text(f"{folder}/{PART_DONE}", str(len(entries)))
    group.barrier()
    if group.is_first:
        _merge([part for index, part in enumerate(parts) if _holds_entries(part, index)], path)


def _holds_entries(part: str, index: int) -> bool:
    """Whether a process had anything to write.

    Raises:
        CheckpointError: its part is not visible here, even after the time that a shared folder may take.
    """
    done = posixpath.join(posixpath.dirname(part), PART_DONE)
    deadline_seconds = time.monotonic() + VISIBLE_SECONDS
    while True:
        if tf.io.gfile.exists(done):
            with tf.io.gfile.GFile(done) as file:
                has_entries = int(file.read() or 0) > 0
            if not has_entries or tf.io.gfile.exists(f"{part}.index"):
                return has_entries
        if time.monotonic() > deadline_seconds:
            raise CheckpointError(
                f"{part}: process {index} has written its part, but it is not visible here; give a model_path in a "
                "folder that all machines share, or in a bucket"
            )
        time.sleep(0.5)


def _merge(parts: Sequence[str], path: str) -> None:
    with tf.device("/device:CPU:0"):
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=path, delete_old_dirs=False)
    _flush(path)
    # All processes wait now, so the leftovers of interrupted saves can go as well.
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


def _slice_entries(store: VariableStore) -> list[_Entry]:
    return [
        (stored.name, stored.specification(index), stored.slices[index])
        for stored in store
        for index in stored.distinct_slices()
    ]


def _position_entries(position: TrainingPosition) -> list[_Entry]:
    per_dataset = {DATASET_EXAMPLES_PREFIX + name: n for name, n in (position.examples_per_dataset or {}).items()}
    numbers = {STEP_NAME: position.step, EXAMPLES_NAME: position.examples, FUNCTIONS_NAME: 1, **per_dataset}
    return [(name, "", tf.constant(number, tf.int64)) for name, number in numbers.items()]
