"""Files on a disk or in a bucket: written whole or not at all, or appended to."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

from configs.errors import UserError
from storage import buckets

# Every append costs some requests.
SECONDS_BETWEEN_APPENDS = 20.0


def is_local(path: str) -> bool:
    """Returns whether a path belongs to the file system, not to a bucket."""
    return "://" not in path


def exists(path: str) -> bool:
    """Returns whether there is a file or an object at a path."""
    return os.path.exists(path) if is_local(path) else buckets.stat(path) != buckets.NO_OBJECT


def is_at(path: str, descriptor: int) -> bool:
    """Returns whether a local path still names this open file, which may have been removed or replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def decode_text(content: bytes) -> str:
    """Decodes UTF-8, without the byte order mark with which some editors begin a file.

    Everything that people write is read by this: texts, prompts, vocabularies.

    Raises:
        UnicodeDecodeError: it is not UTF-8; `start` counts from the first byte of `content`.
    """
    return content.decode("utf-8").removeprefix("\ufeff")


def read_bytes(path: str) -> bytes:
    """Returns the content of a file, which may be a pipe or a device, whatever size the system gives it.

    Raises:
        OSError: it cannot be read.
        BucketError: the bucket cannot be reached.
    """
    with open(path, "rb") if is_local(path) else buckets.open_for_reading(path) as file:
        return file.read()


