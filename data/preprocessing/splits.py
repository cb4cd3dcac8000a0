"""Reading the documents of a data set in order, and saying of each where it goes: to train on, to hold out, or nowhere.

It knows texts only: neither the tokenizer nor the files that are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data.preprocessing.parallel_encoding import Tagged
from data.text.deduplication import SeenTexts, share_of
from data.text.documents import Document, explain, fingerprint, read_documents
from data.text.files import SourceFile

TRAIN, EVAL = "train", "eval"
LONGEST_BYTES = 1 << 26  # of a text that is held in memory


@dataclass(frozen=True)
class Place:
    """A document in the input: its file's number, its number in that file, and its number in all."""

    file: int = 0
    document: int = 0
    overall: int = 0

    def following(self) -> Place:
        """Returns the place after this document."""
        return Place(self.file, self.document + 1, self.overall + 1)


@dataclass(frozen=True)
class Piece:
    """A document, or a piece of a long one.

    Attributes:
        part: TRAIN or EVAL.
        place: the document's.
        is_last: no more of the document follows.
        reason: why it is left out: the end of a field of `PackingStats`; empty if it is not.
        problem: the same in words, if there is something to say.
    """

    part: str
    place: Place
    is_last: bool = True
    reason: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Choice:
    """Which documents are read, and how they are shared out.

    Attributes:
        text_key: the key of a JSON object that holds its text.
        deduplicate: leaves out documents that were met before.
        max_documents: reads no more than so many; None for all.
        eval_fraction: share of the documents that is held out, drawn by their texts.
    """

    text_key: str = "text"
    deduplicate: bool = False
    max_documents: int | None = None
    eval_fraction: float = 0.0


class Router:
    """Reads documents from where all parts have what came before.

    Attributes:
        end: the place after the last document that was read.
    """

    def __init__(self, files: Sequence[SourceFile], choice: Choice, starts: Mapping[str, Place]) -> None:
        self._files, self._choice, self._starts = files, choice, starts
        self._seen = SeenTexts() if choice.deduplicate else None
        # What was seen before is not kept on disk: reading is quick beside encoding.
        needed = [Place()] if choice.deduplicate else starts.values()
        self.end = min(needed, key=lambda place: place.overall)

    def texts(
        self, cut: Callable[[Document], Iterator[str]], file_done: Callable[[int], None]
    ) -> Iterator[Tagged[Piece]]:
        """Yields what is to be encoded or counted, in the order of the input.

        Args:
            cut: gives the pieces of a document that has a text.
            file_done: is told, as each source file has been read, how many have.
        """
        for document in self._documents(file_done):
            yield from self._tagged(document, self.end, cut)
            self.end = self.end.following()

    def _documents(self, file_done: Callable[[int], None]) -> Iterator[Document]:
        first, skipped = self.end.file, self.end.document
        for number, file in enumerate(self._files[first:], start=first):
            file_done(number)
            if number > first:
                self.end = Place(number, 0, self.end.overall)
            for position, document in enumerate(read_documents(file, self._choice.text_key, LONGEST_BYTES)):
                if number == first and position < skipped:
                    continue
                if self.end.overall == self._choice.max_documents:
                    return
                yield document
        self.end = Place(len(self._files), 0, self.end.overall)
        file_done(len(self._files))

    def _tagged(
        self, document: Document, place: Place, cut: Callable[[Document], Iterator[str]]
    ) -> Iterator[Tagged[Piece]]:
        digest = _digest_of(document)
        is_new = self._seen is None or document.problem is not None or self._seen.add(digest)
        part = EVAL if share_of(digest) < self._choice.eval_fraction else TRAIN
        if place.overall < self._starts[part].overall:
            return
        if document.problem is not None:
            yield Tagged(Piece(part, place, reason="undecodable", problem=explain(document)), None)
        elif not is_new:
            yield Tagged(Piece(part, place, reason="duplicate"), None)
        else:
            yield from _with_end_marked(part, place, cut(document))


def _with_end_marked(part: str, place: Place, pieces: Iterator[str]) -> Iterator[Tagged[Piece]]:
    last = next(pieces)
    for piece in pieces:
        yield Tagged(Piece(part, place, is_last=False), last)
        last = piece
    yield Tagged(Piece(part, place), last)


def _digest_of(document: Document) -> bytes:
    if document.long_text is not None:
        return document.long_text.digest
    return fingerprint(document.identity if document.text is None else document.text)
