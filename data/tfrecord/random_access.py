"""Random access to the records of tfrecord files, through an index of where each record begins.

A tfrecord file has no index: each record only says how long it is, so the index is made by hopping from one record to
the next when the file is first needed. In a bucket that would transfer the whole file, so a file in a bucket is
downloaded once and read from the local disk.
"""

from __future__ import annotations

import collections
import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import BinaryIO

import numpy as np

from configs.errors import DataError
from data.tfrecord.framing import FRAME_BYTES, HEADER
from data.tfrecord.records import damaged_record_error, unreadable_file_error
from data.tfrecord.shards import Shard
from meshtf import RecordReader, tf
from storage.files import is_local

MAX_OPEN_FILES = 4  # files are read one after the other, by threads that are a few batches apart
CHUNK_BYTES = 4 << 20


class IndexedFile:
    """A file whose records can be read in any order, from any thread.

    Attributes:
        is_complete: it holds as many records as expected, and ends after the last one.

    Raises:
        DataError: it cannot be read or downloaded.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._download = None if is_local(shard.path) else _download(shard.path)
        # The downloaded file has no name, so that it disappears with this object or its process, however that ends.
        self._path = f"/dev/fd/{self._download.fileno()}" if self._download else shard.path
        self._free_readers: list[RecordReader] = []
        try:
            size = tf.io.gfile.stat(self._path).length
            *starts, end = _record_starts(self._path, size)
        except tf.errors.OpError as error:
            raise unreadable_file_error(shard.path, error) from None
        self._starts_R = np.array(starts, dtype=np.int64)
        self.is_complete = end == size and len(starts) == shard.n_examples

    def read(self, record: int) -> bytes:
        """Reads a record by its number.

        Raises:
            DataError: the record is damaged or missing, or the file can no longer be read.
        """
        try:
            if record >= len(self._starts_R):
                raise tf.errors.DataLossError(None, None, "there is no such record")
            reader = self._free_reader()
            serialized, _ = reader.read(int(self._starts_R[record]))
            self._free_readers.append(reader)
            return serialized
        except (tf.errors.DataLossError, IndexError):
            raise damaged_record_error(self._shard.path, record) from None
        except tf.errors.OpError as error:
            raise unreadable_file_error(self._shard.path, error) from None

    def _free_reader(self) -> RecordReader:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self._free_readers.pop()
        return RecordReader(self._path)


class FileCache:
    """The most recently read files, each opened once, by the thread that needs it first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: collections.OrderedDict[Shard, Future[IndexedFile]] = collections.OrderedDict()

    def open(self, shard: Shard) -> IndexedFile:
        """Returns an open file.

        Raises:
            DataError: as `IndexedFile`.
        """
        with self._lock:
            is_new = shard not in self._files
            future = self._files.setdefault(shard, Future())
            self._files.move_to_end(shard)
            if len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)
        if is_new:
            self._open(shard, future)
        return future.result()

    def _open(self, shard: Shard, future: Future[IndexedFile]) -> None:
        try:
            future.set_result(IndexedFile(shard))
        except BaseException as error:
            with self._lock:
                self._files.pop(shard, None)  # the next caller tries again
            future.set_exception(error)


def _download(path: str) -> BinaryIO:
    folder = tempfile.gettempdir()
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object that holds it)
        with tf.io.gfile.GFile(path, "rb") as file:
            while content := file.read(CHUNK_BYTES):
                copy.write(content)
        copy.flush()
        return copy
    except tf.errors.OpError as error:
        raise unreadable_file_error(path, error) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be copied to {folder} ({os.strerror(error.errno)}); free space there, or set TMPDIR to "
            "another folder"
        ) from None


def _record_starts(path: str, size: int) -> Iterator[int]:
    """Yields where each record begins, and last where the first incomplete record, or the end of the file, begins."""
    begin, chunk, start = 0, b"", 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while True:
            yield start
            if start + FRAME_BYTES > size:
                return
            if start + FRAME_BYTES > begin + len(chunk):
                file.seek(start)
                begin, chunk = start, file.read(CHUNK_BYTES)
            length, _ = HEADER.unpack_from(chunk, start - begin)
            start += FRAME_BYTES + length
            if start > size:
                return
