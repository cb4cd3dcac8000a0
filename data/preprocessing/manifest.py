"""The manifest of a dataset: a JSON file beside its tfrecord files, written after all of them.

`{name}.manifest.json` lists every file with its counts and its checksum, and holds the counts of documents and tokens,
the tokenizer and the settings. Where there is a manifest, the files are complete. Paths may be local or `gs://`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from configs.errors import DataError
from data.preprocessing.packing import PackingStats
from meshtf import tf
from storage.files import write_text

FORMAT = 1
ENDING = ".manifest.json"
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """One tfrecord file.

    Attributes:
        name: its path below the folder of the manifest.
        examples: number of its records.
        tokens: ids in all its records, separators and padding included.
        documents: documents that end in it.
        bytes: its size.
        sha256: of its content.
    """

    name: str
    examples: int
    tokens: int
    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The files to train on, or the held-out files, and the counts of their documents."""

    stats: PackingStats
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """A complete dataset.

    Attributes:
        name: what the names of its files begin with.
        example_tokens: ids in an example, n_ctx + 1; None: each record is a document.
        tokenizer: its "path" as given, its "n_vocab", and the "sha256" of its JSON text.
        settings: the settings that determine the content of the files, by the names of their flags.
        input: number of source "files" and their "bytes".
        splits: by `splits.TRAIN` and `splits.EVAL`; the second only if documents are held out.
    """

    name: str
    example_tokens: int | None
    tokenizer: Mapping[str, str | int]
    settings: Mapping[str, object]
    input: Mapping[str, int]
    splits: Mapping[str, Split]

    def entries(self) -> list[FileEntry]:
        """Returns the files of all splits."""
        return [entry for split in self.splits.values() for entry in split.files]

    def to_json(self) -> dict:
        """Returns the values of its JSON file."""
        values = {"format": FORMAT, **asdict(self)}
        splits = values.pop("splits").items()
        values["parts"] = {name: {"account": split["stats"], "files": split["files"]} for name, split in splits}
        return values


def manifest_path(directory: str, name: str) -> str:
    """Returns the path of a dataset's manifest."""
    return f"{directory}/{name}{ENDING}"


def read_manifest(path: str) -> Manifest:
    """Reads a manifest.

    Raises:
        DataError: there is no such file, or it is not a manifest.
    """
    try:
        values = dict(read_json(path))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        splits = {name: _split_of(split) for name, split in values.pop("parts").items()}
        return Manifest(splits=splits, **values)
    except tf.errors.NotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: is not a manifest of a dataset ({error}); remove it, and write the dataset again with "
            "data/create_tfrecords.py"
        ) from None


def _split_of(values: Mapping[str, object]) -> Split:
    entries = tuple(FileEntry(**entry) for entry in values["files"])
    for entry in entries:
        if entry.name.startswith("/") or ".." in entry.name.split("/"):  # it could be any file, and lists are removed
            raise ValueError(f"it names {entry.name}, which is outside its folder")
    return Split(PackingStats(**values["account"]), entries)


def manifest_paths(directory: str) -> list[str]:
    """Returns the paths of all manifests in a folder."""
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    return [os.path.join(directory, name) for name in sorted(names) if name.endswith(ENDING)]


def find_entries(directory: str) -> dict[str, FileEntry]:
    """Returns the entries of all manifests in a folder, by the names of their files.

    Raises:
        DataError: as `read_manifest`.
    """
    return {entry.name: entry for path in manifest_paths(directory) for entry in read_manifest(path).entries()}


def listed_files(directory: str, name: str) -> list[str] | None:
    """Returns the paths of the existing files that a dataset's manifest lists.

    Returns:
        them; none without a manifest; None if it is no JSON, as after a power loss.

    Raises:
        DataError: as `read_manifest`.
    """
    path = manifest_path(directory, name)
    try:
        read_json(path)
    except tf.errors.NotFoundError:
        return []
    except ValueError:
        return None
    paths = [f"{directory}/{entry.name}" for entry in read_manifest(path).entries()]
    return [path for path in paths if tf.io.gfile.exists(path)]


def checksum(path: str) -> tuple[int, str]:
    """Reads a file, and returns its size in bytes and its SHA-256."""
    digest, n_bytes = hashlib.sha256(), 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while content := file.read(READ_BYTES):
            digest.update(content)
            n_bytes += len(content)
    return n_bytes, digest.hexdigest()


def read_json(path: str) -> dict:
    """Reads a JSON file, and raises the errors of TensorFlow and JSON as they are."""
    with tf.io.gfile.GFile(path) as file:
        return json.loads(file.read())


def write_json(path: str, value: Mapping[str, object]) -> None:
    """Writes a JSON file.

    Raises:
        UserError: the place cannot be written to.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")
