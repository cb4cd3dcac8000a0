"""Pairs that a ranking model is trained on: a dialogue, a better and a worse response; read from JSON and encoded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.dialogue.encoding import SEGMENTED
from data.dialogue.readers import BETWEEN_TURNS
from data.text.documents import Document
from data.tokenization.encoded_batch import EncodedBatch
from data.tokenization.tokenizer import Tokenizer


class Pair(NamedTuple):
    """A dialogue with two responses.

    Attributes:
        turns: the turns before the response.
        better: the response that should score higher.
        worse: the other response.
    """

    turns: Sequence[str]
    better: str
    worse: str

    def keys(self) -> dict[str, object]:
        """Returns the pair as keys of JSON."""
        return {"context": list(self.turns), "better": self.better, "worse": self.worse}


def pairs_of(value: object) -> Iterator[tuple[str | None, str | None]]:
    """Yields a JSON value as a text that `PairEncoder` takes, or None and why it cannot be used.

    A value is a pair, such as {"context": ["Hi", "Hello"], "better": "How are you?", "worse": "No"}, or a list of pairs
    that stay together where some are held out, such as those of one conversation. A context may be one string with
    ` EOS ` between its turns.
    """
    try:
        yield json.dumps([_pair(each) for each in (value if isinstance(value, list) else [value])]), None
    except ValueError as error:
        yield None, str(error)


def pairs_from_text(text: str) -> list[Pair]:
    """Returns the pairs in a text of `pairs_of`."""
    return [Pair(*values) for values in json.loads(text)]


def _pair(value: object) -> Pair:
    if not isinstance(value, Mapping):
        raise ValueError("a pair is an object with context, better and worse")
    context = value.get("context")
    turns = context.split(BETWEEN_TURNS) if isinstance(context, str) else context
    texts = [*(turns if isinstance(turns, list) else [None]), value.get("better"), value.get("worse")]
    if len(texts) < 3 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("a pair needs context (a text, or a list of turns), better and worse, none of them empty")
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair
        raise ValueError("half a surrogate pair") from None
    if texts[-2] == texts[-1]:
        raise ValueError("better and worse are the same")
    return Pair(texts[:-2], *texts[-2:])


def ranked_ids(turns: Sequence[Sequence[int]], response: Sequence[int], eos_id: int, n_tokens: int) -> list[int]:
    """Returns the ids of a dialogue as a ranker reads it: each turn with its end, then the response without.

    Args:
        turns: their ids.
        response: its ids.
        eos_id: the end of text.
        n_tokens: only the last ids, this many.

    Source: Gao et al. 2020, Dialogue Response Ranking Training with Large-Scale Human Feedback Data, and its program.
    """
    return [*(token for turn in turns for token in (*turn, eos_id)), *response][-n_tokens:]


@dataclass(frozen=True)
class PairEncoder:
    """Encodes pairs: the dialogue with the better response, then with the worse one, as the texts of one part.

    The last id of each has weight 1, and all others 0. The end of text follows, so that no example ends with such an
    id, which would be a label and no token.

    Attributes:
        tokenizer: encodes.
        eos_id: the end of text.
        max_tokens: ids of an example; each of the two texts has less than half of them, and is cut on its left.
    """

    tokenizer: Tokenizer
    eos_id: int
    max_tokens: int

    unread_tokens: Sequence[str] = ()  # special tokens that texts spell are plain characters, and not counted

    def cut(self, document: Document) -> Iterator[str]:
        """Yields the pairs of a document as a whole."""
        yield "".join(document.parts())

    def __call__(self, texts: Sequence[str]) -> EncodedBatch:
        """Returns the ids of the pairs of each text, `SEGMENTED` [tokens] in all."""
        encoded = [self._encode(pairs_from_text(text)) for text in texts]
        return EncodedBatch(
            np.concatenate([np.zeros(0, SEGMENTED), *encoded]),
            np.cumsum([len(each) for each in encoded], dtype=np.int64),
            np.array([len(text.encode()) for text in texts], dtype=np.int64),
        )

    def _encode(self, pairs: Sequence[Pair]) -> np.ndarray:
        parts = [self._part(pair) for pair in pairs]
        for number, part in enumerate(parts):
            part["segment"] = number
        return np.concatenate(parts)

    def _part(self, pair: Pair) -> np.ndarray:
        turns = self.tokenizer.encode_batch(list(pair.turns))
        ids, ends = [], []
        for response in self.tokenizer.encode_batch([pair.better, pair.worse]):
            ids += ranked_ids(turns, response, self.eos_id, (self.max_tokens - 1) // 2)
            ends.append(len(ids) - 1)
        part = np.zeros(len(ids) + 1, SEGMENTED)
        part["id"] = [*ids, self.eos_id]
        part["weight"][ends] = 1.0
        return part
