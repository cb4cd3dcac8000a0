"""Reads what `--prompt` names, encodes it, and fits it into the model's context."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

from commands.options import Options
from configs.errors import ConfigError, UserError, looked_from
from configs.prompts import DEFAULT_PROMPT, Prompt, parse_prompts, starts_as_json_lines
from configs.reader import raise_issues
from configs.schema import RunConfig
from data.tokenization.tokenizer import Tokenizer
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.requests import fit_prompt
from storage.files import is_stream, read_bytes

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


def read_prompts(options: Options, config: RunConfig) -> PromptFile:
    """Reads prompts: `--prompt_text`, a file, standard input, or the default prompt.

    They are JSON lines if the name of the file ends in .jsonl or the first line of a stream is one.

    Args:
        options: name the prompts.
        config: the run, whose settings apply where a line sets none.

    Raises:
        UserError: the file cannot be read.
        ConfigError: a line is invalid.
    """
    if options.prompt_text is not None:
        return _one_prompt("--prompt_text", options.prompt_text, config)
    path = options.prompt
    if not path:
        return _one_prompt("the default prompt", DEFAULT_PROMPT, config)
    place = "standard input" if path == STDIO else f"--prompt {path}"
    text = _read(path)
    if path.endswith(".jsonl") or (reads_stream(options) and starts_as_json_lines(text)):
        return PromptFile(text, parse_prompts(place, text, config), is_jsonl=True)
    if not text:
        print(f"{place}: is empty; the text begins after the end of another one", file=sys.stderr)
    return _one_prompt(place, text, config)


def _one_prompt(place: str, text: str, config: RunConfig) -> PromptFile:
    return PromptFile(text, [Prompt(place, text, config.prediction, {})], is_jsonl=False)


def reads_stream(options: Options) -> bool:
    """Returns whether the prompts come from standard input, a pipe or a device, which can be read only once."""
    return options.prompt is not None and (options.prompt == STDIO or is_stream(options.prompt))


def _read(path: str) -> str:
    try:
        return (sys.stdin.buffer.read() if path == STDIO else read_bytes(path)).decode("utf-8-sig")
    except OSError as error:
        where = "" if path == STDIO else looked_from(path)
        raise UserError(f"--prompt {path}: cannot be read: {error.strerror}; give a text file{where}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt {path}: is not UTF-8 text: {error}; give a text file") from error


def check_shared_prompt(options: Options, group: ProcessGroup) -> None:
    """Checks that all processes can read the prompts.

    Raises:
        ConfigError: they cannot.
    """
    if group.size > 1 and reads_stream(options):
        raise ConfigError(
            f"--prompt {options.prompt}: many processes cannot share a pipe or standard input; give a file that all "
            "can read"
        )


def _ids(prompt: Prompt, tokenizer: Tokenizer, n_ctx: int, warn: Callable[[str], None]) -> Sequence[int]:
    """Returns the last `n_ctx` ids of a prompt; calls `warn` if it spells special tokens that do not count.

    Raises:
        ConfigError: it holds an id that is no token.
    """
    if isinstance(prompt.given, str):
        reader = tokenizer.reading_special_tokens if prompt.settings.prompt_special_tokens else tokenizer
        if spelled := reader.describe_spelled(prompt.given):
            warn(
                f"{prompt.place}: spells special tokens, read as plain characters: {spelled}; --special_tokens makes "
                "them count"
            )
        return reader.encode_end(prompt.given, n_ctx)
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
            warn(f"num_beams = {n_beams}: is slow to compile and to search; fewer than 10 beams are usual")
    for prompt in prompts:
        try:
            ids = _ids(prompt, tokenizer, n_ctx, warn)
            start = tokenizer.start_ids if isinstance(prompt.given, str) else ()
            encoded.append(fit_prompt(ids, prompt, n_ctx, config.data.eos_id, warn, start))
        except ConfigError as error:
            issues.append(str(error))
    raise_issues(issues)
    return EncodedPrompts(prompts, encoded)
