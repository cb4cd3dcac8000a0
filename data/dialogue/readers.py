"""Conversations in the forms that people have: DialoGPT's TSV, OpenAI's and ShareGPT's chats, lists of turns.

`conversations_of` reads a JSON value or a line of a TSV file; the files themselves are read as all text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from data.dialogue.conversation import ASSISTANT, ROLES, SYSTEM, USER, Turn, Turns, alternating, to_text

BETWEEN_TURNS = " EOS "
LIST_KEYS = ("messages", "conversations", "conversation", "turns", "dialog", "dialogue", "utterances")
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value", "text")
# The names of roles in ShareGPT's and others' files.
ROLE_NAMES = {
    **{role: role for role in ROLES},
    "developer": SYSTEM,
    "human": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
MAX_WEIGHT = 1e6  # sums of weights stay far below the largest float32
_MAX_SHOWN = 80
_WEIGHT = re.compile(r"(\d+\.\d+)(?:\s+|$)")


def conversations_of(value: object) -> Iterator[tuple[str | None, str | None]]:
    """Yields each conversation of a JSON value or a TSV line as `to_text`, or None and why it cannot be used.

    A value is one conversation: an object with one of `LIST_KEYS`, a list of turns, or a line of DialoGPT's TSV. An
    object whose values are conversations, such as the chitchat-dataset's, holds several.
    """
    for one in value.values() if _is_table(value) else [value]:
        try:
            turns = _turns_of(one)
            _check(turns)
            yield to_text(turns), None
        except ValueError as error:
            yield None, str(error)


def _is_table(value: object) -> bool:
    if not isinstance(value, dict) or not value or any(key in value for key in LIST_KEYS):
        return False
    return all(isinstance(each, dict) and any(key in each for key in LIST_KEYS) for each in value.values())


def _turns_of(value: object) -> Turns:
    if isinstance(value, str):
        return _turns_of_line(value)
    if isinstance(value, list):
        return _turns_of_list(value)
    if isinstance(value, dict):
        for key in LIST_KEYS:
            if isinstance(value.get(key), list):
                return _system_of(value) + _turns_of_list(value[key])
        raise ValueError(f"no conversation under {' or '.join(LIST_KEYS)}; its keys are {_shown(list(value))}")
    raise ValueError(f"{_shown(value)} is no conversation")


def _system_of(value: Mapping[str, object]) -> Turns:
    """The system line that ShareGPT's files may hold beside the turns."""
    text = value.get("system")
    return (Turn(SYSTEM, text),) if isinstance(text, str) and text.strip() else ()


def _turns_of_list(values: Sequence[object]) -> Turns:
    if all(isinstance(value, str) for value in values):
        return alternating(values)
    if all(isinstance(value, list) for value in values):  # the chitchat-dataset: messages in a row by one person
        return alternating([" ".join(_text_of(message) for message in group) for group in values])
    if not all(isinstance(value, dict) for value in values):
        raise ValueError("turns are neither all strings nor all objects")
    if not any(key in value for value in values for key in ROLE_KEYS):
        return alternating([_text_of(value) for value in values])
    return tuple(_turn_with_role(value) for value in values)


def _turn_with_role(value: Mapping[str, object]) -> Turn:
    name = next((value[key] for key in ROLE_KEYS if key in value), None)
    role = ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"role {_shown(name)}: is none of {', '.join(ROLE_NAMES)}")
    weight = value.get("weight")
    return Turn(role, _text_of(value), None if weight is None else _weight_of(weight))


def _weight_of(value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= MAX_WEIGHT):
        raise ValueError(f"weight {_shown(value)}: is not a number from 0 to {MAX_WEIGHT:.0f}")
    return float(value)


def _shown(value: object) -> str:
    """Returns the beginning of a value in a form that is printable whatever it holds."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _text_of(value: object) -> str:
    if isinstance(value, str):
        return value
    content = next((value[key] for key in TEXT_KEYS if key in value), None) if isinstance(value, dict) else None
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise ValueError(f"a turn has no text under {' or '.join(TEXT_KEYS)}")
    return content


def _turns_of_line(line: str) -> Turns:
    """Returns the turns of a line `turn EOS turn<tab>response`, each turn after its weight if the response has one.

    A response of weight 0 is left out, as DialoGPT does.
    """
    columns = line.strip("\r\n").split("\t")
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} columns: DialoGPT's lines have two, turns and response")
    context, response = columns
    texts = [*context.split(BETWEEN_TURNS), response]
    if not _WEIGHT.match(response.strip()):
        return alternating([_words(text) for text in texts])
    found = [_WEIGHT.match(text.strip()) for text in texts]
    weights = [_weight_of(float(match[1])) if match else 1.0 for match in found]
    spoken = [_words(text.strip()[match.end() :] if match else text) for match, text in zip(found, texts, strict=True)]
    kept = len(texts) if weights[-1] else -1
    return alternating(spoken[:kept], weights[:kept])


def _words(text: str) -> str:
    return " ".join(text.split())


def _check(turns: Turns) -> None:
    empty = next((number for number, turn in enumerate(turns, 1) if not turn.text.strip()), None)
    if empty:
        raise ValueError(f"turn {empty} is empty")
    for turn in turns:
        try:
            turn.text.encode("utf-8")
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
            raise ValueError("half a surrogate pair") from None
