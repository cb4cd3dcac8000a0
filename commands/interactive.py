"""Prompts at the terminal, one line each, and answers that appear while they are written."""

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

from commands.console import say, speaking_aside
from commands.options import Options
from commands.placing import place_run
from commands.prompts import fit_prompts
from commands.text_generator import Author, build_author, check_writes_text, tokenizer_of
from commands.trained_weights import load_trained
from configs.errors import ConfigError, UserError
from configs.kinds import is_unicode
from configs.prompts import Prompt
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.requests import asks_of
from runtime.generation.scheduler import GenerationRequest, Scheduler

MARK = "> "
HISTORY = "~/.neomesh_history"
HISTORY_LINES = 1000
TURNS_AT_ONCE = 2  # tokens that appear together


def interact(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Answers line after line, until they end. At a terminal Ctrl-C stops the answer that is being written."""
    check_writes_text(config)
    if config.prediction.num_beams > 1:
        raise ConfigError(
            f"num_beams = {config.prediction.num_beams}: a search shows nothing before its end; set it to 1 with "
            "--interactive, or give --predict"
        )
    with contextlib.nullcontext(sys.stdout) if sys.stdout.isatty() else speaking_aside() as output:
        placement = place_run(config, options, group)
        tokenizer = tokenizer_of(config, options.init_from, group)
        author = build_author(config, placement, group, tokenizer, n_rows=1)
        load_trained(config, options, placement, tokenizer)
        if sys.stdin.isatty():
            _talk(author, output)
        else:
            for line in _lines_of_a_file():
                _answer(author, line, output, threading.Event())
    return 0


def _talk(author: Author, output: TextIO) -> None:
    say("Type the beginning of a text. Ctrl-C stops an answer, Ctrl-D ends the program.")
    history, is_stopped = _load_history(), threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: is_stopped.set())
    try:
        while (line := _typed_line()) is not None:
            _save_history(history)
            is_stopped.clear()
            if line:
                _answer(author, line, output, is_stopped)
    finally:
        signal.signal(signal.SIGINT, before)


def _typed_line() -> str | None:
    """A line that is typed, nothing where Ctrl-C clears it; None: there are no more."""
    noting = signal.getsignal(signal.SIGINT)
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
        signal.signal(signal.SIGINT, noting)


def _lines_of_a_file() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if line := line.rstrip("\r\n"):
                yield line
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: is not UTF-8 text: {error}; give a prompt on each line") from error


def _load_history() -> ModuleType | None:
    """Gives `input` the keys of readline, where Python has it, and what was typed before."""
    try:
        import readline  # here, since it changes the terminal
    except ImportError:
        return None
    readline.set_history_length(HISTORY_LINES)
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(os.path.expanduser(HISTORY))
    return readline


def _save_history(history: ModuleType | None) -> None:
    with contextlib.suppress(OSError):  # a home that takes no files is no reason to stop
        if history is not None:
            history.write_history_file(os.path.expanduser(HISTORY))


def _ask(author: Author, line: str) -> GenerationRequest:
    if not is_unicode(line):
        raise UserError("the line: is not UTF-8 text; type it again")
    settings = dataclasses.replace(author.config.prediction, predict_batch_size=1)
    (tokens,) = fit_prompts([Prompt("the line", line, settings, {})], author.config, author.tokenizer, say).ids
    seed = author.draw_seed() if settings.predict_seed is None else settings.predict_seed
    return next(asks_of(tokens, settings, seed, author.config.model.n_ctx))


def _answer(author: Author, line: str, output: TextIO, is_stopped: threading.Event) -> None:
    """Writes on from a line, until the answer ends or is stopped."""
    try:
        ask = _ask(author, line)
    except UserError as error:
        say(str(error))
        return
    scheduler = Scheduler(author.engine, author.tokenizer.bytes_of)
    ticket = scheduler.submit(ask, lambda delta: print(delta.text, end="", file=output, flush=True))
    while not is_stopped.is_set() and scheduler.turn(TURNS_AT_ONCE):
        pass
    scheduler.cancel(ticket)
    print(file=output, flush=True)
