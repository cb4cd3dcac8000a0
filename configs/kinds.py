"""The kinds of values that keys have: parsed from JSON, written back, and described for error messages."""

from __future__ import annotations

import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import ConfigError, ValueIssue
from configs.layout import format_pairs, parse_layout, parse_mesh_shape

# What each type of attention sees: the text of `attention_types`.
ATTENTION_TYPES = {
    "global": "all earlier tokens",
    "local": "the last local_attention_radius",
    "linear": "all earlier tokens, in time and memory linear in the length",
    "none": "feed-forward only",
}
NUMBER_WORDS = ("nan", "inf", "infinity")
QUOTED_NUMBER = re.compile(r"\d+(\.\d+)?[eE]-?\d+", re.ASCII)
MAX_LAYERS = 1024
MAX_INTEGER = 2**31 - 1
VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Kind:
    """The values that a key may have.

    Attributes:
        description: for people.
        parse: from JSON to the typed value; raises `ValueIssue` for any other value.
        write: from the typed value to JSON.
        names: the names that are values, in lower case, if the key has names alone.
    """

    description: str
    parse: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value
    names: frozenset[str] = frozenset()


def parse_part(part: str, kind: Kind, value: Any) -> Any:
    """Parses one part of a value; an issue names the part."""
    try:
        return kind.parse(value)
    except ValueIssue as issue:
        raise ValueIssue(f"{part} {value!r} {issue.problem}", issue.remedy) from None


def _check_number_type(value: Any, types: tuple[type, ...], noun: str, description: str) -> None:
    if isinstance(value, str) and value.lower().lstrip("+-") in NUMBER_WORDS:  # JSON has no other way to write them
        raise ValueIssue("is not finite", f"give {description}")
    if isinstance(value, str):
        raise ValueIssue(f"is a string, not {noun}", f"give {description}, without quotes")
    if isinstance(value, bool) or not isinstance(value, types):
        raise ValueIssue(f"is not {noun}", f"give {description}")


