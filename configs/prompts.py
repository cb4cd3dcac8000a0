"""Prompt files: JSON lines, one prompt each, with optional settings of its own.

All errors of a file are collected and raised together, one line each, with the number of the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import ConfigError
from configs.kinds import is_unicode
from configs.load import override_prediction
from configs.reader import raise_issues
from configs.schema import PredictionConfig, RunConfig

DEFAULT_PROMPT = "In the beginning"
MAX_ISSUES = 20
EXAMPLE = '{"prompt": "Once upon a time"}'


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        place: where it comes from, for messages.
        given: a text, or token ids.
        settings: how to continue it.
        extra: other keys of its line, to repeat in the output.
    """

    place: str
    given: str | tuple[int, ...]
    settings: PredictionConfig
    extra: Mapping[str, Any]


def starts_as_json_lines(text: str) -> bool:
    """Returns whether a text is a file of prompts rather than a prompt: its first line is an object with a prompt."""
    try:
        first = _parse_line(text.removeprefix("\ufeff").lstrip().partition("\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and "prompt" in first


def parse_prompts(place: str, text: str, config: RunConfig) -> list[Prompt]:
    """Parses the prompts of a file, in order; blank lines are skipped.

    Args:
        place: the file, for messages.
        text: its contents.
        config: the run, whose settings apply where a line sets none.

    Raises:
        ConfigError: lines are invalid; the message names up to `MAX_ISSUES` of them.
    """
    prompts, issues = [], []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        try:
            prompts += [_prompt(f"{place}: line {number}", line, config)] if line.strip() else []
        except ConfigError as error:
            issues.append(str(error))
    if len(issues) > MAX_ISSUES:
        issues[MAX_ISSUES:] = [f"{place}: {len(issues) - MAX_ISSUES} more lines are wrong; correct them too"]
    if not prompts and not issues:
        issues.append(f"{place}: holds no prompt; write one object a line, such as {EXAMPLE}")
    raise_issues(issues)
    return prompts


def _parse_line(line: str) -> Any:
    """Parses a line of JSON; raises a ValueError that says what is wrong with it."""

    def unlike_json(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            raise ValueError("a key is given twice")
        return keys

    def finite(digits: str) -> float:
        if math.isinf(float(digits)):
            raise ValueError(f"{digits} is too large")
        return float(digits)

    try:
        return json.loads(line, parse_constant=unlike_json, parse_float=finite, object_pairs_hook=once_each)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _prompt(place: str, line: str, config: RunConfig) -> Prompt:
    try:
        keys = _parse_line(line)
    except ValueError as error:
        raise ConfigError(f"{place}: is not JSON ({error}); correct the line, such as {EXAMPLE}") from None
    if not isinstance(keys, dict) or "prompt" not in keys:
        raise ConfigError(f"{place}: is not an object with a prompt; write it as {EXAMPLE}")
    extra = {key: keys.pop(key) for key in ("id",) if key in keys}
    if not is_unicode(json.dumps(extra, ensure_ascii=False)):
        raise ConfigError(f"{place}: id: holds half of a character (a surrogate); write the whole character")
    given = keys.pop("prompt")
    for issue in _find_prompt_issues(given, config.model.n_vocab):
        raise ConfigError(f"{place}: prompt: {issue}")
    settings = override_prediction(config, keys, place)
    return Prompt(place, given if isinstance(given, str) else tuple(given), settings, extra)


def _find_prompt_issues(given: Any, n_vocab: int) -> Iterator[str]:
    """Yields what is wrong with the value of a prompt."""
    if isinstance(given, str):
        if not is_unicode(given):
            yield "holds half of a character (a surrogate); write the whole character"
    elif not isinstance(given, list) or not all(type(token) is int for token in given):
        yield "is neither a string nor a list of ids; give one of them"
    elif wrong := [token for token in given if not 0 <= token < n_vocab]:
        yield f"holds the id {wrong[0]}, outside [0, {n_vocab}); give ids of the tokenizer"
