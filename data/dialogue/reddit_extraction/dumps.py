"""The dumps of a directory: submissions and comments in pairs, read in batches of lines."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from configs.errors import DataError, UserError
from data.dialogue.reddit_extraction.records import COMMENTS, SUBMISSIONS
from data.text.decompression import OPENERS, Expansion
from data.text.documents import DAMAGED
from data.text.files import ReadingNotes, SourceFile, find_files, open_source
from data.text.json_values import lines_of

BATCH_BYTES = 1 << 20
TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*OPENERS, *TEXT_SUFFIXES)
COMPRESSION = 10  # by how much the dumps are compressed, about
_PUSHSHIFT = re.compile(r"R(?P<kind>[SC])_(?:v2_)?(?P<name>.+)")
_BY_SUBREDDIT = re.compile(r"(?P<name>.+)_(?P<kind>submissions|comments)")
_KINDS = {"S": SUBMISSIONS, "C": COMMENTS, SUBMISSIONS: SUBMISSIONS, COMMENTS: COMMENTS}
_MONTH = re.compile(r"\d{4}-\d{2}")

Line = tuple[int, bytes | None]


@dataclass(frozen=True)
class Dump:
    """The comments of a month, or of a subreddit, with their submissions.

    Attributes:
        name: such as 2017-01.
        files: by their kinds, of which that of comments is there.
    """

    name: str
    files: dict[str, SourceFile] = field(default_factory=dict)

    @property
    def unpacked_bytes(self) -> int:
        """An estimate of the bytes of its comments when they are unpacked."""
        file = self.files[COMMENTS]
        return file.state()[0] * (COMPRESSION if file.path.lower().endswith(tuple(OPENERS)) else 1)

    def states(self) -> list[tuple[str, int, int]]:
        """Returns the name, the bytes and the time of change of each file."""
        return [(self.files[kind].relative, *self.files[kind].state()) for kind in sorted(self.files)]

    def is_within(self, since: str | None, until: str | None) -> bool:
        """Returns whether it may have comments of the months from `since` to `until`."""
        return not _MONTH.fullmatch(self.name) or (since or "0") <= self.name <= (until or "9")


def find_dumps(source: str, on_bad_file: str, needs_submissions: bool, log: Callable[[str], None]) -> list[Dump]:
    """Returns the dumps of a directory, a glob or a file, sorted by name.

    They are called `RS_2017-01.zst` and `RC_2017-01.zst`, or `cats_submissions.zst` and `cats_comments.zst`.

    Args:
        source: where they are.
        on_bad_file: whether to "stop" at a file that cannot be opened, or to "skip" it.
        needs_submissions: whether comments without submissions are an error.
        log: gets a line about what is passed over.

    Raises:
        DataError: there are none, or one of a pair is missing or there twice.
    """
    notes, dumps = ReadingNotes(), {}
    for file in find_files([source], suffixes=SUFFIXES, on_bad_file=on_bad_file, notes=notes):
        match = _match(file.relative)
        if match is None:
            log(f"{file.path}: left out, since its name is not that of a dump, such as RC_2017-01.zst")
            continue
        files = dumps.setdefault(match["name"], Dump(match["name"])).files
        kind = _KINDS[match["kind"]]
        if kind in files:
            raise DataError(f"{file.path}: {files[kind].path} is of the same name; leave one of them out")
        files[kind] = file
    for line in notes.lines():
        log(line)
    return [dump for _, dump in sorted(dumps.items()) if _is_complete(dump, needs_submissions, log)] or _refuse(source)


def _match(relative: str) -> re.Match[str] | None:
    stem = os.path.basename(relative)
    while stem.lower().endswith(SUFFIXES):
        stem = stem.rpartition(".")[0]
    return _PUSHSHIFT.fullmatch(stem) or _BY_SUBREDDIT.fullmatch(stem)


def _is_complete(dump: Dump, needs_submissions: bool, log: Callable[[str], None]) -> bool:
    if COMMENTS not in dump.files:
        log(f"{dump.files[SUBMISSIONS].path}: left out, since there are no comments for it")
        return False
    if SUBMISSIONS not in dump.files and needs_submissions:
        raise DataError(
            f"{dump.files[COMMENTS].path}: its dump of submissions is missing; put it beside this file, or give "
            "--skip_filters no_submission"
        )
    return True


def _refuse(source: str) -> list[Dump]:
    raise DataError(f"{source}: has no dump of comments; name files such as RC_2017-01.zst or cats_comments.zst")


@dataclass
class DumpReader:
    """Reads a dump in batches of lines.

    Attributes:
        file: the dump.
        on_bad_file: whether damage is an error, or ends the reading.
        on_bytes: is called with the bytes of the file that were read so far.
        problem: the damage that has ended the reading; None: there was none.
    """

    file: SourceFile
    on_bad_file: str
    on_bytes: Callable[[int], object]
    problem: str | None = None

    def batches(self) -> Iterator[Sequence[Line]]:
        """Yields the lines that are not blank with their numbers, about 1 MB at a time; None for one that is too long.

        Raises:
            DataError: the dump is damaged or truncated.
        """
        batch, n_bytes, number = [], 0, 0
        try:
            with open_source(self.file.path) as packed, self._unpacked(packed) as stream:
                for number, line in lines_of(stream):
                    batch.append((number, line))
                    n_bytes += len(line or b"")
                    if n_bytes >= BATCH_BYTES:
                        yield batch
                        batch, n_bytes = [], 0
                        self.on_bytes(packed.tell())
        except UserError:  # of a bucket, not of the dump
            raise
        except DAMAGED as error:
            self._stop_at(error, number)
        yield batch

    @contextlib.contextmanager
    def _unpacked(self, packed: BinaryIO) -> Iterator[BinaryIO]:
        suffix = os.path.splitext(self.file.path)[1].lower()
        if suffix not in OPENERS:
            yield packed
            return
        with OPENERS[suffix](packed, Expansion(self.file.state()[0])) as stream:
            yield stream

    def _stop_at(self, error: Exception, number: int) -> None:
        reason = getattr(error, "strerror", None) or error
        if self.on_bad_file == "stop":
            raise DataError(
                f"{self.file.path}: cannot be read after line {number:,} ({reason}); replace the file, or give "
                "--on_bad_file skip to use what comes before"
            ) from None
        self.problem = f"{self.file.relative}: only the first {number:,} lines can be read: {reason}"
