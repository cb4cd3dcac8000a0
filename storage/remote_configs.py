"""Configs that lie in a bucket, read as those of a disk."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator

from configs.errors import ConfigError
from storage import buckets

DATASET_CONFIGS = "dataset_configs"


@contextlib.contextmanager
def on_disk(model: str) -> Iterator[str]:
    """Where a model config can be read: one in a bucket is copied, with the dataset configs beside it, for a while.

    Raises:
        ConfigError: it is not there, or what is done with it raises one; the message names the place in the bucket.
        BucketError: the bucket cannot be reached.
    """
    if not model.startswith(buckets.SCHEME):
        yield model
        return
    there, name = posixpath.split(model)
    with tempfile.TemporaryDirectory() as here:
        try:
            _copy(model, os.path.join(here, name))
            _copy_datasets(there, here)
            yield os.path.join(here, name)
        except ConfigError as error:
            raise ConfigError(str(error).replace(here, there)) from error


def _copy(source: str, target: str) -> None:
    if buckets.look(source) == buckets.NOTHING:
        raise ConfigError(f"{source}: cannot be read (No such object); check the path")
    with open(target, "wb") as file:
        file.write(buckets.read(source))


def _copy_datasets(there: str, here: str) -> None:
    os.mkdir(os.path.join(here, DATASET_CONFIGS))
    for name in buckets.names_in(posixpath.join(there, DATASET_CONFIGS)):
        if name.endswith(".json") and "/" not in name:
            _copy(posixpath.join(there, DATASET_CONFIGS, name), os.path.join(here, DATASET_CONFIGS, name))
