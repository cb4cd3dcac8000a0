"""Objects in Google Cloud Storage: what TensorFlow's own `gs://` cannot do.

TensorFlow reads and writes tensors, records and whole files there. It knows no preconditions, which keep two writers
from overwriting each other, and it appends by rewriting the whole object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import itertools
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from configs.errors import UserError

SCHEME = "gs://"
PART_SUFFIX = ".part"
READ_BYTES = 1 << 24  # buffer of sequential reads
REQUEST_SECONDS = 30.0
RETRY_SECONDS = 300.0  # while the network or the bucket does not answer
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)  # the last one repeats
# Google's own retries hide whether a request whose response was lost took effect.
_NO_RETRY: dict[str, Any] = {"timeout": REQUEST_SECONDS, "retry": None}

Result = TypeVar("Result")


class BucketError(UserError):
    """A bucket cannot be reached, or denies a request."""


class ConflictError(BucketError):
    """Another process has written an object since it was read."""


@dataclasses.dataclass(frozen=True)
class ObjectState:
    """The state of an object at one moment.

    Attributes:
        generation: Google's version number of its content; 0: there is no object.
        size_bytes: of the content.
        updated_seconds: when content or metadata last changed, by Google's clock.
        metadata: key-value pairs, which change without the content.
    """

    generation: int
    size_bytes: int = 0
    updated_seconds: float = 0.0
    metadata: tuple[tuple[str, str], ...] = ()


NO_OBJECT = ObjectState(0)


def check_access(folder: str) -> None:
    """Checks that a folder can be listed, before anything else is done.

    Raises:
        BucketError: the package, the credentials, the bucket or the permission is missing.
    """
    bucket, prefix = split(f"{folder.rstrip('/')}/")
    _with_retries(folder, lambda: list(client().list_blobs(bucket, prefix=prefix, max_results=1, **_NO_RETRY)))


def stat(path: str) -> ObjectState:
    """Returns the current state of an object."""

    def ask() -> ObjectState:
        from google.api_core.exceptions import NotFound

        blob = blob_at(path)
        try:
            blob.reload(**_NO_RETRY)
        except NotFound:
            return NO_OBJECT
        return _state_of(blob)

    return _with_retries(path, ask)


def _state_of(blob: Any) -> ObjectState:
    metadata = tuple(sorted((blob.metadata or {}).items()))
    return ObjectState(blob.generation, blob.size, blob.updated.timestamp(), metadata)


def read(path: str, start: int = 0) -> bytes:
    """Returns the bytes of an object from `start` on; empty if it is missing or shorter."""

    def ask() -> bytes:
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        try:
            return blob_at(path).download_as_bytes(start=start, **_NO_RETRY)
        except (NotFound, RequestRangeNotSatisfiable):
            return b""

    return _with_retries(path, ask)


def open_for_reading(path: str) -> BinaryIO:
    """Opens an object for reading, in parts as they are needed.

    Raises:
        FileNotFoundError: it is missing.
        BucketError: it changed, also while it is read.
    """
    return io.BufferedReader(_ObjectReader(path), READ_BYTES)


class _ObjectReader(io.RawIOBase):
    def __init__(self, path: str) -> None:
        self._path, self._state, self._at = path, stat(path), 0
        if self._state == NO_OBJECT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position in the object."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position; nothing is requested yet."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._state.size_bytes}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Requests as many bytes as fit into the buffer."""
        end = min(self._at + len(buffer), self._state.size_bytes)
        content = _with_retries(self._path, lambda: self._ask(end)) if self._at < end else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _ask(self, end: int) -> bytes:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            blob = blob_at(self._path)
            generation = self._state.generation
            return blob.download_as_bytes(start=self._at, end=end - 1, if_generation_match=generation, **_NO_RETRY)
        except (NotFound, PreconditionFailed):
            raise BucketError(
                f"{self._path}: changed while it was being read; make sure that nothing writes to it, and start again"
            ) from None


def list_objects(folder: str) -> dict[str, ObjectState]:
    """Returns the states of all objects below a folder, by name relative to it."""
    bucket, prefix = split(f"{folder.rstrip('/')}/")
    found = _with_retries(folder, lambda: list(client().list_blobs(bucket, prefix=prefix, **_NO_RETRY)))
    return {blob.name.removeprefix(prefix): _state_of(blob) for blob in found}


def write(path: str, content: bytes) -> None:
    """Writes an object, whole or not at all."""
    _with_retries(path, lambda: blob_at(path).upload_from_string(content, **_NO_RETRY))


def replace(path: str, content: bytes, generation: int) -> int:
    """Replaces an object of a known generation, 0 for none; returns its new generation.

    Raises:
        ConflictError: it has another generation.
    """

    def ask() -> int:
        from google.api_core.exceptions import PreconditionFailed

        blob = blob_at(path)
        try:
            blob.upload_from_string(content, if_generation_match=generation, **_NO_RETRY)
            return blob.generation
        except PreconditionFailed:
            found = stat(path)
            if found == NO_OBJECT or read(path) != content:  # our own write, if its response was lost
                raise ConflictError(
                    f"{path}: another process has written to it; let only one process train here, and restart that one"
                ) from None
            return found.generation

    return _with_retries(path, ask)


