"""What of a data set is finished already, kept on disk so that a run that was ended at any moment goes on where it was.

Everything is made in a hidden folder beside the files' place: each finished tfrecord file, and with it a record of
where in the input the next one begins. When all are finished, a plan is written there, by which they are put in their
place; who finds the plan carries it out, however far its writer came.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from data.preprocessing.encoding import PackingStats
from data.preprocessing.manifest import FORMAT, FileEntry, Manifest, manifest_path, read_json, write_json
from data.preprocessing.splits import Place
from data.text.files import SourceFile
from data.tfrecord.records import PARTIAL
from meshtf import tf
from storage.files import is_local, write_text, writing_to
from storage.locks import locked

# A process that is killed while it starts another leaves its lock to that one for a moment.
LOCK_SECONDS = 3.0

START, PLAN = "start.json", "plan.json"


@dataclass(frozen=True)
class Finished:
    """A finished tfrecord file, and all that is needed to write the next one.

    Attributes:
        entry: what the manifest will say of it.
        following: the document in which the next file begins.
        offset: that document's tokens that lie in finished files already.
        account: what became of the documents before that one.
    """

    entry: FileEntry
    following: Place
    offset: int
    account: PackingStats


@dataclass(frozen=True)
class Input:
    """The source files as they are now: [relative path, bytes, a number that changes with them] each."""

    states: Sequence[tuple[str, int, int]]

    def digest(self, n_files: int) -> str:
        """Returns a hash of the first files; it is another one where there are fewer."""
        return hashlib.sha256(json.dumps([n_files, *self.states[:n_files]]).encode()).hexdigest()


def look_at(files: Sequence[SourceFile]) -> Input:
    """Notes the state of files."""
    return Input([(file.relative, *file.state()) for file in files])


@dataclass(frozen=True)
class Identity:
    """What a data set is made from: of the same, always the same is made.

    Attributes:
        settings: all that decides what is written.
        input: the source files.
    """

    settings: Mapping[str, object]
    input: Input

    def digest(self) -> str:
        """Returns a hash of the settings and of all source files."""
        whole = [self.settings_digest(), self.input.digest(len(self.input.states))]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def settings_digest(self) -> str:
        """Returns a hash of the settings."""
        return hashlib.sha256(json.dumps([FORMAT, self.settings], sort_keys=True).encode()).hexdigest()


class Unfinished:
    """The hidden folder, and the finished files in it, [files] by part."""

    def __init__(self, folder: str, identity: Identity) -> None:
        self.folder = folder
        self._identity = identity
        self._finished: dict[str, list[Finished]] = {}

    def finished(self, part: str) -> list[Finished]:
        """Returns the finished files of a part, in order."""
        return self._finished.setdefault(part, [])

    def load(self, tell: Callable[[str], None]) -> None:
        """Takes over what an ended run of the same identity has finished; what is of another is removed."""
        start = _read_if_there(f"{self.folder}/{START}")
        if start != {"settings": self._identity.settings_digest()}:
            _empty(self.folder)
            write_json(f"{self.folder}/{START}", {"settings": self._identity.settings_digest()})
            if start:
                tell("an unfinished run had other settings: starting anew")
            return
        for part in sorted(tf.io.gfile.listdir(self.folder)):
            if tf.io.gfile.isdir(f"{self.folder}/{part}"):
                self._finished[part.rstrip("/")] = list(self._load_part(part.rstrip("/")))
        if count := sum(map(len, self._finished.values())):
            tell(f"going on after {count:,} finished file(s) of an unfinished run")

    def _load_part(self, part: str) -> Iterator[Finished]:
        number = 0
        while values := _read_if_there(self._record_path(part, number)):
            finished = _finished_of(values)
            if not self._is_valid(finished, values["input"]):
                return
            yield finished
            number += 1

    def _is_valid(self, finished: Finished, input_digest: str) -> bool:
        path = f"{self.folder}/{finished.entry.name}"
        if self._identity.input.digest(finished.following.file + 1) != input_digest:
            return False
        return tf.io.gfile.exists(path) and tf.io.gfile.stat(path).length == finished.entry.bytes

    def record(self, part: str, finished: Finished) -> None:
        """Notes that a file of the folder is finished."""
        number = len(self.finished(part))
        input_digest = self._identity.input.digest(finished.following.file + 1)
        with writing_to(self.folder, tf.errors.OpError):
            tf.io.gfile.makedirs(f"{self.folder}/{part}")
        write_json(self._record_path(part, number), {"input": input_digest, **asdict(finished)})
        self.finished(part).append(finished)

    def _record_path(self, part: str, number: int) -> str:
        return f"{self.folder}/{part}/{number}.json"

    def plan(self, directory: str, old_paths: Sequence[str], manifest: Manifest, config: Mapping | None) -> None:
        """Notes that all files are finished, and what is to be done now."""
        new_names = [entry.name for part in manifest.parts.values() for entry in part.files]
        plan = {
            "identity": self._identity.digest(),
            "old": [path for path in old_paths if os.path.basename(path) not in new_names],
            "new": new_names,
            "manifest_path": manifest_path(directory, manifest.name),
            "manifest": manifest.to_json(),
            "config": config,
        }
        write_json(f"{self.folder}/{PLAN}", plan)


def _finished_of(values: Mapping[str, object]) -> Finished:
    entry, following, account = (
        FileEntry(**values["entry"]),
        Place(**values["following"]),
        PackingStats(**values["account"]),
    )
    return Finished(entry, following, values["offset"], account)


def open_unfinished(directory: str, name: str, identity: Identity, tell: Callable[[str], None] = print) -> Unfinished:
    """Gives the folder in which the files of a name are made; it stays there until `carry_out_plan`.

    Raises:
        UserError: the directory cannot be written to.
    """
    folder = folder_of(directory, name)
    with writing_to(directory, tf.errors.OpError):
        tf.io.gfile.makedirs(folder)
    here = Unfinished(folder, identity)
    here.load(tell)
    return here


def folder_of(directory: str, name: str) -> str:
    """Returns where the files of a name are made."""
    return f"{directory}/.{name}{PARTIAL}"


def carry_out_plan(directory: str, name: str) -> str | None:
    """Puts the files of a name in their place if all are finished, the manifest last; removes the hidden folder.

    Returns:
        The digest of what the files were made from; None if there is no plan.

    Raises:
        UserError: the directory cannot be written to.
    """
    folder = folder_of(directory, name)
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
    _empty(folder, but=PLAN)  # which goes last: until then, all of this can be done again
    with writing_to(directory, tf.errors.OpError):
        tf.io.gfile.rmtree(folder)
    return plan["identity"]


def remove_unless_finished(directory: str, name: str) -> None:
    """Removes the hidden folder if no file in it is finished: to go on from there would save nothing."""
    folder = folder_of(directory, name)
    if tf.io.gfile.isdir(folder) and not any(tf.io.gfile.isdir(f"{folder}/{n}") for n in tf.io.gfile.listdir(folder)):
        with writing_to(directory, tf.errors.OpError):
            tf.io.gfile.rmtree(folder)


def _read_if_there(path: str) -> dict | None:
    try:
        return read_json(path)
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):  # the second: a file stands where folders are
        return None
    except ValueError:  # a machine that lost its power may leave an empty file
        return None


def _empty(folder: str, but: str = "") -> None:
    with writing_to(folder, tf.errors.OpError):
        for name in set(tf.io.gfile.listdir(folder)) - {but}:
            path = f"{folder}/{name.rstrip('/')}"
            remove = tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove
            remove(path)


# Whose turn it is.


@contextmanager
def alone(directory: str, name: str) -> Iterator[None]:
    """Keeps other processes from the files of a name; they are let in again when this one ends, however it ends.

    Raises:
        UserError: the directory cannot be written to, or another process is at work there.
        BucketError: its bucket cannot be reached.
    """
    path = f"{directory}/.{name}.lock"
    is_new = is_local(path) and not os.path.exists(directory)
    with locked(path, f"{folder_of(directory, name)}: another process works there", _ANOTHER_NAME, LOCK_SECONDS):
        try:
            yield
        finally:
            if is_local(path):
                with suppress(OSError):  # the lock is gone, or the directory has files now, as it should
                    os.remove(path)
                    if is_new:
                        os.rmdir(directory)


_ANOTHER_NAME = "wait for it, or choose another --name"
