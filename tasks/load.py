"""Loading a task: reading and checking its items, and putting few-shot examples before its questions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from configs.errors import ConfigError, DataError
from configs.reader import shown
from storage.files import is_stream
from tasks.dialogue.references import read_references
from tasks.fetch import PUBLISHED
from tasks.files import find_file, read_rows
from tasks.forms import read_item
from tasks.rows import Row
from tasks.table import TASKS
from tasks.task import (
    CONTINUATION,
    DIALOGUE,
    KINDS,
    MULTIPLE_CHOICE,
    ROLLING,
    Item,
    LoadedTask,
    Question,
    Task,
)

BETWEEN_EXAMPLES = "\n\n"
TAB_SUFFIXES = (".txt", ".tsv")
SUBJECT = "{subject}"
QUESTIONS = (MULTIPLE_CHOICE, CONTINUATION)
KINDS_OF_SETTINGS: Mapping[str, Sequence[str]] = {
    "n_shot": QUESTIONS,
    "description": QUESTIONS,
    "cue": (MULTIPLE_CHOICE,),
    "stride": (ROLLING,),
}


def load_task(task: Task, folder: str) -> LoadedTask:
    """Reads a task's items and their few-shot examples.

    Args:
        task: the task.
        folder: where the files of tasks lie.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: the task asks for what its kind does not have.
    """
    _check(task)
    is_published = task.name in PUBLISHED and task.file == TASKS[task.name].file
    other = f"fetch it with --fetch_tasks {task.name}" if is_published else "give its path"
    path = find_file(folder, task.file, f"put the file there, or {other}")
    items = tuple(islice(_read_items(task, path), task.limit))
    if not items:
        raise DataError(f"{path}: has no item; give one a line")
    return LoadedTask(task, path, tuple(_with_examples(task, folder, path, items)))


def _check(task: Task) -> None:
    """Raises ConfigError if settings of a task contradict each other."""
    if task.kind not in KINDS:
        raise ConfigError(f"{task.name}: kind = {task.kind}: is none of {', '.join(KINDS)}; give one of them")
    for setting, kinds in KINDS_OF_SETTINGS.items():
        value = getattr(task, setting)
        if value and task.kind not in kinds:
            what = f"{task.name}: {setting} = {shown(value)}"
            raise ConfigError(f"{what}: is for the kind {' or '.join(kinds)} only; leave it out")


def _read_items(task: Task, path: str) -> Iterator[Item]:
    if task.kind == DIALOGUE and os.path.splitext(path)[1].lower() in TAB_SUFFIXES:
        return _read_exchanges(path)
    return (read_item(row, task.kind, task.cue) for row in read_rows(path))


def _read_exchanges(path: str) -> Iterator[Item]:
    """Yields the lines of a test set, `turn EOS turn<tab>reference<tab>reference`."""
    references = read_references([path])
    if references.keys is None:
        raise DataError(f"{path}: line 1: has no reference; give lines of a context, a tab and its references")
    for number, (context, texts) in enumerate(zip(references.keys, references.texts, strict=True), start=1):
        yield read_item(Row(path, number, {"context": context, "references": texts}), DIALOGUE)


def _with_examples(task: Task, folder: str, path: str, items: Sequence[Item]) -> Sequence[Item]:
    """Returns items with the description and their few-shot examples before each context."""
    if not (task.n_shot or task.description):
        return items
    questions = [item for item in items if isinstance(item, Question)]
    pools = _examples(task, folder, path) if task.n_shot else {}
    return [_behind(_preamble(task, question, path, pools), question) for question in questions]


def _examples(task: Task, folder: str, path: str) -> dict[str, list[Question]]:
    """Returns what examples are drawn from, by subject."""
    if task.fewshot_file is not None:
        path = find_file(folder, task.fewshot_file, "put the examples of n_shot there, or name a fewshot_file")
    elif is_stream(path):
        raise DataError(f"{path}: is a pipe, and cannot be read again for the examples of n_shot; name a fewshot_file")
    pools: dict[str, list[Question]] = {}
    for item in _read_items(task, path):
        assert isinstance(item, Question)
        pools.setdefault(item.subject, []).append(item)
    return pools


def _preamble(task: Task, question: Question, path: str, pools: Mapping[str, Sequence[Question]]) -> str:
    if SUBJECT in task.description and not question.subject:
        problem = f"has no subject, and the description names {SUBJECT}"
        raise DataError(f"{path}: line {question.line}: {problem}; give it as category, or another description")
    others = (example for example in pools.get(question.subject, ()) if example != question)
    examples = [example.solved + BETWEEN_EXAMPLES for example in islice(others, task.n_shot)]
    if len(examples) < task.n_shot:
        of_subject = f" of the subject {question.subject}" if question.subject else ""
        source = task.fewshot_file or path
        raise DataError(
            f"{path}: line {question.line}: n_shot = {task.n_shot}: {source} has {len(examples)} other "
            f"example(s){of_subject}; lower n_shot, or add examples"
        )
    return task.description.replace(SUBJECT, question.subject.replace("_", " ")) + "".join(examples)


def _behind(preamble: str, question: Question) -> Question:
    return replace(question, contexts=tuple(preamble + context for context in question.contexts))
