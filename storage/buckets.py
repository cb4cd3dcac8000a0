"""Objects in buckets of Google Cloud Storage: what TensorFlow's own `gs://` cannot do.

TensorFlow reads and writes tensors, records and whole files there. It knows no preconditions, by which two writers do
not overwrite each other, and to append it would write the whole object again.
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
READ_BYTES = 1 << 24  # at once, of an object that is read in order
REQUEST_SECONDS = 30.0
PATIENCE_SECONDS = 300.0  # with a network, or a bucket, that does not answer
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)  # before asking again; the last one is repeated
# Google's client would ask again by itself, without telling what became of an answer that was lost.
_ONCE: dict[str, Any] = {"timeout": REQUEST_SECONDS, "retry": None}

Result = TypeVar("Result")


class BucketError(UserError):
    """A bucket cannot be reached, or does not let us do what is asked for."""


class OvertakenError(BucketError):
    """Another process has written an object since it was read."""


@dataclasses.dataclass(frozen=True)
class State:
    """What an object is at one moment.

    Attributes:
        generation: Google's number of its content; 0: there is no object.
        size_bytes: of the content.
        updated_seconds: when its content or its notes changed, by Google's clock.
        notes: the texts that hang on it; they change without the content.
    """

    generation: int
    size_bytes: int = 0
    updated_seconds: float = 0.0
    notes: tuple[tuple[str, str], ...] = ()


NOTHING = State(0)


def check(folder: str) -> None:
    """Asks for a folder, so that what stands between it and us is known before anything is done.

    Raises:
        BucketError: the package or the credentials are missing, or the bucket, or the right to see it.
    """
    bucket, prefix = _split(f"{folder.rstrip('/')}/")
    _patiently(folder, lambda: list(_client().list_blobs(bucket, prefix=prefix, max_results=1, **_ONCE)))


def look(path: str) -> State:
    """What an object is now."""

    def ask() -> State:
        from google.api_core.exceptions import NotFound

        blob = _blob(path)
        try:
            blob.reload(**_ONCE)
        except NotFound:
            return NOTHING
        return _state_of(blob)

    return _patiently(path, ask)


def _state_of(blob: Any) -> State:
    notes = tuple(sorted((blob.metadata or {}).items()))
    return State(blob.generation, blob.size, blob.updated.timestamp(), notes)


def read(path: str, start: int = 0) -> bytes:
    """The bytes of an object from `start` on; none if it is not there, or not that long."""

    def ask() -> bytes:
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        try:
            return _blob(path).download_as_bytes(start=start, **_ONCE)
        except (NotFound, RequestRangeNotSatisfiable):
            return b""

    return _patiently(path, ask)


def open_to_read(path: str) -> BinaryIO:
    """Opens an object, which is read in parts as they are needed.

    Raises:
        FileNotFoundError: it is not there.
        BucketError: while it is read, too: it is no longer the same.
    """
    return io.BufferedReader(_ObjectReader(path), READ_BYTES)


class _ObjectReader(io.RawIOBase):
    def __init__(self, path: str) -> None:
        self._path, self._state, self._at = path, look(path), 0
        if self._state == NOTHING:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._state.size_bytes}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        end = min(self._at + len(buffer), self._state.size_bytes)
        content = _patiently(self._path, lambda: self._ask(end)) if self._at < end else b""
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _ask(self, end: int) -> bytes:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            blob = _blob(self._path)
            generation = self._state.generation
            return blob.download_as_bytes(start=self._at, end=end - 1, if_generation_match=generation, **_ONCE)
        except (NotFound, PreconditionFailed):
            raise BucketError(
                f"{self._path}: has changed while it was read; see that nothing writes it, and start again"
            ) from None


def names_in(folder: str) -> list[str]:
    """The names of all objects below a folder, from the folder on."""
    return list(states_in(folder))


def states_in(folder: str) -> dict[str, State]:
    """The names of all objects below a folder, from the folder on, and what each is."""
    bucket, prefix = _split(f"{folder.rstrip('/')}/")
    found = _patiently(folder, lambda: list(_client().list_blobs(bucket, prefix=prefix, **_ONCE)))
    return {blob.name.removeprefix(prefix): _state_of(blob) for blob in found}


def write(path: str, content: bytes) -> None:
    """Writes an object; it is there whole or not at all."""
    _patiently(path, lambda: _blob(path).upload_from_string(content, **_ONCE))


def replace(path: str, content: bytes, generation: int) -> int:
    """Writes an object in place of that of a generation, 0 for none; returns its new generation.

    Raises:
        OvertakenError: another generation is there.
    """

    def ask() -> int:
        from google.api_core.exceptions import PreconditionFailed

        blob = _blob(path)
        try:
            blob.upload_from_string(content, if_generation_match=generation, **_ONCE)
            return blob.generation
        except PreconditionFailed:
            found = look(path)
            if found == NOTHING or read(path) != content:  # ours, if the answer to it was lost
                raise _overtaken(path) from None
            return found.generation

    return _patiently(path, ask)


def append(path: str, tail: bytes, before: State) -> State:
    """Lengthens an object, at a price that does not depend on its length; returns what it is then.

    What others have appended since stays before it.

    Args:
        path: the object, which may be missing.
        tail: what to append.
        before: what the object was when this process saw it last.
    """
    part, known = _part_beside(path), before
    write(part, tail)

    def ask() -> State:
        nonlocal known
        failure = _compose(path, part, known)
        # Whether it is there is not asked of the answer, which may be lost.
        found = look(path)
        if found.size_bytes > known.size_bytes and read(path, known.size_bytes).startswith(tail):
            return found
        known = found
        raise _AgainError(failure)

    grown = _patiently(path, ask)
    delete(part)
    return grown


def _part_beside(path: str) -> str:
    """A name of nobody else's; TensorBoard, which goes by the names of files, does not take it for one of its own."""
    bucket, name = _split(path)
    folder = f"{SCHEME}{bucket}/{name.rpartition('/')[0]}".rstrip("/")
    return f"{folder}/.{uuid.uuid4().hex}{PART_SUFFIX}"


