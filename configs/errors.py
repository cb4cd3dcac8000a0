"""The errors that a user can cause; every other exception is a bug."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence

MAX_NUMBERS_SHOWN = 5


class UserError(ValueError):
    """Something that the user gave is invalid; the message says what, why, and what to do.

    Attributes:
        exit_status: of a program that fails with it.
    """

    exit_status = 2


class ConfigError(UserError):
    """A config is invalid; the message has one line for each issue."""


class DataError(UserError):
    """A data file, tokenizer or record is invalid."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or does not fit the model."""


class DeviceError(UserError):
    """Devices are missing or do not fit the mesh."""


class ValueIssue(ConfigError):
    """A value is invalid; the caller that knows the key and the file prepends them."""

    def __init__(self, problem: str, remedy: str) -> None:
        """Keeps what is wrong (`problem`) and what to do (`remedy`) apart."""
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


def looked_from(path: str) -> str:
    """Returns the end of a message about a path that is not there: where it was looked for, if it is a relative one."""
    return "" if os.path.isabs(path) or "://" in path else f" (relative paths start at {os.getcwd()})"


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Returns a question that names the closest known name, or `otherwise` if none is close."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {nearest[0]}?" if nearest else otherwise


def line_numbers(numbers: Sequence[int]) -> str:
    """Returns lines of a file by their numbers, the first few of many: `line 3, 5`."""
    shown = ", ".join(map(str, numbers[:MAX_NUMBERS_SHOWN]))
    more = f" and {len(numbers) - MAX_NUMBERS_SHOWN} more" if len(numbers) > MAX_NUMBERS_SHOWN else ""
    return f"line {shown}{more}"
