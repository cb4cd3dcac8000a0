"""Whole files, local or in a bucket."""

from __future__ import annotations

import os
import posixpath

from configs.errors import UserError
from meshtf import tf


def is_local(path: str) -> bool:
    """Whether a path is one of the file system, and not of a bucket."""
    return "://" not in path


def flush_to_disk(path: str) -> None:
    """Waits until a local file or folder would outlive a power cut."""
    if not is_local(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str, text: str) -> None:
    """Writes a file beside and renames it, so that it is there whole or not at all; makes the folder.

    Raises:
      UserError: there is no room, or no right to write there.
    """
    beside = f"{path}.part"
    try:
        tf.io.gfile.makedirs(posixpath.dirname(path) or ".")
        with tf.io.gfile.GFile(beside, "w") as file:
            file.write(text)
        flush_to_disk(beside)
        tf.io.gfile.rename(beside, path, overwrite=True)
        flush_to_disk(posixpath.dirname(path) or ".")
    except (tf.errors.OpError, OSError) as error:
        reason = getattr(error, "message", str(error))
        raise UserError(
            f"{path} -- cannot be written: {reason} -- make room there, or give another model_path"
        ) from error