def _compose(path: str, part: str, known: State) -> str:
    """Tries to put a part behind an object that is still as known; returns what, if anything, stood in the way."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    whole = _blob(path)
    whole.content_type = "application/octet-stream"
    sources = [_blob(part)] if known == NOTHING else [_blob(path), _blob(part)]
    try:
        whole.compose(sources, if_generation_match=known.generation, **_ONCE)
    except (NotFound, PreconditionFailed):
        return "another process writes there too"
    except Exception as error:
        if not _may_pass(error):
            raise
        return _reason(error)
    return "it stays as it was"


def note(path: str, notes: dict[str, str], generation: int) -> bool:
    """Hangs texts on an object of a generation, in one try; returns whether that one is there still.

    Raises:
        BucketError: the bucket cannot be asked, now or at all.
    """
    with _explained(path):
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = _blob(path)
        blob.metadata = notes
        try:
            blob.patch(if_generation_match=generation, **_ONCE)
        except (NotFound, PreconditionFailed):
            return False
    return blob.generation == generation


def delete(path: str, generation: int | None = None) -> None:
    """Deletes an object if it is there, and of this generation if one is given."""

    def ask() -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound, PreconditionFailed):
            _blob(path).delete(if_generation_match=generation, **_ONCE)

    _patiently(path, ask)


def _client() -> Any:
    return _client_of(threading.get_ident())


@functools.cache
def _client_of(thread: int) -> Any:
    """A client for one thread: its connections are not made for many."""
    from google.cloud import storage

    return storage.Client(project=None)  # a project owns buckets; what lies in them is reached without one


def _check_package(path: str) -> None:
    try:
        import google.cloud.storage  # noqa: F401 (whether it can be)
    except ImportError as error:
        raise BucketError(
            f"{path}: the package google-cloud-storage is not installed; install the packages of requirements.txt"
        ) from error


def _split(path: str) -> tuple[str, str]:
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise BucketError(f"{path}: names no bucket; write it as {SCHEME}BUCKET/FOLDER")
    return bucket, name


def _blob(path: str) -> Any:
    bucket, name = _split(path)
    return _client().bucket(bucket).blob(name)


class _AgainError(Exception):
    """What was asked for has not been done, and may be at another try."""


def _patiently(path: str, ask: Callable[[], Result]) -> Result:
    """Asks until there is an answer, with longer and longer pauses, for as long as `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pauses = itertools.chain(PAUSES_SECONDS, itertools.repeat(PAUSES_SECONDS[-1]))
    with _explained(path):
        for number, pause in enumerate(pauses):
            try:
                return ask()
            except Exception as error:
                if not _may_pass(error) or time.monotonic() + pause > deadline:
                    raise
                if number == 1:
                    print(f"{path} does not answer ({_reason(error)}); asking again", file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("the pauses have no end")


def _may_pass(error: Exception) -> bool:
    from google.api_core import exceptions
    from google.auth.exceptions import TransportError

    passing = (exceptions.ServerError, exceptions.TooManyRequests, TransportError, OSError, _AgainError)
    return isinstance(error, passing)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Says to the user what Google's client says to us; what a caller can use is let through.

    Raises:
        BucketError: with what to do.
    """
    bucket, _ = _split(path)
    _check_package(path)
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except (UserError, exceptions.PreconditionFailed):
        raise
    except exceptions.NotFound as error:
        raise BucketError(f"{path}: there is no bucket {bucket}; make it, or give another path") from error
    except exceptions.Forbidden as error:
        raise BucketError(
            f"{path}: your account may not do this: {_reason(error)}; have the role Storage Object User given to "
            f"it for the bucket {bucket}"
        ) from error
    except (exceptions.ServerError, exceptions.TooManyRequests, TransportError, OSError, _AgainError) as error:
        raise BucketError(
            f"{path}: does not answer: {_reason(error)}; see to the network and start again: what was written "
            "before is whole"
        ) from error
    except (GoogleAuthError, exceptions.Unauthorized) as error:
        raise BucketError(
            f"{path}: there are no credentials for Google Cloud that hold: {_reason(error)}; run `gcloud auth "
            "application-default login`, or let GOOGLE_APPLICATION_CREDENTIALS name the key file of a service account"
        ) from error
    except (exceptions.GoogleAPIError, ValueError) as error:
        raise BucketError(f"{path}: cannot be used: {_reason(error)}; give another path") from error


def _reason(error: Exception) -> str:
    text = str(getattr(error, "message", error)).strip() or type(error).__name__
    return text.splitlines()[0]


def _overtaken(path: str) -> OvertakenError:
    return OvertakenError(
        f"{path}: another process has written it meanwhile; let one process alone train here, and start that one again"
    )
