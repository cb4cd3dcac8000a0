"""Encoding past one machine: a pipeline of Apache Beam, which is installed only by who wants it.

The pipeline reads every source file, cuts what it holds into batches, shares these out, encodes them, and leaves the
ids in files of a folder that all machines see. The documents are then read once more, here, and joined and written as
ever, with the ids from there in place of a tokenizer: hence the same bytes. A batch that is there is not encoded again.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType

import numpy as np

from configs.errors import DataError, UserError
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.parallel_encoding import EncodedBatch, Tagged, batch_texts, cut, encode_batch
from data.preprocessing.splits import LONGEST_BYTES, Piece
from data.text.documents import read_documents
from data.text.files import SourceFile
from meshtf import tf
from storage.files import write_bytes, writing_to

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner")

Batch = tuple[tuple[int, int], list[int], list[str]]
"""The number of a source file and of a batch in it; the documents of its texts; and these."""


def load_beam(runner: str) -> ModuleType:
    """Returns Apache Beam.

    Raises:
        DataError: it is not installed, or has no such runner here.
    """
    if runner not in RUNNERS:
        raise DataError(f"--runner {runner}: is none of {', '.join(RUNNERS)}; choose one, or leave it out")
    try:
        return importlib.import_module("apache_beam")
    except ImportError:
        extra = "apache-beam[gcp]" if runner == "DataflowRunner" else "apache-beam"
        raise DataError(
            f"--runner {runner}: Apache Beam is not installed; pip install '{extra}', or leave out --runner"
        ) from None


def run_pipeline(
    files: Sequence[SourceFile], text_key: str, encoder: TextEncoder, folder: str, runner: str, options: Sequence[str]
) -> None:
    """Encodes all documents of all files into a folder.

    Args:
        files: as every machine sees them.
        text_key: the key of a JSON object that holds its text.
        encoder: what encodes.
        folder: for the ids; every machine writes there.
        runner: one of RUNNERS.
        options: Beam's own flags, such as `--project=mine`.

    Raises:
        DataError: the pipeline came to no end.
    """
    beam = load_beam(runner)
    with writing_to(folder, tf.errors.OpError):
        tf.io.gfile.makedirs(folder)
    try:
        with beam.Pipeline(runner=runner, argv=list(options)) as pipeline:
            numbered = pipeline | "files" >> beam.Create(list(enumerate(files)))
            batches = numbered | "shared files" >> beam.Reshuffle() | beam.FlatMap(partial(_batches, text_key, encoder))
            batches | "shared batches" >> beam.Reshuffle() | beam.Map(partial(_encode, folder, encoder))
    except UserError:
        raise
    except Exception as error:  # whatever a runner raises, its last line says what was wrong
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise DataError(f"--runner {runner}: failed ({reason[0]}); see its log, and start again") from error


def _batches(text_key: str, encoder: TextEncoder, numbered: tuple[int, SourceFile]) -> Iterator[Batch]:
    file_number, file = numbered
    pieces = (
        Tagged(document_number, piece)
        for document_number, document in enumerate(read_documents(file, text_key, LONGEST_BYTES))
        if document.problem is None
        for piece in cut(document, encoder)
    )
    for number, batch in enumerate(batch_texts(pieces)):
        yield (file_number, number), [item.tag for item in batch], [item.text for item in batch]


def _path(folder: str, file_number: int, number: int) -> str:
    return f"{folder}/{file_number}_{number}.npz"


def _encode(folder: str, encoder: TextEncoder, batch: Batch) -> None:
    numbers, documents, texts = batch
    path = _path(folder, *numbers)
    if tf.io.gfile.exists(path):
        return
    encoded, content = encode_batch(encoder, texts), io.BytesIO()
    np.savez(content, documents=documents, ids=encoded.ids, ends=encoded.ends, text_bytes=encoded.text_bytes)
    write_bytes(path, content.getvalue())


def read_encoded(texts: Iterable[Tagged[Piece]], folder: str) -> Iterator[tuple[Piece, np.ndarray | None, int]]:
    """Yields each piece with its ids and bytes, as `encode_all` does, from what `run_pipeline` left.

    Raises:
        DataError: the ids of a document are not there.
    """
    file_number, rest = -1, iter(())
    for item in texts:
        place = item.tag.place
        if item.text is None:
            yield item.tag, None, 0
            continue
        if place.file != file_number:
            file_number, rest = place.file, _read_file(folder, place.file)
        found = next(((ids, count) for document, ids, count in rest if document == place.document), None)
        if found is None:
            raise DataError(f"{folder}: has no ids of {item.tag.place}; remove that folder, and start again")
        yield (item.tag, *found)


def _read_file(folder: str, file_number: int) -> Iterator[tuple[int, np.ndarray, int]]:
    number = 0
    while tf.io.gfile.exists(path := _path(folder, file_number, number)):
        with tf.io.gfile.GFile(path, "rb") as file:
            arrays = np.load(io.BytesIO(file.read()))
        encoded = EncodedBatch(arrays["ids"], arrays["ends"], arrays["text_bytes"])
        for document, (ids, text_bytes) in zip(arrays["documents"].tolist(), encoded.texts(), strict=True):
            yield document, ids, text_bytes
        number += 1