def integer(minimum: int, maximum: int | None = None, limit: int = MAX_INTEGER) -> Kind:
    """Returns the kind of integers in [minimum, maximum]; 1000.0 is none.

    Args:
        minimum: the smallest.
        maximum: the largest, where people should know it; None: `limit`.
        limit: what no computer can hold is above it.
    """
    span = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    description = f"an integer {span}"

    def parse(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            raise ValueIssue("is not an integer", f"write {int(value)}")
        _check_number_type(value, (int,), "an integer", description)
        if value > (limit if maximum is None else maximum):
            raise ValueIssue("is out of range", f"give an integer from {minimum} to {maximum or limit}")
        if value < minimum:
            raise ValueIssue("is out of range", f"give {description}")
        return value

    return Kind(description, parse)


def number(span: str, accepts: Callable[[float], bool]) -> Kind:
    """Returns the kind of finite numbers that `accepts` allows; `span` describes them."""
    description = f"a number {span}"

    def parse(value: Any) -> float:
        _check_number_type(value, (int, float), "a number", description)
        if not abs(value) <= sys.float_info.max:
            raise ValueIssue("is not a finite number", f"give {description}")
        if not accepts(value):
            raise ValueIssue("is out of range", f"give {description}")
        return float(value)

    return Kind(description, parse)


def or_quoted(kind: Kind) -> Kind:
    """Returns a kind of numbers that may be in quotes if they have an exponent, as in a released config of GPT-Neo."""

    def parse(value: Any) -> Any:
        is_quoted = isinstance(value, str) and QUOTED_NUMBER.fullmatch(value)
        return kind.parse(float(value) if is_quoted else value)

    return Kind(kind.description, parse)


def within(minimum: float, maximum: float) -> Kind:
    """Returns the kind of numbers in [minimum, maximum]."""
    return number(f"in [{minimum}, {maximum}]", lambda value: minimum <= value <= maximum)


def one_of(choices: Sequence[str]) -> Kind:
    """Returns the kind of these names, in upper or lower case."""
    listed = ", ".join(choices)
    canonical = {choice.lower(): choice for choice in choices}

    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueIssue("is not a string", f"use {listed}")
        if value.lower() not in canonical:
            raise ValueIssue("is not a known name", f"use {listed}")
        return canonical[value.lower()]

    return Kind(f"one of {listed}" if len(choices) > 1 else listed, parse, names=frozenset(canonical))


def names_of(choices: Sequence[str]) -> Kind:
    """Returns the kind of lists of some of these names, each once; one name, or names with commas between, is one."""
    name = one_of(choices)

    def parse(value: Any) -> tuple[str, ...]:
        listed = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(listed, list) or not listed:
            raise ValueIssue("is not a list of names", f"use {', '.join(choices)}")
        names = tuple(parse_part("member", name, item) for item in listed)
        if len(set(names)) < len(names):
            raise ValueIssue("holds a name twice", "give each once")
        return names

    return Kind(f"a list of {', '.join(choices)}", parse, list)


def optional(kind: Kind) -> Kind:
    """Returns the kind of values of `kind`, or null."""
    return _or_off(kind, lambda value: value is None, None, ", or null")


def unless_named(kind: Kind, names: Sequence[str]) -> Kind:
    """Returns the kind of values of `kind`; null and these names, in upper or lower case, mean none."""
    return _or_off(kind, lambda value: value is None or str(value).lower() in names, None, f", or null or {names[0]}")


def unless_off(kind: Kind, off: Any) -> Kind:
    """Returns the kind of values of `kind`; null and false, which switch an option off in GPT-Neo, mean `off`."""
    return _or_off(kind, lambda value: value is None or value is False, off, "; null or false: off")


def _or_off(kind: Kind, is_off: Callable[[Any], bool], off: Any, note: str) -> Kind:
    def parse(value: Any) -> Any:
        return off if is_off(value) else kind.parse(value)

    def write(value: Any) -> Any:
        return None if value is None else kind.write(value)

    return Kind(kind.description + note, parse, write, kind.names)


def _parse_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueIssue("is not true or false", "write true or false, without quotes")
    return value


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueIssue("is not a string", "give a string in double quotes")
    if not value.strip():
        raise ValueIssue("is empty", "give a string that is not empty")
    return value


def _check_characters(text: str) -> None:
    """Rejects what no file name and no output can hold."""
    if "\0" in text:
        raise ValueIssue("holds a NUL character", "leave it out")
    if not is_unicode(text):
        raise ValueIssue("is not UTF-8 text: it holds half of a character (a surrogate)", "write the whole character")


def clean_path(path: str) -> str:
    """Returns a path as the system takes it: `~` and $VARIABLES replaced, repeated slashes folded, in buckets too.

    Raises:
        ValueIssue: no file can have this name, or it names a variable or a user that does not exist.
    """
    _check_characters(path)
    expanded = os.path.expandvars(os.path.expanduser(path))
    unknown = [name for name in VARIABLE.findall(path) if name not in os.environ]
    if unknown and not os.path.lexists(expanded):
        raise ValueIssue(f"names ${unknown[0]}, which is not set", "set it, or write the path out")
    if expanded.startswith("~") and not os.path.lexists(expanded.partition("/")[0]):
        raise ValueIssue("names the home of an unknown user", "write the path out")
    scheme, mark, place = expanded.rpartition("://")
    if not mark:
        return re.sub("/+", "/", expanded)
    return scheme + mark + posixpath.normpath(place) + "/" * place.endswith("/")


def clean_path_flags(values: Mapping[str, Any], flags: Iterable[str]) -> dict[str, Any]:
    """Returns the values of flags that are paths, or sequences of paths, as `clean_path` does.

    Raises:
        ConfigError: the message names the flag and the path.
    """
    return {flag: _clean_flag(flag, values[flag]) for flag in flags if values.get(flag)}


def _clean_flag(flag: str, value: Any) -> Any:
    if not isinstance(value, str):
        return type(value)(_clean_flag(flag, path) for path in value)
    try:
        return clean_path(value)
    except ValueIssue as issue:
        raise ConfigError(f"--{flag} {value}: {issue}") from None


def _parse_folder(value: Any) -> str:
    return clean_path(_parse_text(value))


def _parse_path(value: Any) -> str | None:
    return None if value in (None, "") else _parse_folder(value)


def _listed_texts(value: Any) -> list[str]:
    given = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
        raise ValueIssue("is not a string or a list of strings", 'write it as "a" or ["a", "b"]')
    return given


def _parse_paths(value: Any) -> tuple[str, ...]:
    return tuple(_parse_folder(item) for item in _listed_texts(value))


def is_unicode(text: str) -> bool:
    """Returns whether a text can be encoded as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_stops(value: Any) -> tuple[str, ...]:
    """Parses stop strings; unlike `_parse_texts`, allows blanks and line breaks alone."""
    given = _listed_texts(value)
    if "" in given:
        raise ValueIssue("holds an empty string", "give strings of at least one character")
    if not all(map(is_unicode, given)):
        raise ValueIssue("holds half of a character (a surrogate)", "write the whole character")
    return tuple(given)


def _parse_separator(value: Any) -> str | bool | None:
    if value is None or value is False or value is True or value == "eos":
        return bool(value) or None
    if not isinstance(value, str) or not value:
        raise ValueIssue("is not a string", "give the marker, or true for the tokenizer's end of text")
    return value


FLAG = Kind("true or false", _parse_flag)
SWITCH = Kind("true or false; null: false", lambda value: _parse_flag(False if value is None else value))
TEXT = Kind("a string", _parse_text)
PATH = Kind("a string; empty or null: none", _parse_path)
FOLDER = Kind("a string", _parse_folder)
PATHS = Kind("a string or a list of strings", _parse_paths, list)
POSITIVE = number("> 0", lambda value: value > 0)
NON_NEGATIVE = number(">= 0", lambda value: value >= 0)
SHARE = number("in [0, 1)", lambda value: 0 <= value < 1)
# float32 rounds smaller numbers to 0.
POSITIVE_FLOAT32 = or_quoted(number(">= 1e-37", lambda value: value >= 1e-37))
TOP_P = number("in (0, 1]", lambda value: 0 < value <= 1)
SEPARATOR = Kind("a string; true or eos: the tokenizer's end of text; null or false: none", _parse_separator)
STOPS = Kind("a string or a list of strings, none empty; null: none", _parse_stops, list)

# Attention patterns: [[["global", "local"], 6]] is global, local, global, local ... over 12 layers.

ATTENTION_TYPE = one_of(tuple(ATTENTION_TYPES))
ATTENTION_EXAMPLE = 'write it as [[["global", "local"], 6]]'


def _expand_attention_item(item: Any) -> tuple[str, ...]:
    if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) and item[0]):
        raise ValueIssue("is not a list of [pattern, repeats] pairs", ATTENTION_EXAMPLE)
    pattern, repeats = item
    names = tuple(parse_part("the attention", ATTENTION_TYPE, name) for name in pattern)
    return names * parse_part("the number of repeats", integer(1, MAX_LAYERS), repeats)


def _parse_attention_types(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueIssue("is not a list of [pattern, repeats] pairs", ATTENTION_EXAMPLE)
    return tuple(name for item in value for name in _expand_attention_item(item))


def _write_attention_types(types: tuple[str, ...]) -> list:
    """Writes the shortest pattern that repeats to all layers, as a person would."""
    lengths = (length for length in range(1, len(types) + 1) if len(types) % length == 0)
    length = next(length for length in lengths if types[:length] * (len(types) // length) == types)
    return [[list(types[:length]), len(types) // length]]


ATTENTION = Kind(
    'a list of [pattern, repeats], such as [[["global", "local"], 6]]', _parse_attention_types, _write_attention_types
)


def integers(member: Kind, example: str) -> Kind:
    """Returns the kind of lists whose members are of one kind of integer."""

    def parse(value: Any) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise ValueIssue("is not a list", f"write it as {example}")
        return tuple(parse_part("member", member, item) for item in value)

    return Kind(f"a list of members, each {member.description}", parse, list)


def steps_and_sizes(size: Kind) -> Kind:
    """Returns the kind of lists of [step, size]: the size from that step on, the first from step 0; null: none."""
    example = "write it as [[0, 8], [1000, 16]]"

    def parse(value: Any) -> tuple[tuple[int, int], ...]:
        items = [] if value is None else value
        if not isinstance(items, list) or not all(isinstance(item, list) and len(item) == 2 for item in items):
            raise ValueIssue("is not a list of [step, size] pairs", example)
        pairs = [(parse_part("the step", integer(0), at), parse_part("the size", size, own)) for at, own in items]
        steps = [step for step, _ in pairs]
        if steps and steps[0] != 0:
            raise ValueIssue(f"begins at step {steps[0]}", "let the first pair be [0, SIZE]")
        if steps != sorted(set(steps)):
            raise ValueIssue("has steps that do not rise", example)
        return tuple(pairs)

    return Kind(
        "a list of [step, size], such as [[0, 8], [1000, 16]]; null: none", parse, lambda pairs: list(map(list, pairs))
    )


def _parse_axes(value: Any) -> tuple[int, int]:
    sizes = integers(integer(1), "[16, 64]").parse(value)
    if len(sizes) != 2:
        raise ValueIssue(f"has {len(sizes)} members", "give two, whose product is n_ctx, such as [16, 64]")
    return sizes


AXIAL = Kind("two integers whose product is n_ctx, such as [16, 64]", _parse_axes, list)


def _pairs(names: str, example: str, parse_text: Callable[[str], Any]) -> Kind:
    def parse(value: Any) -> Any:
        if value is not None and not isinstance(value, str):
            raise ValueIssue("is not a string", f'write it as "{example}"')
        return parse_text(value or "")

    return Kind(f"{names} pairs, such as {example}; empty or null: none", parse, format_pairs)


MESH_SHAPE = _pairs("axis:size", "x:4,y:2", parse_mesh_shape)
LAYOUT = _pairs("dimension:axis", "batch:x,heads:y", parse_layout)
