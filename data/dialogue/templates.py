"""Chat templates: how the turns of a conversation become token ids.

`dialogpt` joins turns with the end of text, `chatml` sets each between `<|im_start|>` and `<|im_end|>`, and a Jinja
template is written as Hugging Face's `chat_template`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from configs.errors import DataError, looked_from
from data.dialogue.conversation import ASSISTANT, SYSTEM, Turn, TurnRules
from data.tokenization.tokenizer import SPECIAL_TOKENS, Tokenizer
from storage.files import decode_text

DIALOGPT, CHATML, OF_TOKENIZER = NAMES = ("dialogpt", "chatml", "tokenizer")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
_SPECIAL_TOKEN = re.compile(r"<\|\w+\|>")
_PRIVATE_NAME = re.compile("\ue000(\\d+)\ue001")
# What the program that a template is may raise.
_FAILED = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
WEIGHTED = np.dtype([("id", np.int32), ("weight", np.float32)])


@dataclass(frozen=True)
class Span:
    """Ids that follow one another, all of one weight."""

    ids: Sequence[int]
    weight: float = 0.0


Spans = Iterator[Span]
Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class ChatTemplate:
    """How turns become ids.

    Attributes:
        name: as `load_template` takes it.
        end_ids: the ids that end a response.
        has_system: whether a system line has a place of its own.
        spans: returns the ids of whole turns, in order.
        opening: returns the ids after turns by which the response begins.
        special_tokens: names of the special tokens that the template needs.
    """

    name: str
    end_ids: tuple[int, ...]
    has_system: bool
    spans: Callable[[Sequence[Turn]], Spans]
    opening: Callable[[Sequence[Turn]], Sequence[int]]

    def length(self, turns: Sequence[Turn]) -> int:
        """Returns the number of ids of turns."""
        return sum(len(span.ids) for span in self.spans(turns))

    def encode(self, turns: Sequence[Turn]) -> np.ndarray:
        """Returns the ids of turns with the weight of each as a label, `WEIGHTED` [tokens]."""
        spans = list(self.spans(turns))
        encoded = np.zeros(sum(len(span.ids) for span in spans), WEIGHTED)
        encoded["id"] = list(itertools.chain.from_iterable(span.ids for span in spans))
        encoded["weight"] = np.repeat([span.weight for span in spans], [len(span.ids) for span in spans])
        return encoded

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids before a response to these turns, encoded with the weights that they have in training."""
        weighted = TurnRules().apply(tuple(turns))
        return [*self.encode(weighted)["id"].tolist(), *self.opening(weighted)]


def load_template(name: str, tokenizer: Tokenizer, eos_id: int, folder: str | None = None) -> ChatTemplate:
    """Returns a chat template.

    Args:
        name: "dialogpt", "chatml", the path of a Jinja file, or "tokenizer" for that of the tokenizer's folder.
        tokenizer: encodes the turns.
        eos_id: the end of text.
        folder: of the tokenizer; None: it has none.

    Raises:
        DataError: there is no such template, it is damaged, or the tokenizer lacks a token that it needs.
    """
    if name == DIALOGPT:
        spans = partial(_dialogpt_spans, _remembering(tokenizer), eos_id)
        return ChatTemplate(name, (eos_id,), False, spans, lambda turns: ())
    if name == CHATML:
        return _chatml(tokenizer)
    return _JinjaTemplate(name, jinja_text(name, folder), tokenizer, eos_id, _named_tokens(folder)).template()


def jinja_text(name: str, folder: str | None) -> str | None:
    """Returns the text of a Jinja template, None for those that are built in; arguments and errors as there."""
    if name in (DIALOGPT, CHATML):
        return None
    return _folder_template(folder) if name == OF_TOKENIZER else _read(name)


def has_template(folder: str | None) -> bool:
    """Returns whether the folder of a tokenizer has a template."""
    return _find_in_folder(folder) is not None


def special_tokens_of(name: str) -> tuple[str, ...]:
    """Returns the special tokens that a tokenizer trained for a template must have besides its own.

    Of a Jinja file, these are all that it spells as `<|name|>`.

    Raises:
        DataError: the file cannot be read.
    """
    if name == CHATML:
        return IM_START, IM_END
    spelled = dict.fromkeys(_SPECIAL_TOKEN.findall(jinja_text(name, None) or ""))
    return tuple(token for token in spelled if token not in SPECIAL_TOKENS)


def _remembering(tokenizer: Tokenizer) -> Encode:
    """Returns a function that encodes each turn once, however many runs of turns are tried for their length."""
    return lru_cache(maxsize=1024)(tokenizer.encode)


def _dialogpt_spans(encode: Encode, eos_id: int, turns: Sequence[Turn]) -> Spans:
    """Source: DialoGPT, Zhang et al. 2020, section 3.1: turns joined by the end of text."""
    for turn in turns:
        yield Span([*encode(turn.text), eos_id], turn.weight or 0.0)


def _chatml(tokenizer: Tokenizer) -> ChatTemplate:
    start, end = (_special_id(tokenizer, token) for token in (IM_START, IM_END))
    encode = _remembering(tokenizer)
    newline = encode("\n")

    def header(role: str) -> list[int]:
        return [start, *encode(f"{role}\n")]

    def spans(turns: Sequence[Turn]) -> Spans:
        for turn in turns:
            yield Span(header(turn.role))
            yield Span([*encode(turn.text), end], turn.weight or 0.0)
            yield Span(newline)

    return ChatTemplate(CHATML, (end,), True, spans, lambda turns: header(ASSISTANT))


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.id_of(token)
    if token_id is None:
        raise DataError(
            f"chat_template: the tokenizer has no {token}; give one that has, such as that of a chat model, or use "
            f"{DIALOGPT}"
        )
    return token_id


