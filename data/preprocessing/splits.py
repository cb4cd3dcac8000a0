"""Reading the documents of a dataset in order and assigning each to a split: training, held out, or left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from data.text.deduplication import SeenDigests, digest_fraction
from data.text.documents import Document, TextFormat, explain, read_documents, text_digest
from data.text.files import ReadingNotes, SourceFile
from data.text.held_out_end import cut_end

TRAIN, EVAL = "train", "eval"
MAX_TEXT_BYTES = 1 << 26  # longer texts are kept in a temporary file


@dataclass(frozen=True)
class DocumentPosition:
    """A document's position in the input.

    Attributes:
        file: number of its source file.
        document: number of the document in that file.
        overall: number of the document in all files.
    """

    file: int = 0
    document: int = 0
    overall: int = 0

    def following(self) -> DocumentPosition:
        """Returns the position after this document."""
        return DocumentPosition(self.file, self.document + 1, self.overall + 1)


@dataclass(frozen=True)
class TextPiece:
    """A document, or a piece of a long one.

    Attributes:
        split: TRAIN or EVAL.
        position: the document's.
        is_last: whether this is the document's last piece.
        discard_reason: the end of a `discarded_` field of `PackingStats`; empty if the document is kept.
        problem: the reason in words, if there is more to say.
    """

    split: str
    position: DocumentPosition
    is_last: bool = True
    discard_reason: str = ""
    problem: str = ""


@dataclass(frozen=True)
class DocumentOptions:
    """Which documents are read, and how they are split.

    Attributes:
        format: how they stand in their files.
        deduplicate: leaves out copies of earlier documents.
        max_documents: reads at most this many; None for all.
        eval_fraction: documents are held out if the fraction that their digest stands for is below this.
        split_digest: the digest of a document by which it is assigned to a split.
        end_fraction: of the only document, the fraction at its end that is held out; eval_fraction is then 0.
    """

    format: TextFormat = TextFormat()
    deduplicate: bool = False
    max_documents: int | None = None
    eval_fraction: float = 0.0
    split_digest: Callable[[Document], bytes] = text_digest
    end_fraction: float = 0.0

    def read(self, file: SourceFile, notes: ReadingNotes | None = None) -> Iterator[tuple[Document, str]]:
        """Yields the documents of a file, each with its split: TRAIN or EVAL."""
        for document in read_documents(file, replace(self.format, max_bytes=MAX_TEXT_BYTES), notes):
            parts = cut_end(document, self.end_fraction) if self.end_fraction and document.problem is None else None
            yield from zip(parts, (TRAIN, EVAL), strict=True) if parts else [(document, self._split_of(document))]

    def _split_of(self, document: Document) -> str:
        if not self.eval_fraction:
            return TRAIN
        return EVAL if digest_fraction(self.split_digest(document)) < self.eval_fraction else TRAIN


def hold_out_end(options: DocumentOptions, files: Sequence[SourceFile], log: Callable[[str], None]) -> DocumentOptions:
    """Returns the options by which the end of the text is held out if it is one document, else those given."""
    documents = (document for file in files for document, _ in options.read(file))
    with_text = (document for document in documents if document.text or document.long_text)
    if len(list(itertools.islice(with_text, 2))) != 1:
        return options
    log(f"the text is one document: its end, {options.eval_fraction:.4g} of it, is held out")
    return replace(options, eval_fraction=0.0, end_fraction=options.eval_fraction)


class DocumentReader:
    """Reads documents from the first one that a split still needs.

    Attributes:
        position: the position after the last document that was read.
        notes: what was passed over in the files that were read.
    """

    def __init__(
        self, files: Sequence[SourceFile], options: DocumentOptions, starts: Mapping[str, DocumentPosition]
    ) -> None:
        """Takes the first document that each split needs from `starts`."""
        self._files, self._options, self._starts = files, options, starts
        self.notes = ReadingNotes()
        self._seen = SeenDigests() if options.deduplicate else None
        # The digests that were seen are not kept on disk: reading is quick compared with encoding.
        needed = [DocumentPosition()] if options.deduplicate else starts.values()
        self.position = min(needed, key=lambda position: position.overall)

    def pieces(
        self, cut: Callable[[Document], Iterator[str]], on_file: Callable[[int], None]
    ) -> Iterator[tuple[TextPiece, str | None]]:
        """Yields each piece with its text, in the order of the input; documents that are left out have no text.

        Args:
            cut: returns the pieces of a readable document.
            on_file: is called with the number of source files read so far.
        """
        for document, split in self._documents(on_file):
            yield from self._pieces_of(document, split, cut)
            self.position = self.position.following()

    def _documents(self, on_file: Callable[[int], None]) -> Iterator[tuple[Document, str]]:
        first, n_skipped = self.position.file, self.position.document
        for number, file in enumerate(self._files[first:], start=first):
            on_file(number)
            if number > first:
                self.position = DocumentPosition(number, 0, self.position.overall)
            for index, (document, split) in enumerate(self._options.read(file, self.notes)):
                if number == first and index < n_skipped:
                    continue
                if self.position.overall == self._options.max_documents:
                    return
                yield document, split
        self.position = DocumentPosition(len(self._files), 0, self.position.overall)
        on_file(len(self._files))

    def _pieces_of(
        self, document: Document, split: str, cut: Callable[[Document], Iterator[str]]
    ) -> Iterator[tuple[TextPiece, str | None]]:
        is_new = self._seen is None or document.problem is not None or self._seen.add(text_digest(document))
        position = self.position
        if position.overall < self._starts[split].overall:
            return
        if document.problem is not None:
            yield TextPiece(split, position, discard_reason="undecodable", problem=explain(document)), None
        elif not is_new:
            yield TextPiece(split, position, discard_reason="duplicate"), None
        else:
            yield from _mark_last(TextPiece(split, position), cut(document))


def _mark_last(whole: TextPiece, texts: Iterator[str]) -> Iterator[tuple[TextPiece, str]]:
    last = next(texts)
    for text in texts:
        yield TextPiece(whole.split, whole.position, is_last=False), last
        last = text
    yield whole, last
