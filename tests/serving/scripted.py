"""A server whose engine writes what its prompts tell it to, for tests of all but the model."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data.tokenization.tokenizer import Tokenizer
from runtime.generation.engine import ActiveSequence, TokenChunk
from serving.app import serve
from serving.model import ServedModel
from serving.settings import ServingSettings, key_from_environment

EOS_ID = 256
IN_PLACE_OF_EOS = 0  # "!"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BREAKS = "break the engine"


def byte_tokenizer() -> Tokenizer:
    """A token a byte."""
    backend = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(BYTES)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(backend)


def log_prob(token: int) -> float:
    """What every token is worth, wherever it stands."""
    return -token / 128


def top_of(token: int, n_top: int) -> tuple[tuple[int, float], ...]:
    """So many tokens, of which the given one is none."""
    return tuple(((token + 1 + i) % EOS_ID, -(i + 1) / 128) for i in range(n_top))


def token_at(job: ActiveSequence, place: int) -> int:
    """The prompt over and over, from a place that the seed tells, and at temperature 0 from its beginning."""
    begin = job.seed if job.rule.temperature else 0
    token = job.tokens[(begin + place) % len(job.tokens)]
    return IN_PLACE_OF_EOS if token == EOS_ID and job.rule.never_end else token


@dataclasses.dataclass
class ScriptedEngine:
    """Writes each prompt over and over; an eos in it ends the answer."""

    n_rows: int
    n_ctx: int
    seconds_per_token: float
    jobs: dict[int, ActiveSequence] = dataclasses.field(default_factory=dict)
    written: dict[int, int] = dataclasses.field(default_factory=dict)

    def admit(self, jobs: Mapping[int, ActiveSequence]) -> None:
        """Begins jobs."""
        assert not set(jobs) & set(self.jobs)
        if any(byte_text(job.tokens) == BREAKS for job in jobs.values()):
            raise RuntimeError("the engine was told to break")
        self.jobs |= jobs
        self.written |= dict.fromkeys(jobs, 0)

    def advance(self, n_turns: int) -> dict[int, TokenChunk]:
        """Writes."""
        time.sleep(self.seconds_per_token * n_turns)
        return {row: self._advance(row, job, n_turns) for row, job in self.jobs.items()}

    def _advance(self, row: int, job: ActiveSequence, n_turns: int) -> TokenChunk:
        begin, end = self.written[row], min(self.written[row] + n_turns, job.n_new_tokens)
        tokens = tuple(token_at(job, place) for place in range(begin, end))
        self.written[row] = end
        if EOS_ID in tokens:
            return piece(tokens[: tokens.index(EOS_ID)], job.n_top, "stop")
        return piece(tokens, job.n_top, "length" if end == job.n_new_tokens else None)

    def release(self, row: int) -> None:
        """Frees a row."""
        del self.jobs[row], self.written[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """Scores a text."""
        time.sleep(self.seconds_per_token)
        return piece(tuple(tokens[1:]), n_top, None)


def piece(tokens: tuple[int, ...], n_top: int, end: str | None) -> TokenChunk:
    """Tokens with their scores."""
    return TokenChunk(tokens, tuple(map(log_prob, tokens)), tuple(top_of(token, n_top) for token in tokens), end)


def byte_text(tokens: Sequence[int]) -> str:
    """The text of tokens."""
    return byte_tokenizer().decode(tokens)


def main(arguments: Sequence[str]) -> int:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--n_ctx", type=int, default=128)
    parser.add_argument("--seconds_per_token", type=float, default=0.0)
    for name in ("n_waiting", "body_bytes"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("body_seconds", "answer_seconds", "grace_seconds"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--host", default="127.0.0.1")
    said = vars(parser.parse_args(arguments))
    engine = ScriptedEngine(said.pop("rows"), said.pop("n_ctx"), said.pop("seconds_per_token"))
    given = {name: value for name, value in said.items() if value is not None}
    settings = ServingSettings(port=0, api_key=key_from_environment(), **given)
    return serve(ServedModel("scripted", engine, byte_tokenizer(), EOS_ID), settings)
