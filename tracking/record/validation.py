"""Checks whether the files of a run are readable: a crash, a full disk or a person may have damaged them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_file_name(value: Any) -> bool:
    """Accepts only names within the run's folder: the report of a run must not show other files."""
    return isinstance(value, str) and "/" not in value and value not in ("", ".", "..")


def _is_time(value: Any) -> bool:
    try:
        return datetime.datetime.fromisoformat(value) is not None
    except (TypeError, ValueError):
        return False


def _is_measure(value: Any) -> bool:
    return value in ("nan", "inf", "-inf") or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_restart(value: Any) -> bool:
    return _is_mapping(value) and _is_time(value.get("time"))


def _list_of(rule: Rule) -> Rule:
    return lambda value: isinstance(value, list) and all(map(rule, value))


def _mapping_of(rule: Rule) -> Rule:
    return lambda value: isinstance(value, Mapping) and all(map(rule, value.values()))


NEEDED = ("experiment.name", "status")
ENTRY_RULES: dict[str, Rule] = {
    "experiment": _is_mapping,
    "experiment.name": _is_text,
    "experiment.repositories": _list_of(_is_mapping),
    "experiment.dependencies": _list_of(_is_text),
    "experiment.sources": _list_of(lambda value: isinstance(value, list) and bool(value)),
    "status": _is_text,
    "start_time": _is_time,
    "heartbeat": _is_time,
    "stop_time": _is_time,
    "artifacts": _list_of(_is_file_name),
    "host": _is_mapping,
    "meta": _is_mapping,
    "meta.arguments": _list_of(_is_text),
    "meta.words": _list_of(_is_text),
    "meta.keys": _list_of(_is_text),
    "meta.directory": _is_text,
    "meta.prompt": _is_text,
}
INFO_RULES: dict[str, Rule] = {
    "step": _is_measure,
    "latest": _mapping_of(_mapping_of(_is_measure)),
    "restarts": _list_of(_is_restart),
}


def without_none(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Drops keys whose value is None: they count as missing."""
    return {key: value for key, value in entry.items() if value is not None}


def find_problem(entry: Mapping[str, Any], info: Mapping[str, Any]) -> str | None:
    """Returns what makes run.json or info.json unreadable; None: nothing."""
    for path in NEEDED:
        if _at(entry, path) is None:
            return f"{path} is missing"
    for held, rules in ((entry, ENTRY_RULES), (info, INFO_RULES)):
        for path, rule in rules.items():
            value = _at(held, path)
            if value is not None and not rule(value):
                return f"{path} is {str(value)[:40]!r}"
    return None


def _at(held: Any, path: str) -> Any:
    for key in path.split("."):
        held = held.get(key) if isinstance(held, Mapping) else None
    return held
