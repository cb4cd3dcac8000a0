"""Writing the tfrecord files of a split, each with a record of where the next one begins."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data.preprocessing.manifest import FileEntry, Split, checksum
from data.preprocessing.packing import ResumePoint, ShardLayout, ShuffleBuffer, packer_of
from data.preprocessing.resume import FinishedFile, ResumeFolder
from data.preprocessing.splits import DocumentPosition
from data.tfrecord.records import PARTIAL, SUFFIX, Record, serialize_example
from meshtf import tf
from storage.files import flush_to_disk, writing_to


def _serialized(example: np.ndarray) -> bytes:
    if example.dtype.names is None:
        return serialize_example(example)
    return serialize_example(Record(example["id"], example["weight"], example["segment"]))


class ShardWriter:
    """Packs and writes the documents of a split; resumes after the files that an interrupted run has finished.

    Attributes:
        start: the first document that it needs.
    """

    def __init__(self, folder: ResumeFolder, split: str, layout: ShardLayout) -> None:
        """Prepares the files `{prefix}_{number of the file}_0_{number of its examples}.tfrecords` of a folder.

        The 0 is GPT-Neo's number of a process: one process writes, however many encode.
        """
        self._folder, self._split, self._layout = folder, split, layout
        finished = folder.finished(split)
        self._n_finished = sum(file.entry.examples for file in finished)
        # A file of shuffled examples holds some from anywhere: all are packed and shuffled again.
        is_continued = finished and not layout.shuffle_examples
        point = finished[-1].next if is_continued else ResumePoint()
        self.start = point.document
        self._packer = packer_of(layout, point, self._n_finished if is_continued else 0)
        self._shuffle = ShuffleBuffer(layout.shuffle_examples)
        self._n_written, self._tokens_in_file = self._packer.n_examples, 0
        self._file: tf.io.TFRecordWriter | None = None

    def discard(self, reason: str, problem: str = "") -> None:
        """Counts a document that is left out; see `PackingStats.discard`."""
        self._packer.stats.discard(reason, problem)

    def add(self, position: DocumentPosition, ids: np.ndarray, text_bytes: int, is_last: bool) -> None:
        """Adds a document or a piece of one; see `ExamplePacker.add`."""
        self._write(self._packer.add(position, ids, text_bytes, is_last))

    def finish(self, end: DocumentPosition) -> Split:
        """Writes the rest, padded.

        Args:
            end: the position after the last document of the input.

        Returns:
            The files of the split, including those of earlier runs.
        """
        self._write(self._packer.finish(end))
        for example in self._shuffle.drain():
            self._write_example(example)
        if self._file is not None:
            self._finish_file()
        return Split(self._packer.stats, tuple(file.entry for file in self._folder.finished(self._split)))

    def abandon(self) -> None:
        """Closes the unfinished file; the finished files stay."""
        if self._file is not None:
            with writing_to(self._folder.path, tf.errors.OpError):
                self._file.close()

    def _write(self, examples: Iterable[np.ndarray]) -> None:
        for packed in examples:
            for example in self._shuffle.push(packed):
                self._write_example(example)

    def _write_example(self, example: np.ndarray) -> None:
        self._n_written += 1
        if self._n_written <= self._n_finished:  # an interrupted run wrote it
            return
        with writing_to(self._folder.path, tf.errors.OpError):
            if self._file is None:
                self._file = tf.io.TFRecordWriter(self._path_start() + PARTIAL)
            self._file.write(_serialized(example))
        self._tokens_in_file += len(example)
        if self._n_written - self._n_finished == self._layout.examples_per_file:
            self._finish_file()

    def _path_start(self) -> str:
        return f"{self._folder.path}/{self._layout.prefix}_{len(self._folder.finished(self._split))}_0"

    def _finish_file(self) -> None:
        n_examples = self._n_written - self._n_finished
        path = f"{self._path_start()}_{n_examples}{SUFFIX}"
        with writing_to(self._folder.path, tf.errors.OpError):
            self._file.close()
            flush_to_disk(self._path_start() + PARTIAL)
            tf.io.gfile.rename(self._path_start() + PARTIAL, path, overwrite=True)
            n_bytes, digest = checksum(path)
        n_earlier = sum(file.entry.documents for file in self._folder.finished(self._split))
        entry = FileEntry(
            name=path.removeprefix(f"{self._folder.path}/"),
            examples=n_examples,
            tokens=self._tokens_in_file,
            documents=self._packer.stats.documents_kept - n_earlier,
            bytes=n_bytes,
            sha256=digest,
        )
        self._folder.record(self._split, FinishedFile(entry, self._packer.resume_point()))
        self._file, self._n_finished, self._tokens_in_file = None, self._n_written, 0
