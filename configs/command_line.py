"""The command line of every program: its parser, and the values that people type there.

A shell eats quotes, and people write numbers in more ways than JSON has. So what is typed for a key, with `--set` or
with a flag of main.py, is read in several ways, and the first one that is a value of the key counts.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from configs.errors import ValueIssue
from configs.reader import RawValue, rename_aliases
from configs.schema import ALIASES, FLAGS, RUN_FIELDS

WORDS = {"true": True, "false": False, "none": None, "null": None}
# A negative number of a form that argparse takes for a flag.
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][+-]?\d+|-\d+\.")
_FLAG = re.compile(r"--[\w-]+(?=$|=)")
SET = "--set"
FLAG_MARK = "--"
ESCAPED_KEYS = ("stop",)
ESCAPES = re.compile(r"\\(?:[ntr\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U000[0-9a-fA-F]{5})")
NAMED_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
# A string, a bracket or comma, or a bare word.
LIST_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]|[^\[\]{},"]+')

Scalar = Callable[[str], Any]


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


def number(text: str) -> float:
    """Returns the finite number that a flag was given.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    for value in typed_values(text):
        if type(value) is float:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number; give one")


def read_overrides(overrides: Sequence[str], issues: list[str]) -> dict[str, RawValue]:
    """Returns the values of overrides by key.

    Args:
        overrides: `KEY=VALUE`, the argument of `--set`, or `--FLAG=VALUE`.
        issues: gets a line for every override that cannot be read.
    """
    raw_values = []
    for override in overrides:
        name, equals, text = (part.strip() for part in override.partition("="))
        if not (name and equals):
            issues.append(f"{SET}: {override}: is not a key=value pair; write key=value")
        elif name.startswith(FLAG_MARK):
            key = FLAGS[name.removeprefix(FLAG_MARK)]
            raw_values.append(RawValue(key, _read_flag(key, text), name, f"{name} {_typed_flag(text)}"))
        else:
            raw_values.append(RawValue(name, _read(name, text), SET, f"{SET}: {name} = {text}"))
    return rename_aliases(raw_values, ALIASES, issues)


def find_rereadings(overrides: Sequence[str]) -> Iterator[str]:
    """Yields a line for each override whose quotes the shell has eaten, which says how it was read."""
    for name, raw in read_overrides([text for text in overrides if not text.startswith(FLAG_MARK)], []).items():
        text = raw.typed.partition(" = ")[2]
        if isinstance(raw.value, (list, dict)) and raw.value != _json_or(text, text):
            written = json.dumps(raw.value, ensure_ascii=False)
            yield f"{SET} {name}={text}: read as {written}; to keep the quotes, write {SET} '{name}={written}'"


def unescape(text: str) -> str:
    r"""Returns a text with the escapes replaced that people type in a shell: \n, \t, \r, \\, \xNN, \uNNNN.

    A backslash before anything else stays.
    """

    def character(match: re.Match[str]) -> str:
        escape = match[0][1:]
        return NAMED_ESCAPES.get(escape) or chr(int(escape[1:], 16))

    return ESCAPES.sub(character, text)


def _read_flag(key: str, text: str) -> Any:
    """Reads the value of a flag; a list of words is the JSON that main.py has made of them."""
    if (words := _words(text)) is not None:
        return [unescape(word) if key in ESCAPED_KEYS else word for word in words]
    return _read(key, text)


def _typed_flag(text: str) -> str:
    words = _words(text)
    return text if words is None else shlex.join(words)


def _words(text: str) -> list[str] | None:
    """Returns the list of words that a text is as JSON; None: it is something else."""
    value = _json_or(text, None)
    return value if isinstance(value, list) and all(isinstance(word, str) for word in value) else None


def _read(name: str, text: str) -> Any:
    """Returns the first reading of a text that is a value of a key, or else what messages show."""
    key = ALIASES.get(name, name)
    kind = RUN_FIELDS[key].metadata["kind"] if key in RUN_FIELDS else None
    if kind is not None and text.lower() in kind.names:  # `none` is null elsewhere
        return text
    for value in _readings(text, key in ESCAPED_KEYS):
        try:
            if kind is not None:
                kind.parse(value)
            return value
        except ValueIssue:
            continue
    return _json_or(text, text)


def _readings(text: str, is_escaped: bool) -> Iterator[Any]:
    """Yields the possible values of a text, the likeliest first."""
    as_text: Scalar = unescape if is_escaped else str
    value = _json_or(text, ValueError)
    if value is not ValueError:
        yield value
    if isinstance(value, float) and value.is_integer():
        yield int(value)
    yield from typed_values(text)
    if text[:1] in ("[", "{"):
        yield from _unquoted(text, lambda word: next(typed_values(word), as_text(word)))
        yield from _unquoted(text, as_text)
    yield as_text(text)


def _json_or(text: str, otherwise: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def _unquoted(text: str, scalar: Scalar) -> Iterator[Any]:
    """Yields a list or an object whose strings have lost their quotes."""
    nesting, parts = [], []
    for token in filter(str.strip, LIST_TOKENS.findall(text)):
        if token in "[{":
            nesting.append(token)
        elif token in "]}" and nesting:
            nesting.pop()
        is_word = token[0] not in '[]{},"'
        parts.append(_quoted_word(token.strip(), scalar, bool(nesting) and nesting[-1] == "{") if is_word else token)
    value = _json_or("".join(parts), None)
    if value is not None:
        yield value


def _quoted_word(word: str, scalar: Scalar, is_in_object: bool) -> str:
    """Returns a bare word as JSON; in an object, a word with a colon holds a key and perhaps its value."""
    key, colon, value = word.partition(":")
    if not (is_in_object and colon):
        return json.dumps(scalar(word))
    written = f"{json.dumps(key.strip())}:" if key.strip() else ":"
    return written + (json.dumps(scalar(value.strip())) if value.strip() else "")
