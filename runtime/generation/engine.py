"""Engines that generate texts side by side: each row of a batch is a text that may start and end at any time.

The programs are in `programs`, and which request gets which row is decided in `scheduler`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from configs.schema import RunConfig
from models.kernels.sampling import MAX_TOP, SamplingParams, param_arrays
from models.kernels.vocabulary import IdRanges
from runtime.generation.programs import (
    RowState,
    build_decode_steps,
    build_decoder,
    build_generate,
    build_prefill,
    build_scores,
)
from runtime.generation.requests import GenerationRequest
from runtime.mesh.placement import Placement

SHORTEST_PROMPT = 32  # programs are built for this length, and for powers of two above it

Step = Callable[..., dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TokenChunk:
    """The tokens that a row has generated since the last call.

    Attributes:
        tokens: without the token that ends the text.
        log_probs: of each token, under the model itself: before temperature, penalties and filters.
        top: at each position the `n_top` most likely tokens with their log-probabilities, most likely first.
        finish_reason: "stop" if the text has ended, "length" if the token limit is reached; None: it is not finished.
        end_id: the token that ended the text; None: none did.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str | None
    end_id: int | None = None


class Engine(Protocol):
    """Generates texts in rows. Only one thread at a time may use it.

    Attributes:
        n_rows: how many texts are generated at once.
        n_ctx: the most tokens of a text, its prompt included.
    """

    n_rows: int
    n_ctx: int

    def prefill(self, requests: Mapping[int, GenerationRequest]) -> None:
        """Assigns requests to free rows and reads their prompts."""

    def decode_steps(self, n_steps: int) -> dict[int, TokenChunk]:
        """Generates up to `n_steps` tokens in every row whose text is not finished; returns them by row."""

    def release(self, row: int) -> None:
        """Frees a row, whether its text is finished or not."""

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """Returns the log-probabilities of a text's tokens, from the second on."""


def padded_length(n_tokens: int, n_ctx: int) -> int:
    """Returns the prompt length of the program that reads a prompt of `n_tokens`."""
    length = SHORTEST_PROMPT
    while length < n_tokens:
        length *= 2
    return min(length, n_ctx)


def _n_padded_rows(n_requests: int) -> int:
    """Returns the number of rows of the program that prefills this many prompts: a power of two."""
    return 1 << (n_requests - 1).bit_length()


def prompt_arrays(requests: Sequence[GenerationRequest], n_ctx: int) -> list[np.ndarray]:
    """Returns the inputs of `build_prefill` for requests, without the rows; padded to a power of two requests."""
    n_rows = _n_padded_rows(len(requests))
    length = padded_length(max(len(request.prompt_tokens) for request in requests), n_ctx)
    tokens, row_inputs = np.zeros((n_rows, length), np.int32), np.zeros((4, n_rows), np.int32)
    row_inputs[0] = 1
    for row, request in enumerate(requests):
        n_prompt_tokens = len(request.prompt_tokens)
        tokens[row, :n_prompt_tokens] = request.prompt_tokens
        row_inputs[:, row] = n_prompt_tokens, request.max_length, request.seed, request.n_top
    sampling = [request.sampling for request in requests] + [SamplingParams()] * (n_rows - len(requests))
    return [tokens, row_inputs, *param_arrays(sampling)]


@dataclasses.dataclass
class ActiveSequence:
    """A request that has a row.

    Attributes:
        request: the request itself.
        length: tokens of the text that the host has read back, prompt included.
        is_finished: whether no more tokens follow.
    """

    request: GenerationRequest
    length: int
    is_finished: bool = False

    @staticmethod
    def of(request: GenerationRequest) -> ActiveSequence:
        """Returns the sequence before its first new token."""
        return ActiveSequence(request, len(request.prompt_tokens))

    def next_chunk(self, outputs: Mapping[str, np.ndarray], row: int) -> TokenChunk:
        """Returns what is new in the outputs of a program, in which the sequence has this row."""
        length, ended = int(outputs["lengths"][row]), int(outputs["ended"][row])
        new = slice(self.length, length)
        self.length = length
        self.is_finished = ended > 0 or length == self.request.max_length
        return TokenChunk(
            tuple(outputs["tokens"][row, new].tolist()),
            tuple(outputs["log_probs"][row, new].tolist()),
            _top(outputs["top_tokens"][row, new], outputs["top_log_probs"][row, new], self.request.n_top),
            "stop" if ended else "length" if self.is_finished else None,
            ended - 1 if ended else None,
        )


