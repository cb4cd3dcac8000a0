"""Continues lines that are typed at the terminal; text appears as it is generated."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TextIO

from commands.console import say, stdout_to_stderr
from commands.options import Options
from commands.prompts import encode_prompts
from commands.run_setup import load_trained, set_up_for_generation
from commands.text_generator import TextGenerator, build_text_generator, check_causal
from configs.errors import ConfigError, UserError
from configs.kinds import is_unicode
from configs.prompts import Prompt
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.requests import GenerationRequest, sample_requests
from runtime.generation.scheduler import Scheduler
from storage.streams import raise_if_lost

MARK = "> "
HISTORY = "~/.neomesh_history"
HISTORY_LINES = 1000
DECODE_STEPS = 2  # tokens that appear together


def interact(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Continues each line of standard input until it ends. On a terminal, Ctrl-C stops the current text."""
    check_causal(config)
    if config.prediction.num_beams > 1:
        raise ConfigError(
            f"num_beams = {config.prediction.num_beams}: beam search has no text to show before it ends; set it to 1 "
            "with --interactive, or use --predict"
        )
    with contextlib.nullcontext(sys.stdout) if sys.stdout.isatty() else stdout_to_stderr() as output:
        run = set_up_for_generation(config, options, group)
        generator = build_text_generator(run, n_rows=1)
        load_trained(run)
        if sys.stdin.isatty():
            _read_terminal(generator, output)
        else:
            for line in _piped_lines():
                _generate(generator, line, output, threading.Event())
    return 0


def _read_terminal(generator: TextGenerator, output: TextIO) -> None:
    say("Type the beginning of a text. Ctrl-C stops the generated text, Ctrl-D exits.")
    history, is_stopped = _load_history(), threading.Event()
    previous_handler = signal.signal(signal.SIGINT, lambda number, frame: is_stopped.set())
    try:
        while (line := _typed_line()) is not None:
            _save_history(history)
            is_stopped.clear()
            if line:
                _generate(generator, line, output, is_stopped)
    finally:
        signal.signal(signal.SIGINT, previous_handler)


def _typed_line() -> str | None:
    """Returns the next line typed, "" if Ctrl-C clears it, and None at the end of input."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return input(MARK)
    except (KeyboardInterrupt, UnicodeDecodeError):
        say("")
        return ""
    except EOFError:
        say("")
        return None
    finally:
        signal.signal(signal.SIGINT, handler)


def _piped_lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if line := line.rstrip("\r\n"):
                yield line
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: is not UTF-8 text: {error}; give a prompt on each line") from error


def _load_history() -> ModuleType | None:
    """Gives `input` line editing and the lines typed in earlier sessions, if this Python has readline."""
    try:
        import readline  # imported here because it changes the terminal
    except ImportError:
        return None
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(os.path.expanduser(HISTORY))
    return readline


def _save_history(history: ModuleType | None) -> None:
    with contextlib.suppress(OSError):  # the home directory may be read-only
        if history is not None:
            history.write_history_file(os.path.expanduser(HISTORY))


def _request(generator: TextGenerator, line: str) -> GenerationRequest:
    if not is_unicode(line):
        raise UserError("the line: is not UTF-8 text; type it again")
    config = generator.run.config
    settings = dataclasses.replace(config.prediction, predict_batch_size=1)
    (tokens,) = encode_prompts([Prompt("the line", line, settings, {})], config, generator.run.tokenizer, say).ids
    seed = generator.random_seed() if settings.predict_seed is None else settings.predict_seed
    return next(sample_requests(tokens, settings, seed, config.model.n_ctx))


def _generate(generator: TextGenerator, line: str, output: TextIO, is_stopped: threading.Event) -> None:
    """Continues a line until the text ends or is stopped."""
    try:
        request = _request(generator, line)
    except UserError as error:
        say(str(error))
        return
    scheduler = Scheduler(generator.engine, generator.run.tokenizer.bytes_of)
    request_id = scheduler.submit(request, lambda chunk: print(chunk.text, end="", file=output, flush=True))
    while not is_stopped.is_set() and scheduler.step(DECODE_STEPS):
        raise_if_lost(output)
    scheduler.cancel(request_id)
    print(file=output, flush=True)
