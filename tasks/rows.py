"""Rows of task files: fields with their types checked, and errors that name file, line and field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import DataError
from configs.reader import shown

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text", list: "a list", dict: "an object"}
MAX_DIGITS = 9  # of the number of a choice


@dataclass(frozen=True)
class Row:
    """One item of a file.

    Attributes:
        path: the file.
        line: its number in the file, from 1.
        values: the fields by name.
        prefix: the names of the fields that hold these, with a dot behind each.
    """

    path: str
    line: int
    values: Mapping[str, Any]
    prefix: str = ""

    def __contains__(self, field: str) -> bool:
        """Returns whether the row has a field."""
        return field in self.values

    def error(self, field: str, problem: str, remedy: str) -> DataError:
        """Returns the error of a field."""
        return DataError(f"{self.path}: line {self.line}: {self.prefix}{field}: {problem}; {remedy}")

    def _get(self, field: str, *kinds: type) -> Any:
        expected = " or ".join(_NAMES[kind] for kind in kinds)
        if field not in self.values:
            raise self.error(field, f"is missing, and the fields are {shown(list(self.values))}", f"give {expected}")
        value = self.values[field]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            found = "null" if value is None else _NAMES.get(type(value), type(value).__name__)
            raise self.error(field, f"is {found}", f"give {expected}")
        return value

    def text(self, field: str) -> str:
        """Returns a text, which may be empty.

        Raises:
            DataError: the field is missing or no text.
        """
        return self._check_text(field, self._get(field, str))

    def _check_text(self, field: str, text: str) -> str:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"has half of a surrogate pair at character {error.start}"
            raise self.error(field, found, "write the whole character") from None
        return text

    def filled_text(self, field: str) -> str:
        """Returns a text that is more than blanks.

        Raises:
            DataError: it is not.
        """
        if not (text := self.text(field)).strip():
            raise self.error(field, "is empty", "give a text")
        return text

    def texts(self, field: str, minimum: int = 2) -> tuple[str, ...]:
        """Returns a list of texts that are more than blanks.

        Raises:
            DataError: it is something else, or has fewer than `minimum`.
        """
        values: Sequence[Any] = self._get(field, list)
        for number, value in enumerate(values):
            if not isinstance(value, str) or not value.strip():
                found = _NAMES.get(type(value), "null") if not isinstance(value, str) else "empty"
                raise self.error(f"{field}[{number}]", f"is {found}", "give a text")
            self._check_text(f"{field}[{number}]", value)
        if len(values) < minimum:
            raise self.error(field, f"has {len(values)} text(s)", f"give at least {minimum}")
        return tuple(values)

    def index(self, field: str, n_choices: int, first: int = 0) -> int:
        """Returns the number of a choice, from 0, of an integer or of its digits.

        Args:
            field: its name.
            n_choices: the number of choices.
            first: the number that the file gives to the first choice.

        Raises:
            DataError: it is no number of a choice.
        """
        value = self._get(field, int, str)
        last, allowed = first + n_choices - 1, f"give the number of a choice, {first} to {first + n_choices - 1}"
        if isinstance(value, str):
            if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS):
                raise self.error(field, f"is {shown(value)}", allowed)
            value = int(value)
        if not first <= value <= last:
            raise self.error(field, f"is {shown(value)}, and there are {n_choices} choices", allowed)
        return value - first

    def one_of(self, field: str, names: Sequence[str]) -> int:
        """Returns the place of a name among `names`.

        Raises:
            DataError: it is none of them.
        """
        value = self._get(field, str)
        if value.strip() not in names:
            raise self.error(field, f"is {shown(value)}", f"give one of {shown(list(names))}")
        return names.index(value.strip())

    def is_text(self, field: str) -> bool:
        """Returns whether a field holds a text."""
        return isinstance(self.values.get(field), str)

    def count(self, field: str) -> int:
        """Returns an integer that is not negative.

        Raises:
            DataError: it is something else.
        """
        if (value := self._get(field, int)) < 0:
            raise self.error(field, f"is {shown(value)}", "give 0 or more")
        return value

    def flag(self, field: str) -> bool:
        """Returns true or false.

        Raises:
            DataError: it is something else.
        """
        return self._get(field, bool)

    def row(self, field: str) -> Row:
        """Returns the fields within a field.

        Raises:
            DataError: it has none.
        """
        return Row(self.path, self.line, self._get(field, dict), f"{self.prefix}{field}.")
