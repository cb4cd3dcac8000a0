"""Reading what a run writes, on a disk or in a bucket, without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file of a folder.

    Attributes:
        name: within its folder.
        version: differs whenever the content may.
    """

    name: str
    version: tuple[int, int]


def is_local(path: str) -> bool:
    """Whether a path is one of the file system, and not of a bucket."""
    return "://" not in path


def read_from(path: str, offset: int) -> bytes:
    """The bytes of a file behind an offset; none if the file is not there, or not that long.

    Raises:
        OSError: it cannot be read.
    """
    return _read_local(path, offset) if is_local(path) else _read_blob(path, offset)


def list_files(folder: str) -> list[Entry]:
    """The files of a folder, not those of folders in it; none if it is not there.

    Raises:
        OSError: it cannot be read.
    """
    return list(_list_local(folder) if is_local(folder) else _list_blobs(folder))


def _read_local(path: str, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def _list_local(folder: str) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_file():
                    state = entry.stat()
                    yield Entry(entry.name, (state.st_mtime_ns, state.st_size))
    except FileNotFoundError:
        return


# What fails for longer is tried again at the next look: meanwhile whoever looks has other things to do.
_PATIENCE_SECONDS = 2.0
_REQUEST_SECONDS = 10.0


def _soon() -> dict[str, Any]:
    """How to ask: again at once where a connection that lay idle was closed, as servers do without a word."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {
        "timeout": _REQUEST_SECONDS,
        "retry": DEFAULT_RETRY.with_delay(initial=0.05, maximum=0.5).with_timeout(_PATIENCE_SECONDS),
    }


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    return storage.Client()


def _split(path: str) -> tuple[str, str]:
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


def _read_blob(path: str, offset: int) -> bytes:
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    bucket, name = _split(path)
    try:
        return _client().bucket(bucket).blob(name).download_as_bytes(start=offset, **_soon())
    except (exceptions.NotFound, exceptions.RequestRangeNotSatisfiable):
        return b""
    except (exceptions.GoogleAPIError, GoogleAuthError) as error:
        raise OSError(f"{path}: {error}") from error


def _list_blobs(folder: str) -> Iterator[Entry]:
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    bucket, prefix = _split(folder.rstrip("/") + "/")
    try:
        for blob in _client().list_blobs(bucket, prefix=prefix, delimiter="/", **_soon()):
            yield Entry(blob.name.removeprefix(prefix), (blob.generation, blob.size))
    except exceptions.NotFound:
        return
    except (exceptions.GoogleAPIError, GoogleAuthError) as error:
        raise OSError(f"{folder}: {error}") from error
