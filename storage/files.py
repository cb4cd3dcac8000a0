"""Whole files, local or in a bucket, and files that grow."""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
from collections.abc import Iterator

from configs.errors import UserError
from meshtf import tf
from storage import buckets

# Every append costs some requests.
SECONDS_BETWEEN_APPENDS = 20.0


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


@contextlib.contextmanager
def writing_to(path: str) -> Iterator[None]:
    """Turns a full disk, or a place that takes no files, into an error for the user.

    Raises:
        UserError: with the path.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        reason = getattr(error, "message", str(error))
        raise UserError(f"{path}: cannot be written: {reason}; make room there, or give another path") from error


def write_text(path: str, text: str) -> None:
    """Writes a file so that it is there whole or not at all; makes the folder.

    Raises:
        UserError: there is no room, or no right to write there.
    """
    write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
    """As `write_text`: a local file is written beside and renamed, an object is there when all of it is."""
    if not is_local(path):
        buckets.write(path, content)
        return
    beside = f"{path}.part"
    with writing_to(path):
        tf.io.gfile.makedirs(posixpath.dirname(path) or ".")
        try:
            with tf.io.gfile.GFile(beside, "wb") as file:
                file.write(content)
            flush_to_disk(beside)
            tf.io.gfile.rename(beside, path, overwrite=True)
        except tf.errors.OpError:
            with contextlib.suppress(tf.errors.OpError):
                tf.io.gfile.remove(beside)
            raise
        flush_to_disk(posixpath.dirname(path) or ".")


class OwnFile:
    """A small file that one process alone rewrites: in a bucket, it finds out if another process does so too."""

    def __init__(self, path: str) -> None:
        """Takes the file as it is now for the one to rewrite."""
        self._path = path
        self._generation = 0 if is_local(path) else buckets.look(path).generation

    def write(self, text: str) -> None:
        """Writes the file, whole or not at all.

        Raises:
            UserError: it cannot be written, or another process has written it.
        """
        if is_local(self._path):
            write_text(self._path, text)
        else:
            self._generation = buckets.replace(self._path, text.encode(), self._generation)


class GrowingFile:
    """A local file that is appended to, at once."""

    def __init__(self, path: str) -> None:
        """Opens it, and makes it if it is not there.

        Raises:
            UserError: there is no room, or no right to write there.
        """
        self._path = path
        with writing_to(path):
            self._file = tf.io.gfile.GFile(path, "ab")
            self._file.write(b"")  # which opens it

    def write(self, content: bytes) -> None:
        """Appends.

        Raises:
            UserError: there is no room.
        """
        with writing_to(self._path):
            self._file.write(content)
            self._file.flush()

    def flush(self) -> None:
        """Returns when all that was written is there, as it is."""

    def close(self) -> None:
        """Closes it."""
        with writing_to(self._path):
            self._file.close()


class GrowingObject:
    """An object of a bucket that is appended to in the background, every `SECONDS_BETWEEN_APPENDS`.

    A bucket that does not answer for a while holds nobody up; what is to be written waits here.
    """

    def __init__(self, path: str) -> None:
        """Takes the object as it is now, if it is there."""
        self._path = path
        self._state = buckets.look(path)
        self._waiting: list[bytes] = []
        self._on_its_way = b""  # the same at every try, or else what has arrived, but was not answered, came twice
        self._sending, self._is_closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._send_now_and_then, daemon=True)
        self._thread.start()

    def write(self, content: bytes) -> None:
        """Appends, soon."""
        if content:  # of nothing it could not be seen that it has arrived
            self._waiting.append(content)

    def flush(self) -> None:
        """Returns when all that was written is there.

        Raises:
            UserError: it cannot be written.
        """
        with self._sending:
            while self._on_its_way or self._waiting:
                self._send()

    def close(self) -> None:
        """As `flush`; nothing is written afterwards."""
        self._is_closed.set()
        self.flush()
        self._thread.join()

    def _send(self) -> None:
        if not self._on_its_way:
            n_parts = len(self._waiting)
            self._on_its_way = b"".join(self._waiting[:n_parts])
            del self._waiting[:n_parts]
        self._state = buckets.append(self._path, self._on_its_way, self._state)
        self._on_its_way = b""

    def _send_now_and_then(self) -> None:
        while not self._is_closed.wait(SECONDS_BETWEEN_APPENDS):
            with contextlib.suppress(buckets.BucketError):
                self.flush()


def open_growing(path: str) -> GrowingFile | GrowingObject:
    """Opens a file for appending."""
    return GrowingFile(path) if is_local(path) else GrowingObject(path)
