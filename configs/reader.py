"""Turns the keys of JSON files and overrides into typed values, and collects everything that is wrong with them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, ValueIssue, did_you_mean, looked_from
from configs.schema import is_required

REFERENCE = "docs/configuration.md"
MAX_SHOWN = 80  # characters of a value in a message
OTHER_QUOTES = ("'", *"\u2018\u2019\u201c\u201d\u201e\u00ab")
WORDS_OF_PYTHON = ("True", "False", "None", "TRUE", "FALSE", "NULL", "nil")
COPIED_DEFAULTS = {"eval_batch_size": "train_batch_size", "lr_decay_end": "train_steps"}

_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|(?:#|//)[^\n]*|/\*.*?\*/', re.DOTALL)

Fields = Mapping[str, dataclasses.Field]


@dataclass(frozen=True)
class RawValue:
    """A value as the user wrote it.

    Attributes:
        key: the key in the user's spelling, which may be an alias.
        value: the value, as JSON has it.
        file: the file, or the flag, that gives it.
        typed: the key and the value as messages show what was typed on the command line; empty: they are in a file.
    """

    key: str
    value: Any
    file: str
    typed: str = ""


@dataclass(frozen=True)
class ConfigReader:
    """Reads one config object.

    Attributes:
        file: the file, for messages.
        raw: what the user wrote, by the names of the schema.
        values: the typed values so far.
        issues: everything that is wrong so far, one line each.
    """

    file: str
    raw: Mapping[str, RawValue]
    values: dict[str, Any] = field(default_factory=dict)
    issues: list[str] = field(default_factory=list)

    def report(self, key: str, issue: ValueIssue) -> None:
        """Adds an issue of a key, with the value and the file that the user gave."""
        raw = self.raw.get(key)
        if raw and raw.typed:
            self.issues.append(f"{_shortened(raw.typed)}: {_for_shell(raw.key, issue)}")
        else:
            place = f"{raw.file}: {raw.key} = {shown(raw.value)}" if raw else f"{self.file}: {key}"
            self.issues.append(f"{place}: {issue}")

    def check_names(self, fields: Fields, ignored: Iterable[str] = ()) -> None:
        """Reports keys that are neither in the schema nor ignored."""
        known = {*fields, *ignored}
        for key, raw in self.raw.items():
            if key not in known and (key, raw.value) != ("model", "GPT"):
                self.report(key, _unknown_key(key, known))

    def parse(self, fields: Fields) -> None:
        """Parses every value of a known key, and reports those that cannot be used."""
        for key, raw in self.raw.items():
            if key in fields:
                try:
                    self.values[key] = fields[key].metadata["kind"].parse(raw.value)
                except ValueIssue as issue:
                    self.report(key, issue)

    def fill_defaults(self, fields: Fields) -> None:
        """Fills in the keys that are absent, and reports those that are required."""
        for key, key_field in fields.items():
            if key in self.raw:
                continue
            if is_required(key_field):
                self.report(key, ValueIssue("is missing", f"give {key_field.metadata['kind'].description}"))
            elif key_field.default is not MISSING:
                self.values[key] = key_field.default
        for key, source in COPIED_DEFAULTS.items():
            if key in fields and source in self.values:
                self.values[key] = self.values.get(key) or self.values[source]

    def cross_check(self, checks: Sequence[Callable[..., Iterator[tuple[str, str, str]]]]) -> None:
        """Runs the checks whose keys, the names of their parameters, all have a valid value."""
        known = self.values | {"values": self.values}
        for find_issues in checks:
            keys = inspect.signature(find_issues).parameters
            if known.keys() >= keys.keys():
                for key, problem, remedy in find_issues(**{key: known[key] for key in keys}):
                    self.report(key, ValueIssue(problem, remedy))


def _unknown_key(key: str, known: Iterable[str]) -> ValueIssue:
    if key == "model":
        return ValueIssue("is not a known model", 'write "GPT", or remove the key')
    return ValueIssue("is not a known key", did_you_mean(key, known, f"remove it; {REFERENCE} lists the keys"))


def shown(value: Any) -> str:
    """Returns a JSON value as a message shows it, shortened to 80 characters."""
    return _shortened(json.dumps(value, ensure_ascii=False))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _for_shell(key: str, issue: ValueIssue) -> ValueIssue:
    """Returns an issue of a typed value: a shell takes quotes away, so its remedy shows how to keep those of JSON."""
    problem = issue.problem.replace("is a string, not", "is not")
    remedy, found, examples = issue.remedy.removesuffix(", without quotes").partition("write it as ")
    if found:
        example = examples.rpartition(" or ")[2]
        remedy += f"write it as --set {shlex.quote(f'{key}={example}')}"
    return ValueIssue(problem, remedy)


def raise_issues(issues: Iterable[str]) -> None:
    """Raises all issues together, each once.

    Raises:
        ConfigError: there is at least one.
    """
    lines = list(dict.fromkeys(issues))
    if lines:
        raise ConfigError("\n".join(lines))


def read_file(path: Path, aliases: Mapping[str, str], issues: list[str]) -> dict[str, RawValue]:
    """Reads the top-level keys of a JSON file.

    Args:
        path: the file.
        aliases: other spellings of keys.
        issues: gets a line for every key that is given twice.

    Raises:
        ConfigError: the file cannot be read, or holds no JSON object.
    """
    parsed = read_object(path, issues)
    return rename_aliases([RawValue(key, value, str(path)) for key, value in parsed.items()], aliases, issues)


def read_object(path: Path, issues: list[str]) -> dict[str, Any]:
    """Reads a JSON object; `issues` gets a line for every key that is given twice.

    Raises:
        ConfigError: the file cannot be read, or holds no JSON object.
    """
    parsed = _parse_json(path, _without_comments(_read_text(path)), issues)
    if not isinstance(parsed, dict):
        raise ConfigError(f'{path}: holds no JSON object; write {{"key": value, ...}}')
    return parsed


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({reason}); check the path{looked_from(str(path))}") from None


def _without_comments(text: str) -> str:
    """Blanks out comments as GPT-Neo's page writes them, `# ...`, and those of JavaScript; line numbers stay."""

    def blank(match: re.Match[str]) -> str:
        return match.group() if match.group().startswith('"') else re.sub(r"[^\n]", " ", match.group())

    return _STRING_OR_COMMENT.sub(blank, text)


