"""Encoding on many machines with Apache Beam, an optional dependency.

The Beam pipeline reads every source file, cuts its texts into batches, distributes and encodes them, and writes the ids
to files of a shared folder. This process then reads the documents once more, and packs and writes them as usual, with
ids from that folder instead of a tokenizer, so the files are the same. Existing batches are not encoded again.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType

import numpy as np

from configs.errors import DataError, UserError
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.parallel_encoding import batch_texts
from data.preprocessing.splits import DocumentOptions, TextPiece
from data.text.files import SourceFile
from data.tokenization.encoded_batch import EncodedBatch
from meshtf import tf
from storage.files import write_bytes, writing_to

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner")

Batch = tuple[tuple[int, int], list[int], list[str]]
"""The numbers of a source file and of a batch in it; of each text, the number of its document; and the texts."""


def load_beam(runner: str) -> ModuleType:
    """Returns Apache Beam.

    Raises:
        DataError: it is not installed, or the runner is unknown.
    """
    if runner not in RUNNERS:
        raise DataError(f"--runner {runner}: is unknown; choose one of {', '.join(RUNNERS)}, or leave it out")
    try:
        return importlib.import_module("apache_beam")
    except ImportError:
        extra = "apache-beam[gcp]" if runner == "DataflowRunner" else "apache-beam"
        raise DataError(
            f"--runner {runner}: Apache Beam is not installed; pip install '{extra}', or leave out --runner"
        ) from None


def run_pipeline(
    files: Sequence[SourceFile],
    options: DocumentOptions,
    encoder: TextEncoder,
    folder: str,
    runner: str,
    beam_options: Sequence[str],
) -> None:
    """Encodes all documents of all files into a folder.

    Args:
        files: source files, at paths that every machine can read.
        options: how their documents are read.
        encoder: encodes the texts.
        folder: where every machine writes the ids.
        runner: one of RUNNERS.
        beam_options: Beam's own flags, such as `--project=mine`.

    Raises:
        DataError: the pipeline failed.
    """
    beam = load_beam(runner)
    with writing_to(folder, tf.errors.OpError):
        tf.io.gfile.makedirs(folder)
    try:
        with beam.Pipeline(runner=runner, argv=list(beam_options)) as pipeline:
            numbered = pipeline | "files" >> beam.Create(list(enumerate(files)))
            batches = numbered | "shared files" >> beam.Reshuffle() | beam.FlatMap(partial(_batches, options, encoder))
            batches | "shared batches" >> beam.Reshuffle() | beam.Map(partial(_encode, folder, encoder))
    except UserError:
        raise
    except Exception as error:  # runners raise anything; the last line of the message gives the reason
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise DataError(f"--runner {runner}: failed ({reason[0]}); see its log, and run it again") from error


def _batches(options: DocumentOptions, encoder: TextEncoder, numbered: tuple[int, SourceFile]) -> Iterator[Batch]:
    file_number, file = numbered
    pieces = (
        (document_number, piece)
        for document_number, (document, _) in enumerate(options.read(file))
        if document.problem is None
        for piece in encoder.cut(document)
    )
    for number, batch in enumerate(batch_texts(pieces)):
        yield (file_number, number), [document for document, _ in batch], [text for _, text in batch]


def _path(folder: str, file_number: int, number: int) -> str:
    return f"{folder}/{file_number}_{number}.npz"


def _encode(folder: str, encoder: TextEncoder, batch: Batch) -> None:
    numbers, documents, texts = batch
    path = _path(folder, *numbers)
    if tf.io.gfile.exists(path):
        return
    encoded, content = encoder(texts), io.BytesIO()
    np.savez(content, documents=documents, ids=encoded.ids, ends=encoded.ends, text_bytes=encoded.text_bytes)
    write_bytes(path, content.getvalue())


def read_encoded(
    pieces: Iterable[tuple[TextPiece, str | None]], folder: str
) -> Iterator[tuple[TextPiece, np.ndarray | None, int]]:
    """Yields each piece with its ids and bytes, as `encode_all` does, from the files that `run_pipeline` wrote.

    Raises:
        DataError: the ids of a document are missing.
    """
    file_number, rest = -1, iter(())
    for piece, text in pieces:
        position = piece.position
        if text is None:
            yield piece, None, 0
            continue
        if position.file != file_number:
            file_number, rest = position.file, _read_file(folder, position.file)
        found = next(((ids, count) for document, ids, count in rest if document == position.document), None)
        if found is None:
            raise DataError(
                f"{folder}: has no ids of document {position.document} in source file {position.file}; remove that "
                "folder, and start again"
            )
        yield (piece, *found)


def _read_file(folder: str, file_number: int) -> Iterator[tuple[int, np.ndarray, int]]:
    number = 0
    while tf.io.gfile.exists(path := _path(folder, file_number, number)):
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
        try:
            arrays = np.load(io.BytesIO(content))
        except (ValueError, EOFError, zipfile.BadZipFile):
            raise DataError(f"{path}: is damaged; remove {folder}, and start again") from None
        encoded = EncodedBatch(arrays["ids"], arrays["ends"], arrays["text_bytes"])
        for document, (ids, text_bytes) in zip(arrays["documents"].tolist(), encoded.texts(), strict=True):
            yield document, ids, text_bytes
        number += 1
