"""Continues lines that are typed at the terminal; text appears as it is generated."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from typing import TextIO

from commands.console import say, stdout_to_stderr
from commands.options import Options
from commands.prompts import encode_prompts
from commands.run_setup import load_trained, set_up_for_generation
from commands.text_generator import TextGenerator, build_text_generator, check_causal, check_streams
from commands.typed_lines import piped_lines, typed_lines
from configs.errors import UserError
from configs.kinds import is_unicode
from configs.prompts import Prompt
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.requests import GenerationRequest, sample_requests


def interact(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Continues each line of standard input until it ends. On a terminal, Ctrl-C stops the current text."""
    check_causal(config)
    check_streams(config, "interactive")
    with contextlib.nullcontext(sys.stdout) if sys.stdout.isatty() else stdout_to_stderr() as output:
        run = set_up_for_generation(config, options, group)
        generator = build_text_generator(run, n_rows=1)
        load_trained(run)
        is_stopped = threading.Event()
        if sys.stdin.isatty():
            say("Type the beginning of a text. Ctrl-C stops the generated text, Ctrl-D exits.")
        for line in typed_lines(is_stopped) if sys.stdin.isatty() else piped_lines():
            _generate(generator, line, output, is_stopped)
    return 0


def _request(generator: TextGenerator, line: str) -> GenerationRequest:
    if not is_unicode(line):
        raise UserError("the line: is not UTF-8 text; type it again")
    config = generator.run.config
    settings = dataclasses.replace(config.prediction, predict_batch_size=1)
    (tokens,) = encode_prompts([Prompt("the line", line, settings, {})], config, generator.run.tokenizer, say).ids
    return next(sample_requests(tokens, settings, generator.seed(settings), config.model.n_ctx))


def _generate(generator: TextGenerator, line: str, output: TextIO, is_stopped: threading.Event) -> None:
    """Continues a line until the text ends or is stopped."""
    try:
        generator.stream(_request(generator, line), output, is_stopped.is_set)
    except UserError as error:
        say(str(error))
