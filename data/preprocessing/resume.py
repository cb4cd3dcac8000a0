"""Resuming an interrupted run: what it has finished is kept on disk.

A dataset is made in a hidden folder beside the place of its files. Each finished tfrecord file has a record there of
where in the input the next file begins. When all files are finished, a plan is written by which they are moved to
their place; any run that finds the plan carries it out, wherever the run that wrote it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from data.preprocessing.manifest import FORMAT, FileEntry, Manifest, manifest_path, read_json, write_json
from data.preprocessing.packing import PackingStats, ResumePoint
from data.preprocessing.splits import DocumentPosition
from data.text.files import SourceFile
from data.tfrecord.records import PARTIAL, remove_tree
from meshtf import tf
from storage.files import is_local, write_text, writing_to
from storage.locks import locked

# A process that is killed while it starts another leaves its lock to that one for a moment.
LOCK_SECONDS = 3.0

START, PLAN = "start.json", "plan.json"


@dataclass(frozen=True)
class FinishedFile:
    """A finished tfrecord file, and where the next one begins."""

    entry: FileEntry
    next: ResumePoint

    def to_json(self) -> dict:
        """Returns the values of its record."""
        return {
            "entry": asdict(self.entry),
            "following": asdict(self.next.document),
            "offset": self.next.offset,
            "account": asdict(self.next.stats),
        }


def _finished_file_of(values: Mapping[str, object]) -> FinishedFile:
    document, stats = DocumentPosition(**values["following"]), PackingStats(**values["account"])
    return FinishedFile(FileEntry(**values["entry"]), ResumePoint(document, values["offset"], stats))


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset is made from: the same settings and input always give the same files.

    Attributes:
        settings: the settings that determine the content of the files.
        input: of each source file its relative path, its bytes, and a number that changes with them.
    """

    settings: Mapping[str, object]
    input: Sequence[tuple[str, int, int]]

    def digest(self) -> str:
        """Returns a hash of the settings and of all source files."""
        whole = [self.settings_digest(), self.input_digest(len(self.input))]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def settings_digest(self) -> str:
        """Returns a hash of the settings."""
        return hashlib.sha256(json.dumps([FORMAT, self.settings], sort_keys=True).encode()).hexdigest()

    def input_digest(self, n_files: int) -> str:
        """Returns a hash of the first source files; it is another one if there are fewer."""
        return hashlib.sha256(json.dumps([n_files, *self.input[:n_files]]).encode()).hexdigest()


def source_states(files: Sequence[SourceFile]) -> list[tuple[str, int, int]]:
    """Returns the `input` of a fingerprint."""
    return [(file.relative, *file.state()) for file in files]


