"""Extracts conversations from dumps of Reddit, by the rules of DialoGPT's extractor.

    python data/dialogue/reddit.py --input_dir dumps --output_dir conversations

reads `RS_2017-01.zst` and `RC_2017-01.zst` (submissions and comments) of each month and writes `2017-01.tsv`, which
data/create_dialogue_tfrecords.py reads. Run the same command again to resume an interrupted run.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.command_line import CommandLine, integer
from configs.errors import DataError, did_you_mean
from configs.kinds import clean_path_flags
from data.dialogue.reddit_extraction.extraction import extract
from data.dialogue.reddit_extraction.filters import FILTERS
from data.dialogue.reddit_extraction.report import describe, to_json
from data.dialogue.reddit_extraction.rules.lists import ListPaths
from data.dialogue.reddit_extraction.rules.normalize import NORMALIZATIONS
from data.dialogue.reddit_extraction.rules.settings import FORMATS, LENGTH_TYPES, Rules, Settings
from data.text.files import ON_BAD_FILE
from storage.files import write_text
from storage.streams import run_program

LIST_FLAGS = tuple(field.name for field in fields(ListPaths))
PATH_FLAGS = ("input_dir", "output_dir", *LIST_FLAGS)
MINIMUMS = {"min_depth": 2, "max_depth": 1, "max_len": 1, "processes": 0, "partition_mb": 1}
REPORT_NAME = "total.report"


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Reads the command line.

    Raises:
        DataError: a value is too small, or no filter has a name.
    """
    parser = CommandLine(description="Extract conversations from dumps of Reddit.")
    _add_flags(parser)
    _add_rules(parser)
    values = vars(parser.parse_args(arguments))
    for flag, minimum in MINIMUMS.items():
        if values[flag] < minimum:
            raise DataError(f"--{flag} {values[flag]}: is too small; give {minimum} or more")
    values |= clean_path_flags(values, PATH_FLAGS)
    for flag in ("skip_filters", "add_filters"):
        values[flag] = _filter_names(flag, values[flag])
    rules = Rules(**{field.name: values.pop(field.name) for field in fields(Rules)})
    lists = ListPaths(**{flag: values.pop(flag) for flag in LIST_FLAGS})
    return Settings(**values, rules=rules, lists=lists)


def _add_flags(parser: CommandLine) -> None:
    add, default = parser.add_argument, Settings
    add("--input_dir", "--reddit_input", required=True, help="directory, glob or file of dumps: RS_*.zst and RC_*.zst")
    add("--output_dir", "--reddit_output", required=True, help="directory to write the conversations to")
    add(
        "--format",
        choices=FORMATS,
        default=default.format,
        help="DialoGPT's TSV (default), or JSON with ids",
    )
    add("--processes", type=integer, default=default.processes, help="processes that work; 0 for one per core")
    add(
        "--partition_mb",
        type=integer,
        default=default.partition_mb,
        help="text of a dump, in MiB, that a process holds at a time",
    )
    add("--on_bad_file", choices=ON_BAD_FILE, default=default.on_bad_file, help="skip: use the start of a damaged dump")
    add("--overwrite", action="store_true", help="replace conversations of other settings or dumps")


def _add_rules(parser: CommandLine) -> None:
    add, default = parser.add_argument, Rules
    add("--min_depth", type=integer, default=default.min_depth, help="fewest turns of a conversation")
    add("--max_depth", type=integer, default=default.max_depth, help="most comments of a conversation")
    add("--min_score", type=integer, default=default.min_score, help="least score of a response")
    add("--max_len", type=integer, default=default.max_len, help="longest turn")
    add(
        "--max_len_type",
        choices=LENGTH_TYPES,
        default=default.max_len_type,
        help="w: words (default), c: characters",
    )
    add("--use_title", type=_switch, default=default.use_title, help="1: the title of a submission is the first turn")
    add(
        "--leaves_only",
        type=_switch,
        default=default.leaves_only,
        help="1: only comments without an answer end conversations (default); 0: every comment does",
    )
    add("--normalize", choices=NORMALIZATIONS, default=default.normalize, help="as DialoGPT (default), or blanks only")
    add("--since", type=_month, help="first month of comments, such as 2017-01")
    add("--until", type=_month, help="last month of comments")
    add("--bl_words", help="file of offensive words and phrases, one a line")
    add("--bl_subreddits", help="file of subreddits to leave out")
    add("--keep_keys", help="file of the keys of comments to keep, or folder of one for each dump")
    add("--discard_tgt_keys", help="file of SHA-224 keys of turns to learn nothing from, or folder")
    add("--freq_words", help="file of frequent words, of whose first 50 a response must have one")
    add("--bland_trigrams", help="file of frequent trigrams, which may not be 90 %% of those of a response")
    add("--skip_filters", nargs="+", default=(), metavar="NAME", help="filters to switch off")
    add("--add_filters", nargs="+", default=(), metavar="NAME", help="filters to switch on")


def _switch(text: str) -> bool:
    values = {"1": True, "true": True, "0": False, "false": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1; give one of them")
    return values[text.lower()]


def _month(text: str) -> str:
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a month; give one such as 2017-01")
    return text


def _filter_names(flag: str, names: Sequence[str]) -> tuple[str, ...]:
    known = [each.name for each in FILTERS]
    for name in names:
        if name not in known:
            advice = did_you_mean(name, known, f"the filters are {', '.join(known)}")
            raise DataError(f"--{flag} {name}: there is no such filter; {advice}")
    return tuple(sorted(set(names)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""

    def run() -> int:
        settings = parse_arguments(arguments)
        reports = extract(settings)
        write_text(f"{settings.output_dir}/{REPORT_NAME}", to_json(reports) + "\n")
        print(describe(reports))
        print(to_json(reports))
        return 0

    return run_program(run, "interrupted: run the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