def is_stream(path: str) -> bool:
    """Returns whether a local path is a pipe or a device, which can be read only once."""
    return is_local(path) and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def flush_to_disk(path: str) -> None:
    """Waits until a local file or folder would survive a power loss, where the file system can say so."""
    if not is_local(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of network file systems, for folders
            raise
    finally:
        os.close(descriptor)


def drop_from_cache(path: str) -> None:
    """Frees the memory in which the system caches a local file that is on disk, where the system offers that."""
    if not is_local(path) or not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing_to(path: str, errors: type[Exception] = OSError) -> Iterator[None]:
    """Turns an error of the writer, such as a full disk, into one for the user.

    Args:
        path: the file or folder that is written.
        errors: what the writer raises, besides OSError.

    Raises:
        UserError: names the path and the reason.
    """
    try:
        yield
    except (OSError, errors) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
        raise _cannot_write(path, reason.splitlines()[0]) from error


def _cannot_write(path: str, reason: str) -> UserError:
    return UserError(f"{path}: cannot be written: {reason}; make room there, or give another path")


def check_writable(path: str) -> None:
    """Makes the folder of a file and tries to write there, without touching what is at `path` already.

    Of a bucket, only checks that it can be reached.

    Raises:
        UserError: the file could not be written.
    """
    if not is_local(path):
        buckets.check_access(path.rpartition("/")[0])
        return
    if os.path.isdir(path):
        raise _cannot_write(path, "it is a folder")
    with writing_to(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(_beside(path), "w"):
            pass
        os.remove(_beside(path))


def _beside(path: str) -> str:
    return f"{path}.part"


def write_text(path: str, text: str) -> None:
    """Writes a text file, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: str, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, and makes its folder.

    Raises:
        UserError: there is no room, or no permission to write there.
    """
    if not is_local(path):
        buckets.write(path, content)
        return
    with new_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """Yields a local file to write, which is at its path whole or not at all; makes its folder.

    It is written beside `path` and renamed once it is on the disk.

    Raises:
        UserError: there is no room, or no permission to write there.
    """
    folder, beside = os.path.dirname(path) or ".", _beside(path)
    with writing_to(path):
        os.makedirs(folder, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                yield file
            flush_to_disk(beside)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(beside)
            raise
        flush_to_disk(folder)


def write_new(start: str, ending: str, content: bytes) -> str:
    """Writes a file under a name that is free: `start` and `ending`, with a number from 2 between if needed.

    Returns:
        its path.

    Raises:
        UserError: there is no room, or no permission to write there.
    """
    numbered = (f"{start}.{number}{ending}" for number in itertools.count(2))
    paths = itertools.chain([f"{start}{ending}"], numbered)
    return next(path for path in paths if _write_unless_there(path, content))


def _write_unless_there(path: str, content: bytes) -> bool:
    """Writes a file and returns True, or returns False if it is there or another process writes it."""
    if not is_local(path):
        with contextlib.suppress(buckets.ConflictError):
            buckets.replace(path, content, generation=0)
            return True
        return False
    with writing_to(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        try:
            open(_beside(path), "xb").close()  # one of several processes succeeds
        except FileExistsError:
            return False
    if os.path.lexists(path):
        os.remove(_beside(path))
        return False
    write_bytes(path, content)
    return True


@contextlib.contextmanager
def new_folder(directory: str, errors: type[Exception] = OSError) -> Iterator[str]:
    """Yields a temporary folder, which is renamed when complete, so that the directory is whole or absent.

    Args:
        directory: a local folder that is new or empty.
        errors: what the writer raises, besides OSError.

    Raises:
        UserError: the directory exists already, or cannot be written.
    """
    if not is_local(directory):
        raise UserError(f"{directory}: is in a bucket; give a local folder, and copy it there afterwards")
    if not directory or "\0" in directory:
        raise UserError(f"{directory!r}: is not a path; give a folder that is new or empty")
    directory, target = os.path.abspath(directory), os.path.realpath(directory)  # a link stays a link
    parent = os.path.dirname(target)
    _check_free(directory, target)
    try:
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as private:
            folder = os.path.join(private, "folder")
            os.mkdir(folder)  # with default permissions; only the user may read the temporary one
            yield folder
            _flush_folder(folder)
            _check_free(directory, target)  # another export may have finished first
            os.replace(folder, target)
        flush_to_disk(parent)
    except (OSError, errors) as error:
        reason = getattr(error, "message", str(error))
        raise UserError(
            f"{directory}: cannot be written: {reason}; give another folder, or make room and check the permissions"
        ) from error


def _check_free(directory: str, target: str) -> None:
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError(f"{directory}: exists already; give a folder that is new or empty")


def _flush_folder(directory: str) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            flush_to_disk(os.path.join(folder, name))


class OwnFile:
    """A small file with a single writer, which rewrites it; in a bucket, a second writer is detected."""

    def __init__(self, path: str) -> None:
        """Starts from the file as it is now."""
        self._path = path
        self._generation = 0 if is_local(path) else buckets.stat(path).generation

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
    """A local file that is appended to immediately; one that was removed or replaced meanwhile is opened again."""

    def __init__(self, path: str) -> None:
        """Opens the file, and creates it if it is missing.

        Raises:
            UserError: there is no room, or no permission to write there.
        """
        self._path = path
        with writing_to(path):
            self._file = open(path, "ab")  # noqa: SIM115 (closed by `close`)

    def write(self, content: bytes) -> None:
        """Appends to the file.

        Raises:
            UserError: there is no room, or the file was removed and cannot be made again.
        """
        with writing_to(self._path):
            if not is_at(self._path, self._file.fileno()):
                self._file.close()
                os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
                self._file = open(self._path, "ab")  # noqa: SIM115 (closed by `close`)
            self._file.write(content)
            self._file.flush()

    def flush(self) -> None:
        """Returns at once: what was written is there already."""

    def close(self) -> None:
        """Closes the file."""
        with writing_to(self._path):
            self._file.close()


class GrowingObject:
    """An object in a bucket that is appended to in the background, every `SECONDS_BETWEEN_APPENDS`.

    A bucket that is unavailable for a while blocks nobody; the content waits in memory.
    """

    def __init__(self, path: str) -> None:
        """Starts from the object as it is now, if there is one."""
        self._path = path
        self._state = buckets.stat(path)
        self._waiting: list[bytes] = []
        self._in_flight = b""  # the same at every try, or content whose confirmation was lost would be appended twice
        self._sending, self._is_closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._send_periodically, daemon=True)
        self._thread.start()

    def write(self, content: bytes) -> None:
        """Appends at the next send."""
        if content:  # nobody could see that nothing has arrived
            self._waiting.append(content)

    def flush(self) -> None:
        """Returns when everything written has arrived.

        Raises:
            UserError: it cannot be written.
        """
        with self._sending:
            while self._in_flight or self._waiting:
                self._send()

    def close(self) -> None:
        """Flushes and stops; nothing may be written afterwards."""
        self._is_closed.set()
        self.flush()
        self._thread.join()

    def _send(self) -> None:
        if not self._in_flight:
            count = len(self._waiting)
            self._in_flight = b"".join(self._waiting[:count])
            del self._waiting[:count]
        self._state = buckets.append(self._path, self._in_flight, self._state)
        self._in_flight = b""

    def _send_periodically(self) -> None:
        while not self._is_closed.wait(SECONDS_BETWEEN_APPENDS):
            with contextlib.suppress(buckets.BucketError):
                self.flush()


def open_growing(path: str) -> GrowingFile | GrowingObject:
    """Opens a file for appending."""
    return GrowingFile(path) if is_local(path) else GrowingObject(path)
