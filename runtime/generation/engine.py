"""Writes many texts side by side: rows of a batch, of which each may begin and end at any time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from configs.schema import RunConfig
from models.kernels.sampling import SamplingParams, rule_arrays
from runtime.generation.programs import RowState, build_admission, build_advance, build_scores, decoder_of
from runtime.mesh.placement import Placement
from runtime.mesh.tpu_mesh import TpuPlacement
from runtime.training import tpu_steps

SHORTEST_PROMPT = 32  # that a program is built for; longer ones by powers of two

Step = Callable[..., dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ActiveSequence:
    """One text to write.

    Attributes:
        tokens: the prompt, at least one and less than n_ctx.
        rule: how tokens are chosen.
        seed: the same one gives the same text, in whatever row, company or mesh.
        n_new_tokens: the most to write, at least 1; with the prompt they fit into n_ctx.
        n_top: of so many likeliest tokens the log-probabilities are told; at most `MAX_TOP`.
    """

    tokens: tuple[int, ...]
    rule: SamplingParams
    seed: int
    n_new_tokens: int
    n_top: int = 0


@dataclasses.dataclass(frozen=True)
class TokenChunk:
    """What a row has written since it was asked before.

    Attributes:
        tokens: without the eos that ended it.
        log_probs: of each token under the model itself, before temperature, penalties and filters.
        top: of each token the `n_top` likeliest ones at its place with their log-probabilities, likeliest first.
        end: why nothing more comes: "stop", eos was chosen, or "length", all tokens are written; None: more may come.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    end: str | None


class Engine(Protocol):
    """What writes; one thread at a time may use it."""

    n_rows: int
    n_ctx: int

    def admit(self, jobs: Mapping[int, ActiveSequence]) -> None:
        """Gives jobs to free rows."""

    def advance(self, n_turns: int) -> dict[int, TokenChunk]:
        """Lets every row that has a job write up to so many tokens; a row that has ended gives nothing more."""

    def release(self, row: int) -> None:
        """Frees a row, whether it has ended or not."""

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """How likely the tokens of a text are, from the second one on."""


def padded_length(n_tokens: int, n_ctx: int) -> int:
    """The length of the program that reads so many tokens."""
    length = SHORTEST_PROMPT
    while length < n_tokens:
        length *= 2
    return min(length, n_ctx)


def _n_padded_rows(n_jobs: int) -> int:
    """Of the program that reads so many prompts: a power of two."""
    return 1 << (n_jobs - 1).bit_length()


def prompt_arrays(jobs: Sequence[ActiveSequence], n_ctx: int) -> list[np.ndarray]:
    """What the programs take of jobs: tokens, row numbers, floats and integers, as `build_admission` says; as many rows
    as the next power of two, those without a job empty.
    """
    n_rows = _n_padded_rows(len(jobs))
    length = padded_length(max(len(job.tokens) for job in jobs), n_ctx)
    tokens, row_numbers = np.zeros((n_rows, length), np.int32), np.zeros((4, n_rows), np.int32)
    row_numbers[0] = 1
    for row, job in enumerate(jobs):
        tokens[row, : len(job.tokens)] = job.tokens
        row_numbers[:, row] = len(job.tokens), len(job.tokens) + job.n_new_tokens, job.seed, job.n_top
    rules = [job.rule for job in jobs] + [SamplingParams()] * (n_rows - len(jobs))
    return [tokens, row_numbers, *rule_arrays(rules)]


@dataclasses.dataclass
class _Row:
    """A job and how far the host has been told."""

    job: ActiveSequence
    n_told: int
    has_ended: bool = False

    @property
    def limit(self) -> int:
        return len(self.job.tokens) + self.job.n_new_tokens

    def piece(self, told: Mapping[str, np.ndarray], row: int) -> TokenChunk:
        """What is new of this row in what a program has told of all."""
        length, ended = int(told["lengths"][row]), bool(told["ended"][row])
        new = slice(self.n_told, length)
        self.n_told = length
        self.has_ended = ended or length == self.limit
        return TokenChunk(
            tuple(told["tokens"][row, new].tolist()),
            tuple(told["log_probs"][row, new].tolist()),
            _top(told["top_tokens"][row, new], told["top_log_probs"][row, new], self.job.n_top),
            "stop" if ended else "length" if self.has_ended else None,
        )


