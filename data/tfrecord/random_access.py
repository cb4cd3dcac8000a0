"""The tfrecord files that are being read: where their records begin, and a copy of each that lies in a bucket.

A file says of each record only how long it is: the places of all are found by hopping from one to the next when the
file is first needed. Of a file in a bucket that takes all of its bytes, as there is no index of them; so it is copied
to the disk once, and read from there.
"""

from __future__ import annotations

import collections
import contextlib
import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import BinaryIO

import numpy as np

from configs.errors import DataError
from data.tfrecord.records import damaged_record, unreadable_file
from data.tfrecord.shards import Shard
from meshtf import RecordReader, tf

FILES_KEPT = 4  # reading goes from one to the next; its threads are some batches apart
HEAD = struct.Struct("<Q")  # of a record: its length; a checksum follows
FRAME_BYTES = 16  # of a record: its length (8), and two checksums (4 each)
CHUNK_BYTES = 4 << 20


class OpenFile:
    """A file whose records are read in any order, by any thread.

    Attributes:
        is_whole: its records are as many as expected, and it ends where the last one does.

    Raises:
        DataError: it cannot be read, or not be copied.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._copy = _copy_of(shard.path) if "://" in shard.path else None
        # The copy has no name, so that it goes away with this object or its process, however that ends.
        self._path = f"/dev/fd/{self._copy.fileno()}" if self._copy else shard.path
        self._free_readers: list[RecordReader] = []
        try:
            size = tf.io.gfile.stat(self._path).length
            *starts, end = _hop(self._path, size)
        except tf.errors.OpError as error:
            raise unreadable_file(shard.path, error) from None
        self._starts_R = np.array(starts, dtype=np.int64)
        self.is_whole = end == size and len(starts) == shard.n_examples

    def read(self, record: int) -> bytes:
        """Reads a record by its number.

        Raises:
            DataError: it is damaged or not there, or the file cannot be read any more.
        """
        try:
            if record >= len(self._starts_R):
                raise tf.errors.DataLossError(None, None, "it is not there")
            reader = self._free_reader()
            serialized, _ = reader.read(int(self._starts_R[record]))
            self._free_readers.append(reader)
            return serialized
        except (tf.errors.DataLossError, IndexError):
            raise damaged_record(self._shard.path, record) from None
        except tf.errors.OpError as error:
            raise unreadable_file(self._shard.path, error) from None

    def _free_reader(self) -> RecordReader:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self._free_readers.pop()
        return RecordReader(self._path)


class OpenFiles:
    """The files that were read last, each opened once, whichever thread needs it first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: collections.OrderedDict[Shard, Future[OpenFile]] = collections.OrderedDict()

    def file_of(self, shard: Shard) -> OpenFile:
        """Returns a file, opened.

        Raises:
            DataError: as `OpenFile`.
        """
        with self._lock:
            is_new = shard not in self._files
            future = self._files.setdefault(shard, Future())
            self._files.move_to_end(shard)
            if len(self._files) > FILES_KEPT:
                self._files.popitem(last=False)
        if is_new:
            self._open(shard, future)
        return future.result()

    def _open(self, shard: Shard, future: Future[OpenFile]) -> None:
        try:
            future.set_result(OpenFile(shard))
        except BaseException as error:
            with self._lock:
                self._files.pop(shard, None)  # who asks next tries again
            future.set_exception(error)


def _copy_of(path: str) -> BinaryIO:
    folder = tempfile.gettempdir()
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the object that has it)
        with tf.io.gfile.GFile(path, "rb") as file:
            while content := file.read(CHUNK_BYTES):
                copy.write(content)
        copy.flush()
        return copy
    except tf.errors.OpError as error:
        raise unreadable_file(path, error) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be copied to {folder} ({os.strerror(error.errno)}); make room there, or let TMPDIR name "
            "another folder"
        ) from None


def _hop(path: str, size: int) -> Iterator[int]:
    """Yields where each record begins, and at last where what is not a record, or the end, begins."""
    begin, chunk, start = 0, b"", 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while True:
            yield start
            if start + FRAME_BYTES > size:
                return
            if start + FRAME_BYTES > begin + len(chunk):
                file.seek(start)
                begin, chunk = start, file.read(CHUNK_BYTES)
            start += FRAME_BYTES + HEAD.unpack_from(chunk, start - begin)[0]
            if start > size:
                return
