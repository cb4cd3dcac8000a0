"""Reads what `--prompt` names, encodes it, and fits it into the model's context."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

from configs.errors import ConfigError, UserError
from configs.prompts import DEFAULT_PROMPT, Prompt, parse_prompts, starts_as_json_lines
from configs.reader import raise_issues
from configs.schema import RunConfig
from data.tokenization.tokenizer import Tokenizer
from meshtf import tf
from runtime.generation.requests import fit_prompt

STDIO = "-"  # standard input or standard output
MANY_BEAMS = 64


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """The contents of the file that `--prompt` names.

    Attributes:
        text: all of it.
        prompts: the prompts in it.
        is_jsonl: whether it holds JSON lines; the output then does too.
    """

    text: str
    prompts: Sequence[Prompt]
    is_jsonl: bool


@dataclasses.dataclass(frozen=True)
class EncodedPrompts:
    """Prompts, and the token ids that the model is given for each."""

    prompts: Sequence[Prompt]
    ids: Sequence[tuple[int, ...]]

    @property
    def n_samples(self) -> int:
        """Number of texts to generate."""
        return sum(prompt.settings.predict_batch_size for prompt in self.prompts)


def read_prompts(path: str | None, config: RunConfig) -> PromptFile:
    """Reads a prompt, or prompts as JSON lines if the name ends in .jsonl or the first line of standard input is one.

    Args:
        path: the file, "-" for standard input, or None or "" for the default prompt.
        config: the run, whose settings apply where a line sets none.

    Raises:
        UserError: the file cannot be read.
        ConfigError: a line is invalid.
    """
    text = _read(path) if path else DEFAULT_PROMPT
    is_jsonl = bool(path) and (path.endswith(".jsonl") or (path == STDIO and starts_as_json_lines(text)))
    place = "standard input" if path == STDIO else f"--prompt {path}"
    prompts = parse_prompts(place, text, config) if is_jsonl else [Prompt(place, text, config.prediction, {})]
    return PromptFile(text, prompts, is_jsonl)


def _read(path: str) -> str:
    try:
        if path == STDIO:
            return sys.stdin.buffer.read().decode()
        with tf.io.gfile.GFile(path) as file:
            return file.read()
    except tf.errors.OpError as error:
        raise UserError(f"--prompt {path}: cannot be read: {error.message}; give a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt {path}: is not UTF-8 text: {error}; give a text file") from error


def _ids(prompt: Prompt, tokenizer: Tokenizer, n_ctx: int) -> Sequence[int]:
    """Returns the last `n_ctx` ids of a prompt.

    Raises:
        ConfigError: it holds an id that is no token.
    """
    if isinstance(prompt.given, str):
        return tokenizer.encode_end(prompt.given, n_ctx)
    unknown = tokenizer.first_unknown(prompt.given)
    if unknown is not None:
        raise ConfigError(
            f"{prompt.place}: prompt: the id {unknown} is out of range; give ids from 0 to {tokenizer.n_vocab - 1}"
        )
    return prompt.given[-n_ctx:]


def encode_prompts(
    prompts: Sequence[Prompt], config: RunConfig, tokenizer: Tokenizer, warn: Callable[[str], None]
) -> EncodedPrompts:
    """Encodes prompts and fits them into the context; calls `warn` for each that is truncated, and for many beams.

    Raises:
        ConfigError: prompts are too long and may not be truncated; one line for each.
    """
    n_ctx, encoded, issues = config.model.n_ctx, [], []
    for n_beams in sorted({prompt.settings.num_beams for prompt in prompts}):
        if n_beams > MANY_BEAMS:
            warn(f"num_beams = {n_beams}: so many beams take long to compile and to search; fewer than 10 are usual")
    for prompt in prompts:
        try:
            ids = _ids(prompt, tokenizer, n_ctx)
            encoded.append(fit_prompt(ids, prompt, n_ctx, config.data.eos_id, warn))
        except ConfigError as error:
            issues.append(str(error))
    raise_issues(issues)
    return EncodedPrompts(prompts, encoded)
