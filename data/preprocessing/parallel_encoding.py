"""Encoding texts on all cores.

One process reads and hands out batches, the others encode them. Results come back in order, so that nothing depends on
the number of processes, and only a few batches wait at a time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from data.parallel.process_pool import core_count, in_order
from data.tokenization.encoded_batch import EncodedBatch

BATCH_CHARACTERS = 1 << 18
"""Text that a process gets at once: a fraction of a second's work, so that all processes finish at about one time."""
BATCH_TEXTS = 4096

Encoder = Callable[[Sequence[str]], EncodedBatch]
Tag = TypeVar("Tag")


def encode_all(
    tagged_texts: Iterable[tuple[Tag, str | None]], encoder: Encoder, processes: int
) -> Iterator[tuple[Tag, np.ndarray | None, int]]:
    """Encodes texts in their order.

    Args:
        tagged_texts: texts, each with a tag that comes back with its ids; None for no text.
        encoder: what encodes.
        processes: processes that encode; 1 is this one, 0 means one per core.

    Yields:
        Each tag with the int32 ids of its text, [tokens], and the bytes of the text; None and 0 without a text.

    Raises:
        DataError: a process was killed.
    """
    processes = processes or core_count()
    encode = encoder if processes == 1 else _encode
    waiting: deque[list[tuple[Tag, bool]]] = deque()

    def tasks() -> Iterator[Callable[[], EncodedBatch]]:
        for batch in batch_texts(tagged_texts):
            waiting.append([(tag, text is not None) for tag, text in batch])  # without texts, which would fill memory
            yield partial(encode, [text for _, text in batch if text is not None])

    for encoded in in_order(tasks(), processes, _set_encoder, encoder):
        texts = encoded.texts()
        for tag, has_text in waiting.popleft():
            yield (tag, *(next(texts) if has_text else (None, 0)))


def batch_texts(tagged_texts: Iterable[tuple[Tag, str | None]]) -> Iterator[list[tuple[Tag, str | None]]]:
    """Groups texts so that a batch is worth handing to a process; a longer text is a batch of its own."""
    batch, characters = [], 0
    for tag, text in tagged_texts:
        length = len(text or "")
        if batch and (characters + length > BATCH_CHARACTERS or len(batch) >= BATCH_TEXTS):
            yield batch
            batch, characters = [], 0
        batch.append((tag, text))
        characters += length
    if batch:
        yield batch


_worker_encoder: Encoder


def _set_encoder(encoder: Encoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is parallel enough


def _encode(texts: Sequence[str]) -> EncodedBatch:
    return _worker_encoder(texts)
