"""Which checkpoints of a run stay: the newest ones, and of the others one every two hours.

With `keep_every_steps` also those of its multiples.
"""

from __future__ import annotations

import posixpath
import time

from meshtf import tf
from runtime.checkpoint.reader import STATE_FILE, read_state, step_in_name
from storage.files import OwnFile

PERMANENT_EVERY_SECONDS = 2 * 3600


class CheckpointRetention:
    """The checkpoints of one run, as the file `checkpoint` lists them."""

    def __init__(self, model_path: str, keep_checkpoints: int, keep_every_steps: int | None = None) -> None:
        """Reads which there are.

        Args:
            model_path: the folder of the run.
            keep_checkpoints: how many of the newest stay.
            keep_every_steps: the steps between two that stay for good; None: none do.
        """
        self._model_path, self._keep_checkpoints = model_path, keep_checkpoints
        self._keep_every_steps = keep_every_steps
        self._state_file = OwnFile(posixpath.join(model_path, STATE_FILE))
        state = read_state(model_path)
        # Without the file `checkpoint`, nothing tells which of the older ones are permanent, so they stay.
        first = -keep_checkpoints if state.problem else 0
        self._times_seconds = dict(list(state.times_seconds.items())[first:])
        self._permanent_seconds = state.permanent_seconds if state.times_seconds else time.time()

    def add(self, path: str) -> None:
        """Makes a checkpoint the newest, and removes the oldest ones that are not permanent."""
        self._times_seconds.pop(path, None)
        self._times_seconds[path] = time.time()
        expired = []
        while len(self._times_seconds) > self._keep_checkpoints:
            old_path = next(iter(self._times_seconds))
            old_seconds = self._times_seconds.pop(old_path)
            if old_seconds > self._permanent_seconds + PERMANENT_EVERY_SECONDS:
                self._permanent_seconds = old_seconds
            elif not self._is_of_kept_step(old_path):
                expired.append(old_path)
        self._write_state()
        for old_path in expired:  # only now is it no longer listed
            tf.compat.v1.train.remove_checkpoint(old_path)

    def _is_of_kept_step(self, path: str) -> bool:
        step = step_in_name(path)
        return self._keep_every_steps is not None and step is not None and step % self._keep_every_steps == 0

    def _write_state(self) -> None:
        state = tf.compat.v1.train.generate_checkpoint_state_proto(
            self._model_path,
            list(self._times_seconds)[-1],
            list(self._times_seconds),
            list(self._times_seconds.values()),
            self._permanent_seconds,
        )
        # Relative names, so that the folder can be moved.
        state.model_checkpoint_path = posixpath.basename(state.model_checkpoint_path)
        state.all_model_checkpoint_paths[:] = map(posixpath.basename, list(state.all_model_checkpoint_paths))
        self._state_file.write(str(state))
