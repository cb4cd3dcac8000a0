"""What is served: an engine, and what its tokens mean."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from data.tokenization.tokenizer import Tokenizer
from runtime.generation.engine import Engine


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that clients can ask for.

    Attributes:
        name: by which they do.
        engine: writes; its rows are free, and nobody else uses it.
        tokenizer: of the texts that it has learned from.
        eos_id: stands between documents: it ends an answer, and an empty prompt is one.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    eos_id: int

    @functools.cached_property
    def bytes_of(self) -> Callable[[int], bytes]:
        """A token's bytes; those of a special one are its name."""
        return functools.cache(self.tokenizer.bytes_of)

    def text_of(self, token: int) -> bytes:
        """What a token adds to an answer: the eos that ends it is not read."""
        return b"" if token == self.eos_id else self.bytes_of(token)
