"""From conversations to token ids with weights, cut by whole turns where they are too long for one example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from configs.errors import DataError
from data.dialogue.conversation import SYSTEM, Turn, TurnRules, from_text
from data.dialogue.templates import DIALOGPT, WEIGHTED, ChatTemplate, load_template
from data.text.documents import Document
from data.tokenization.encoded_batch import EncodedBatch
from data.tokenization.tokenizer import Tokenizer

# The ids of a conversation: of each its weight as a label, and the segment that it belongs to, 0, 1, ...
SEGMENTED = np.dtype([("id", np.int32), ("weight", np.float32), ("segment", np.int32)])


@dataclass(frozen=True)
class DialogueEncoder:
    """Encodes batches of conversations, each given as `conversation.to_text`.

    Attributes:
        tokenizer: encodes.
        eos_id: the end of text.
        max_tokens: ids of an example, which a segment may not exceed.
        chat_template: see `load_template`.
        tokenizer_folder: see `load_template`.
        rules: which turns are used.
    """

    tokenizer: Tokenizer
    eos_id: int
    max_tokens: int
    chat_template: str = DIALOGPT
    tokenizer_folder: str | None = None
    rules: TurnRules = TurnRules()

    unread_tokens: Sequence[str] = ()  # templates encode special tokens as such, and texts never spell one

    def __post_init__(self) -> None:
        """Loads the template, so that what is wrong with it is found before any conversation is read."""
        _ = self.template

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return load_template(self.chat_template, self.tokenizer, self.eos_id, self.tokenizer_folder)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        # The template holds functions, which cannot be sent to another process.
        values = (self.tokenizer, self.eos_id, self.max_tokens, self.chat_template, self.tokenizer_folder, self.rules)
        return DialogueEncoder, values

    def cut(self, document: Document) -> Iterator[str]:
        """Yields a conversation as a whole."""
        yield "".join(document.parts())

    def __call__(self, texts: Sequence[str]) -> EncodedBatch:
        """Returns the ids of the conversations, `SEGMENTED` [tokens] in all."""
        conversations = [self._encode(self.rules.apply(from_text(text))) for text in texts]
        return EncodedBatch(
            np.concatenate(conversations) if conversations else np.zeros(0, SEGMENTED),
            np.cumsum([len(each) for each in conversations], dtype=np.int64),
            np.array([sum(len(turn.text.encode()) for turn in from_text(text)) for text in texts], dtype=np.int64),
        )

    def _encode(self, turns: Sequence[Turn]) -> np.ndarray:
        parts = [np.zeros(0, SEGMENTED)]
        try:
            segments = list(self._segments(turns))
        except DataError:  # the template refuses this conversation
            segments = []
        for number, segment in enumerate(segments):
            part = np.zeros(len(segment), SEGMENTED)
            part["id"], part["weight"], part["segment"] = segment["id"], segment["weight"], number
            parts.append(part)
        return np.concatenate(parts)

    def _segments(self, turns: Sequence[Turn]) -> Iterator[np.ndarray]:
        """Yields the ids of a conversation that fits, or of runs of its turns that do.

        A run begins with the system lines and the turn before it. A turn that is left out because it fits nowhere, or
        read without loss because the turn before it does not fit beside it, comes as a segment of weight 0 as well,
        which the packer counts.
        """
        whole = _trimmed(self.template.encode(turns))
        if len(whole) <= self.max_tokens:
            yield whole
            return
        system, run = [turn for turn in turns if turn.role == SYSTEM], []
        for turn in turns[len(system) :]:
            fits = self._fits([*system, *run, turn])
            if run and not fits:
                yield _trimmed(self.template.encode([*system, *run]))
                run = [replace(run[-1], weight=0.0)]
                fits = self._fits([*system, *run, turn])
            if run and not fits:
                run, fits = [], self._fits([*system, turn])
            if not run:
                if turn.weight or not fits:
                    yield _WITHOUT_LOSS
                if not fits:
                    continue
                turn = replace(turn, weight=0.0)
            run.append(turn)
        yield _trimmed(self.template.encode([*system, *run]))

    def _fits(self, turns: Sequence[Turn]) -> bool:
        return self.template.length(turns) <= self.max_tokens


def _trimmed(encoded: np.ndarray) -> np.ndarray:
    """Returns the ids up to the last one that counts: what follows would be read for nothing."""
    counted = np.flatnonzero(encoded["weight"])
    return encoded[: counted[-1] + 1] if len(counted) else encoded[:0]


_WITHOUT_LOSS = np.zeros(1, WEIGHTED)
