"""Whole files, local or in a bucket."""

from __future__ import annotations

import posixpath

from configs.errors import UserError
from meshtf import tf


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
        tf.io.gfile.rename(beside, path, overwrite=True)
    except tf.errors.OpError as error:
        raise UserError(
            f"{path} -- cannot be written: {error.message} -- make room there, or give another model_path"
        ) from error
