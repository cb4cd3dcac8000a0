"""What `--prompt` names, read, encoded and fitted into the model's context."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

from configs.errors import ConfigError, UserError
from configs.prompts import Prompt, begins_as_prompts, parse_prompts
from configs.schema import RunConfig
from data.tokenization.tokenizer import Tokenizer
from meshtf import tf
from runtime.generation.requests import fit_prompt

DEFAULT_PROMPT = "In the beginning"
STANDARD = "-"  # standard input, or output


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What `--prompt` names.

    Attributes:
        text: all of it.
        prompts: those in it.
        are_lines: they are lines of JSON, and so are the answers.
    """

    text: str
    prompts: Sequence[Prompt]
    are_lines: bool


@dataclasses.dataclass(frozen=True)
class FittedPrompts:
    """Prompts, and the ids of each that the model is given."""

    prompts: Sequence[Prompt]
    ids: Sequence[tuple[int, ...]]

    @property
    def n_answers(self) -> int:
        """How many texts are asked for."""
        return sum(prompt.settings.predict_batch_size for prompt in self.prompts)


def read_prompts(path: str | None, config: RunConfig) -> Prompts:
    """Reads one text, or prompts as lines of JSON if the name says so, or of standard input the first line; None: a
    prompt of our own.

    Raises:
        UserError: the file cannot be read.
        ConfigError: a line cannot be used.
    """
    text = DEFAULT_PROMPT if path is None else _read(path)
    are_lines = path is not None and (path.endswith(".jsonl") or (path == STANDARD and begins_as_prompts(text)))
    place = "standard input" if path == STANDARD else f"--prompt {path}"
    prompts = parse_prompts(place, text, config) if are_lines else [Prompt(place, text, config.prediction, {})]
    return Prompts(text, prompts, are_lines)


def _read(path: str) -> str:
    try:
        if path == STANDARD:
            return sys.stdin.buffer.read().decode()
        with tf.io.gfile.GFile(path) as file:
            return file.read()
    except tf.errors.OpError as error:
        raise UserError(f"--prompt {path}: cannot be read: {error.message}; give a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt {path}: is not UTF-8 text: {error}; give a text file") from error


def fit_prompts(
    prompts: Sequence[Prompt], config: RunConfig, tokenizer: Tokenizer, warn: Callable[[str], None]
) -> FittedPrompts:
    """Encodes prompts, and keeps what fits into the context; `warn` is told what does not.

    Raises:
        ConfigError: some are too long and not to be cut, one line each.
    """
    n_ctx, fitted, issues = config.model.n_ctx, [], []
    for prompt in prompts:
        given = prompt.given
        ids = tokenizer.encode_end(given, n_ctx) if isinstance(given, str) else given[-n_ctx:]
        try:
            fitted.append(fit_prompt(ids, prompt, n_ctx, config.data.eos_id, warn))
        except ConfigError as error:
            issues.append(str(error))
    if issues:
        raise ConfigError("\n".join(issues))
    return FittedPrompts(prompts, fitted)
