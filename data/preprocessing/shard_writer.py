"""Joining documents into examples and writing them to files, each with a record of where the next one begins.

As in `join_documents`: a separator after every document, one stream, cut into examples of one length; what is left of a
document goes on in the next example, and in the next file. The files depend on nothing but the documents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.preprocessing.encoding import MOST_PROBLEMS, PackingStats
from data.preprocessing.manifest import FileEntry, Part, checksum
from data.preprocessing.resume import Finished, Unfinished
from data.preprocessing.splits import Place
from data.tfrecord.records import PARTIAL, SUFFIX, serialize_example
from meshtf import tf
from storage.files import writing_to


@dataclass(frozen=True)
class Layout:
    """How the tokens of a part lie in its files.

    Attributes:
        example_tokens: ids in an example, n_ctx + 1.
        examples_per_file: in every file but the last.
        separator: id that ends every document.
        padding: id that fills up the last example.
        minimum_tokens: documents of fewer tokens are left out.
    """

    example_tokens: int
    examples_per_file: int
    separator: int
    padding: int
    minimum_tokens: int


class PartWriter:
    """Writes the files of a part, from where an ended run came to.

    Attributes:
        start: the first document that it needs; those before are in files already.
    """

    def __init__(self, unfinished: Unfinished, part: str, prefix: str, layout: Layout) -> None:
        self._unfinished, self._part, self._prefix, self._layout = unfinished, part, prefix, layout
        finished = unfinished.finished(part)
        last = finished[-1] if finished else Finished(FileEntry("", 0, 0, 0, 0, ""), Place(), 0, PackingStats())
        self.start = last.following
        self._account = replace(last.account, problems=list(last.account.problems))
        # Lengths of the stream, in tokens: what an ended run wrote, what is written now, and what is joined.
        self._written_before = self._written = sum(file.entry.tokens for file in finished)
        self._joined = self._written - last.offset
        self._pending: list[np.ndarray] = []
        self._file: tf.io.TFRecordWriter | None = None
        self._examples_in_file = 0
        self._document = _OpenDocument(self.start, self._joined)

    def leave_out(self, reason: str, problem: str = "") -> None:
        """Counts a document that is not written; `reason` is the end of a field of `PackingStats`."""
        self._account.documents_read += 1
        field = f"discarded_{reason}"
        setattr(self._account, field, getattr(self._account, field) + 1)
        if problem and len(self._account.problems) < MOST_PROBLEMS:
            self._account.problems.append(problem)

    def add(self, place: Place, ids: np.ndarray, text_bytes: int, is_last: bool) -> None:
        """Adds a document, or a piece of it.

        Args:
            place: where it stands in the input.
            ids: int32, [tokens].
            text_bytes: the UTF-8 bytes that they stand for.
            is_last: no more of this document follows.
        """
        if self._document.is_closed:
            self._document = _OpenDocument(place, self._joined)
        document = self._document
        document.extend(ids, text_bytes)
        is_kept = document.tokens >= max(1, self._layout.minimum_tokens)
        if is_kept:
            self._join(document.take())
        if is_last:
            document.is_closed = True
            self._end(is_kept)

    def _end(self, is_kept: bool) -> None:
        if not is_kept:
            self.leave_out("short" if self._document.tokens else "empty")
            return
        self._join(np.array([self._layout.separator], dtype=np.int32))
        self._account = self._account_with_document()

    def _join(self, ids: np.ndarray) -> None:
        """Appends to the stream, but for what is in files already, and writes all whole examples."""
        done = max(0, self._written_before - self._joined)
        self._joined += len(ids)
        self._pending.append(ids[done:])
        if self._joined - self._written >= self._layout.example_tokens:
            stream = np.concatenate(self._pending)
            whole = len(stream) // self._layout.example_tokens * self._layout.example_tokens
            self._pending = [stream[whole:]]
            self._write(stream[:whole].reshape(-1, self._layout.example_tokens))

    def _write(self, examples: np.ndarray) -> None:
        for example in examples:
            self._append(example)
            if self._examples_in_file == self._layout.examples_per_file:
                self._finish_file(*self._where_next())

    def _append(self, example: np.ndarray) -> None:
        with writing_to(self._unfinished.folder, tf.errors.OpError):
            if self._file is None:
                self._file = tf.io.TFRecordWriter(self._partial_path())
            self._file.write(serialize_example(example))
        self._examples_in_file += 1
        self._written += len(example)

    def _where_next(self) -> tuple[Place, int, PackingStats]:
        document = self._document
        if document.is_closed and self._written == self._joined:
            return document.place.following(), 0, self._account_with_document()
        return document.place, self._written - document.start, self._account

    def _account_with_document(self) -> PackingStats:
        account, document = self._account, self._document
        return replace(
            account,
            documents_read=account.documents_read + 1,
            documents_kept=account.documents_kept + 1,
            text_tokens=account.text_tokens + document.tokens,
            text_bytes=account.text_bytes + document.text_bytes,
            separator_tokens=account.separator_tokens + 1,
        )

    def _start_of_path(self) -> str:
        return f"{self._unfinished.folder}/{self._prefix}_{len(self._unfinished.finished(self._part))}_0"

    def _partial_path(self) -> str:
        return self._start_of_path() + PARTIAL

    def _finish_file(self, following: Place, offset: int, account: PackingStats) -> None:
        path = f"{self._start_of_path()}_{self._examples_in_file}{SUFFIX}"
        with writing_to(self._unfinished.folder, tf.errors.OpError):
            self._file.close()
            tf.io.gfile.rename(self._partial_path(), path, overwrite=True)
            n_bytes, digest = checksum(path)
        finished = self._unfinished.finished(self._part)
        documents_before = sum(file.entry.documents for file in finished)
        entry = FileEntry(
            name=path.rpartition("/")[2],
            examples=self._examples_in_file,
            tokens=self._examples_in_file * self._layout.example_tokens,
            documents=account.documents_kept - documents_before,
            bytes=n_bytes,
            sha256=digest,
        )
        account = replace(account, examples=self._written // self._layout.example_tokens)
        self._unfinished.record(self._part, Finished(entry, following, offset, account))
        self._file, self._examples_in_file = None, 0

    def finish(self, end: Place) -> Part:
        """Writes what is left, filled up; returns what the part has become.

        Args:
            end: the place after the last document.
        """
        length = self._layout.example_tokens
        if self._joined > self._written:
            self._account.padding_tokens = length - (self._joined - self._written)
            filling = np.full(self._account.padding_tokens, self._layout.padding, dtype=np.int32)
            self._append(np.concatenate([*self._pending, filling]))
        if self._examples_in_file:
            self._finish_file(end, 0, self._account)
        self._account.examples = self._written // length
        self._account.check(length)
        return Part(self._account, tuple(file.entry for file in self._unfinished.finished(self._part)))

    def abandon(self) -> None:
        """Closes the file that is not finished; the finished ones stay."""
        if self._file is not None:
            with writing_to(self._unfinished.folder, tf.errors.OpError):
                self._file.close()


class _OpenDocument:
    """The document that is being added: what of it waits until it is known to be long enough, and its counts."""

    def __init__(self, place: Place, start: int) -> None:
        self.place, self.start = place, start
        self.tokens = self.text_bytes = 0
        self.is_closed = False
        self._held: list[np.ndarray] = []

    def extend(self, ids: np.ndarray, text_bytes: int) -> None:
        self.tokens += len(ids)
        self.text_bytes += text_bytes
        self._held.append(ids)

    def take(self) -> np.ndarray:
        held = np.concatenate(self._held)
        self._held.clear()
        return held
