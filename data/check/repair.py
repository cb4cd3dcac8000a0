"""Copies the valid records of tfrecord files to another folder, under names with the right counts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from configs.errors import DataError
from data.check.validate import split_into_blocks, validate_block
from data.loading.reader import RecordRules
from data.tfrecord.records import staging_folder
from data.tfrecord.shards import name_with_count
from meshtf import tf
from storage.files import is_local, writing_to

FOLDER = "repaired"


@dataclass(frozen=True)
class RepairedFile:
    """The result for one file.

    Attributes:
        source: the file.
        path: where its valid records are now; None: it has none.
        n_kept: number of valid records.
        n_lost: number of invalid records, as far as they can be counted.
    """

    source: str
    path: str | None
    n_kept: int
    n_lost: int


def check_free(paths: Sequence[str], directory: str | None) -> None:
    """Checks that the folders to write to do not exist yet.

    Raises:
        DataError: one of them exists.
    """
    for folder in {_folder_for(path, directory) for path in paths}:
        if tf.io.gfile.exists(folder):
            raise DataError(f"{folder}: already exists; remove it, or give another folder with --repair_dir")


def repair(paths: Sequence[str], rules: RecordRules, directory: str | None = None) -> list[RepairedFile]:
    """Copies the valid records of all files, also of those without errors, and changes no existing file.

    Args:
        paths: result of `find_paths`.
        rules: what makes a record valid.
        directory: a new folder to write to; None: `repaired` in the folder of each file.

    Raises:
        DataError: the folder exists or cannot be written, or two files would get the same name.
    """
    check_free(paths, directory)
    repaired = []
    with tqdm(total=len(paths), unit="file", desc="repairing", disable=None, leave=False) as bar:
        by_folder = sorted(paths, key=lambda path: _folder_for(path, directory))
        for folder, sources in itertools.groupby(by_folder, key=lambda path: _folder_for(path, directory)):
            for result in _write_folder(list(sources), rules, folder):
                repaired.append(result)
                bar.update()
    return repaired


def _folder_for(path: str, directory: str | None) -> str:
    return directory.rstrip("/") if directory else os.path.join(os.path.dirname(path), FOLDER)


def _write_folder(sources: Sequence[str], rules: RecordRules, folder: str) -> Iterator[RepairedFile]:
    """Writes to a staging folder first, so that on a disk the folder appears with all its files or not at all."""
    parent, name = os.path.dirname(folder) or ".", os.path.basename(folder)
    with staging_folder(parent, name) as staging, writing_to(folder, tf.errors.OpError):
        written = False
        for source in sources:
            result = _write_file(source, rules, folder, staging)
            written = written or result.path is not None
            yield result
        if written:
            _publish(staging, folder)


def _publish(staging: str, folder: str) -> None:
    if is_local(folder):
        tf.io.gfile.rename(staging, folder)
        return
    for name in tf.io.gfile.listdir(staging):  # a bucket has no folders that could be renamed at once
        tf.io.gfile.rename(f"{staging}/{name}", f"{folder}/{name}")


def _write_file(source: str, rules: RecordRules, folder: str, staging: str) -> RepairedFile:
    unfinished, n_kept, n_lost = f"{staging}/unfinished", 0, 0
    with tf.io.TFRecordWriter(unfinished) as writer:
        try:
            for block in split_into_blocks(source):
                validated = validate_block(block, rules)
                n_kept, n_lost = n_kept + len(validated.records), n_lost + len(validated.errors)
                for record in validated.records:
                    writer.write(record)
        except DataError:  # the rest cannot be read; the records so far are kept
            n_lost += 1
    if not n_kept:
        tf.io.gfile.remove(unfinished)
        return RepairedFile(source, None, 0, n_lost)
    name = name_with_count(os.path.basename(source), n_kept)
    if tf.io.gfile.exists(f"{staging}/{name}"):
        raise DataError(f"{source}: {folder} already has a file {name}; repair these files one by one")
    tf.io.gfile.rename(unfinished, f"{staging}/{name}")
    return RepairedFile(source, f"{folder}/{name}", n_kept, n_lost)


def describe_repaired(repaired: Sequence[RepairedFile]) -> str:
    """Returns a summary: what was kept and lost, and how to read the new files."""
    kept, lost = sum(result.n_kept for result in repaired), sum(result.n_lost for result in repaired)
    folders = list(dict.fromkeys(os.path.dirname(result.path) for result in repaired if result.path))
    lines = [f"repaired: {kept:,} records kept, {lost:,} lost"]
    lines += [f"read {folder}/*.tfrecords" for folder in folders]
    lines += [f"{result.source}: has no valid record; not copied" for result in repaired if not result.path]
    return "\n".join(lines)
