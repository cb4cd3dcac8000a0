"""Text that comes through a pipe."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator

from configs.errors import DataError
from data.text.files import ReadingNotes, cannot_read

STDIN = "/dev/stdin"
STREAM_NAME = "stdin"  # wherever it comes from, the same text is known again
_READ_BYTES = 1 << 20


def is_pipe(source: str) -> bool:
    """Returns whether a path is a pipe, or `-` for standard input that is one."""
    path = STDIN if source == "-" else source
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


@contextlib.contextmanager
def as_file(source: str, notes: ReadingNotes) -> Iterator[str]:
    """Yields the path of a temporary file with what a pipe holds, since texts are read more than once.

    The time of the file stands for its content, so that an interrupted run is resumed with the same text.

    Args:
        source: a pipe, or `-` for standard input; any other path is yielded as it is.
        notes: gets that it is read as plain text.

    Raises:
        DataError: the pipe cannot be read, or holds more than half of the free space for temporary files.
    """
    path = STDIN if source == "-" else source
    if not is_pipe(path):
        yield path
        return
    notes.plain_text["pipe"] += 1
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, STREAM_NAME)
        try:
            digest = _copy(path, copy, shutil.disk_usage(folder).free // 2)
        except OSError as error:
            raise cannot_read(source, error) from None
        nanoseconds = int.from_bytes(digest[:7])
        os.utime(copy, ns=(nanoseconds, nanoseconds))
        yield copy


def _copy(path: str, copy: str, max_bytes: int) -> bytes:
    digest, n_bytes = hashlib.sha256(), 0
    with open(path, "rb") as stream, open(copy, "wb") as file:
        while content := stream.read(_READ_BYTES):
            digest.update(content)
            n_bytes += len(content)
            if n_bytes > max_bytes:
                raise DataError(
                    f"{path}: holds more than {max_bytes:,} bytes, half of the free space in {tempfile.gettempdir()}; "
                    "write its text to a file, and name that"
                )
            file.write(content)
    return digest.digest()
