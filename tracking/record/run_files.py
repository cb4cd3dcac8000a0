"""Reads what a run writes, on a disk or in a bucket, without TensorFlow and without waiting long for a bucket."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from storage import buckets
from storage.files import is_local


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file of a folder.

    Attributes:
        name: within its folder.
        version: changes whenever the content may have changed.
    """

    name: str
    version: tuple[int, int]


def read_from(path: str, offset: int) -> bytes:
    """Returns the bytes of a file from an offset on; empty if the file is missing or shorter.

    Raises:
        OSError: it cannot be read.
    """
    return _read_local(path, offset) if is_local(path) else _read_blob(path, offset)


def list_files(folder: str) -> list[Entry]:
    """Lists the files directly in a folder; none if it is missing.

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


# What fails for longer is retried at the next read: the reader must not block meanwhile.
_RETRY_SECONDS = 2.0
_REQUEST_SECONDS = 10.0


def _request_options() -> dict[str, Any]:
    """Retries at once, as servers close idle connections without notice."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {
        "timeout": _REQUEST_SECONDS,
        "retry": DEFAULT_RETRY.with_delay(initial=0.05, maximum=0.5).with_timeout(_RETRY_SECONDS),
    }


@contextlib.contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (GoogleAPIError, GoogleAuthError) as error:
        raise OSError(f"{path}: {error}") from error


def _read_blob(path: str, offset: int) -> bytes:
    from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

    with _as_os_error(path):
        try:
            return buckets.blob_at(path).download_as_bytes(start=offset, **_request_options())
        except (NotFound, RequestRangeNotSatisfiable):
            return b""


def _list_blobs(folder: str) -> Iterator[Entry]:
    from google.api_core.exceptions import NotFound

    bucket, prefix = buckets.split(f"{folder.rstrip('/')}/")
    with _as_os_error(folder), contextlib.suppress(NotFound):
        for blob in buckets.client().list_blobs(bucket, prefix=prefix, delimiter="/", **_request_options()):
            yield Entry(blob.name.removeprefix(prefix), (blob.generation, blob.size))
