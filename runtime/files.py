"""Whole files, local or in a bucket."""

from __future__ import annotations

import posixpath

from meshtf import tf


def write_text(path: str, text: str) -> None:
    """Writes a file beside and renames it, so that it is there whole or not at all; makes the folder."""
    tf.io.gfile.makedirs(posixpath.dirname(path) or ".")
    beside = f"{path}.part"
    with tf.io.gfile.GFile(beside, "w") as file:
        file.write(text)
    tf.io.gfile.rename(beside, path, overwrite=True)
