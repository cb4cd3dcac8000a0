"""Finding and opening source files on a disk or in a bucket.

A file is identified by its path below the source that was named, so the same texts give the same dataset anywhere.
"""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import BinaryIO

from natsort import natsorted

from configs.errors import DataError
from storage import buckets
from storage.buckets import SCHEME, ObjectState

SUFFIXES = (".txt", ".py", ".md", ".jsonl", ".zst", ".xz", ".gz", ".tgz", ".tar", ".zip")
"""Suffixes of the files that are read from a directory; globs and single files are read whatever their suffix."""


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


def cannot_read(path: str, error: Exception) -> DataError:
    """Returns the error for a file or folder that cannot be read."""
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{path}: cannot be read ({reason}); replace the file, or leave it out")


def open_source(path: str) -> BinaryIO:
    """Opens a file for reading.

    Raises:
        OSError: it cannot be opened.
        BucketError: its bucket cannot be reached.
    """
    return buckets.open_for_reading(path) if path.startswith(SCHEME) else open(path, "rb")


def find_files(
    sources: Iterable[str], exclude: Sequence[str] = (), suffixes: tuple[str, ...] = SUFFIXES
) -> list[SourceFile]:
    """Returns the files of directories (with all below them), globs and single files, each once.

    Args:
        sources: directories, globs (`**` crosses directories) and files; each one's files come in natural order.
        exclude: patterns for the relative path, in which `*` also matches `/`: "test/*", "*/tests/*", "*.md".
        suffixes: which files of a directory are read; hidden files and directories are not.

    Raises:
        DataError: a source has no file, or only excluded ones; or a folder cannot be read.
        BucketError: a bucket cannot be reached.
    """
    found = {}
    for source in sources:
        found_in = _objects_of(source, suffixes) if source.startswith(SCHEME) else _files_of(source, suffixes, exclude)
        files = [file for file in found_in if not _is_excluded(file, exclude)]
        if not files:
            raise DataError(_nothing_found(source, exclude, suffixes))
        for file in natsorted(files, key=lambda file: file.relative):
            found.setdefault(file.path, file)
    return list(found.values())


def _is_excluded(file: SourceFile, exclude: Sequence[str]) -> bool:
    return any(fnmatchcase(file.relative, pattern) for pattern in exclude)


def _nothing_found(source: str, exclude: Sequence[str], suffixes: tuple[str, ...]) -> str:
    is_folder = os.path.isdir(source) or (source.startswith(SCHEME) and not glob.has_magic(source))
    looked_for = f" ending in {' '.join(suffixes)}" if is_folder else ""
    left_out = f" outside {', '.join(exclude)}" if exclude else ""
    return f"{source}: no file{looked_for} found{left_out}; name a directory, a glob or a file that has text"


def _files_of(source: str, suffixes: tuple[str, ...], exclude: Sequence[str]) -> Iterator[SourceFile]:
    if os.path.isdir(source):
        yield from _walk(source, suffixes, exclude)
        return
    is_named = os.path.isfile(source)  # its name may have the characters of a glob
    root = os.path.dirname(source) or "." if is_named else _fixed_part(source)
    for path in [source] if is_named else glob.iglob(source, recursive=True):
        if os.path.isfile(path):  # not a broken link or a pipe
            yield SourceFile(path, _relative(path, root))


def _walk(directory: str, suffixes: tuple[str, ...], exclude: Sequence[str]) -> Iterator[SourceFile]:
    below, seen = [pattern for pattern in exclude if pattern.endswith("/*")], {os.path.realpath(directory)}
    for folder, folders, names in os.walk(directory, followlinks=True, onerror=_refuse):
        here = SourceFile(folder, _relative(folder, directory) + "/")
        if _is_excluded(here, below):
            folders.clear()  # everything below is excluded as well
        shown = (name for name in sorted(folders) if not name.startswith("."))
        folders[:] = [name for name in shown if _is_new(os.path.realpath(os.path.join(folder, name)), seen)]
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(suffixes) and not name.startswith(".") and os.path.isfile(path):
                yield SourceFile(path, _relative(path, directory))


def _refuse(error: OSError) -> None:
    raise cannot_read(error.filename, error)


def _is_new(folder: str, seen: set[str]) -> bool:
    """Records a folder; returns whether it is new, for links may lead to one again and again."""
    is_new = folder not in seen
    seen.add(folder)
    return is_new


def _fixed_part(pattern: str) -> str:
    directory = os.path.dirname(pattern)
    while glob.has_magic(directory):
        directory = os.path.dirname(directory)
    return directory or "."


def _relative(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _objects_of(source: str, suffixes: tuple[str, ...]) -> Iterator[SourceFile]:
    if not source.endswith("/") and (state := buckets.stat(source)) != buckets.NO_OBJECT:
        yield _source_object(posixpath.dirname(source), posixpath.basename(source), state)
        return
    is_glob = glob.has_magic(source)
    root = _fixed_part(source) if is_glob else source.rstrip("/")
    patterns = source.removeprefix(f"{root}/").split("/")
    for name, state in buckets.list_objects(root).items():
        parts = name.split("/")
        is_hidden = any(part.startswith(".") for part in parts)
        is_named = _matches(parts, patterns) if is_glob else name.endswith(suffixes) and not is_hidden
        if is_named and parts[-1]:  # else it stands for a folder
            yield _source_object(root, name, state)


def _source_object(root: str, name: str, state: ObjectState) -> SourceFile:
    return SourceFile(f"{root}/{name}", name, (state.size_bytes, state.generation))


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    is_hidden = parts[0].startswith(".") and not patterns[0].startswith(".")
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (not is_hidden and _matches(parts[1:], patterns))
    return not is_hidden and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])
