"""The errors that a user can cause; every other exception is a fault of the program."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, why, and what to do.

    Attributes:
        exit_status: of a program that ends with it.
    """

    exit_status = 2


class ConfigError(UserError):
    """A configuration cannot be used; the message holds one line an issue."""


class DataError(UserError):
    """A data file, tokenizer or record cannot be used."""


class CheckpointError(UserError):
    """A checkpoint is missing, unfinished or does not fit the model."""


class DeviceError(UserError):
    """The devices asked for are not there or do not fit the mesh."""


class ValueIssue(ConfigError):
    """One value cannot be used; whoever knows the key and the file puts them in front."""

    def __init__(self, problem: str, remedy: str) -> None:
        """Keeps what is wrong (`problem`) and what to do (`remedy`) apart."""
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
