"""Reads configs from a bucket as from a disk."""

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
    """Yields a local path of a model config; one in a bucket is copied to a temporary folder with its dataset configs.

    Raises:
        ConfigError: it is missing, or the caller raises one; the message then names the path in the bucket.
        BucketError: the bucket cannot be reached.
    """
    if not model.startswith(buckets.SCHEME):
        yield model
        return
    if not model.endswith(".json"):
        model = posixpath.join(model, "config.json")  # of the folder of a run
    remote, name = posixpath.split(model)
    with tempfile.TemporaryDirectory() as local:
        try:
            _copy(model, os.path.join(local, name))
            _copy_datasets(remote, local)
            yield os.path.join(local, name)
        except ConfigError as error:
            raise ConfigError(str(error).replace(local, remote)) from error


def _copy(source: str, target: str) -> None:
    if buckets.stat(source) == buckets.NO_OBJECT:
        raise ConfigError(f"{source}: cannot be read (No such object); check the path")
    with open(target, "wb") as file:
        file.write(buckets.read(source))


def _copy_datasets(remote: str, local: str) -> None:
    os.mkdir(os.path.join(local, DATASET_CONFIGS))
    for name in buckets.list_objects(posixpath.join(remote, DATASET_CONFIGS)):
        if name.endswith(".json") and "/" not in name:
            _copy(posixpath.join(remote, DATASET_CONFIGS, name), os.path.join(local, DATASET_CONFIGS, name))
