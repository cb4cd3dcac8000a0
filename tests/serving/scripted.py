"""A server whose engine repeats its prompts, for tests of everything but the model."""

from __future__ import annotations

import argparse
import dataclasses
import resource
import signal
import time
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from data.dialogue.templates import load_template
from data.tokenization.tokenizer import Tokenizer
from runtime.generation.engine import TokenChunk
from runtime.generation.requests import GenerationRequest
from runtime.generation.reranking import Scores
from serving.app import serve
from serving.model import AnswerRanking, ServedModel
from serving.protocol import ChatSettings
from serving.settings import ServingSettings, key_from_environment

EOS_ID = 256
IN_PLACE_OF_EOS = 0  # "!"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BREAKS = "break the engine"


def byte_tokenizer() -> Tokenizer:
    """Returns a tokenizer with a token for each byte."""
    backend = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(BYTES)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(backend)


def log_prob(token: int) -> float:
    """Returns the log-probability of a token, which is the same everywhere."""
    return -token / 128


def top_of(token: int, n_top: int) -> tuple[tuple[int, float], ...]:
    """Returns the most likely tokens at the position of a token, which is none of them."""
    return tuple(((token + 1 + i) % EOS_ID, -(i + 1) / 128) for i in range(n_top))


def token_at(request: GenerationRequest, index: int) -> int:
    """Returns a token of the repeated prompt, from an offset given by the seed, or 0 for temperature 0."""
    begin = request.seed if request.sampling.temperature else 0
    token = request.prompt_tokens[(begin + index) % len(request.prompt_tokens)]
    return IN_PLACE_OF_EOS if token == EOS_ID and request.sampling.never_end else token


@dataclasses.dataclass
class ScriptedEngine:
    """Repeats each prompt; an eos in it ends the text."""

    n_rows: int
    n_ctx: int
    seconds_per_token: float
    requests: dict[int, GenerationRequest] = dataclasses.field(default_factory=dict)
    n_generated: dict[int, int] = dataclasses.field(default_factory=dict)

    def prefill(self, requests: Mapping[int, GenerationRequest]) -> None:
        """Starts requests."""
        assert not set(requests) & set(self.requests)
        if any(byte_text(request.prompt_tokens) == BREAKS for request in requests.values()):
            raise RuntimeError("the prompt breaks the engine")
        self.requests |= requests
        self.n_generated |= dict.fromkeys(requests, 0)

    def decode_steps(self, n_steps: int) -> dict[int, TokenChunk]:
        """Repeats the prompts."""
        time.sleep(self.seconds_per_token * n_steps)
        return {row: self._decode_row(row, request, n_steps) for row, request in self.requests.items()}

    def _decode_row(self, row: int, request: GenerationRequest, n_steps: int) -> TokenChunk:
        begin, end = self.n_generated[row], min(self.n_generated[row] + n_steps, request.max_new_tokens)
        tokens = tuple(token_at(request, index) for index in range(begin, end))
        self.n_generated[row] = end
        if EOS_ID in tokens:
            return chunk(tokens[: tokens.index(EOS_ID)], request.n_top, "stop")
        return chunk(tokens, request.n_top, "length" if end == request.max_new_tokens else None)

    def release(self, row: int) -> None:
        """Frees a row."""
        del self.requests[row], self.n_generated[row]

    def score(self, tokens: Sequence[int], n_top: int = 0) -> TokenChunk:
        """Returns scripted scores."""
        time.sleep(self.seconds_per_token)
        return chunk(tuple(tokens[1:]), n_top, None)


def chunk(tokens: tuple[int, ...], n_top: int, finish_reason: str | None) -> TokenChunk:
    """Returns tokens with their scores."""
    top = tuple(top_of(token, n_top) for token in tokens)
    return TokenChunk(
        tokens, tuple(map(log_prob, tokens)), top, finish_reason, EOS_ID if finish_reason == "stop" else None
    )


def byte_text(tokens: Sequence[int]) -> str:
    """Returns the text of tokens."""
    return byte_tokenizer().decode(tokens)


def shortest(turns: Sequence[str], responses: Sequence[str]) -> list[Scores]:
    """Scores that make the shortest response the best one."""
    return [Scores(-len(text) / len(turns), {"length": float(len(text))}) for text in responses]


def served(engine: ScriptedEngine, n_candidates: int | None = None) -> ServedModel:
    """Returns the model of an engine, which talks by DialoGPT's template and may choose among candidates."""
    tokenizer = byte_tokenizer()
    template = load_template("dialogpt", tokenizer, EOS_ID)
    chat = ChatSettings(temperature=0.0, top_k=10, top_p=1.0, max_tokens=engine.n_ctx // 4)
    ranking = n_candidates and AnswerRanking(n_candidates, shortest)
    return ServedModel("scripted", engine, tokenizer, EOS_ID, template, chat, ranking)


def main(arguments: Sequence[str]) -> int:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--n_ctx", type=int, default=128)
    parser.add_argument("--seconds_per_token", type=float, default=0.0)
    parser.add_argument("--candidates", type=int, help="how many are drawn for each answer of a chat")
    parser.add_argument("--files", type=int, help="how many files the process may open")
    parser.add_argument("--ignored", type=int, help="a signal that the process ignores when it starts")
    for name in ("n_waiting", "n_connections", "body_bytes", "keep_alive_seconds"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("head_seconds", "body_seconds", "write_seconds", "answer_seconds", "grace_seconds"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--cors_origins", type=lambda text: tuple(text.split(",")))
    flags = vars(parser.parse_args(arguments))
    if files := flags.pop("files"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))
    if ignored := flags.pop("ignored"):
        signal.signal(ignored, signal.SIG_IGN)
    engine = ScriptedEngine(flags.pop("rows"), flags.pop("n_ctx"), flags.pop("seconds_per_token"))
    n_candidates = flags.pop("candidates")
    given = {name: value for name, value in flags.items() if value is not None}
    settings = ServingSettings(port=0, api_key=key_from_environment(), **given)
    return serve(served(engine, n_candidates), settings)
