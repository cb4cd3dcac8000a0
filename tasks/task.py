"""A task of evaluation, its items and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tasks.rows import Row

KINDS = ("continuation", "rolling", "multiple_choice", "dialogue")
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
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int = 0
    delimiter: str = DELIMITER
    example_delimiter: str | None = None
    subject: str = ""


@dataclass(frozen=True)
class Text:
    """A text that is scored whole.

    Attributes:
        text: what is scored.
        counted: the text whose words and bytes count; it differs where markup is taken out before scoring.
    """

    text: str
    counted: str


@dataclass(frozen=True)
class Exchange:
    """A context of a conversation and what people answered.

    Attributes:
        turns: the turns of the context, the last one last.
        references: one or more answers.
    """

    turns: tuple[str, ...]
    references: tuple[str, ...]


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
        description: the text at the start of each prompt, with its line breaks.
        stride: of a sliding window over texts that are scored whole, in tokens; None: windows do not overlap, and the
            last one is filled up.
        published: reads an item in the form in which the task was published; None: there is none.
        cue: what follows the query in files of llm-foundry's form, such as "Answer:" on a line of its own.
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
    published: Callable[[Row], Item] | None = None
    cue: str = ""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedTask:
    """A task and its items, with their few-shot examples before them.

    Attributes:
        task: the task.
        path: the file that was read.
        items: in the order of the file.
    """

    task: Task
    path: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Figure:
    """A figure of a task.

    Attributes:
        value: the figure.
        stderr: its standard error; None where a single item gives none.
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