def append(path: str, tail: bytes, before: ObjectState) -> ObjectState:
    """Appends to an object, at a cost that does not depend on its length; returns its new state.

    What others have appended since stays before it.

    Args:
        path: the object, which may be missing.
        tail: what to append.
        before: the last state that this process has seen.
    """
    part, known = _part_beside(path), before
    write(part, tail)

    def ask() -> ObjectState:
        nonlocal known
        failure = _compose(path, part, known)
        # The response does not show whether it took effect: it may be lost.
        found = stat(path)
        if found.size_bytes > known.size_bytes and read(path, known.size_bytes).startswith(tail):
            return found
        known = found
        raise _RetryError(failure)

    grown = _with_retries(path, ask)
    delete(part)
    return grown


def _part_beside(path: str) -> str:
    """Returns a unique name, which TensorBoard does not take for an event file."""
    bucket, name = split(path)
    folder = f"{SCHEME}{bucket}/{name.rpartition('/')[0]}".rstrip("/")
    return f"{folder}/.{uuid.uuid4().hex}{PART_SUFFIX}"


def _compose(path: str, part: str, known: ObjectState) -> str:
    """Tries to append a part to an object in a known state; returns the reason if it cannot."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    whole = blob_at(path)
    whole.content_type = "application/octet-stream"
    sources = [blob_at(part)] if known == NO_OBJECT else [blob_at(path), blob_at(part)]
    try:
        whole.compose(sources, if_generation_match=known.generation, **_NO_RETRY)
    except (NotFound, PreconditionFailed):
        return "another process writes there too"
    except Exception as error:
        if not isinstance(error, _transient_errors()):
            raise
        return _reason(error)
    return "it stays as it was"


def set_metadata(path: str, metadata: dict[str, str], generation: int) -> bool:
    """Sets the metadata of an object of a generation, without retries; returns whether that generation is still there.

    Raises:
        BucketError: the bucket cannot be reached.
    """
    with _readable_errors(path):
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = blob_at(path)
        blob.metadata = metadata
        try:
            blob.patch(if_generation_match=generation, **_NO_RETRY)
        except (NotFound, PreconditionFailed):
            return False
    return blob.generation == generation


def delete(path: str, generation: int | None = None) -> None:
    """Deletes an object if it exists and, if a generation is given, has that generation."""

    def ask() -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound, PreconditionFailed):
            blob_at(path).delete(if_generation_match=generation, **_NO_RETRY)

    _with_retries(path, ask)


def client() -> Any:
    """Returns the client of this thread."""
    return _client_of(threading.get_ident())


@functools.cache
def _client_of(thread: int) -> Any:
    """Returns the client of a thread: clients are not thread-safe."""
    from google.cloud import storage

    return storage.Client(project=None)  # only creating buckets needs a project


def _check_package(path: str) -> None:
    try:
        import google.cloud.storage  # noqa: F401 (only checks that it is installed)
    except ImportError as error:
        raise BucketError(
            f"{path}: the package google-cloud-storage is not installed; install the packages of requirements.txt"
        ) from error


def split(path: str) -> tuple[str, str]:
    """Returns the bucket and the name of an object or a folder.

    Raises:
        BucketError: the path names no bucket.
    """
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise BucketError(f"{path}: names no bucket; write it as {SCHEME}BUCKET/FOLDER")
    return bucket, name


def blob_at(path: str) -> Any:
    """Returns the client's handle of an object, which need not exist."""
    bucket, name = split(path)
    return client().bucket(bucket).blob(name)


class _RetryError(Exception):
    """A request had no effect, but may succeed at another try."""


def _with_retries(path: str, ask: Callable[[], Result]) -> Result:
    """Retries with exponential backoff for up to `RETRY_SECONDS`."""
    deadline = time.monotonic() + RETRY_SECONDS
    pauses = itertools.chain(BACKOFF_SECONDS, itertools.repeat(BACKOFF_SECONDS[-1]))
    with _readable_errors(path):
        for number, pause in enumerate(pauses):
            try:
                return ask()
            except Exception as error:
                if not isinstance(error, _transient_errors()) or time.monotonic() + pause > deadline:
                    raise
                if number == 1:
                    print(f"{path} does not answer ({_reason(error)}); retrying", file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("the pauses have no end")


def _transient_errors() -> tuple[type[Exception], ...]:
    from google.api_core.exceptions import ServerError, TooManyRequests
    from google.auth.exceptions import TransportError

    return ServerError, TooManyRequests, TransportError, OSError, _RetryError


@contextlib.contextmanager
def _readable_errors(path: str) -> Iterator[None]:
    """Turns errors of Google's client into errors for the user, except failed preconditions, which callers handle.

    Raises:
        BucketError: says what to do.
    """
    bucket, _ = split(path)
    _check_package(path)
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (UserError, exceptions.PreconditionFailed):
        raise
    except exceptions.NotFound as error:
        raise BucketError(f"{path}: there is no bucket {bucket}; create it, or give another path") from error
    except exceptions.Forbidden as error:
        raise BucketError(
            f"{path}: your account has no permission: {_reason(error)}; grant it the role Storage Object User "
            f"for the bucket {bucket}"
        ) from error
    except _transient_errors() as error:
        raise BucketError(
            f"{path}: does not answer: {_reason(error)}; check the network and start again: what was written "
            "before is complete"
        ) from error
    except (GoogleAuthError, exceptions.Unauthorized) as error:
        raise BucketError(
            f"{path}: there are no valid credentials for Google Cloud: {_reason(error)}; run `gcloud auth "
            "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"
        ) from error
    except (exceptions.GoogleAPIError, ValueError) as error:
        raise BucketError(f"{path}: cannot be used: {_reason(error)}; give another path") from error


def _reason(error: Exception) -> str:
    text = str(getattr(error, "message", error)).strip() or type(error).__name__
    return text.splitlines()[0]
