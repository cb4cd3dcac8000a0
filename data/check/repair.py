"""Writing the sound records of damaged tfrecord files into a folder beside them, under names with the right counts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from configs.errors import DataError
from data.check.validate import blocks_of, sift
from data.loading.reader import RecordRules
from data.tfrecord.records import staging_folder
from data.tfrecord.shards import name_with_count
from meshtf import tf
from storage.files import writing_to

FOLDER = "repaired"


@dataclass(frozen=True)
class Repaired:
    """What became of a file.

    Attributes:
        path: where its sound records are now; None: it has none.
        n_kept: these.
        n_lost: the others, as far as they can be counted.
    """

    source: str
    path: str | None
    n_kept: int
    n_lost: int


def check_free(paths: Sequence[str], directory: str | None) -> None:
    """Finds out whether there is a place for what will be repaired.

    Raises:
        DataError: a folder is there already.
    """
    for folder in {_folder_for(path, directory) for path in paths}:
        if tf.io.gfile.exists(folder):
            raise DataError(f"{folder}: already there; remove it, or give another place by --repair_dir")


def repair(paths: Sequence[str], rules: RecordRules, directory: str | None = None) -> list[Repaired]:
    """Copies the sound records of all files, the sound files among them, and touches nothing that is there.

    Args:
        paths: of `find_paths`.
        rules: what a sound record obeys.
        directory: where to write, a folder that is not there; None: into `repaired` in the folder of each file.

    Raises:
        DataError: there is no place to write to, or two files would have one name there.
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


def _write_folder(sources: Sequence[str], rules: RecordRules, folder: str) -> Iterator[Repaired]:
    """Writes beside first, so that the folder is there with all its files or, on a disk, not at all."""
    parent, name = os.path.dirname(folder) or ".", os.path.basename(folder)
    with staging_folder(parent, name) as beside, writing_to(folder, tf.errors.OpError):
        written = False
        for source in sources:
            result = _write_file(source, rules, folder, beside)
            written = written or result.path is not None
            yield result
        if written:
            _put_in_place(beside, folder)


def _put_in_place(beside: str, folder: str) -> None:
    if "://" not in folder:
        tf.io.gfile.rename(beside, folder)
        return
    for name in tf.io.gfile.listdir(beside):  # a bucket knows no folders that could be renamed at once
        tf.io.gfile.rename(f"{beside}/{name}", f"{folder}/{name}")


def _write_file(source: str, rules: RecordRules, folder: str, beside: str) -> Repaired:
    unfinished, n_kept, n_lost = f"{beside}/unfinished", 0, 0
    with tf.io.TFRecordWriter(unfinished) as writer:
        try:
            for block in blocks_of(source):
                sifted = sift(block, rules)
                n_kept, n_lost = n_kept + len(sifted.records), n_lost + len(sifted.problems)
                for record in sifted.records:
                    writer.write(record)
        except DataError:  # it cannot be read on: what was read is kept
            n_lost += 1
    if not n_kept:
        tf.io.gfile.remove(unfinished)
        return Repaired(source, None, 0, n_lost)
    name = name_with_count(os.path.basename(source), n_kept)
    if tf.io.gfile.exists(f"{beside}/{name}"):
        raise DataError(f"{source}: another file is called {name} already in {folder}; repair them one by one")
    tf.io.gfile.rename(unfinished, f"{beside}/{name}")
    return Repaired(source, f"{folder}/{name}", n_kept, n_lost)


def describe_repaired(repaired: Sequence[Repaired]) -> str:
    """Says what is where now, and how to read it."""
    kept, lost = sum(result.n_kept for result in repaired), sum(result.n_lost for result in repaired)
    folders = list(dict.fromkeys(os.path.dirname(result.path) for result in repaired if result.path))
    lines = [f"repaired: {kept:,} records are kept, {lost:,} are lost"]
    lines += [f"read {folder}/*.tfrecords" for folder in folders]
    lines += [f"{result.source}: has no sound record, and is left out" for result in repaired if not result.path]
    return "\n".join(lines)
