"""From text to token ids: cleaning and encoding, the costly part of preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.text.cleaning import detokenize_wikitext, fix_text
from data.text.documents import Document
from data.tokenization.encoded_batch import EncodedBatch
from data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextEncoder:
    """Cleans and encodes batches of texts.

    Attributes:
        tokenizer: encodes.
        ftfy: whether to repair mis-decoded text.
        wikitext_detokenize: whether to undo WikiText's tokenization.
    """

    tokenizer: Tokenizer
    ftfy: bool = False
    wikitext_detokenize: bool = False

    @property
    def unread_tokens(self) -> list[str]:
        """The special tokens that texts may spell without having their ids."""
        return [] if self.tokenizer.reads_special_tokens else self.tokenizer.special_tokens

    def __call__(self, texts: Sequence[str]) -> EncodedBatch:
        """Returns the ids of the texts."""
        cleaned = [self._clean(text) for text in texts]
        ids = [np.array(ids, dtype=np.int32) for ids in self.tokenizer.encode_batch(cleaned)]
        return EncodedBatch(
            np.concatenate(ids) if ids else np.zeros(0, np.int32),
            np.cumsum([len(part) for part in ids], dtype=np.int64),
            np.array([len(text.encode("utf-8")) for text in cleaned], dtype=np.int64),
        )

    def _clean(self, text: str) -> str:
        if self.ftfy:
            text = fix_text(text)
        return detokenize_wikitext(text) if self.wikitext_detokenize else text

    def cut(self, document: Document) -> Iterator[str]:
        """Cuts a long text where this changes no token, so that all processes share the work."""
        parts = [document.text] if document.long_text is None else document.long_text.parts()
        if self.ftfy or self.wikitext_detokenize:  # a text can only be cleaned as a whole
            yield "".join(parts)
            return
        rest = ""
        for part in parts:
            *pieces, rest = self.tokenizer.pieces(rest + part)
            yield from pieces
        yield rest
