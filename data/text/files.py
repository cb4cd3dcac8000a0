"""Finding and opening source files on a disk or in a bucket.

A file is identified by its path below the source that was named, so the same texts give the same dataset anywhere.
"""

from __future__ import annotations

import glob
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import BinaryIO

from natsort import natsorted

from configs.errors import DataError, looked_from
from storage import buckets
from storage.buckets import SCHEME, ObjectState

TEXT_SUFFIXES = (".txt", ".py", ".md")
_JSON_SUFFIXES = (".jsonl", ".jsonlines", ".ndjson", ".json")
_COMPRESSED = (".zst", ".tzst", ".xz", ".txz", ".bz2", ".tbz2", ".tbz", ".gz", ".tgz")
SUFFIXES = (*TEXT_SUFFIXES, *_JSON_SUFFIXES, *_COMPRESSED, ".tar", ".zip")
"""Suffixes, in any case, of what is read from directories and archives; globs and single files may have any."""
CONVERSATION_SUFFIXES = (*SUFFIXES, ".tsv")
ON_BAD_FILE = ("stop", "skip")
# Below these, a search has no end: they are the whole machine, or the kernel's own files.
_ENDLESS = ("/", "/dev", "/proc", "/sys")
_MAX_KINDS = 8  # named in a line


@dataclass(frozen=True)
class SourceFile:
    """A file to read.

    Attributes:
        path: where it is.
        relative: its path below the named directory, with forward slashes; the same on every machine.
        known_state: its `state`, if that is known already.
    """

    path: str
    relative: str
    known_state: tuple[int, int] | None = None

    def state(self) -> tuple[int, int]:
        """Returns its size in bytes and a number that changes with its content: modification time or generation.

        Raises:
            DataError: the file is gone.
        """
        if self.known_state is not None:
            return self.known_state
        try:
            state = os.stat(self.path)
        except OSError as error:
            raise cannot_read(self.path, error) from None
        return state.st_size, state.st_mtime_ns


@dataclass
class ReadingNotes:
    """What was not read as its name might promise: counted, to be said in a line each.

    Attributes:
        passed_over: files and members of archives that were not read, by suffix.
        plain_text: those of unknown suffixes that were read as plain text, by suffix.
        unreadable: names and reasons of files that cannot be read.
        markers: how often the marker that separates documents was found.
    """

    passed_over: Counter[str] = field(default_factory=Counter)
    plain_text: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    markers: int = 0

    def pass_over(self, relative: str) -> None:
        """Counts a file or a member of an archive by its suffix."""
        self.passed_over["hidden" if is_hidden(relative) else suffix_of(relative) or "without suffix"] += 1

    def lines(self) -> list[str]:
        """Returns what there is to say."""
        lines = []
        if self.passed_over:
            lines.append(f"passed over: {_listed(self.passed_over)}; a glob reads files of any suffix")
        if self.plain_text:
            lines.append(f"read as plain text: {_listed(self.plain_text)}")
        if self.unreadable:
            lines.append(f"left out {len(self.unreadable):,} file(s) that cannot be read: {self.unreadable[0]}")
        # Names of files need not be UTF-8.
        return [line.encode("utf-8", "backslashreplace").decode() for line in lines]


def _listed(counts: Counter[str]) -> str:
    named = [f"{count:,} {kind}" for kind, count in counts.most_common(_MAX_KINDS)]
    others = counts.total() - sum(count for _, count in counts.most_common(_MAX_KINDS))
    return ", ".join(named + [f"{others:,} other"] * bool(others))


def suffix_of(name: str) -> str:
    """Returns the last suffix of a name in lower case, such as ".pdf"; empty if it has none."""
    return posixpath.splitext(posixpath.basename(name))[1].lower()


def is_hidden(relative: str) -> bool:
    """Returns whether a path leads through a hidden folder, to a hidden file, or to what a Mac adds to archives."""
    return any(part == "__MACOSX" or part.lstrip(".") not in ("", part) for part in relative.split("/"))


