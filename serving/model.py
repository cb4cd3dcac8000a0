"""The model that is served: an engine and the meaning of its tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from data.dialogue.templates import ChatTemplate
from data.tokenization.tokenizer import Tokenizer
from runtime.generation.engine import Engine
from runtime.generation.reranking import Scores
from serving.protocol import ChatSettings


@dataclasses.dataclass(frozen=True)
class AnswerRanking:
    """How the answers of a chat are chosen among candidates.

    Attributes:
        n_candidates: how many are drawn.
        scores: the scores of responses to the turns before them; only the thread of the engine may call it.
    """

    n_candidates: int
    scores: Callable[[Sequence[str], Sequence[str]], list[Scores]]


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that clients can ask for.

    Attributes:
        name: as clients name it.
        engine: without active rows, and used by the server alone.
        tokenizer: of the run.
        eos_id: the token between documents: it ends a text, and stands for an empty prompt where texts begin with none.
        template: how the messages of a chat become tokens.
        chat_settings: how a person is answered who does not say how.
        ranking: of the answers of a chat; None: there are no candidates.
        end_ids: the tokens besides eos that end a text.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    eos_id: int
    template: ChatTemplate
    chat_settings: ChatSettings
    ranking: AnswerRanking | None = None
    end_ids: tuple[int, ...] = ()

    @functools.cached_property
    def bytes_of(self) -> Callable[[int], bytes]:
        """Returns the bytes of a token; those of a special token are its name."""
        return functools.cache(self.tokenizer.bytes_of)

    @functools.cached_property
    def reading_special_tokens(self) -> ServedModel:
        """The same model, for prompts in which special tokens count."""
        return dataclasses.replace(self, tokenizer=self.tokenizer.reading_special_tokens)