def _parse_json(path: Path, text: str, issues: list[str]) -> Any:
    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                issues.append(f"{path}: {key} = {shown(value)}: is given twice; keep one of the two")
            seen[key] = value
        return seen

    try:
        return json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        place = f"{path}: line {error.lineno} column {error.colno}"
        raise ConfigError(f"{place}: is not JSON ({error.msg}); {_json_remedy(text, error.pos)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be parsed ({error}); correct the file") from None


def _json_remedy(text: str, at: int) -> str:
    """Returns what to do about text that is like JSON: a slip of a word processor, of Python, or a comma too many."""
    if text[at : at + 1] in OTHER_QUOTES:
        return 'put texts and keys into straight double quotes, "'
    if text.startswith(WORDS_OF_PYTHON, at):
        return "write true, false or null"
    if text[at : at + 1] in ("}", "]") and text[:at].rstrip().endswith(","):
        return "leave out the comma before it"
    return "correct the file there"


def rename_aliases(
    raw_values: Iterable[RawValue], aliases: Mapping[str, str], issues: list[str]
) -> dict[str, RawValue]:
    """Returns the values by the names of the schema; a key and its alias with different values are an issue."""
    renamed: dict[str, RawValue] = {}
    for raw in raw_values:
        name = aliases.get(raw.key, raw.key)
        other = renamed.get(name)
        if other and other.key != raw.key and other.value != raw.value:
            problem = f"is the same key as {other.key}, which is {shown(other.value)}"
            issues.append(f"{raw.file}: {raw.key} = {shown(raw.value)}: {problem}; keep one of the two")
        renamed[name] = raw
    return renamed