def is_read(relative: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Returns whether a file of a directory, or a member of an archive, is read."""
    return relative.lower().endswith(suffixes) and not is_hidden(relative)


def cannot_read(path: str, error: Exception) -> DataError:
    """Returns the error for a file or folder that cannot be read."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())  # some have several lines
    return DataError(f"{path}: cannot be read ({reason}); replace the file, or leave it out")


def open_source(path: str) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        OSError: it cannot be opened.
        BucketError: its bucket cannot be reached.
    """
    return buckets.open_for_reading(path) if path.startswith(SCHEME) else open(path, "rb")


def find_files(
    sources: Iterable[str],
    exclude: Sequence[str] = (),
    suffixes: tuple[str, ...] = SUFFIXES,
    on_bad_file: str = "stop",
    notes: ReadingNotes | None = None,
) -> list[SourceFile]:
    """Returns the files of directories (with all below them), globs and single files, each once.

    Args:
        sources: directories, globs (`**` crosses directories) and files; each one's files come in natural order.
        exclude: patterns for the relative path, in which `*` also matches `/`: "test/*", "*/tests/*", "*.md".
        suffixes: which files of a directory are read; hidden files and directories are not.
        on_bad_file: whether to "stop" at a broken link, a pipe, or a file without permission, or to "skip" it.
        notes: gets what is passed over or skipped.

    Raises:
        DataError: a source has no file, or only excluded ones; or a file or folder cannot be read.
        BucketError: a bucket cannot be reached.
    """
    found, notes = {}, notes or ReadingNotes()
    for source in sources:
        listed = _objects_of(source, suffixes, notes) if source.startswith(SCHEME) else _files_of(source, exclude)
        files = [file for file in listed if not _is_excluded(file, exclude)]
        if os.path.isdir(source):
            files = _with_suffix(files, suffixes, notes)
        if not files:
            raise DataError(_nothing_found(source, exclude, suffixes, notes))
        files = [file for file in files if _is_usable(file, on_bad_file, notes)]
        if not files:
            raise DataError(f"{source}: no file there can be read, such as {notes.unreadable[-1]}; replace the files")
        for file in natsorted(files, key=lambda file: file.relative):
            found.setdefault(file.path, file)
    return list(found.values())


def _is_excluded(file: SourceFile, exclude: Sequence[str]) -> bool:
    return any(fnmatchcase(file.relative, pattern) for pattern in exclude)


def _with_suffix(files: Iterable[SourceFile], suffixes: tuple[str, ...], notes: ReadingNotes) -> list[SourceFile]:
    taken = []
    for file in files:
        # A broken link without a suffix may stand for a folder of texts.
        is_lost = os.path.islink(file.path) and not os.path.exists(file.path) and not suffix_of(file.relative)
        if is_read(file.relative, suffixes) or (is_lost and not is_hidden(file.relative)):
            taken.append(file)
        else:
            notes.pass_over(file.relative)
    return taken


def _is_usable(file: SourceFile, on_bad_file: str, notes: ReadingNotes) -> bool:
    problem = None if file.path.startswith(SCHEME) else _problem_of(file.path)
    if problem is None:
        return True
    if on_bad_file == "stop":
        remedy = "replace the file, or leave it out; on_bad_file = skip counts such files"
        raise DataError(f"{file.path}: cannot be read ({problem}); {remedy}")
    notes.unreadable.append(f"{file.relative} ({problem})")
    return False


def _problem_of(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "a link to nothing" if os.path.islink(path) else error.strerror
    if not stat.S_ISREG(mode):
        return "a pipe, a socket or a device; write its text to a file"
    return None if os.access(path, os.R_OK) else "Permission denied"


def _nothing_found(source: str, exclude: Sequence[str], suffixes: tuple[str, ...], notes: ReadingNotes) -> str:
    is_folder = os.path.isdir(source) or (source.startswith(SCHEME) and not glob.has_magic(source))
    looked_for = f" ending in {' '.join(suffixes)}" if is_folder else ""
    left_out = f" outside {', '.join(exclude)}" if exclude else ""
    others = f", only {_listed(notes.passed_over)}" if is_folder and notes.passed_over else ""
    remedy = f"name a directory, a glob or a file that has text{looked_from(source)}"
    return f"{source}: no file{looked_for} found{left_out}{others}; {remedy}"


def _files_of(source: str, exclude: Sequence[str]) -> Iterator[SourceFile]:
    """Yields the files of a source, and hidden folders of a directory, which are not entered."""
    if os.path.isdir(source):
        yield from _walk(source, source, exclude, enters_hidden=False)
    elif os.path.exists(source):  # its name may have the characters of a glob
        yield SourceFile(source, os.path.basename(source))
    elif "**" in source.split(os.sep):
        yield from _matching(source, exclude)
    else:
        paths = (path for path in glob.iglob(source) if not os.path.isdir(path))
        yield from (SourceFile(path, _relative(path, _fixed_part(source))) for path in paths)


def _matching(pattern: str, exclude: Sequence[str]) -> Iterator[SourceFile]:
    root = _fixed_part(pattern)
    parts = _relative(pattern, root).split("/")
    enters_hidden = any(map(is_hidden, parts))
    files = _walk(root, pattern, exclude, enters_hidden) if os.path.isdir(root) else ()
    yield from (file for file in files if _matches(file.relative.split("/"), parts))


def _walk(directory: str, source: str, exclude: Sequence[str], enters_hidden: bool) -> Iterator[SourceFile]:
    below, seen = [pattern for pattern in exclude if pattern.endswith("/*")], set()
    _is_new(directory, seen, source)
    for folder, folders, names in os.walk(directory, followlinks=True, onerror=_refuse):
        here = SourceFile(folder, _relative(folder, directory) + "/")
        if _is_excluded(here, below):
            folders.clear()  # everything below is excluded as well
        hidden = [name for name in folders if is_hidden(name) and not enters_hidden]
        shown = (name for name in sorted(folders) if name not in hidden)
        folders[:] = [name for name in shown if _is_new(os.path.join(folder, name), seen, source)]
        for name in (*hidden, *names):
            path = os.path.join(folder, name)
            yield SourceFile(path, _relative(path, directory))


def _refuse(error: OSError) -> None:
    raise cannot_read(error.filename, error)


def _is_new(folder: str, seen: set[str], source: str) -> bool:
    """Records a folder; returns whether it is new, for links may lead to one again and again."""
    real = os.path.realpath(folder)
    if real in _ENDLESS:
        raise DataError(f"{source}: searches all of {real}; name the folder that holds the texts")
    is_new = real not in seen
    seen.add(real)
    return is_new


def _fixed_part(pattern: str) -> str:
    directory = os.path.dirname(pattern)
    while glob.has_magic(directory):
        directory = os.path.dirname(directory)
    return directory or "."


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _objects_of(source: str, suffixes: tuple[str, ...], notes: ReadingNotes) -> Iterator[SourceFile]:
    if not source.endswith("/") and (state := buckets.stat(source)) != buckets.NO_OBJECT:
        yield _source_object(posixpath.dirname(source), posixpath.basename(source), state)
        return
    is_glob = glob.has_magic(source)
    root = _fixed_part(source) if is_glob else source.rstrip("/")
    patterns = source.removeprefix(f"{root}/").split("/")
    for name, state in buckets.list_objects(root).items():
        is_named = _matches(name.split("/"), patterns) if is_glob else is_read(name, suffixes)
        if name.endswith("/"):  # it stands for a folder
            continue
        if is_named:
            yield _source_object(root, name, state)
        elif not is_glob:
            notes.pass_over(name)


def _source_object(root: str, name: str, state: ObjectState) -> SourceFile:
    return SourceFile(f"{root}/{name}", name, (state.size_bytes, state.generation))


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    hides = is_hidden(parts[0]) and not is_hidden(patterns[0])
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (not hides and _matches(parts[1:], patterns))
    return not hides and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
