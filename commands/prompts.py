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


def encode_prompts(
    prompts: Sequence[Prompt], config: RunConfig, tokenizer: Tokenizer, warn: Callable[[str], None]
) -> EncodedPrompts:
    """Encodes prompts and fits them into the context; calls `warn` for each that is truncated.

    Raises:
        ConfigError: prompts are too long and may not be truncated; one line for each.
    """
    n_ctx, encoded, issues = config.model.n_ctx, [], []
    for prompt in prompts:
        given = prompt.given
        ids = tokenizer.encode_end(given, n_ctx) if isinstance(given, str) else given[-n_ctx:]
        try:
            encoded.append(fit_prompt(ids, prompt, n_ctx, config.data.eos_id, warn))
        except ConfigError as error:
            issues.append(str(error))
    raise_issues(issues)
    return EncodedPrompts(prompts, encoded)
