"""Makes a system call fail in this process, as on a file system that lacks it or a disk that breaks.

`python -m tests.failing_calls CALL=ERROR PROGRAM ARGUMENT...` runs a Python program so, such as `fsync=ENOSPC main.py`.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import runpy
import struct
import sys
from collections.abc import Sequence

NUMBERS = {"x86_64": {"flock": 73, "fsync": 74}, "aarch64": {"flock": 32, "fsync": 82}}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_NUMBER, JUMP_UNLESS_EQUAL, RETURN = 0x20, 0x15, 0x06  # of the classic Berkeley packet filter
RETURN_ERROR, ALLOW = 0x00050000, 0x7FFF0000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def fail(call: str, error: str) -> None:
    """Lets every use of a system call fail from now on.

    Raises:
        OSError: the system has no such filters.
    """
    number, code = NUMBERS[platform.machine()][call], getattr(errno, error)
    instructions = [
        (LOAD_NUMBER, 0, 0, 0),
        (JUMP_UNLESS_EQUAL, 0, 1, number),
        (RETURN, 0, 0, RETURN_ERROR | code),
        (RETURN, 0, 0, ALLOW),
    ]
    program = _Program(len(instructions), b"".join(struct.pack("HBBI", *each) for each in instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "this system cannot let a call fail")


def main(arguments: Sequence[str]) -> None:
    """Runs a program with a call that fails."""
    failure, program, *sys.argv[1:] = arguments
    sys.argv[0] = program
    fail(*failure.split("="))
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
