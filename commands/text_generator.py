"""Text generation with a trained model, shared by --predict, --interactive, --chat and --serve."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TextIO

from commands.prompts import EncodedPrompts
from commands.run_setup import Run
from configs.errors import ConfigError
from configs.prompts import Prompt
from configs.schema import PredictionConfig, RunConfig
from runtime.generation.beam_search import BeamSearcher
from runtime.generation.detokenizer import TextChunk
from runtime.generation.engine import Engine
from runtime.generation.outputs import GeneratedText, beam_search_texts, sampled_texts
from runtime.generation.requests import GenerationRequest, sample_requests, sample_seed
from runtime.generation.reranking import Candidate, Scores
from runtime.generation.scheduler import Scheduler
from storage.streams import raise_if_lost

DEFAULT_ROWS = 8  # texts that are generated at once, unless --rows says how many
DEFAULT_TOP_K = 10  # DialoGPT's
NO_FILTER = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "entmax_sampling": False}
STREAM_STEPS = 2  # tokens that appear together


@dataclasses.dataclass(frozen=True)
class Sample:
    """One of the texts generated for a prompt.

    Attributes:
        prompt: as the user gave it.
        tokens: the prompt as the model was given it.
        number: which of the prompt's samples this is, from 0.
        generated: the text.
        scores: by which it was chosen; None without reranking.
        candidates: all texts that it was chosen from, the best first; empty if they are not to be shown.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    number: int
    generated: GeneratedText
    scores: Scores | None = None
    candidates: tuple[Candidate, ...] = ()


@dataclasses.dataclass(frozen=True)
class TextGenerator:
    """Continues prompts with the model's current weights; its programs are built once.

    Attributes:
        run: its config, processes and tokenizer.
        engine: generates samples.
        searcher: runs beam search.
    """

    run: Run
    engine: Engine
    searcher: BeamSearcher

    def generate(self, encoded: EncodedPrompts) -> Iterator[Sample]:
        """Yields the samples of each prompt, in the order of the prompts."""
        sampled = sampled_texts(Scheduler(self.engine, self.run.tokenizer.bytes_of), self._requests(encoded))
        for prompt, tokens in zip(encoded.prompts, encoded.ids, strict=True):
            if uses_beam_search(prompt):
                n_ctx, bytes_of = self.run.config.model.n_ctx, self.run.tokenizer.bytes_of
                texts = beam_search_texts(self.searcher, tokens, prompt.settings, n_ctx, bytes_of)
            else:
                texts = itertools.islice(sampled, prompt.settings.predict_batch_size)
            for number, generated in enumerate(texts):
                yield Sample(prompt, tokens, number, generated)

    def _requests(self, encoded: EncodedPrompts) -> Iterator[GenerationRequest]:
        """Yields the requests of all prompts that do not use beam search."""
        random_seed = self.random_seed()
        for index, (prompt, tokens) in enumerate(zip(encoded.prompts, encoded.ids, strict=True)):
            given = prompt.settings.predict_seed
            seed = sample_seed(random_seed, index) if given is None else given
            if not uses_beam_search(prompt):
                yield from sample_requests(tokens, prompt.settings, seed, self.run.config.model.n_ctx)

    def stream(self, request: GenerationRequest, output: TextIO, is_stopped: Callable[[], bool]) -> str:
        """Writes a text and a line break as it is generated, until it ends or is stopped; returns the text."""
        scheduler, parts = Scheduler(self.engine, self.run.tokenizer.bytes_of), []

        def show(chunk: TextChunk) -> None:
            parts.append(chunk.text)
            print(chunk.text, end="", file=output, flush=True)

        request_id = scheduler.submit(request, show)
        while not is_stopped() and scheduler.step(STREAM_STEPS):
            raise_if_lost(output)
        scheduler.cancel(request_id)
        print(file=output, flush=True)
        return "".join(parts)

    def draw(self, requests: Iterable[GenerationRequest], is_stopped: Callable[[], bool]) -> list[GeneratedText]:
        """Returns the texts of requests, those that are finished when it is stopped."""
        texts = sampled_texts(Scheduler(self.engine, self.run.tokenizer.bytes_of), requests)
        return list(itertools.takewhile(lambda _: not is_stopped(), texts))

    def seed(self, settings: PredictionConfig) -> int:
        """Returns the seed of the settings, or a random one."""
        return self.random_seed() if settings.predict_seed is None else settings.predict_seed

    def random_seed(self) -> int:
        """Returns a random seed, the same in all processes."""
        return self.run.group.all_reduce_max(secrets.randbits(31))

    def text_of(self, sample: Sample) -> str:
        """Returns the prompt, without any eos, and its continuation; or only the continuation if the config says so."""
        if self.run.config.prediction.remove_partial_sequences:
            return sample.generated.text
        before = [token for token in sample.tokens if token != self.run.config.data.eos_id]
        return self.run.tokenizer.decode(before) + sample.generated.text


def build_text_generator(run: Run, n_rows: int) -> TextGenerator:
    """Builds the programs that generate `n_rows` texts at once."""
    unused, synchronized = run.tokenizer.unused_ids(run.config.model.n_vocab), run.group.synchronized
    engine = run.backend.build_engine(run.config, run.placement, n_rows, synchronized, unused)
    return TextGenerator(run, engine, BeamSearcher(run.config, run.placement, synchronized, unused))


def uses_beam_search(prompt: Prompt) -> bool:
    """Returns whether a prompt's continuations are found by beam search instead of sampling."""
    return prompt.settings.num_beams > 1


def check_causal(config: RunConfig) -> None:
    """Checks that the model can generate text.

    Raises:
        ConfigError: it was trained on masked tokens, or to rank responses.
    """
    if config.model.ranks:
        raise ConfigError(f"{config.name}: objective = ranking: the model scores texts, and writes none; give another")
    if config.model.mlm_training:
        raise ConfigError(
            f"{config.name}: mlm_training = true: a masked language model cannot generate text; give the config of a "
            "causal model"
        )


def check_streams(config: RunConfig, command: str) -> None:
    """Checks that texts can be shown while they are generated.

    Raises:
        ConfigError: they are found by beam search.
    """
    if config.prediction.num_beams > 1:
        raise ConfigError(
            f"num_beams = {config.prediction.num_beams}: beam search has no text to show before it ends; set it to 1 "
            f"with --{command}, or use --predict"
        )


def with_a_filter(settings: PredictionConfig, typed_keys: Collection[str]) -> PredictionConfig:
    """Returns settings with DialoGPT's top_k where none of them says which tokens are sampled from.

    Args:
        settings: of the config and the command line.
        typed_keys: the keys that the command line sets; a `top_k` of 0 among them stays.
    """
    is_filtered = "top_k" in typed_keys or any(getattr(settings, key) != off for key, off in NO_FILTER.items())
    return settings if is_filtered else dataclasses.replace(settings, top_k=DEFAULT_TOP_K)
