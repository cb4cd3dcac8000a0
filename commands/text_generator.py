"""A model that writes, as the verbs that continue prompts share it."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Iterator

from commands.prompts import FittedPrompts
from commands.run_data import trained_tokenizer
from configs.errors import ConfigError
from configs.prompts import Prompt
from configs.schema import RunConfig
from data.tokenization.tokenizer import Tokenizer
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.beam_search import BeamWriter
from runtime.generation.engine import Engine, build_engine
from runtime.generation.outputs import Answer, searched_answers, written_answers
from runtime.generation.requests import asks_of, sample_seed
from runtime.generation.scheduler import GenerationRequest, Scheduler
from runtime.mesh.placement import Placement

MOST_ROWS = 8  # texts that are written at once, unless it is said how many


@dataclasses.dataclass(frozen=True)
class Written:
    """One answer.

    Attributes:
        prompt: that it answers.
        tokens: of the prompt, as the model was given them.
        sample: which of the prompt's answers it is.
        answer: the text that was written, and what is known of it.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    sample: int
    answer: Answer


@dataclasses.dataclass(frozen=True)
class Author:
    """What answers prompts with the weights of the moment: its programs are built once.

    Attributes:
        config: of the run.
        group: the processes that write together.
        tokenizer: of the run.
        engine: draws texts.
        beams: searches for texts.
    """

    config: RunConfig
    group: ProcessGroup
    tokenizer: Tokenizer
    engine: Engine
    beams: BeamWriter

    def write(self, fitted: FittedPrompts) -> Iterator[Written]:
        """Yields the answers in the order of the prompts and of their samples."""
        drawn = written_answers(Scheduler(self.engine, self.tokenizer.bytes_of), self._asks(fitted))
        for prompt, tokens in zip(fitted.prompts, fitted.ids, strict=True):
            if is_searched(prompt):
                n_ctx, bytes_of = self.config.model.n_ctx, self.tokenizer.bytes_of
                answers = searched_answers(self.beams, tokens, prompt.settings, n_ctx, bytes_of)
            else:
                answers = itertools.islice(drawn, prompt.settings.predict_batch_size)
            for sample, answer in enumerate(answers):
                yield Written(prompt, tokens, sample, answer)

    def _asks(self, fitted: FittedPrompts) -> Iterator[GenerationRequest]:
        """Of all prompts whose answers are drawn."""
        secret = self.draw_seed()
        for place, (prompt, tokens) in enumerate(zip(fitted.prompts, fitted.ids, strict=True)):
            given = prompt.settings.predict_seed
            seed = sample_seed(secret, place) if given is None else given
            if not is_searched(prompt):
                yield from asks_of(tokens, prompt.settings, seed, self.config.model.n_ctx)

    def draw_seed(self) -> int:
        """A seed that nobody knows, the same in all processes."""
        return self.group.all_reduce_max(secrets.randbits(31))

    def text_of(self, written: Written) -> str:
        """An answer after its prompt, or without it as the settings say; an eos in the prompt is not shown."""
        if self.config.prediction.remove_partial_sequences:
            return written.answer.text
        before = [token for token in written.tokens if token != self.config.data.eos_id]
        return self.tokenizer.decode(before) + written.answer.text


def build_author(
    config: RunConfig, placement: Placement, group: ProcessGroup, tokenizer: Tokenizer, n_rows: int
) -> Author:
    """Builds the programs that write `n_rows` texts at once."""
    engine = build_engine(config, placement, n_rows, group.synchronized)
    return Author(config, group, tokenizer, engine, BeamWriter(config, placement, group.synchronized))


def is_searched(prompt: Prompt) -> bool:
    """Whether a prompt's answers are the likeliest ones, and not drawn."""
    return prompt.settings.num_beams > 1


def check_writes_text(config: RunConfig) -> None:
    """Refuses a model that cannot go on from a prompt.

    Raises:
        ConfigError: it was trained on masked tokens.
    """
    if config.model.mlm_training:
        raise ConfigError(
            f"{config.name}: mlm_training = true: a masked model writes no text; give the config of a causal model"
        )


def tokenizer_of(config: RunConfig, init_from: str | None, group: ProcessGroup) -> Tokenizer:
    """The tokenizer of the run, or of the datasets for weights of another run; without one there is no text.

    Raises:
        ConfigError: there is none.
    """
    tokenizer = group.first_process_first(lambda: trained_tokenizer(config, init_from))
    group.check_same("the tokenizer", (tokenizer and tokenizer.to_json()) or "")
    if tokenizer is None:
        raise ConfigError(
            "datasets = []: prediction needs a tokenizer; name a dataset with a tokenizer_path in the model config"
        )
    return tokenizer
