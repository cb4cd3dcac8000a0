"""Packing token ids into examples: chunks of one length, or documents.

For chunks, a separator follows every document. All documents form one stream, which is cut into examples; the rest of a
document begins the next example, and only the very last example is padded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from configs.errors import DataError
from data.preprocessing.splits import DocumentPosition

MAX_PROBLEMS = 20
MAX_DOCUMENT_TOKENS = 1 << 24  # of a record, which is held in memory


@dataclass
class PackingStats:
    """Counts of documents and tokens.

    Attributes:
        documents_read: all documents, readable or not.
        documents_kept: documents whose tokens are in the examples.
        discarded_undecodable: documents that are not UTF-8, or JSON without a text.
        discarded_empty: documents without a single token after cleaning.
        discarded_short: documents of fewer tokens than the minimum.
        discarded_duplicate: copies of an earlier document, if duplicates are left out.
        discarded_unanswered: conversations without a response that counts in the loss, or that their template refuses.
        text_bytes: UTF-8 bytes of the kept documents, after cleaning.
        text_tokens: tokens of the kept documents.
        separator_tokens: one for every kept document; none where each record is a document.
        padding_tokens: tokens that pad examples.
        weighted_tokens: tokens of conversations that count in the loss.
        cut_conversations: conversations in several parts, because they are too long for one example.
        turns_without_loss: turns of them that fit nowhere, or not beside the turn that they answer.
        examples: examples made.
        problems: the first few undecodable documents, as "identity: problem".
    """

    documents_read: int = 0
    documents_kept: int = 0
    discarded_undecodable: int = 0
    discarded_empty: int = 0
    discarded_short: int = 0
    discarded_duplicate: int = 0
    discarded_unanswered: int = 0
    text_bytes: int = 0
    text_tokens: int = 0
    separator_tokens: int = 0
    padding_tokens: int = 0
    weighted_tokens: int = 0
    cut_conversations: int = 0
    turns_without_loss: int = 0
    examples: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def discarded(self) -> int:
        """Number of documents that were left out for any reason."""
        reasons = ("undecodable", "empty", "short", "duplicate", "unanswered")
        return sum(getattr(self, f"discarded_{reason}") for reason in reasons)

    def discard(self, reason: str, problem: str = "") -> None:
        """Counts a document that is left out.

        Args:
            reason: the end of the name of a `discarded_` field.
            problem: the reason in words, if there is more to say.
        """
        self.documents_read += 1
        field_name = f"discarded_{reason}"
        setattr(self, field_name, getattr(self, field_name) + 1)
        if problem and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def keep(self, tokens: int, text_bytes: int) -> None:
        """Counts a document that is kept."""
        self.documents_read += 1
        self.documents_kept += 1
        self.text_tokens += tokens
        self.text_bytes += text_bytes

    def copy(self) -> PackingStats:
        """Returns a copy that later counting does not change."""
        return replace(self, problems=list(self.problems))

    def describe_documents(self, noun: str = "documents") -> str:
        """Returns one line with the documents, by another noun if they are no texts, read, kept and discarded."""
        discarded = {
            "undecodable": self.discarded_undecodable,
            "empty": self.discarded_empty,
            "too short": self.discarded_short,
        }
        for reason in ("duplicate", "unanswered"):
            if count := getattr(self, f"discarded_{reason}"):
                discarded[reason] = count
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in discarded.items())
        return (
            f"{noun}: {self.documents_read:,} read = {self.documents_kept:,} kept + "
            f"{self.discarded:,} discarded ({reasons})"
        )

    def describe_tokens(self, example_tokens: int | None) -> str:
        """Returns one line with the tokens by what they are; see `ShardLayout.example_tokens`."""
        if example_tokens is None:
            return f"tokens: {self.text_tokens:,} of text in {self.examples:,} records of one document each"
        tokens = self.text_tokens + self.separator_tokens + self.padding_tokens
        if self.weighted_tokens:
            return (
                f"tokens: {self.text_tokens:,} of conversations, of which {self.weighted_tokens:,} count in the loss, "
                f"+ {self.padding_tokens:,} of padding = {tokens:,} = {self.examples:,} examples of "
                f"{example_tokens:,}; {self.cut_conversations:,} conversations were cut between turns, and "
                f"{self.turns_without_loss:,} turns of them count no loss"
            )
        return (
            f"tokens: {self.text_tokens:,} of text + {self.separator_tokens:,} separators + "
            f"{self.padding_tokens:,} of padding at the end = {tokens:,} = "
            f"{self.examples:,} examples of {example_tokens:,}"
        )

    def check(self, example_tokens: int | None) -> None:
        """Asserts that every document and every token is accounted for; see `ShardLayout.example_tokens`."""
        assert self.documents_read == self.documents_kept + self.discarded, asdict(self)
        if example_tokens is None:
            assert self.examples == self.documents_kept, asdict(self)
            return
        tokens = self.text_tokens + self.separator_tokens + self.padding_tokens
        assert tokens == self.examples * example_tokens, asdict(self)


@dataclass(frozen=True)
class ShardLayout:
    """How the tokens of a split are laid out in its files.

    Attributes:
        prefix: prefix of the file names.
        example_tokens: ids in an example, n_ctx + 1; None: each document is an example, without a separator.
        examples_per_file: examples in every file but the last.
        separator: id that follows every document.
        padding: id that pads the last example.
        minimum_tokens: documents with fewer tokens are left out.
        shuffle_examples: examples in the shuffle buffer; 0 keeps them in the order of the documents.
        conversations: whether documents are conversations, which are never cut: "packed" together into examples, or a
            "single" one each; None: they are texts.
    """

    prefix: str
    example_tokens: int | None
    examples_per_file: int
    separator: int
    padding: int
    minimum_tokens: int = 0
    shuffle_examples: int = 0
    conversations: str | None = None


@dataclass(frozen=True)
class ResumePoint:
    """An end of an example from which packing can be resumed.

    Attributes:
        document: the document in which the next example begins.
        offset: tokens of that document that lie in earlier examples.
        stats: counts of the documents before that one.
    """

    document: DocumentPosition = DocumentPosition()
    offset: int = 0
    stats: PackingStats = field(default_factory=PackingStats)


class ExamplePacker:
    """Joins documents into a stream and cuts it into examples.

    Attributes:
        stats: counts of the finished documents and of the examples.
    """

    def __init__(self, layout: ShardLayout, start: ResumePoint, start_tokens: int) -> None:
        """Begins at the start of a document.

        Args:
            layout: lengths and special ids.
            start: the point to resume from.
            start_tokens: tokens of the stream before that document.
        """
        self._layout = layout
        self.stats = start.stats.copy()
        self._position = start.document
        self._document: _OpenDocument | None = None
        # Lengths of the stream. Zeros stand for the tokens of an example that begins before the first document.
        self._joined_tokens = start_tokens
        self._cut_tokens = start_tokens - start_tokens % layout.example_tokens
        self._pending = [np.zeros(self._joined_tokens - self._cut_tokens, np.int32)]

    @property
    def n_examples(self) -> int:
        """Number of examples cut from the stream, including those of earlier runs."""
        return self._cut_tokens // self._layout.example_tokens

    def add(self, position: DocumentPosition, ids: np.ndarray, text_bytes: int, is_last: bool) -> Iterator[np.ndarray]:
        """Adds a document or a piece of one, and yields the examples that become full.

        Args:
            position: the document's position in the input.
            ids: int32, [tokens].
            text_bytes: UTF-8 bytes of the text.
            is_last: whether this is the document's last piece.

        Yields:
            int32 ids, [example_tokens]. Between two examples, `resume_point` refers to the end of the first.
        """
        if self._document is None:
            self._position, self._document = position, _OpenDocument(self._joined_tokens)
        document = self._document
        document.tokens += len(ids)
        document.text_bytes += text_bytes
        document.pending.append(ids)
        is_kept = document.tokens >= max(1, self._layout.minimum_tokens)
        if is_kept:
            pending, document.pending = document.pending, []
            yield from self._join(*pending)
        if is_last:
            self._position, self._document = position.following(), None
            if is_kept:
                self.stats.keep(document.tokens, document.text_bytes)
                self.stats.separator_tokens += 1
                yield from self._join(np.array([self._layout.separator], np.int32))
            else:
                self.stats.discard("short" if document.tokens else "empty")

    def _join(self, *pieces: np.ndarray) -> Iterator[np.ndarray]:
        self._joined_tokens += sum(map(len, pieces))
        self._pending += pieces
        length = self._layout.example_tokens
        n_full = (self._joined_tokens - self._cut_tokens) // length
        if not n_full:
            return
        stream = np.concatenate(self._pending)
        self._pending = [stream[n_full * length :]]
        for example in stream[: n_full * length].reshape(n_full, length):
            self._cut_tokens += length
            self.stats.examples = self.n_examples
            yield example

    def resume_point(self) -> ResumePoint:
        """Returns where to resume after the examples cut so far."""
        offset = self._cut_tokens - self._document.start_tokens if self._document else 0
        return ResumePoint(self._position, offset, self.stats.copy())

    def finish(self, end: DocumentPosition) -> Iterator[np.ndarray]:
        """Pads the last example and yields it, if any token is left.

        Args:
            end: the position after the last document of the input.
        """
        self._position = end
        n_missing = -self._joined_tokens % self._layout.example_tokens
        self.stats.padding_tokens += n_missing
        yield from self._join(np.full(n_missing, self._layout.padding, np.int32))
        self.stats.check(self._layout.example_tokens)


@dataclass
class _OpenDocument:
    """A document whose last piece is still to come.

    Attributes:
        start_tokens: length of the stream before it.
        tokens: its tokens so far.
        text_bytes: its UTF-8 bytes so far.
        pending: pieces that wait until the document is known to be long enough, int32 [tokens] each.
    """

    start_tokens: int
    tokens: int = 0
    text_bytes: int = 0
    pending: list[np.ndarray] = field(default_factory=list)


class DocumentPacker:
    """Makes an example of each document.

    Attributes:
        stats: counts of the finished documents and of the examples.
    """

    def __init__(self, layout: ShardLayout, start: ResumePoint) -> None:
        """Begins at the start of a document."""
        self._minimum_tokens = max(1, layout.minimum_tokens)
        self.stats = start.stats.copy()
        self._position, self._document = start.document, _OpenDocument(0)

    @property
    def n_examples(self) -> int:
        """Number of examples made, including those of earlier runs."""
        return self.stats.examples

    def add(self, position: DocumentPosition, ids: np.ndarray, text_bytes: int, is_last: bool) -> Iterator[np.ndarray]:
        """Adds a document or a piece of one, and yields its ids when it is complete; see `ExamplePacker.add`.

        Raises:
            DataError: the document is too long for a record.
        """
        document = self._document
        document.tokens += len(ids)
        document.text_bytes += text_bytes
        document.pending.append(ids)
        if document.tokens > MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"document {position.overall}: has more than {MAX_DOCUMENT_TOKENS:,} tokens, too many for one record; "
                "write chunks with --mode chunks"
            )
        if is_last:
            self._position, self._document = position.following(), _OpenDocument(0)
            yield from self._finish_document(document)

    def _finish_document(self, document: _OpenDocument) -> Iterator[np.ndarray]:
        if document.tokens < self._minimum_tokens:
            self.stats.discard("short" if document.tokens else "empty")
            return
        self.stats.keep(document.tokens, document.text_bytes)
        self.stats.examples += 1
        yield np.concatenate(document.pending)

    def resume_point(self) -> ResumePoint:
        """Returns where to resume after the examples made so far."""
        return ResumePoint(self._position, 0, self.stats.copy())

    def finish(self, end: DocumentPosition) -> Iterator[np.ndarray]:
        """Checks the counts; there is no further example."""
        self._position = end
        self.stats.check(None)
        return iter(())


class ConversationPacker:
    """Packs conversations, or the parts of long ones, into examples without cutting them; see `DialogueEncoder`.

    Attributes:
        stats: counts of the finished conversations and of the examples.
    """

    def __init__(self, layout: ShardLayout, start: ResumePoint) -> None:
        """Begins at the start of a conversation."""
        self._layout, self._is_single = layout, layout.conversations == "single"
        self.stats = start.stats.copy()
        self._position, self._offset, self._n_skipped = start.document, start.offset, start.offset
        self._pending: list[np.ndarray] = []

    @property
    def n_examples(self) -> int:
        """Number of examples made, including those of earlier runs."""
        return self.stats.examples

    def add(self, position: DocumentPosition, ids: np.ndarray, text_bytes: int, is_last: bool) -> Iterator[np.ndarray]:
        """Adds a conversation, records of id, weight and segment, and yields the examples that become full."""
        assert is_last, "a conversation comes as a whole"
        self._position, self._offset = position, self._n_skipped
        parts = [part for part in _parts_of(ids) if part["weight"].any()]
        for part in self._after_resuming(parts):
            if self._pending and (self._is_single or self._n_pending + len(part) > self._layout.example_tokens):
                yield self._flush()
            self._pending.append(part)
            self._offset += len(part)
        self._count(parts, ids, text_bytes)
        self._position, self._offset = position.following(), 0

    def _after_resuming(self, parts: list[np.ndarray]) -> Iterator[np.ndarray]:
        for part in parts:
            if self._n_skipped:
                self._n_skipped -= len(part)
            else:
                yield part

    def _count(self, parts: list[np.ndarray], ids: np.ndarray, text_bytes: int) -> None:
        if not parts:
            self.stats.discard("unanswered")
            return
        self.stats.keep(sum(map(len, parts)), text_bytes)
        self.stats.weighted_tokens += sum(int(np.count_nonzero(part["weight"])) for part in parts)
        self.stats.cut_conversations += len(parts) > 1
        self.stats.turns_without_loss += sum(not part["weight"].any() for part in _parts_of(ids))

    @property
    def _n_pending(self) -> int:
        return sum(map(len, self._pending))

    def _flush(self) -> np.ndarray:
        """Returns the pending conversations as one example; their segments count from 1, and padding is segment 0."""
        example = np.zeros(self._layout.example_tokens, self._pending[0].dtype)
        example["id"] = self._layout.padding
        end = 0
        for number, part in enumerate(self._pending, start=1):
            example[end : end + len(part)] = part
            example["segment"][end : end + len(part)] = number
            end += len(part)
        self.stats.padding_tokens += len(example) - end
        self.stats.examples += 1
        self._pending = []
        return example

    def resume_point(self) -> ResumePoint:
        """Returns where to resume after the examples made so far."""
        return ResumePoint(self._position, self._offset, self.stats.copy())

    def finish(self, end: DocumentPosition) -> Iterator[np.ndarray]:
        """Yields the last example, if any conversation is left."""
        self._position = end
        if self._pending:
            yield self._flush()
        self.stats.check(self._layout.example_tokens)


def _parts_of(ids: np.ndarray) -> list[np.ndarray]:
    return np.split(ids, np.flatnonzero(np.diff(ids["segment"])) + 1) if len(ids) else []


def packer_of(
    layout: ShardLayout, start: ResumePoint, n_finished: int
) -> ExamplePacker | DocumentPacker | ConversationPacker:
    """Returns the packer of a layout, which resumes after `n_finished` examples of earlier runs."""
    if layout.conversations:
        return ConversationPacker(layout, start)
    if layout.example_tokens is None:
        return DocumentPacker(layout, start)
    return ExamplePacker(layout, start, n_finished * layout.example_tokens - start.offset)


class ShuffleBuffer:
    """Shuffles a stream of examples through a buffer. The same examples always come in the same order."""

    def __init__(self, size: int) -> None:
        """Holds `size` examples in memory; an example moves forward by at most as many places. 0 changes nothing."""
        self._size = size
        self._random = random.Random(0)
        self._examples: list[np.ndarray] = []

    def push(self, example: np.ndarray) -> Iterator[np.ndarray]:
        """Adds an example, and yields the one that makes room for it once the buffer is full."""
        if not self._size:
            yield example
        elif len(self._examples) < self._size:
            self._examples.append(example)
        else:
            drawn = self._random.randrange(self._size)
            example, self._examples[drawn] = self._examples[drawn], example
            yield example

    def drain(self) -> Iterator[np.ndarray]:
        """Yields the examples that are left."""
        self._random.shuffle(self._examples)
        yield from self._examples
