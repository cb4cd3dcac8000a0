"""The lock of the folder that a process trains in."""

from __future__ import annotations

import contextlib
import posixpath

from configs.errors import UserError
from storage import buckets, locks
from storage.files import is_local

LOCK_FILE = "lock"


def locked(model_path: str) -> contextlib.AbstractContextManager[None]:
    """Locks the folder against other processes: on a disk against those of this machine, in a bucket against all.

    Raises:
        UserError: another process holds the lock.
    """
    path, refusal = posixpath.join(model_path, LOCK_FILE), f"model_path = {model_path}: another process trains here"
    return locks.locked(path, refusal, "wait for it, or give another model_path")


class FencingToken:
    """The generation of the lock that this process holds on a folder in a bucket.

    A process that was suspended until another one took the lock must notice that before it writes.
    """

    def __init__(self, model_path: str) -> None:
        self._model_path = model_path
        self._generation = self._current()

    def check(self) -> None:
        """Checks that no other process has taken over the lock.

        Raises:
            UserError: another process has.
        """
        if self._current() != self._generation:
            raise UserError(
                f"model_path = {self._model_path}: another process has taken over the run; let it continue, or "
                "stop it and restart this one"
            )

    def _current(self) -> int:
        return 0 if is_local(self._model_path) else buckets.stat(posixpath.join(self._model_path, LOCK_FILE)).generation