def _top(tokens: np.ndarray, log_probs: np.ndarray, n_top: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """[positions, top] twice -> of each position the first `n_top` pairs."""
    return tuple(
        tuple(zip(ids.tolist(), values.tolist(), strict=True))
        for ids, values in zip(tokens[:, :n_top], log_probs[:, :n_top], strict=True)
    )


class CachedEngine:
    """An engine whose rows stay on the devices between calls.

    Attributes:
        n_rows: texts that are written at once.
        n_ctx: the most tokens of a text, its prompt among them.
    """

    def __init__(self, config: RunConfig, placement: Placement, n_rows: int, synchronized: Callable[[Step], Step]):
        self.n_rows, self.n_ctx = n_rows, config.model.n_ctx
        self._config, self._placement, self._meeting = config, placement, synchronized
        self._held = RowState.of(decoder_of(config), placement, n_rows)
        self._advance = synchronized(build_advance(self._held))
        self._rows: dict[int, _Row] = {}

    @functools.cache  # noqa: B019 -- an engine lives as long as its programs
    def _admission(self, n_prompts: int, length: int) -> Step:
        return self._meeting(build_admission(self._held, n_prompts, length))

    @functools.cache  # noqa: B019
    def _scores(self, length: int) -> Step:
        return self._meeting(build_scores(self._config, self._placement, length))

    def admit(self, jobs: Mapping[int, ActiveSequence]) -> None:
        """See `Engine.admit`."""
        assert all(0 <= row < self.n_rows and row not in self._rows for row in jobs), "rows are taken"
        arrays = prompt_arrays(list(jobs.values()), self.n_ctx)
        n_prompts, length = arrays[0].shape
        rows = np.full(n_prompts, self.n_rows, np.int32)
        rows[: len(jobs)] = list(jobs)
        self._admission(n_prompts, length)(*arrays, rows)
        self._rows |= {row: _Row(job, len(job.tokens)) for row, job in jobs.items()}

    def advance(self, n_turns: int) -> dict[int, TokenChunk]:
        """See `Engine.advance`."""
        going_on = {row: held for row, held in self._rows.items() if not held.has_ended}
        if not going_on:
            return {}
        limits = np.zeros(self.n_rows, np.int32)
        for row, held in going_on.items():
            limits[row] = held.limit
        told = self._advance(np.int32(n_turns), limits)
        return {row: held.piece(told, row) for row, held in going_on.items()}

    def release(self, row: int) -> None:
        """See `Engine.release`."""
        del self._rows[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """See `Engine.score`."""
        padded = np.zeros((1, padded_length(len(tokens), self.n_ctx)), np.int32)
        padded[0, : len(tokens)] = tokens
        scored = self._scores(padded.shape[1])(padded)
        places = slice(0, len(tokens) - 1)
        return TokenChunk(
            tuple(tokens[1:]),
            tuple(scored["log_probs"][0, places].tolist()),
            _top(scored["top_tokens"][0, places], scored["top_log_probs"][0, places], n_top),
            None,
        )


class WholeTextEngine:
    """An engine that writes each text in one call, from the prompt to the end, as a TPU does: nothing is kept between
    calls, and no text is begun before those of the call before have ended.

    Attributes:
        n_rows: texts that are written at once.
        n_ctx: the most tokens of a text, its prompt among them.
    """

    def __init__(self, n_ctx: int, n_rows: int, build: Callable[[int, int], Step]):
        self.n_rows, self.n_ctx, self._build = n_rows, n_ctx, functools.lru_cache(maxsize=None)(build)
        self._rows: dict[int, _Row] = {}
        # The program of many short prompts: to build one makes the model's variables.
        self._build(_n_padded_rows(n_rows), padded_length(1, n_ctx))

    def admit(self, jobs: Mapping[int, ActiveSequence]) -> None:
        """See `Engine.admit`."""
        self._rows |= {row: _Row(job, len(job.tokens)) for row, job in jobs.items()}

    def advance(self, n_turns: int) -> dict[int, TokenChunk]:
        """See `Engine.advance`; however few are asked for, all tokens come at once."""
        waiting = {row: held for row, held in self._rows.items() if not held.has_ended}
        if not waiting:
            return {}
        arrays = prompt_arrays([held.job for held in waiting.values()], self.n_ctx)
        told = self._build(*arrays[0].shape)(*arrays)
        return {row: held.piece(told, place) for place, (row, held) in enumerate(waiting.items())}

    def release(self, row: int) -> None:
        """See `Engine.release`."""
        del self._rows[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """Not on a TPU, where no server runs."""
        raise NotImplementedError("a TPU scores no texts")


def build_engine(
    config: RunConfig, placement: Placement, n_rows: int, synchronized: Callable[[Step], Step] = lambda step: step
) -> Engine:
    """What writes with a run's model; building it makes the model's variables, which weights are then read into.

    Args:
        config: of the run.
        placement: where it lies.
        n_rows: texts that are written at once; each takes a cache of n_ctx positions.
        meeting: makes of a step one in which the processes of a run wait for each other; see `ProcessGroup.meeting`.
    """
    if isinstance(placement, TpuPlacement):
        return WholeTextEngine(
            config.model.n_ctx,
            n_rows,
            lambda *size: synchronized(tpu_steps.build_whole_texts(config, placement, *size)),
        )
    return CachedEngine(config, placement, n_rows, synchronized)
