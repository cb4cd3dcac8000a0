"""The parser of the programs' command lines, and the values that people type there."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

WORDS = {"true": True, "false": False, "none": None, "null": None}
# A negative number of a form that argparse takes for a flag.
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][+-]?\d+|-\d+\.")
_FLAG = re.compile(r"--[\w-]+(?=$|=)")


class CommandLine(argparse.ArgumentParser):
    """Takes every flag with underscores or dashes: `--vocab_size` and `--vocab-size` are the same."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parses as argparse does, and shows the help if there is nothing to parse; `parse_args` calls it too."""
        words = sys.argv[1:] if args is None else args
        if not words:
            self.print_help()
            self.exit(2)
        return super().parse_known_args([self._as_declared(word) for word in _join_negatives(words)], namespace)

    def _as_declared(self, word: str) -> str:
        flag = _FLAG.match(word)
        if flag is None:
            return word
        name = "--" + flag.group()[2:].replace("-", "_")
        is_known = any(option.startswith(name) for option in self._option_string_actions)
        return name + word[flag.end() :] if is_known else word


def _join_negatives(words: Sequence[str]) -> list[str]:
    """Joins negative numbers such as -1e-3 to the flag before them."""
    joined: list[str] = []
    for word in words:
        if _NEGATIVE.fullmatch(word) and joined and joined[-1].startswith("--"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def typed_values(text: str) -> Iterator[Any]:
    """Yields true, false or none in any case, or a number such as .5, 5., +5, 007, 1e3 or 1_000."""
    if text.lower() in WORDS:
        yield WORDS[text.lower()]
    try:
        number = float(text)
    except ValueError:
        return
    if math.isfinite(number):
        yield from (int(number), number) if number.is_integer() else (number,)


def integer(text: str) -> int:
    """Returns the integer that a flag was given, such as 8, +8, 8. or 1e3.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    for value in typed_values(text):
        if type(value) is int:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not an integer; give one")