def _read(path: str) -> str:
    try:
        return decode_text(Path(path).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"chat_template = {path}: cannot be read ({error}); give {DIALOGPT}, {CHATML}, {OF_TOKENIZER} or the path "
            f"of a Jinja file{looked_from(path)}"
        ) from None


def _find_in_folder(folder: str | None) -> str | None:
    """Returns the template of a tokenizer's folder: chat_template.jinja, or that of tokenizer_config.json."""
    if folder is not None and os.path.isfile(f"{folder}/chat_template.jinja"):
        return _read(f"{folder}/chat_template.jinja")
    values = _config_of(folder)
    template = values.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [each for each in template if isinstance(each, dict)]
        template = next((each.get("template") for each in named if each.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _folder_template(folder: str | None) -> str:
    template = _find_in_folder(folder)
    if template is None:
        raise DataError(
            f"chat_template = {OF_TOKENIZER}: {folder or 'the tokenizer'} has no chat_template; give {DIALOGPT}, "
            f"{CHATML} or the path of a Jinja file"
        )
    return template


def _config_of(folder: str | None) -> dict:
    path = Path(folder or "", "tokenizer_config.json")
    if folder is None or not path.is_file():
        return {}
    try:
        values = json.loads(decode_text(path.read_bytes()))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: is not an object of JSON; copy it again")
    return values


def _named_tokens(folder: str | None) -> dict[str, str]:
    """Returns the special tokens that a template may name, such as bos_token, from the tokenizer's folder."""
    values = {key: value for key, value in _config_of(folder).items() if key.endswith("_token")}
    names = {key: value.get("content") if isinstance(value, dict) else value for key, value in values.items()}
    return {key: name for key, name in names.items() if isinstance(name, str)}


@dataclass(frozen=True)
class _JinjaTemplate:
    """A template in Hugging Face's form, rendered in a sandbox.

    A special token that a turn spells stays plain text: it is rendered under a private name, and encoded by itself.
    """

    name: str
    text: str
    tokenizer: Tokenizer
    eos_id: int
    named_tokens: dict[str, str]

    def template(self) -> ChatTemplate:
        """Returns the chat template; it ends a response with the id after an answer."""
        probe = [Turn("user", "a"), Turn(ASSISTANT, "b", 1.0)]
        (response,) = (span for span in self._spans(probe) if span.weight)
        if not response.ids:
            raise DataError(f"chat_template = {self.name}: does not write what the assistant says; use another")
        end_ids = tuple(dict.fromkeys([*response.ids[len(self.tokenizer.encode("b")) :][:1], self.eos_id]))
        return ChatTemplate(self.name, end_ids, self._has_system(), self._spans, self._opening)

    @cached_property
    def _compiled(self) -> Callable[..., str]:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            return environment.from_string(self.text).render
        except (TemplateError, RecursionError) as error:
            raise DataError(f"chat_template = {self.name}: is not a Jinja template ({error}); mend it") from None

    def _render(self, turns: Sequence[Turn], opens: bool = False) -> str:
        messages = [{"role": turn.role, "content": self._with_private_names(turn.text)} for turn in turns]
        tokens = {"bos_token": "", "eos_token": self.tokenizer.decode([self.eos_id]), **self.named_tokens}
        render = self._compiled
        try:
            return render(messages=messages, add_generation_prompt=opens, **tokens)
        except _FAILED as error:
            raise DataError(
                f"chat_template = {self.name}: cannot write a conversation ({error}); use another"
            ) from None

    def _has_system(self) -> bool:
        try:
            return "¤" in self._render([Turn(SYSTEM, "¤"), Turn("user", "a")])
        except DataError:
            return False

    def _opening(self, turns: Sequence[Turn]) -> list[int]:
        before = self._render(turns)
        return self._encode(_rest(self._render(turns, opens=True), before, self.name))

    def _spans(self, turns: Sequence[Turn]) -> Spans:
        """Yields what stands before each response, and each response with its end."""
        before = ""
        for number, turn in enumerate(turns):
            if not turn.weight:
                continue
            opened, ended = self._render(turns[:number], opens=True), self._render(turns[: number + 1])
            yield Span(self._encode(_rest(opened, before, self.name)))
            yield from self._response(_rest(ended, opened, self.name), turn)
            before = ended
        if rest := _rest(self._render(turns), before, self.name):
            yield Span(self._encode(rest))

    def _response(self, text: str, turn: Turn) -> Spans:
        """The end of a response is one id; what a template writes after it, such as a line break, has no weight."""
        content = self._with_private_names(turn.text.strip())
        at = text.find(content)
        said = at + len(content) if at >= 0 else len(text)
        ending = self._encode(text[said:])
        yield Span([*self._encode(text[:said]), *ending[:1]], turn.weight)
        yield Span(ending[1:])

    def _with_private_names(self, text: str) -> str:
        for number, token in enumerate(self.tokenizer.special_tokens):
            text = text.replace(token, f"\ue000{number}\ue001")
        return text

    def _encode(self, text: str) -> list[int]:
        names, reader = self.tokenizer.special_tokens, self.tokenizer.reading_special_tokens
        parts = _PRIVATE_NAME.split(text)  # every second is the number of a token that a turn spells
        encoded = (
            self.tokenizer.encode(names[int(part)]) if i % 2 else reader.encode(part) for i, part in enumerate(parts)
        )
        return list(itertools.chain.from_iterable(encoded))


def _refuse(message: str) -> None:
    raise ValueError(message)


def _rest(whole: str, start: str, name: str) -> str:
    if not whole.startswith(start):
        raise DataError(f"chat_template = {name}: writes earlier turns otherwise once more follow; use another")
    return whole[len(start) :]
