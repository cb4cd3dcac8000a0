"""Lines of standard input: typed at the terminal, with editing and a history, or from a pipe or a file."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

from commands.console import say

MARK = "> "
HISTORY = "~/.neomesh_history"
HISTORY_LINES = 1000


def typed_lines(is_stopped: threading.Event) -> Iterator[str]:
    """Yields the lines that are typed until Ctrl-D; while one is answered, Ctrl-C sets `is_stopped`."""
    history = _load_history()
    previous_handler = signal.signal(signal.SIGINT, lambda number, frame: is_stopped.set())
    try:
        while (line := _typed_line()) is not None:
            _save_history(history)
            is_stopped.clear()
            if line:
                yield line
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def piped_lines() -> Iterator[str]:
    """Yields the lines of standard input that are not empty; bytes that are not UTF-8 come as surrogates."""
    for line in sys.stdin.buffer:
        if text := line.decode("utf-8", "surrogateescape").removeprefix("\ufeff").rstrip("\r\n"):
            yield text


def _typed_line() -> str | None:
    """Returns the next line typed, "" if Ctrl-C clears it, and None at the end of input."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return input(MARK)
    except KeyboardInterrupt:
        say("")
        return ""
    except UnicodeDecodeError:
        say("the line: is not UTF-8 text; type it again")
        return ""
    except EOFError:
        say("")
        return None
    finally:
        signal.signal(signal.SIGINT, handler)


def _load_history() -> ModuleType | None:
    """Gives `input` line editing and the lines typed in earlier sessions, if this Python has readline."""
    try:
        import readline  # imported here because it changes the terminal
    except ImportError:
        return None
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(os.path.expanduser(HISTORY))
    return readline


def _save_history(history: ModuleType | None) -> None:
    with contextlib.suppress(OSError):  # the home directory may be read-only
        if history is not None:
            history.write_history_file(os.path.expanduser(HISTORY))
