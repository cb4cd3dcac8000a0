"""Writing small files whole or not at all, and telling the user where the disk does not let us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import DataError
from storage import buckets
from storage.buckets import SCHEME


@contextmanager
def writing(place: str) -> Iterator[None]:
    """Turns the system's errors into one that names the place.

    Raises:
        DataError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(place, error.strerror or str(error)) from None


def cannot_write(place: str, reason: str) -> DataError:
    """Returns the error that says so."""
    return DataError(f"{place}: cannot be written ({reason}); choose another place, or make room there")


def exists(path: str) -> bool:
    """Says whether a file or an object is there."""
    return buckets.look(path) != buckets.NOTHING if path.startswith(SCHEME) else os.path.exists(path)


def write_text(path: str, text: str) -> None:
    """Writes a file, beside `path` first, so that `path` only ever names a finished one; or an object.

    Raises:
        DataError: the place cannot be written to.
        BucketError: the bucket cannot be.
    """
    if path.startswith(SCHEME):
        buckets.write(path, text.encode())
        return
    partial = _partial(path)
    with writing(path):
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(partial, path)
        except BaseException:
            if os.path.exists(partial):
                os.remove(partial)
            raise


def check_writable(path: str) -> None:
    """Makes the directory of a file and tries to write there; what is at `path` already is not touched.

    Of a bucket it is only asked whether it is there.

    Raises:
        DataError: the file will not be writable.
        BucketError: the bucket cannot be reached.
    """
    if path.startswith(SCHEME):
        buckets.check(path.rpartition("/")[0])
        return
    if os.path.isdir(path):
        raise cannot_write(path, "it is a folder")
    with writing(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(_partial(path), "w"):
            pass
        os.remove(_partial(path))


def _partial(path: str) -> str:
    return f"{path}.{os.getpid()}.partial"
