"""The engine as the server uses it: prompts are prefilled one by one, and the end of a text counts as a token of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from models.kernels.sampling import SamplingParams
from runtime.generation.engine import Engine, TokenChunk
from runtime.generation.requests import GenerationRequest


@dataclasses.dataclass
class _Row:
    """The text of a row so far."""

    request: GenerationRequest
    new_tokens: tuple[int, ...] = ()


class ServingEngine:
    """Wraps an engine: prefills one prompt at a time, and reports the token that ends a text like any other.

    Prefilling several prompts at once would need a program for each number of prompts and length, and every client
    would wait while it compiles; the last digits of a prompt's scores would also depend on the other requests. Clients
    that score an echoed prompt drop the last token because they assume that it was generated, so there must be one.

    Attributes:
        n_rows: see `Engine`.
        n_ctx: see `Engine`.
    """

    def __init__(self, engine: Engine) -> None:
        """Takes an engine without active rows."""
        self.n_rows, self.n_ctx = engine.n_rows, engine.n_ctx
        self._engine = engine
        self._rows: dict[int, _Row] = {}

    def prefill(self, requests: Mapping[int, GenerationRequest]) -> None:
        """See `Engine.prefill`."""
        for row, request in requests.items():
            self._engine.prefill({row: request})
            self._rows[row] = _Row(request)

    def decode_steps(self, n_steps: int) -> dict[int, TokenChunk]:
        """See `Engine.decode_steps`; the score of an end is nan for a request without `n_top`."""
        chunks = self._engine.decode_steps(n_steps)
        return {row: self._with_end(self._rows[row], chunk) for row, chunk in chunks.items()}

    def _with_end(self, row: _Row, chunk: TokenChunk) -> TokenChunk:
        row.new_tokens += chunk.tokens
        if chunk.end_id is None:
            return chunk
        log_prob, top = math.nan, ()
        if row.request.n_top:
            scored = self._engine.score((*row.request.prompt_tokens, *row.new_tokens, chunk.end_id), row.request.n_top)
            log_prob, top = scored.log_probs[-1], scored.top[-1]
        tokens, log_probs = (*chunk.tokens, chunk.end_id), (*chunk.log_probs, log_prob)
        return dataclasses.replace(chunk, tokens=tokens, log_probs=log_probs, top=(*chunk.top, top))

    def release(self, row: int) -> None:
        """See `Engine.release`."""
        self._engine.release(row)
        del self._rows[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """See `Engine.score`."""
        return self._engine.score(tokens, n_top)


def warm_up(engine: Engine) -> None:
    """Builds the programs that nearly every request needs, before the first one arrives."""
    engine.prefill({0: GenerationRequest((0,), SamplingParams(), 0, 1)})
    engine.decode_steps(1)
    engine.release(0)
