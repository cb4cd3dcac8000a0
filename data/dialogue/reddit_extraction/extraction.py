"""The run: each dump is split into partitions, and each partition becomes a part of the dump's conversations.

A hidden folder beside the output records each finished part, so the same command resumes a run that was killed.
The same dumps and settings give the same bytes, with any number of processes.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace

from tqdm import tqdm

from configs.errors import DataError
from data.dialogue.reddit_extraction.conversations import build_partition, output_path
from data.dialogue.reddit_extraction.dumps import Dump, find_dumps
from data.dialogue.reddit_extraction.partitions import remove_partitions, split_dump
from data.dialogue.reddit_extraction.records import COMMENTS, SUBMISSIONS
from data.dialogue.reddit_extraction.rules.normalize import make_normalizer
from data.dialogue.reddit_extraction.rules.settings import BYTES_PER_MB, Settings
from data.parallel.process_pool import core_count, in_order
from storage.files import is_local, new_file, read_bytes, write_text, writing_to
from storage.locks import locked

VERSION = 1  # of the rules: other ones give other conversations
LOCK_SECONDS = 3.0
START = "start.json"

Log = Callable[[str], None]


@dataclass(frozen=True)
class DumpReport:
    """What became of a dump.

    Attributes:
        name: of the dump.
        fingerprint: of the settings and the files that it was made from.
        path: of its conversations.
        bytes: of its conversations.
        partitions: how many there were.
        counts: lines read, dropped by each filter, and conversations kept.
        problems: the first damaged lines.
        damage: of the files, of which only the beginning was used.
    """

    name: str
    fingerprint: str
    path: str
    bytes: int
    partitions: int
    counts: Mapping[str, int]
    problems: Sequence[str] = ()
    damage: Sequence[str] = ()


def extract(settings: Settings, log: Log = print) -> list[DumpReport]:
    """Writes the conversations of all dumps; with several processes, call it under `if __name__ == "__main__"`.

    Args:
        settings: what to extract.
        log: is called with a line for what is passed over or was done before.

    Raises:
        DataError: a dump is damaged, or there are conversations of other settings.
        UserError: the directory cannot be written to, or another process writes there.
    """
    if not is_local(settings.output_dir):
        raise DataError(f"--output_dir {settings.output_dir}: is in a bucket; give a local directory")
    rules = settings.rules
    make_normalizer(rules.normalize)  # what it lacks should not be found after hours of reading
    found = find_dumps(settings.input_dir, settings.on_bad_file, "no_submission" not in rules.skip_filters, log)
    dumps = [dump for dump in found if dump.is_within(rules.since, rules.until)]
    if not dumps:
        months = f"--since {rules.since} --until {rules.until}"
        raise DataError(f"{months}: {settings.input_dir} has no dump of these months; give others")
    settings = replace(settings, processes=settings.processes or core_count())
    runs = [DumpRun(dump, settings) for dump in dumps]
    lock, refusal = f"{settings.output_dir}/.reddit.lock", f"{settings.output_dir}: another process writes there"
    with locked(lock, refusal, "wait for it, or give another --output_dir", LOCK_SECONDS):
        for run in runs:
            run.check_free()
        reports = [run.extract(log) for run in runs]
        with suppress(OSError):
            os.remove(lock)
        return reports


class DumpRun:
    """Extracts the conversations of one dump."""

    def __init__(self, dump: Dump, settings: Settings) -> None:
        """Asks for the state of every file that the conversations are made from."""
        self._dump, self._settings = dump, settings
        self._path = f"{settings.output_dir}/{dump.name}.{settings.format}"
        self._folder = f"{settings.output_dir}/.{dump.name}.{settings.format}.partial"
        # Not named .json: the directory is read as one of conversations.
        self._report_path = f"{self._path}.report"
        self._n_partitions = max(1, math.ceil(dump.unpacked_bytes / (settings.partition_mb * BYTES_PER_MB)))
        self._lists = settings.lists.of_dump(dump.name)
        made_from = [
            VERSION,
            asdict(settings.rules),
            settings.format,
            self._n_partitions,
            self._lists.states(),
            dump.states(),
        ]
        self._fingerprint = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    def check_free(self) -> None:
        """Checks that no conversations of other settings or dumps would be replaced.

        Raises:
            DataError: they would.
        """
        if self._settings.overwrite or not os.path.exists(self._path):
            return
        if self._finished() is None and not self._is_begun():
            raise DataError(
                f"{self._path}: exists, made with other settings or from other dumps; give another --output_dir, or "
                "--overwrite"
            )

    def extract(self, log: Log) -> DumpReport:
        """Returns the report of the dump after making what is not finished."""
        if finished := self._finished():
            log(f"{self._dump.name}: finished before")
            self._remove_folder()
            return finished
        if self._is_begun():
            log(f"{self._dump.name}: resumes an interrupted run")
        else:
            self._begin()
        report = self._make()
        write_text(self._report_path, json.dumps(asdict(report), indent=2) + "\n")
        self._remove_folder()
        return report

    def _make(self) -> DumpReport:
        splits = [self._split(kind) for kind in (SUBMISSIONS, COMMENTS) if kind in self._dump.files]
        counts = sum((collections.Counter(split["counts"]) for split in splits), collections.Counter())
        counts.update(self._build())
        self._join()
        return DumpReport(
            name=self._dump.name,
            fingerprint=self._fingerprint,
            path=self._path,
            bytes=os.path.getsize(self._path),
            partitions=self._n_partitions,
            counts=dict(counts),
            problems=[problem for split in splits for problem in split["problems"]],
            damage=[split["damage"] for split in splits if split["damage"]],
        )

    def _finished(self) -> DumpReport | None:
        values = _read_json(self._report_path)
        if values is None or values["fingerprint"] != self._fingerprint:
            return None
        is_whole = os.path.exists(self._path) and os.path.getsize(self._path) == values["bytes"]
        return DumpReport(**values) if is_whole else None

    def _is_begun(self) -> bool:
        return _read_json(f"{self._folder}/{START}") == {"fingerprint": self._fingerprint}

    def _begin(self) -> None:
        self._remove_folder()
        write_text(f"{self._folder}/{START}", json.dumps({"fingerprint": self._fingerprint}))

    def _remove_folder(self) -> None:
        with writing_to(self._folder):
            if os.path.exists(self._folder):
                shutil.rmtree(self._folder)

    def _split(self, kind: str) -> dict:
        """Splits a file unless that is done."""
        record = f"{self._folder}/{kind}.json"
        values = _read_json(record)
        if values is None:
            values = split_dump(self._dump, kind, self._folder, self._n_partitions, self._settings)
            write_text(record, json.dumps(values))
        return values

    def _build(self) -> collections.Counter[str]:
        """Builds the partitions that are not done; returns the counts of all."""
        records = [f"{self._folder}/{number}.json" for number in range(self._n_partitions)]
        missing = [number for number, record in enumerate(records) if _read_json(record) is None]
        build = functools.partial(
            build_partition,
            self._folder,
            rules=self._settings.rules,
            paths=self._lists,
            output_format=self._settings.format,
        )
        tasks = (functools.partial(build, number) for number in missing)
        processes = min(self._settings.processes, len(missing)) or 1
        with (
            tqdm(total=len(records), initial=len(records) - len(missing), desc=self._dump.name, disable=None) as bar,
            closing(in_order(tasks, processes)) as results,
        ):
            for number, counts in zip(missing, results, strict=True):
                write_text(records[number], json.dumps(counts))
                for kind in (SUBMISSIONS, COMMENTS):
                    remove_partitions(self._folder, kind, [number])
                bar.update()
        return sum((collections.Counter(_read_json(record)) for record in records), collections.Counter())

    def _join(self) -> None:
        """Joins the conversations of all partitions."""
        with new_file(self._path) as joined:
            for number in range(self._n_partitions):
                with open(output_path(self._folder, number), "rb") as part:
                    shutil.copyfileobj(part, joined)


def _read_json(path: str) -> dict | None:
    """Returns what a file holds; None if it is not there, or empty after a loss of power."""
    try:
        return json.loads(read_bytes(path))
    except (FileNotFoundError, ValueError):
        return None
