"""Measures the answers of dialogue systems.

python3 -m tasks.dialogue hypotheses.txt references_1.txt references_2.txt
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from configs.command_line import CommandLine, integer
from configs.errors import DataError
from configs.kinds import clean_path_flags
from storage.files import check_writable, write_text
from storage.streams import run_program
from tasks.dialogue.cleaning import make_cleaner
from tasks.dialogue.figures import Figures, as_json, format_report, format_table, measure, measure_alone
from tasks.dialogue.meteor import MeteorMissing, find_jar, measure_meteor
from tasks.dialogue.references import (
    Pairs,
    answers_of,
    choose_references,
    clean_pairs,
    read_lines,
    read_pairs,
    read_references,
)

HUMAN = "human"
Change = Callable[[str], str]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """The command line.

    Attributes:
        hypotheses: a file of one system, or a folder with a .txt file for each.
        references: files of references; empty: only figures that need none.
        keys: file with the key of each line of the hypotheses.
        select_keys: file with the keys that count.
        n_refs: number of references of each context; None: all.
        human_reference: the reference, counted from 1, that is left out and measured as a system of its own.
        n_lines: number of contexts that count, from the first; None: all.
        clean: DialoGPT's cleaning of all texts.
        case_sensitive: for NIST and BLEU.
        meteor_jar: path of METEOR's program.
        meteor_norm: METEOR splits punctuation itself.
        json: prints JSON.
        report: file for a table with DialoGPT's columns.
    """

    hypotheses: str
    references: tuple[str, ...] = ()
    keys: str | None = None
    select_keys: str | None = None
    n_refs: int | None = None
    human_reference: int | None = None
    n_lines: int | None = None
    clean: bool = False
    case_sensitive: bool = False
    meteor_jar: str | None = None
    meteor_norm: bool = False
    json: bool = False
    report: str | None = None


# What has no meaning without references.
WITH_REFERENCES = ("keys", "select_keys", "n_refs", "human_reference", "case_sensitive", "meteor_jar", "meteor_norm")


def positive(text: str) -> int:
    """Returns the number that a flag was given.

    Raises:
        argparse.ArgumentTypeError: it is none, or is below 1.
    """
    number = integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1; give 1 or more")
    return number


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line."""
    parser = CommandLine(
        prog="python3 -m tasks.dialogue",
        description="Measure answers: NIST, BLEU, METEOR against references; Entropy, Dist and length without any.",
    )
    add = parser.add_argument
    add("hypotheses", help="one answer a line; or a folder with such a .txt file for each system")
    add("references", nargs="*", help="one reference a line; or one file: context or key, tab, reference, tab, ...")
    add("--clean", action="store_true", help="clean all texts as DialoGPT does; needs nltk")
    add("--case_sensitive", action="store_true", help="NIST and BLEU tell upper from lower case")
    add("--keys", metavar="FILE", help="the key of each answer, one a line, to find its references by")
    add("--select_keys", metavar="FILE", help="count the contexts of these keys only")
    add("--n_refs", type=positive, metavar="N", help="count N references of each context; fewer repeat in turn")
    add(
        "--human_reference",
        type=positive,
        metavar="N",
        help=f"leave out each context's Nth reference and measure it as a system, {HUMAN}",
    )
    add("--n_lines", type=positive, metavar="N", help="count the first N contexts only")
    add("--meteor_jar", metavar="PATH", help="meteor-1.5.jar; default: that of the package pycocoevalcap")
    add("--meteor_norm", action="store_true", help="let METEOR split punctuation, its flag -norm")
    add("--json", action="store_true", help="print JSON")
    add("--report", metavar="FILE", help="also write a table with tabs and DialoGPT's columns")
    values = vars(parser.parse_intermixed_args(arguments))
    values["references"] = tuple(values["references"])
    paths = ("hypotheses", "references", "keys", "select_keys", "meteor_jar", "report")
    return Settings(**values | clean_path_flags(values, paths))


def find_systems(path: str) -> dict[str, str]:
    """Returns the files of hypotheses by the names of their systems.

    Raises:
        DataError: a folder has none.
    """
    if not os.path.isdir(path):
        return {os.path.basename(path): path}
    names = sorted(name for name in os.listdir(path) if name.endswith(".txt"))
    if not names:
        raise DataError(f"{path}: has no file of hypotheses; give a folder with a .txt file for each system")
    return {name: os.path.join(path, name) for name in names}


def evaluate(settings: Settings, say: Say) -> dict[str, Figures]:
    """Measures every system.

    Raises:
        UserError: a file cannot be used, or a package is missing.
    """
    clean = make_cleaner() if settings.clean else str
    systems = find_systems(settings.hypotheses)
    if settings.references:
        figures = _measure_pairs(_read_all_pairs(systems, settings, clean, say), settings, say)
    else:
        for flag in (flag for flag in WITH_REFERENCES if getattr(settings, flag)):
            say(f"--{flag}: has no effect without references")
        figures = {
            name: measure_alone(map(clean, itertools.islice(answers_of(path, read_lines(path), say), settings.n_lines)))
            for name, path in systems.items()
        }
    for name, each in figures.items():
        if each.diversity.n_texts == 0:
            raise DataError(f"{systems[name]}: is empty; give one answer a line")
        if n_empty := each.diversity.n_empty:
            say(f"{name}: {n_empty:,} of {each.diversity.n_texts:,} answers are empty; they count with 0 words")
    return figures


def _read_all_pairs(systems: dict[str, str], settings: Settings, clean: Change, say: Say) -> dict[str, Pairs]:
    """Returns each system's answers with their references, and those of the human as a system."""
    references = read_references(settings.references)
    if references.keys is not None:
        counts = [len(texts) for texts in references.texts]
        say(f"{references.path}: {len(counts):,} contexts or keys with {min(counts)} to {max(counts)} references")
    line_keys, selected = _read_keys(settings.keys), _read_keys(settings.select_keys)
    human = None if settings.human_reference is None else settings.human_reference - 1
    pairs = {}
    for name, path in systems.items():
        read = read_pairs(path, references, line_keys, selected)
        for line in read.notes:
            say(line)
        pairs[name] = clean_pairs(choose_references(read.first(settings.n_lines), settings.n_refs, human), clean)
    if human is not None:
        first = next(iter(pairs.values()))
        pairs[HUMAN] = replace(first, hypotheses=first.human)
    return pairs


def _read_keys(path: str | None) -> list[str] | None:
    return None if path is None else [line.strip() for line in read_lines(path) if line.strip()]


def _measure_pairs(pairs: dict[str, Pairs], settings: Settings, say: Say) -> dict[str, Figures]:
    figures = {name: measure(each.hypotheses, each.references, settings.case_sensitive) for name, each in pairs.items()}
    try:
        jar = find_jar(settings.meteor_jar)
        for name, each in pairs.items():
            meteor = measure_meteor(jar, each.hypotheses, each.references, settings.meteor_norm)
            figures[name] = replace(figures[name], meteor=meteor.score)
    except MeteorMissing as error:
        say(str(error))
    return figures


def run(settings: Settings) -> int:
    """Measures, and prints and writes what was asked for; returns the exit status."""
    if settings.report:
        check_writable(settings.report)
    figures = evaluate(settings, _say)
    if settings.report:
        write_text(settings.report, format_report(figures))
    if settings.json:
        print(json.dumps({name: as_json(each) for name, each in figures.items()}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(format_table(figures)))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return run_program(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
