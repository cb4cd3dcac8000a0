"""What to extract, from where, and by which rules."""

from __future__ import annotations

from dataclasses import dataclass

from data.dialogue.reddit_extraction.rules.lists import ListPaths
from data.dialogue.reddit_extraction.rules.normalize import DIALOGPT
from data.text.files import ON_BAD_FILE

WORDS, CHARACTERS = LENGTH_TYPES = ("w", "c")
TSV, JSONL = FORMATS = ("tsv", "jsonl")
BYTES_PER_MB = 1 << 20


@dataclass(frozen=True)
class Rules:
    """Which conversations are kept, and how they are written; the defaults are DialoGPT's.

    Attributes:
        min_depth: turns that a conversation has at least.
        max_depth: comments that it has at most, the last ones; a title comes on top.
        min_score: the least score of a response; one without a score has 0.
        max_len: the longest turn, in units of `max_len_type`; a conversation begins after a longer one.
        max_len_type: "w": words; "c": characters.
        use_title: whether the title of the submission is the first turn.
        leaves_only: whether only comments without an answer are responses, whose earlier turns are responses too;
            otherwise each comment is the response of a conversation of its own.
        normalize: a member of `NORMALIZATIONS`.
        since: the first month of comments, such as 2017-01; None: any.
        until: the last month.
        skip_filters: names of default filters that are off.
        add_filters: names of other filters that are on.
    """

    min_depth: int = 2
    max_depth: int = 5
    min_score: int = 1
    max_len: int = 30
    max_len_type: str = WORDS
    use_title: bool = False
    leaves_only: bool = True
    normalize: str = DIALOGPT
    since: str | None = None
    until: str | None = None
    skip_filters: tuple[str, ...] = ()
    add_filters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The command line.

    Attributes:
        input_dir: directory, glob or file of the dumps.
        output_dir: a local directory to write the conversations to.
        rules: which conversations are kept.
        lists: the lists of filters.
        format: a member of `FORMATS`.
        processes: how many work; 0: one a core.
        partition_mb: text of a dump, in MiB, that a process holds at a time.
        on_bad_file: whether a damaged dump stops the run, or is used up to the damage.
        overwrite: whether to replace what other settings or dumps have given.
    """

    input_dir: str
    output_dir: str
    rules: Rules = Rules()
    lists: ListPaths = ListPaths()
    format: str = TSV
    processes: int = 0
    partition_mb: int = 256
    on_bad_file: str = ON_BAD_FILE[0]
    overwrite: bool = False
