"""Makes a test set of contexts with several references from conversations of Reddit.

    python data/dialogue/reddit_references.py --data 'conversations/*.jsonl' --out test.refs.txt

The conversations are those of `data/dialogue/reddit.py --format jsonl --leaves_only 0`. Each line of the test set is a
context, its turns joined by ` EOS `, and its references, each after its score: `context<tab>5|so it is<tab>2|not now`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.command_line import CommandLine, integer
from configs.errors import DataError
from configs.kinds import clean_path_flags
from data.dialogue.readers import BETWEEN_TURNS
from data.text.documents import TextFormat, explain, read_all_documents
from data.text.files import CONVERSATION_SUFFIXES, cannot_read, find_files
from storage.files import decode_text, new_file, read_bytes
from storage.streams import run_program

MULTIREF = "multiref"  # the first column of DialoGPT's list of test ids
QUOTES = str.maketrans("“”", '""')
MIN_REFS = 5


@dataclass(frozen=True)
class Settings:
    """The command line.

    Attributes:
        data: directory, glob or file of conversations.
        out: file to write.
        testids: DialoGPT's list of references: a context a line, `multiref<tab>score,link,parent,comment<tab>...`;
            None: every context with `min_refs` references.
        min_refs: fewest references of a context.
    """

    data: str
    out: str
    testids: str | None = None
    min_refs: int = MIN_REFS


class Reference(NamedTuple):
    """A response with its context.

    Attributes:
        link: the id of the submission.
        parent: the id of what it answers.
        comment: its own id.
        score: what readers gave it.
        context: its turns.
        text: what it says.
    """

    link: str
    parent: str
    comment: str
    score: int
    context: str
    text: str


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line.

    Raises:
        DataError: a value is too small.
    """
    parser = CommandLine(description="Make a test set with several references from conversations of Reddit.")
    add = parser.add_argument
    add("--data", required=True, help="directory, glob or file: what reddit.py --format jsonl --leaves_only 0 wrote")
    add("--out", required=True, help="file to write")
    add("--testids", help="DialoGPT's list of the references of each context, with their scores")
    add("--min_refs", type=integer, default=MIN_REFS, help="fewest references of a context, without --testids")
    values = vars(parser.parse_args(arguments))
    if values["min_refs"] < 1:
        raise DataError(f"--min_refs {values['min_refs']}: is too small; give 1 or more")
    return Settings(**values | clean_path_flags(values, ("data", "out", "testids")))


def _reference_of(value: object) -> Iterator[tuple[str | None, str | None]]:
    """Yields a conversation of reddit.py as the JSON of a `Reference`, or None and why it is none."""
    try:
        *context, response = [turn["content"].translate(QUOTES) for turn in value["turns"]]
        ids = [value[key] for key in ("link", "parent", "comment", "score")]
        yield json.dumps([*ids, BETWEEN_TURNS.join(context), response]), None
    except (KeyError, TypeError, ValueError, AttributeError):
        yield None, "not a conversation of reddit.py --format jsonl"


def read_references(source: str, notes: Counter[str], log: Callable[[str], None]) -> Iterator[Reference]:
    """Yields the conversations of files as references; counts and names what is none.

    Raises:
        DataError: there is no file, or one cannot be read.
    """
    files = find_files([source], suffixes=CONVERSATION_SUFFIXES)
    for document in read_all_documents(files, TextFormat(convert=_reference_of)):
        if document.text is not None:
            yield Reference(*json.loads(document.text))
            continue
        notes["lines that are no conversations"] += 1
        if notes["lines that are no conversations"] == 1:
            log(f"left out {explain(document)}")


def frequent_contexts(references: Iterable[Reference], min_refs: int) -> Iterator[list[Reference]]:
    """Yields the references of each context that has enough of them, the best first; those of one stand in a row."""
    for _, found in itertools.groupby(references, key=lambda each: (each.link, each.parent, each.context)):
        group = sorted(found, key=lambda each: -each.score)
        if len(group) >= min_refs:
            yield group


def listed_contexts(references: Iterable[Reference], testids: str, notes: Counter[str]) -> Iterator[list[Reference]]:
    """Yields the references of each line of a list, in its order and with its scores; counts what is missing.

    Raises:
        DataError: the list cannot be read.
    """
    wanted = _read_testids(testids)
    ids = {reference[1:] for line in wanted for reference in line}
    found = {each[:3]: each for each in references if each[:3] in ids}
    for line in wanted:
        group = [found[ids]._replace(score=score) for score, *key in line if (ids := tuple(key)) in found]
        notes["references that are not in the data"] += len(line) - len(group)
        same = [each for each in group if each.context == group[0].context]
        notes["references with another context"] += len(group) - len(same)
        if same and same[0][:3] == line[0][1:]:
            yield same
        else:
            notes["contexts without their first reference"] += 1


def _read_testids(path: str) -> list[list[tuple[int, str, str, str]]]:
    """Returns the score and the ids of each reference of each line."""
    try:
        lines = decode_text(read_bytes(path)).splitlines()
        return [[_testid(column) for column in line.split("\t")[1:]] for line in lines if line.startswith(MULTIREF)]
    except OSError as error:
        raise cannot_read(path, error) from None
    except ValueError:
        lines = "multiref<tab>score,link,parent,comment"
        raise DataError(f"{path}: is no list of references; give one whose lines are {lines}") from None


def _testid(column: str) -> tuple[int, str, str, str]:
    score, link, parent, comment = column.split(",")
    return int(score), link, parent, comment


def write_references(settings: Settings, log: Callable[[str], None] = print) -> dict[str, int]:
    """Writes the test set; returns how many contexts and references it has, and what was left out.

    Raises:
        UserError: a file cannot be read or written.
    """
    notes, counts = Counter(), Counter({"contexts": 0, "references": 0})
    references = read_references(settings.data, notes, log)
    groups = (
        frequent_contexts(references, settings.min_refs)
        if settings.testids is None
        else listed_contexts(references, settings.testids, notes)
    )
    with new_file(settings.out) as file:
        for group in groups:
            columns = [group[0].context, *(f"{each.score}|{each.text}" for each in group)]
            file.write(("\t".join(columns) + "\n").encode())
            counts.update(contexts=1, references=len(group))
    return dict(counts + +notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""

    def run() -> int:
        settings = parse_arguments(arguments)
        counts = write_references(settings)
        print("\n".join(f"{count:>12,}  {name}" for name, count in counts.items()))
        print(json.dumps({"path": settings.out, **counts}))
        return 0

    return run_program(run)


if __name__ == "__main__":
    sys.exit(main())
