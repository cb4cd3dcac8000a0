"""An engine as a server needs it: prompts in single file, and the end of a text among its tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from models.kernels.sampling import SamplingParams
from runtime.generation.engine import ActiveSequence, Engine, TokenChunk


@dataclasses.dataclass
class _Text:
    """What a row writes."""

    job: ActiveSequence
    written: tuple[int, ...] = ()


class ServedEngine:
    """An engine that reads its prompts one at a time, and tells of the eos that ends a text as of any token.

    Reading several prompts at once takes a program for each number of prompts and length, and everybody waits while it
    is built; and the last digits of what a prompt comes to would depend on who else comes at the moment. Clients that
    score what they have echoed leave out the last token, which was written: there must be one.

    Attributes:
        n_rows: see `Engine`.
        n_ctx: see `Engine`.
    """

    def __init__(self, engine: Engine, eos_id: int) -> None:
        self.n_rows, self.n_ctx = engine.n_rows, engine.n_ctx
        self._engine = engine
        self._eos_id = eos_id
        self._texts: dict[int, _Text] = {}

    def admit(self, jobs: Mapping[int, ActiveSequence]) -> None:
        """See `Engine.admit`."""
        for row, job in jobs.items():
            self._engine.admit({row: job})
            self._texts[row] = _Text(job)

    def advance(self, n_turns: int) -> dict[int, TokenChunk]:
        """See `Engine.advance`; of a job without `n_top` the score of an eos is nan."""
        return {row: self._noted(self._texts[row], piece) for row, piece in self._engine.advance(n_turns).items()}

    def _noted(self, text: _Text, piece: TokenChunk) -> TokenChunk:
        text.written += piece.tokens
        return self._with_eos(text, piece) if piece.end == "stop" else piece

    def _with_eos(self, text: _Text, piece: TokenChunk) -> TokenChunk:
        log_prob, top = math.nan, ()
        if text.job.n_top:
            scored = self._engine.score((*text.job.tokens, *text.written, self._eos_id), text.job.n_top)
            log_prob, top = scored.log_probs[-1], scored.top[-1]
        return TokenChunk((*piece.tokens, self._eos_id), (*piece.log_probs, log_prob), (*piece.top, top), piece.end)

    def release(self, row: int) -> None:
        """See `Engine.release`."""
        self._engine.release(row)
        del self._texts[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """See `Engine.score`."""
        return self._engine.score(tokens, n_top)


def warm(engine: Engine) -> None:
    """Lets it build what nearly every answer needs, before anybody waits for one."""
    engine.admit({0: ActiveSequence((0,), SamplingParams(), 0, 1)})
    engine.advance(1)
    engine.release(0)
