"""Hypotheses and their references, from the files that people have.

References are files with one reference a line, or one file with all references of a context on its line: first the
context or its key, then the references, with tabs between them, each perhaps with a score before it (`0.5|text`), as in
DSTC-7's test set and DialoGPT's 6k set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from configs.errors import DataError
from data.text.files import cannot_read, open_source

SCORE = re.compile(r"\s*[-+]?\d+(\.\d*)?\|")


@dataclass(frozen=True)
class References:
    """The references of a test set.

    Attributes:
        path: the first file, for messages.
        texts: the references of each context.
        keys: the key of each context, or its text; None: the contexts are known by their line alone.
    """

    path: str
    texts: list[list[str]]
    keys: list[str] | None = None


@dataclass(frozen=True)
class Pairs:
    """The texts of one system.

    Attributes:
        hypotheses: one for each context.
        references: one or more for each context.
        human: the reference of each context that was left out; empty: none was.
        notes: a line for each thing that was passed over.
    """

    hypotheses: list[str]
    references: list[list[str]]
    human: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def first(self, n_contexts: int | None) -> Pairs:
        """Returns the first contexts; None: all."""
        return replace(self, hypotheses=self.hypotheses[:n_contexts], references=self.references[:n_contexts])


def read_lines(path: str) -> Iterator[str]:
    """Yields the lines of a text file, without their ends.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    number = 0
    try:
        with open_source(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8").rstrip("\r\n")
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError:
        raise DataError(f"{path}, line {number}: is not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise cannot_read(path, error) from error


def answers_of(path: str, lines: Iterable[str], say: Callable[[str], None]) -> Iterator[str]:
    """Yields the hypotheses in the lines of a file: of a line with tabs the last column, which is said once."""
    has_columns = False
    for line in lines:
        if "\t" in line and not has_columns:
            has_columns = True
            say(f"{path}: has lines with tabs; the answer is what follows the last one")
        yield line.rpartition("\t")[2]


def read_references(paths: Sequence[str]) -> References:
    """Reads files of references.

    Raises:
        DataError: a file cannot be read, they differ in length, or a context has no reference.
    """
    files = [list(read_lines(path)) for path in paths]
    if len(files) == 1 and 2 * sum("\t" in line for line in files[0]) > len(files[0]):
        return _with_all_on_a_line(paths[0], files[0])
    for path, lines in zip(paths, files, strict=True):
        if len(lines) != len(files[0]):
            raise _differ(path, len(lines), paths[0], len(files[0]))
    references = References(paths[0], [list(texts) for texts in zip(*files, strict=True)])
    if not any(map(str.strip, (text for texts in references.texts for text in texts))):
        raise DataError(f"{', '.join(paths)}: without a word; give references")
    return references


def _with_all_on_a_line(path: str, lines: Iterable[str]) -> References:
    keys, texts = [], []
    for number, line in enumerate(lines, start=1):
        key, *cells = line.split("\t")
        keys.append(key.strip())
        texts.append([SCORE.sub("", cell, count=1).strip() for cell in cells if SCORE.sub("", cell, count=1).strip()])
        if not texts[-1]:
            raise DataError(f"{path}, line {number}: has no reference after its key; add one, or leave the line out")
    return References(path, texts, keys)


def _differ(path: str, n_lines: int, first_path: str, n_first_lines: int) -> DataError:
    return DataError(
        f"{path} = {n_lines:,} lines: {first_path} has {n_first_lines:,}; give files with a line for each context"
    )


def read_pairs(
    path: str, references: References, line_keys: Sequence[str] | None, selected: Sequence[str] | None
) -> Pairs:
    """Reads the hypotheses of a system and finds the references of each.

    Args:
        path: one hypothesis a line; or lines of a key, any columns and a hypothesis, with tabs between them.
        references: of the test set.
        line_keys: the key of each line of the hypotheses; None: they have keys themselves, or are in order.
        selected: the keys that count; None: all.

    Raises:
        DataError: the file cannot be read, or does not fit the references or the keys.
    """
    notes: list[str] = []
    lines = list(read_lines(path))
    answers = list(answers_of(path, lines, notes.append))
    if line_keys is None and references.keys and notes:
        line_keys = [line.partition("\t")[0].strip() for line in lines]
    if line_keys is None:
        if selected is not None:
            raise DataError(f"{path}: its lines have no keys to select by; give the key of each line with --keys")
        if len(answers) != len(references.texts):
            raise _differ(path, len(answers), references.path, len(references.texts))
        return Pairs(answers, references.texts, notes=notes)
    if references.keys is None:
        raise DataError(f"{references.path}: has no keys; give one file whose lines are a key and its references")
    if len(line_keys) != len(answers):
        raise DataError(f"--keys = {len(line_keys):,} keys: {path} has {len(answers):,} lines; give a key for each")
    for source, keys in ((path, line_keys), (references.path, references.keys)):
        notes += _repeated_keys(source, keys)
    by_key = _pair_by_key(path, dict(zip(line_keys, answers, strict=True)), references, selected)
    return replace(by_key, notes=notes + by_key.notes)


def _repeated_keys(path: str, keys: Sequence[str]) -> Iterator[str]:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        yield (
            f"{path}: of {len(repeated):,} of its keys there are several lines, and the last one counts; the first is "
            f"{repeated[0]}"
        )


def _pair_by_key(
    path: str, hypotheses: dict[str, str], references: References, selected: Sequence[str] | None
) -> Pairs:
    """Pairs by key, in the order of keys; what one side lacks is left out and said."""
    by_key = dict(zip(references.keys or [], references.texts, strict=True))
    keys = sorted(hypotheses if selected is None else set(selected))
    found = [key for key in keys if key in hypotheses and key in by_key]
    if not found:
        raise DataError(f"{path}: none of its keys is in {references.path}; give the keys of these references")
    notes = [
        f"{source}: lacks {len(missing):,} of {len(keys):,} keys, which are left out; the first is {missing[0]}"
        for source, known in ((path, hypotheses), (references.path, by_key))
        if (missing := [key for key in keys if key not in known])
    ]
    return Pairs([hypotheses[key] for key in found], [by_key[key] for key in found], notes=notes)


def choose_references(pairs: Pairs, n_refs: int | None, human: int | None) -> Pairs:
    """Returns pairs with some of its references.

    Args:
        pairs: with all of them.
        n_refs: how many references of each context; where there are fewer, they repeat in turn. None: all, once.
        human: which reference is left out, from 0; with n_refs the next one stands in its place, as in DSTC-7.

    Raises:
        DataError: a context has not enough references to leave one out.
    """
    for number, texts in enumerate(pairs.references, start=1):
        if human is not None and not human < len(texts) > 1:
            raise DataError(
                f"--human_reference {human + 1}: context {number} has {len(texts)} reference(s); "
                "give the number of a reference that each context has beside others"
            )
    return replace(
        pairs,
        references=[_choose(texts, n_refs, human) for texts in pairs.references],
        human=[] if human is None else [texts[human] for texts in pairs.references],
    )


def _choose(texts: list[str], n_refs: int | None, human: int | None) -> list[str]:
    if n_refs is None:
        return [text for number, text in enumerate(texts) if number != human]
    numbers = [number % len(texts) for number in range(n_refs)]
    return [texts[(number + (number == human)) % len(texts)] for number in numbers]


def clean_pairs(pairs: Pairs, clean: Callable[[str], str]) -> Pairs:
    """Returns pairs whose texts are cleaned."""
    return replace(
        pairs,
        hypotheses=[clean(text) for text in pairs.hypotheses],
        references=[[clean(text) for text in texts] for texts in pairs.references],
        human=[clean(text) for text in pairs.human],
    )