class ResumeFolder:
    """The folder in which a dataset is made, with the records of its finished files.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: str, fingerprint: Fingerprint, log: Callable[[str], None]) -> None:
        """Makes the folder, and takes over what an interrupted run of the same fingerprint has finished.

        The files of a run with other settings are removed.

        Raises:
            UserError: the folder cannot be written to.
        """
        self.path = path
        self._fingerprint = fingerprint
        self._finished: dict[str, list[FinishedFile]] = {}
        with writing_to(path, tf.errors.OpError):
            tf.io.gfile.makedirs(path)
        start = {"settings": fingerprint.settings_digest()}
        found = _read_if_there(f"{path}/{START}")
        if found == start:
            self._load(log)
            return
        _empty(path)
        write_json(f"{path}/{START}", start)
        if found:
            log("an interrupted run had other settings: starting from the beginning")

    def finished(self, split: str) -> list[FinishedFile]:
        """Returns the finished files of a split, in order."""
        return self._finished.setdefault(split, [])

    def _load(self, log: Callable[[str], None]) -> None:
        for split in sorted(name.rstrip("/") for name in tf.io.gfile.listdir(self.path)):
            if tf.io.gfile.isdir(f"{self.path}/{split}"):
                self._finished[split] = list(self._load_split(split))
        if count := sum(map(len, self._finished.values())):
            log(f"resuming after {count:,} finished file(s) of an interrupted run")

    def _load_split(self, split: str) -> Iterator[FinishedFile]:
        number = 0
        while values := _read_if_there(self._record_path(split, number)):
            finished = _finished_file_of(values)
            if not self._is_valid(finished, values["input"]):
                return
            yield finished
            number += 1

    def _is_valid(self, finished: FinishedFile, input_digest: str) -> bool:
        path = f"{self.path}/{finished.entry.name}"
        if self._input_digest(finished) != input_digest:
            return False
        return tf.io.gfile.exists(path) and tf.io.gfile.stat(path).length == finished.entry.bytes

    def _input_digest(self, finished: FinishedFile) -> str:
        return self._fingerprint.input_digest(finished.next.document.file + 1)

    def record(self, split: str, finished: FinishedFile) -> None:
        """Records that a file in the folder is finished."""
        number = len(self.finished(split))
        with writing_to(self.path, tf.errors.OpError):
            tf.io.gfile.makedirs(f"{self.path}/{split}")
        write_json(self._record_path(split, number), {"input": self._input_digest(finished), **finished.to_json()})
        self.finished(split).append(finished)

    def _record_path(self, split: str, number: int) -> str:
        return f"{self.path}/{split}/{number}.json"

    def remove_records(self) -> None:
        """Removes what only a resumed run needs."""
        with writing_to(self.path, tf.errors.OpError):
            for split, files in self._finished.items():
                for number in range(len(files)):
                    tf.io.gfile.remove(self._record_path(split, number))
            tf.io.gfile.remove(f"{self.path}/{START}")

    def write_plan(self, directory: str, old_paths: Sequence[str], manifest: Manifest, config: Mapping | None) -> None:
        """Records that all files are finished, and how to move them to their place.

        Args:
            directory: the place.
            old_paths: files to remove.
            manifest: is written when all files are in their place.
            config: the "path" and the "values" of a dataset config to write; None for none.
        """
        new_names = [entry.name for entry in manifest.entries()]
        plan = {
            "identity": self._fingerprint.digest(),
            "old": [path for path in old_paths if os.path.basename(path) not in new_names],
            "new": new_names,
            "manifest_path": manifest_path(directory, manifest.name),
            "manifest": manifest.to_json(),
            "config": config,
        }
        write_json(f"{self.path}/{PLAN}", plan)


def resume_path(directory: str, name: str) -> str:
    """Returns the path of the folder in which the dataset of a name is made."""
    return f"{directory}/.{name}{PARTIAL}"


def carry_out_plan(directory: str, name: str) -> str | None:
    """Moves the files of a name to their place if all are finished, the manifest last; removes the hidden folder.

    Returns:
        The digest of the fingerprint of the files; None if there is no plan.

    Raises:
        UserError: the directory cannot be written to.
    """
    folder = resume_path(directory, name)
    plan = _read_if_there(f"{folder}/{PLAN}")
    if plan is None:
        return None
    with writing_to(directory, tf.errors.OpError):
        for path in [plan["manifest_path"], *plan["old"]]:
            if tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)
        for file in plan["new"]:
            if tf.io.gfile.exists(f"{folder}/{file}"):
                tf.io.gfile.rename(f"{folder}/{file}", f"{directory}/{file}", overwrite=True)
    if plan["config"]:
        write_text(plan["config"]["path"], json.dumps(plan["config"]["values"], indent=2) + "\n")
    write_json(plan["manifest_path"], plan["manifest"])
    _empty(folder, but=PLAN)  # the plan goes last: until then, all of this can be repeated
    with writing_to(directory, tf.errors.OpError):
        tf.io.gfile.rmtree(folder)
    return plan["identity"]


def remove_start(folder: str) -> None:
    """Makes a run in a folder start from the beginning, whatever an interrupted one has finished there."""
    with writing_to(folder), suppress(FileNotFoundError):
        os.remove(f"{folder}/{START}")


def remove_unless_finished(directory: str, name: str) -> None:
    """Removes the hidden folder if no file in it is finished: resuming from there would save nothing."""
    folder = resume_path(directory, name)
    if tf.io.gfile.isdir(folder) and not any(tf.io.gfile.isdir(f"{folder}/{n}") for n in tf.io.gfile.listdir(folder)):
        with writing_to(directory, tf.errors.OpError):
            tf.io.gfile.rmtree(folder)


def _read_if_there(path: str) -> dict | None:
    try:
        return read_json(path)
    # Errors besides the first: a file stands where folders are; a machine that lost its power left an empty file.
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError, ValueError):
        return None


def _empty(folder: str, but: str = "") -> None:
    with writing_to(folder, tf.errors.OpError):
        for name in set(tf.io.gfile.listdir(folder)) - {but}:
            remove_tree(f"{folder}/{name.rstrip('/')}")


@contextmanager
def exclusive(directory: str, name: str) -> Iterator[None]:
    """Keeps other processes from the files of a name until this one ends, however it ends.

    Raises:
        UserError: the directory cannot be written to, or another process works there.
        BucketError: its bucket cannot be reached.
    """
    path = f"{directory}/.{name}.lock"
    is_new = is_local(path) and not os.path.exists(directory)
    refusal = f"{resume_path(directory, name)}: another process works there"
    with locked(path, refusal, "wait for it, or choose another --name", LOCK_SECONDS):
        try:
            yield
        finally:
            if is_local(path):
                with suppress(OSError):  # the lock is gone, or the directory has files now, as it should
                    os.remove(path)
                    if is_new:
                        os.rmdir(directory)
