"""Files of prompts: one JSON object a line, each with settings of its own.

Everything that is wrong with a file is collected and raised together, one line an issue, by the number of its line.
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
from configs.schema import PredictionConfig, RunConfig

MAX_ISSUES = 20
EXAMPLE = '{"prompt": "Once upon a time"}'


@dataclass(frozen=True)
class Prompt:
    """What one text goes on from.

    Attributes:
        place: where it stands, for messages.
        given: a text, or the ids of its tokens.
        settings: how it is continued.
        own: what the file says of it that is given back with the answers.
    """

    place: str
    given: str | tuple[int, ...]
    settings: PredictionConfig
    own: Mapping[str, Any]


def begins_as_prompts(text: str) -> bool:
    """Whether a text that may be a prompt itself is one of prompts: its first line is an object that has one."""
    try:
        first = _parse_line(text.removeprefix("\ufeff").lstrip().partition("\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and "prompt" in first


def parse_prompts(place: str, text: str, config: RunConfig) -> list[Prompt]:
    """Reads the prompts of a file, in order; blank lines are none.

    Args:
        place: the file, for messages.
        text: all of it.
        config: the run, whose settings hold where a line has none.

    Raises:
        ConfigError: the message names every line that cannot be used, up to `MAX_ISSUES`.
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
    if issues:
        raise ConfigError("\n".join(issues))
    return prompts


def _parse_line(line: str) -> Any:
    """A line as JSON; a ValueError is what is wrong with it."""

    def unlike_json(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            raise ValueError("a key is given twice")
        return keys

    def finite(digits: str) -> float:
        if math.isinf(float(digits)):
            raise ValueError(f"{digits} is more than numbers can be")
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
        raise ConfigError(f"{place}: is no object with a prompt; write it as {EXAMPLE}")
    own = {key: keys.pop(key) for key in ("id",) if key in keys}
    if not is_unicode(json.dumps(own, ensure_ascii=False)):
        raise ConfigError(f"{place}: id: holds half of a character (a surrogate); write the whole character")
    given = keys.pop("prompt")
    for issue in _find_prompt_issues(given, config.model.n_vocab):
        raise ConfigError(f"{place}: prompt: {issue}")
    settings = override_prediction(config, keys, place)
    return Prompt(place, given if isinstance(given, str) else tuple(given), settings, own)


def _find_prompt_issues(given: Any, n_vocab: int) -> Iterator[str]:
    """What keeps a value of JSON from being a prompt."""
    if isinstance(given, str):
        if not is_unicode(given):
            yield "holds half of a character (a surrogate); write the whole character"
    elif not isinstance(given, list) or not all(type(token) is int for token in given):
        yield "is neither a string nor a list of ids; give one of them"
    elif wrong := [token for token in given if not 0 <= token < n_vocab]:
        yield f"holds the id {wrong[0]}, outside [0, {n_vocab}); give ids of the tokenizer"
