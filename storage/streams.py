"""Standard output and standard error: neither a character, a full disk nor a closed pipe ends a program."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from configs.errors import UserError

MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}  # of the standard streams, in the order of their descriptors


class ProgramStream:
    """A text stream whose writes never fail, so that nothing is lost because it cannot be shown.

    A character that the encoding lacks is written as JSON escapes it. After an error, output is discarded.

    Attributes:
        error: the first error; None: everything has been written.
    """

    def __init__(self, stream: TextIO) -> None:
        """Writes to `stream`."""
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Writes a text."""
        with self._discarding():
            self._stream.write(escape_unencodable(text, getattr(self._stream, "encoding", None) or "utf-8"))
        return len(text)

    def flush(self) -> None:
        """Flushes what was written."""
        with self._discarding():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            with contextlib.suppress(io.UnsupportedOperation):  # a stream without a descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def escape_unencodable(text: str, encoding: str) -> str:
    """Returns a text with the characters that an encoding lacks escaped as in JSON, so that JSON stays JSON."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(each if _has(encoding, each) else json.dumps(each)[1:-1] for each in text)
    return text


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def raise_if_lost(stream: TextIO) -> None:
    """Checks that everything written to a stream of the program has arrived.

    Raises:
        BrokenPipeError: its reader is gone.
        UserError: it cannot be written.
    """
    error = getattr(stream, "error", None)
    if isinstance(error, BrokenPipeError):
        raise error
    if error is not None:
        raise UserError(f"standard output: cannot be written: {error.strerror}; make room there, or give a file")


def run_program(body: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Runs a program and returns its exit status, which is 2 for a mistake of the user.

    Args:
        body: returns the exit status.
        interrupted: what is printed after Ctrl-C.
    """
    with _program_streams() as output:
        try:
            status = body()
            output.flush()
            raise_if_lost(output)
        except UserError as error:
            print(error, file=sys.stderr)
            return error.exit_status
        except MemoryError:
            print("out of memory: lower the sizes of the config, or use a machine with more memory", file=sys.stderr)
            return UserError.exit_status
        except BrokenPipeError:
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            print(interrupted, file=sys.stderr)
            return 128 + signal.SIGINT
        return status


@contextlib.contextmanager
def _program_streams() -> Iterator[ProgramStream]:
    """Makes standard output and standard error streams that never fail; yields standard output."""
    _open_missing_streams()
    output, errors = ProgramStream(sys.stdout), ProgramStream(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield output
        finally:
            output.flush()
            errors.flush()


def _open_missing_streams() -> None:
    """Opens the standard streams that the caller has closed, or else files would get their descriptors and output."""
    for descriptor, (name, mode) in enumerate(MODES.items()):
        if getattr(sys, name) is None:
            try:
                os.fstat(descriptor)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the life of the program)
