"""What is known of a data set's tfrecord files: a JSON file beside them, which is written last.

`{name}.manifest.json` lists every file with its counts and its checksum, what became of every document, the tokenizer
and the settings. Where it lies, the files are complete. Paths may be local or `gs://`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from configs.errors import DataError
from data.preprocessing.encoding import PackingStats
from meshtf import tf
from storage.files import write_text

FORMAT = 1
ENDING = ".manifest.json"
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """One tfrecord file.

    Attributes:
        name: without its folder.
        examples: its records.
        tokens: ids in all its records, separators and padding among them.
        documents: documents that end in it.
        bytes: its size.
        sha256: of all its bytes.
    """

    name: str
    examples: int
    tokens: int
    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """The files to train on, or those that are held out, and what became of the documents that belong there."""

    account: PackingStats
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """A data set that is complete.

    Attributes:
        name: what the names of its files begin with.
        example_tokens: ids in an example, n_ctx + 1.
        tokenizer: its "path" as it was given, its "n_vocab", and the "sha256" of its JSON text.
        settings: all that decides what is written, by the names of the flags.
        input: number of source "files" and their "bytes".
        parts: by `routing.TRAIN` and `routing.EVAL`; the second only if documents are held out.
    """

    name: str
    example_tokens: int
    tokenizer: Mapping[str, str | int]
    settings: Mapping[str, object]
    input: Mapping[str, int]
    parts: Mapping[str, Part]

    def to_json(self) -> dict:
        """Returns it as the values of its JSON file."""
        return {"format": FORMAT, **asdict(self)}


def manifest_path(directory: str, name: str) -> str:
    """Returns where the manifest of a data set lies."""
    return f"{directory}/{name}{ENDING}"


def write_manifest(directory: str, manifest: Manifest) -> None:
    """Writes it, beside its path first.

    Raises:
        UserError: the directory cannot be written to.
    """
    write_json(manifest_path(directory, manifest.name), manifest.to_json())


def read_manifest(path: str) -> Manifest:
    """Reads what `write_manifest` wrote.

    Raises:
        DataError: there is no such file, or it is no manifest.
    """
    try:
        values = dict(read_json(path))
        if values.pop("format") != FORMAT:
            raise ValueError("another format")
        parts = {key: _part_of(part) for key, part in values.pop("parts").items()}
        return Manifest(parts=parts, **values)
    except tf.errors.NotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: is no manifest of a data set ({error}); remove it, and write the data set again with "
            "data/create_tfrecords.py"
        ) from None


def _part_of(values: Mapping[str, object]) -> Part:
    return Part(PackingStats(**values["account"]), tuple(FileEntry(**entry) for entry in values["files"]))


def find_entries(directory: str) -> dict[str, FileEntry]:
    """Returns what the manifests in a folder say of its tfrecord files, by the names of the files.

    Raises:
        DataError: as `read_manifest`.
    """
    if not tf.io.gfile.isdir(directory):
        return {}
    paths = [f"{directory}/{name}" for name in sorted(tf.io.gfile.listdir(directory)) if name.endswith(ENDING)]
    parts = [part for path in paths for part in read_manifest(path).parts.values()]
    return {entry.name: entry for part in parts for entry in part.files}


def listed_files(directory: str, name: str) -> list[str]:
    """Returns the paths of the files that a data set's manifest lists and that are there; none without a manifest.

    Raises:
        DataError: as `read_manifest`.
    """
    path = manifest_path(directory, name)
    if not tf.io.gfile.exists(path):
        return []
    paths = [f"{directory}/{entry.name}" for part in read_manifest(path).parts.values() for entry in part.files]
    return [path for path in paths if tf.io.gfile.exists(path)]


def checksum(path: str) -> tuple[int, str]:
    """Reads a file: the number of its bytes, and their SHA-256."""
    digest, count = hashlib.sha256(), 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while content := file.read(READ_BYTES):
            digest.update(content)
            count += len(content)
    return count, digest.hexdigest()


def read_json(path: str) -> dict:
    """Reads a JSON file; what TensorFlow or JSON has to complain of is raised as it is."""
    with tf.io.gfile.GFile(path) as file:
        return json.loads(file.read())


def write_json(path: str, value: Mapping[str, object]) -> None:
    """Writes a JSON file, beside its path first.

    Raises:
        UserError: the place cannot be written to.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")
