"""Human judgements of the answers of systems, and DSTC-7's archive of them."""

from __future__ import annotations

import math
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from configs.errors import DataError
from data.text.files import cannot_read
from tasks.dialogue.references import read_lines

JUDGEMENTS, ANSWERS, REFERENCES = "human_evaluation.tsv", "system_responses.tsv", "gold_responses.tsv"
CONTEXTS = "context.tsv"
HUMAN = "Human"  # the system whose answers are references
NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class ScoreTable:
    """A score for the answer of each system (S) in each context (C).

    Attributes:
        path: its file.
        contexts: their keys.
        systems: their names.
        scores_CS: NaN where there is none.
    """

    path: str
    contexts: list[str]
    systems: list[str]
    scores_CS: np.ndarray

    def select(self, contexts: list[str], systems: list[str]) -> np.ndarray:
        """Returns the scores of some contexts and systems."""
        rows = {key: number for number, key in enumerate(self.contexts)}
        columns = {name: number for number, name in enumerate(self.systems)}
        return self.scores_CS[np.ix_([rows[key] for key in contexts], [columns[name] for name in systems])]


@dataclass(frozen=True)
class JudgedAnswers:
    """What DSTC-7's judges saw.

    Attributes:
        judgements: their mean for each answer.
        answers: of each system, by context.
        references: of each context, without the human's answer.
    """

    judgements: ScoreTable
    answers: dict[str, dict[str, str]]
    references: dict[str, list[str]]


def read_score_table(path: str) -> ScoreTable:
    """Reads a table with tabs: first the names of the systems, then a line for each context, its key first.

    Raises:
        DataError: it cannot be read, or a cell is not a number.
    """
    lines = [line.split("\t") for line in read_lines(path) if line.strip()]
    if len(lines) < 2 or len(lines[0]) < 2:
        raise DataError(
            f"{path}: is not a table; give a line of systems, then a line of key and scores for each context"
        )
    systems = [name.strip() for name in lines[0][1:]]
    for row in lines[1:]:
        if len(row) != len(lines[0]):
            raise DataError(f"{path}, {row[0]}: has {len(row) - 1} scores; give one for each of {len(systems)} systems")
    scores = [[_score(path, row[0], cell) for cell in row[1:]] for row in lines[1:]]
    return ScoreTable(path, [row[0].strip() for row in lines[1:]], systems, np.array(scores))


def _score(path: str, key: str, cell: str) -> float:
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        raise DataError(f"{path}, {key} = {cell}: is not a number; give one, or leave the cell empty") from None


def is_archive(path: str) -> bool:
    """Returns whether a path is DSTC-7's archive, or the folder in it."""
    return os.path.isdir(path) or (os.path.isfile(path) and tarfile.is_tarfile(path))


def read_judged_answers(path: str) -> JudgedAnswers:
    """Reads DSTC-7's archive, or the folder in it.

    Raises:
        DataError: one of its files is missing or cannot be read.
    """
    with _folder_of(path) as folder:
        judgements, answers, references = (_find(path, folder, ending) for ending in (JUDGEMENTS, ANSWERS, REFERENCES))
        table = read_score_table(judgements)
        texts: dict[str, dict[str, str]] = {}
        for system, key, answer in (line.split("\t")[:3] for line in list(read_lines(answers))[1:]):
            texts.setdefault(system, {})[key] = answer
        gold = {key: cells for key, *cells in (line.split("\t") for line in list(read_lines(references))[1:])}
    human = texts.get(HUMAN, {})
    return JudgedAnswers(table, texts, {key: _others(cells, human.get(key, "")) for key, cells in gold.items()})


def read_context_texts(path: str) -> dict[str, str]:
    """Returns the text before the answers of each context, by its key, from DSTC-7's archive or the folder in it.

    Raises:
        DataError: its file is missing or cannot be read.
    """
    with _folder_of(path) as folder:
        rows = [line.split("\t") for line in list(read_lines(_find(path, folder, CONTEXTS)))[1:]]
    return {row[0]: row[-1] for row in rows}


def _others(references: list[str], answer: str) -> list[str]:
    """Returns the references that are not an answer, which may be written with other case, blanks and marks."""
    return [text for text in references if text.strip() and _letters(text) != _letters(answer)]


def _letters(text: str) -> str:
    return NOT_ALPHANUMERIC.sub("", text.lower())


@contextmanager
def _folder_of(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise cannot_read(path, error) from error
        yield folder


def _find(path: str, folder: str, ending: str) -> str:
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(ending):
                return os.path.join(parent, name)
    raise DataError(
        f"{path}: has no file *{ending}; give DSTC-7's archive of human evaluations, or a table of judgements"
    )
