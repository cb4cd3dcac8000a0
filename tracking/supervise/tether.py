"""Runs a program that receives SIGTERM when the process that started it dies for any reason.

`python tracking/supervise/tether.py PARENT_ID PROGRAM ARGUMENT...`. Without a system that can watch a
parent, the program just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def main(arguments: Sequence[str]) -> None:
    """Replaces this process by the program, which is searched for on PATH."""
    parent_id, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent_id):  # the parent died before it could be watched
            sys.exit(128 + signal.SIGTERM)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