def _top(tokens: np.ndarray, log_probs: np.ndarray, n_top: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """Returns the first `n_top` pairs at each position, from two arrays [positions, top]."""
    return tuple(
        tuple(zip(ids.tolist(), values.tolist(), strict=True))
        for ids, values in zip(tokens[:, :n_top], log_probs[:, :n_top], strict=True)
    )


class ContinuousBatchEngine:
    """An engine whose rows, KV cache included, stay on the devices between calls.

    Attributes:
        n_rows: see `Engine`.
        n_ctx: see `Engine`.
    """

    def __init__(
        self,
        config: RunConfig,
        placement: Placement,
        n_rows: int,
        synchronized: Callable[[Step], Step],
        unused: IdRanges,
    ) -> None:
        """Builds the decoding program; see `build_engine`."""
        self.n_rows, self.n_ctx = n_rows, config.model.n_ctx
        self._config, self._placement, self._synchronized, self._unused = config, placement, synchronized, unused
        self._row_state = RowState.of(build_decoder(config, unused), placement, n_rows)
        self._decode_steps = synchronized(build_decode_steps(self._row_state))
        self._active: dict[int, ActiveSequence] = {}

    @functools.cache  # noqa: B019 -- an engine lives as long as its programs
    def _prefill(self, n_prompts: int, length: int) -> Step:
        return self._synchronized(build_prefill(self._row_state, n_prompts, length))

    @functools.cache  # noqa: B019
    def _scores(self, length: int) -> Step:
        return self._synchronized(build_scores(self._config, self._placement, 1, length, self._unused, MAX_TOP))

    def prefill(self, requests: Mapping[int, GenerationRequest]) -> None:
        """See `Engine.prefill`."""
        assert all(0 <= row < self.n_rows and row not in self._active for row in requests), "rows are taken"
        arrays = prompt_arrays(list(requests.values()), self.n_ctx)
        n_prompts, length = arrays[0].shape
        rows = np.full(n_prompts, self.n_rows, np.int32)
        rows[: len(requests)] = list(requests)
        self._prefill(n_prompts, length)(*arrays, rows)
        self._active |= {row: ActiveSequence.of(request) for row, request in requests.items()}

    def decode_steps(self, n_steps: int) -> dict[int, TokenChunk]:
        """See `Engine.decode_steps`."""
        unfinished = _unfinished(self._active)
        if not unfinished:
            return {}
        limits = np.zeros(self.n_rows, np.int32)
        for row, sequence in unfinished.items():
            limits[row] = sequence.request.max_length
        outputs = self._decode_steps(np.int32(n_steps), limits)
        return {row: sequence.next_chunk(outputs, row) for row, sequence in unfinished.items()}

    def release(self, row: int) -> None:
        """See `Engine.release`."""
        del self._active[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """See `Engine.score`."""
        padded = np.zeros((1, padded_length(len(tokens), self.n_ctx)), np.int32)
        padded[0, : len(tokens)] = tokens
        scored = self._scores(padded.shape[1])(padded, np.roll(padded, -1, 1))
        scored_positions, labels = slice(0, len(tokens) - 1), tuple(tokens[1:])
        log_probs = tuple(scored["log_probs"][0, scored_positions].tolist())
        top = _top(scored["top_tokens"][0, scored_positions], scored["top_log_probs"][0, scored_positions], n_top)
        return TokenChunk(labels, log_probs, tuple(map(_with_own, top, labels, log_probs)), None)


def _with_own(top: Sequence[tuple[int, float]], label: int, log_prob: float) -> tuple[tuple[int, float], ...]:
    """Gives a label the same log-probability among the most likely tokens as it has itself.

    Both are rounded, and lm-evaluation-harness takes a label for the most likely token only if the two are equal.
    """
    return tuple((token, log_prob if token == label else other) for token, other in top)


def _unfinished(active: Mapping[int, ActiveSequence]) -> dict[int, ActiveSequence]:
    return {row: sequence for row, sequence in active.items() if not sequence.is_finished}


class StaticBatchEngine:
    """An engine for TPUs that generates each text in one call, from prompt to end.

    It keeps nothing on the devices between calls, and starts no text before the previous batch is finished.

    Attributes:
        n_rows: see `Engine`.
        n_ctx: see `Engine`.
    """

    def __init__(self, n_ctx: int, n_rows: int, build: Callable[[int, int], Step]) -> None:
        """Takes the function that builds the program for a number of rows and a prompt length."""
        self.n_rows, self.n_ctx, self._build = n_rows, n_ctx, functools.lru_cache(maxsize=None)(build)
        self._active: dict[int, ActiveSequence] = {}
        # The program for a full batch of short prompts: building one makes the model's variables.
        self._build(_n_padded_rows(n_rows), padded_length(1, n_ctx))

    def prefill(self, requests: Mapping[int, GenerationRequest]) -> None:
        """Assigns requests to rows; their prompts are read when they are decoded."""
        self._active |= {row: ActiveSequence.of(request) for row, request in requests.items()}

    def decode_steps(self, n_steps: int) -> dict[int, TokenChunk]:
        """See `Engine.decode_steps`; generates all tokens of each text, whatever `n_steps` is."""
        unfinished = _unfinished(self._active)
        if not unfinished:
            return {}
        arrays = prompt_arrays([sequence.request for sequence in unfinished.values()], self.n_ctx)
        outputs = self._build(*arrays[0].shape)(*arrays)
        return {row: sequence.next_chunk(outputs, i) for i, (row, sequence) in enumerate(unfinished.items())}

    def release(self, row: int) -> None:
        """See `Engine.release`."""
        del self._active[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """Is not supported: no server runs on a TPU."""
        raise NotImplementedError("scoring texts is not supported on a TPU")


def build_engine(
    config: RunConfig,
    placement: Placement,
    n_rows: int,
    synchronized: Callable[[Step], Step] = lambda step: step,
    unused: IdRanges = (),
) -> Engine:
    """Builds the engine of a run's model.

    This makes the model's variables, so it must be done before weights are restored.

    Args:
        config: the run.
        placement: the devices and the layout.
        n_rows: how many texts are generated at once; each takes a KV cache of n_ctx positions.
        synchronized: wraps a step so that the processes of a run wait for one another; see
            `ProcessGroup.synchronized`.
        unused: ids that are no token and never generated; see `Tokenizer.unused_ids`.
    """
    return ContinuousBatchEngine(config, placement, n_rows, synchronized, unused)


def build_static_batch_engine(
    config: RunConfig,
    placement: Placement,
    n_rows: int,
    synchronized: Callable[[Step], Step] = lambda step: step,
    unused: IdRanges = (),
) -> Engine:
    """Builds an engine whose programs keep nothing between calls, as a TPU needs; see `build_engine`."""
    return StaticBatchEngine(
        config.model.n_ctx, n_rows, lambda *size: synchronized(build_generate(config, placement, *size, unused))
    )
