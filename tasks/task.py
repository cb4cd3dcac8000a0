"""A task of evaluation, its items and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONTINUATION, ROLLING, MULTIPLE_CHOICE, DIALOGUE = "continuation", "rolling", "multiple_choice", "dialogue"
KINDS = (CONTINUATION, ROLLING, MULTIPLE_CHOICE, DIALOGUE)
DELIMITER = " "


@dataclass(frozen=True)
class Question:
    """Alternatives after a context, of which one is right; with one alternative, a text and its continuation.

    Attributes:
        contexts: one; or one for each alternative, where contexts compete for one continuation.
        choices: the continuations as the file has them: their lengths count in `acc_norm`. One where contexts compete.
        gold: the number of the right alternative.
        delimiter: what stands between context and continuation.
        example_delimiter: the same where the question is an example of a few-shot prompt; None: `delimiter`.
        subject: the part of the task that it belongs to; empty: none.
        line: its number in the file, from 1.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int = 0
    delimiter: str = DELIMITER
    example_delimiter: str | None = None
    subject: str = ""
    line: int = field(default=1, compare=False)

    @property
    def contexts_compete(self) -> bool:
        """Whether the alternatives are contexts of one continuation."""
        return len(self.contexts) > 1

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The context and the continuation of each alternative, which joined are the whole text."""
        continuations = [self.delimiter + choice for choice in self.choices]
        return [(context, continuation) for context in self.contexts for continuation in continuations]

    @property
    def solved(self) -> str:
        """The question with its answer, as an example of a few-shot prompt."""
        delimiter = self.delimiter if self.example_delimiter is None else self.example_delimiter
        context, choice = (texts[self.gold if len(texts) > 1 else 0] for texts in (self.contexts, self.choices))
        return context + delimiter + choice


@dataclass(frozen=True)
class Text:
    """A text that is scored whole.

    Attributes:
        text: what is scored.
        counted: the text whose words and bytes count; it differs where markup is taken out before scoring.
        line: its number in the file, from 1.
    """

    text: str
    counted: str
    line: int = field(default=1, compare=False)


@dataclass(frozen=True)
class Exchange:
    """A context of a conversation and what people answered.

    Attributes:
        turns: of the context, the last one last.
        references: one or more answers.
        line: its number in the file, from 1.
    """

    turns: tuple[str, ...]
    references: tuple[str, ...]
    line: int = field(default=1, compare=False)


Item = Question | Text | Exchange


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: of its figures.
        kind: one of `KINDS`.
        file: path below the folder of tasks, or of one's own.
        n_shot: number of solved examples before each question.
        fewshot_file: their source, of which the first count; None: the task's own file, without the question itself.
        limit: the most items that are evaluated, the first ones; None: all.
        description: the text at the start of each prompt, with its line breaks; `{subject}` stands for the subject.
        stride: of a sliding window over texts that are scored whole, in tokens; None: windows do not overlap, and the
            last one is filled up.
        cue: what follows the query in files of llm-foundry's form, with its line break.
        groups: subjects by the name of their group; each has figures of its own.
    """

    name: str
    kind: str
    file: str
    n_shot: int = 0
    fewshot_file: str | None = None
    limit: int | None = None
    description: str = ""
    stride: int | None = None
    cue: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedTask:
    """A task and its items.

    Attributes:
        task: the task.
        path: the file that was read.
        items: in the order of the file; questions with their few-shot examples before them.
    """

    task: Task
    path: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Figure:
    """A figure of a task.

    Attributes:
        value: the figure; infinite or NaN where the model's log-probabilities are.
        stderr: its standard error; None where there is none, as of a single item.
    """

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """What a task has found.

    Attributes:
        name: of the task.
        n_items: number of items.
        figures: by name.
        items: one record for each item, in the order of the file, as JSON holds it.
    """

    name: str
    n_items: int
    figures: dict[str, Figure]
    items: list[dict[str, Any]]
