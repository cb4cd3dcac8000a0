"""From documents to token ids to examples of one length, with an account of every document and token on the way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from data.text.cleaning import detokenize_wikitext, fix_text
from data.text.documents import Document, explain
from data.tokenization.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 19
"""Text that is encoded in one go: enough to keep the tokenizer's threads busy, little enough to hold many in memory."""


@dataclass
class PackingStats:
    """What became of the documents and tokens; it is filled in while they stream past.

    Attributes:
        documents_read: documents met, readable or not.
        documents_kept: documents whose tokens are in the examples.
        discarded_undecodable: documents that are not UTF-8, or JSON without a text.
        discarded_empty: documents without a single token after cleaning.
        discarded_short: documents of fewer tokens than the minimum size.
        discarded_duplicate: documents that were met before, where such are left out.
        text_bytes: UTF-8 bytes of the kept documents, after cleaning.
        text_tokens: tokens of the kept documents.
        separator_tokens: one after every kept document.
        padding_tokens: what fills up the last example.
        examples: examples made.
        problems: the first few undecodable documents, as "identity: problem".
    """

    documents_read: int = 0
    documents_kept: int = 0
    discarded_undecodable: int = 0
    discarded_empty: int = 0
    discarded_short: int = 0
    discarded_duplicate: int = 0
    text_bytes: int = 0
    text_tokens: int = 0
    separator_tokens: int = 0
    padding_tokens: int = 0
    examples: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def discarded(self) -> int:
        """Documents that were left out, for whatever reason."""
        return self.discarded_undecodable + self.discarded_empty + self.discarded_short + self.discarded_duplicate

    def check(self, example_tokens: int) -> None:
        """Asserts that every document and every token is accounted for."""
        assert self.documents_read == self.documents_kept + self.discarded, asdict(self)
        tokens = self.text_tokens + self.separator_tokens + self.padding_tokens
        assert tokens == self.examples * example_tokens, asdict(self)


MOST_PROBLEMS = 20


@dataclass(frozen=True)
class EncodedText:
    """A document's token ids, [length], and the UTF-8 bytes of the text that they stand for."""

    ids: np.ndarray
    text_bytes: int


@dataclass(frozen=True)
class TextEncoder:
    """Cleans and encodes batches of texts: the costly part of the work, and all that another process has to know."""

    tokenizer: Tokenizer
    ftfy: bool = False
    wikitext_detokenize: bool = False

    @property
    def cleans(self) -> bool:
        """Says whether texts are changed before they are encoded, so that they must not be cut before."""
        return self.ftfy or self.wikitext_detokenize

    def __call__(self, texts: list[str]) -> list[EncodedText]:
        cleaned = [self._clean(text) for text in texts]
        return [
            EncodedText(np.array(ids, dtype=np.int32), len(text.encode("utf-8")))
            for ids, text in zip(self.tokenizer.encode_batch(cleaned), cleaned, strict=True)
        ]

    def _clean(self, text: str) -> str:
        if self.ftfy:
            text = fix_text(text)
        return detokenize_wikitext(text) if self.wikitext_detokenize else text


def readable_texts(documents: Iterable[Document], account: PackingStats) -> Iterator[str]:
    """Yields the texts of the documents that have one, and notes the others."""
    for document in documents:
        account.documents_read += 1
        if document.text is not None:
            yield document.text
            continue
        account.discarded_undecodable += 1
        if len(account.problems) < MOST_PROBLEMS:
            account.problems.append(explain(document))


def batch_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Groups texts so that a batch has about `BATCH_CHARACTERS` characters; a longer text is a batch of its own."""
    batch, characters = [], 0
    for text in texts:
        if batch and characters + len(text) > BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def encode_texts(
    texts: Iterable[str], map_batches: Callable[[Iterator[list[str]]], Iterator[list[EncodedText]]]
) -> Iterator[EncodedText]:
    """Encodes texts in their order; `map_batches` says where: in this process or in others."""
    for encoded in map_batches(batch_texts(texts)):
        yield from encoded


def keep_documents(encoded: Iterable[EncodedText], minimum_tokens: int, account: PackingStats) -> Iterator[np.ndarray]:
    """Yields the ids of the documents that are not empty and have at least `minimum_tokens`, and notes the others."""
    for document in encoded:
        if not len(document.ids):
            account.discarded_empty += 1
        elif len(document.ids) < minimum_tokens:
            account.discarded_short += 1
        else:
            account.documents_kept += 1
            account.text_tokens += len(document.ids)
            account.text_bytes += document.text_bytes
            yield document.ids


def join_documents(
    documents: Iterable[np.ndarray], example_tokens: int, separator: int, padding: int, account: PackingStats
) -> Iterator[np.ndarray]:
    """Joins documents into one stream, a separator after each, and cuts it into examples of one length.

    What is left of a document goes on in the next example; only the very last example is filled up with `padding`.

    Args:
        documents: token ids, [length] each.
        example_tokens: length of an example, n_ctx + 1.
        separator: id that ends every document.
        padding: id that fills up the last example.
        account: notes separators, padding and examples.

    Yields:
        int32 ids, [example_tokens].
    """
    pending, pending_tokens = [], 0
    end = np.array([separator], dtype=np.int32)
    for document in documents:
        account.separator_tokens += 1
        pending += [document, end]
        pending_tokens += len(document) + 1
        if pending_tokens >= example_tokens:
            stream = np.concatenate(pending)
            whole = pending_tokens // example_tokens * example_tokens
            yield from _cut(stream[:whole], example_tokens, account)
            pending, pending_tokens = [stream[whole:]], pending_tokens - whole
    if pending_tokens:
        account.padding_tokens = example_tokens - pending_tokens
        filling = np.full(account.padding_tokens, padding, dtype=np.int32)
        yield from _cut(np.concatenate([*pending, filling]), example_tokens, account)


def shuffle_examples(examples: Iterable[np.ndarray], window_examples: int) -> Iterator[np.ndarray]:
    """Mixes examples, so that those that follow each other come from many documents; the same input, the same order.

    Args:
        examples: token ids, [length] each.
        window_examples: examples held in memory; an example moves forward by no more.
    """
    draw = random.Random(0)
    window = []
    for example in examples:
        if len(window) < window_examples:
            window.append(example)
            continue
        drawn = draw.randrange(window_examples)
        yield window[drawn]
        window[drawn] = example
    draw.shuffle(window)
    yield from window


def _cut(stream: np.ndarray, example_tokens: int, account: PackingStats) -> Iterator[np.ndarray]:
    for example in stream.reshape(-1, example_tokens):
        account.examples += 1
        yield example
