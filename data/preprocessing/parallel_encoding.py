"""Encoding texts on all cores: a pool of processes that is always kept a few batches ahead, and never more.

One process reads and hands out, the others encode; what comes back is in the order in which it went out, so that
nothing depends on the number of processes. What waits is bounded in number and, but for single long texts, in size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from data.preprocessing.encoding import TextEncoder
from data.preprocessing.process_pool import WAITING_PER_PROCESS, pool_of
from data.text.documents import Document

BATCH_CHARACTERS = 1 << 18
"""Text that goes to a process at once: a fraction of a second's work, so that all of them end at about one time."""
BATCH_TEXTS = 4096

Tag = TypeVar("Tag")


@dataclass(frozen=True)
class EncodedBatch:
    """Texts as token ids, packed so that a process hands over two arrays however many texts there are.

    Attributes:
        ids: int32, [tokens of all texts].
        ends: int64, [texts], where each text's ids end.
        text_bytes: int64, [texts], the UTF-8 bytes that the ids stand for.
    """

    ids: np.ndarray
    ends: np.ndarray
    text_bytes: np.ndarray

    def texts(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yields the ids and the bytes of each text."""
        starts = np.concatenate([[0], self.ends[:-1]]) if len(self.ends) else self.ends
        for start, end, count in zip(starts.tolist(), self.ends.tolist(), self.text_bytes.tolist(), strict=True):
            yield self.ids[start:end], count


@dataclass(frozen=True)
class Tagged(Generic[Tag]):
    """A text to encode, or None, and what shall come back with its ids."""

    tag: Tag
    text: str | None


def encode_batch(encoder: TextEncoder, texts: Sequence[str]) -> EncodedBatch:
    """Encodes some texts in this process."""
    encoded = encoder(list(texts))
    ids = [text.ids for text in encoded]
    return EncodedBatch(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        np.cumsum([len(part) for part in ids], dtype=np.int64),
        np.array([text.text_bytes for text in encoded], dtype=np.int64),
    )


def cut(document: Document, encoder: TextEncoder) -> Iterator[str]:
    """Cuts a long text, so that all processes share the work on it, where the cut changes no token."""
    parts = [document.text] if document.long_text is None else document.long_text.parts()
    if encoder.cleans:  # what is repaired, is repaired as a whole
        yield "".join(parts)
        return
    rest = ""
    for part in parts:
        *pieces, rest = encoder.tokenizer.pieces(rest + part)
        yield from pieces
    yield rest


def encode_all(
    texts: Iterable[Tagged[Tag]], encoder: TextEncoder, processes: int
) -> Iterator[tuple[Tag, np.ndarray | None, int]]:
    """Encodes texts in their order, in so many processes; 1 is this one, 0 is one a core.

    Yields:
        Each tag with the int32 ids of its text, [tokens], and the bytes of that text; None and 0 without a text.

    Raises:
        DataError: a process was ended from outside.
    """
    with _submitting(encoder, processes or _cores()) as (submit, most_waiting):
        waiting: deque[tuple[list[tuple[Tag, bool]], Callable[[], EncodedBatch]]] = deque()
        for batch in batch_texts(texts):
            tags = [(item.tag, item.text is not None) for item in batch]  # without the texts: they would fill memory
            waiting.append((tags, submit([item.text for item in batch if item.text is not None])))
            if len(waiting) >= most_waiting:
                yield from _unpack(*waiting.popleft())
        while waiting:
            yield from _unpack(*waiting.popleft())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batch_texts(texts: Iterable[Tagged[Tag]]) -> Iterator[list[Tagged[Tag]]]:
    """Groups texts so that a batch is worth a process's while; a longer text is a batch of its own."""
    batch, characters = [], 0
    for item in texts:
        length = len(item.text or "")
        if batch and (characters + length > BATCH_CHARACTERS or len(batch) >= BATCH_TEXTS):
            yield batch
            batch, characters = [], 0
        batch.append(item)
        characters += length
    if batch:
        yield batch


def _unpack(
    tags: Sequence[tuple[Tag, bool]], result: Callable[[], EncodedBatch]
) -> Iterator[tuple[Tag, np.ndarray | None, int]]:
    texts = result().texts()
    for tag, has_text in tags:
        yield (tag, *(next(texts) if has_text else (None, 0)))


Submit = Callable[[Sequence[str]], Callable[[], EncodedBatch]]


@contextmanager
def _submitting(encoder: TextEncoder, processes: int) -> Iterator[tuple[Submit, int]]:
    """Gives what takes texts and returns where to ask for their ids, and how many batches may wait there."""
    if processes == 1:
        yield lambda texts: lambda: encode_batch(encoder, texts), 1
        return
    with pool_of(processes, _keep_encoder, encoder) as executor:
        yield lambda texts: executor.submit(_encode, texts).result, WAITING_PER_PROCESS * processes


_worker_encoder: TextEncoder


def _keep_encoder(encoder: TextEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is parallel enough


def _encode(texts: Sequence[str]) -> EncodedBatch:
    return encode_batch(_worker_encoder, texts)
