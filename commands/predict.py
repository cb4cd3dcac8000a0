"""Texts that continue prompts: of a file, of many, or of standard input; once, or at each checkpoint of training."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import TextIO

from commands.console import counted, say, speaking_aside
from commands.options import Options
from commands.placing import place_run
from commands.prompts import STANDARD, FittedPrompts, Prompts, fit_prompts, read_prompts
from commands.text_generator import MOST_ROWS, Author, Written, build_author, check_writes_text, tokenizer_of
from commands.trained_weights import load_trained
from configs.errors import ConfigError
from configs.schema import RunConfig
from data.tokenization.tokenizer import Tokenizer
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.outputs import format_line, format_samples, write_predictions
from runtime.mesh.placement import Placement
from runtime.training.signals import sigterm_as_interrupt, uninterrupted
from storage.files import is_local, write_text, writing_to

PARTIAL = ".partial"  # marks what was written before Ctrl-C; it takes no whole file's place


def predict(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Continues prompts with the newest checkpoint; answers are shown, and kept in a file under the model path."""
    check_writes_text(config)
    _check_streams(options, group)
    given = read_prompts(options.prompt_path, config)
    group.check_same("the prompt", given.text)
    with speaking_aside() if _is_piped(given, options, group) else contextlib.nullcontext() as pipe:
        placement = place_run(config, options, group)
        tokenizer = tokenizer_of(config, options.init_from, group)
        fitted = fit_prompts(given.prompts, config, tokenizer, say)
        author = build_author(config, placement, group, tokenizer, _n_rows(fitted, options))
        position = load_trained(config, options, placement, tokenizer)
        group.check_same("the run's position", repr(position))
        keep = functools.partial(_keep, author, given, options, position.step)
        written = _write(author, fitted, pipe, lambda some: _keep_part(keep, some, fitted.n_answers, group))
        if group.is_first:
            if pipe is None and not given.are_lines:
                say(format_samples(_texts(author, written)))
            say(f"written to {keep(written)}")
            if options.output_path not in (None, STANDARD):
                _write_output(options.output_path, _lines(written))
                say(f"and to {options.output_path}")
    return 0


def build_sampler(
    config: RunConfig, options: Options, placement: Placement, group: ProcessGroup, tokenizer: Tokenizer
) -> Callable[[int], str]:
    """Builds what continues the prompts with the weights of a step, and gives the path of the file that holds it."""
    given = read_prompts(options.prompt_path, config)
    fitted = fit_prompts(given.prompts, config, tokenizer, lambda warning: None)
    author = build_author(config, placement, group, tokenizer, _n_rows(fitted, options))

    def sample(step: int) -> str:
        written = list(author.write(fitted))
        return _keep(author, given, options, step, written) if group.is_first else ""

    return sample


def _check_streams(options: Options, group: ProcessGroup) -> None:
    """Finds what cannot be read or written before anything is computed."""
    if options.prompt_path == STANDARD and group.size > 1:
        raise ConfigError("--prompt -: many processes cannot share one standard input; give a file that all see")
    if options.output_path not in (None, STANDARD) and is_local(options.output_path) and group.is_first:
        _check_output(options.output_path, options.prompt_path)


def _check_output(path: str, prompt_path: str | None) -> None:
    if not path:
        raise ConfigError("--output: names no file; give one, or - for standard output")
    if os.path.isdir(path):
        raise ConfigError(f"--output {path}: is a folder; give a file, or - for standard output")
    if prompt_path and os.path.exists(prompt_path) and os.path.exists(path) and os.path.samefile(path, prompt_path):
        raise ConfigError(f"--output {path}: is the file of the prompt; give another one for the answers")
    if os.path.exists(path) and not os.path.isfile(path):
        may_be_written, place = os.access(path, os.W_OK), path
    else:
        place = os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path) or "."
        while not os.path.lexists(place):  # it is made
            place = os.path.dirname(place) or "."
        may_be_written = os.path.isdir(place) and os.access(place, os.W_OK)
    if not may_be_written:
        raise ConfigError(f"--output {path}: nothing may be written into {place}; give a file that can be written")


def _write_output(path: str, text: str) -> None:
    """Writes a file, in place of the one that a link leads to; a pipe or a device is written to."""
    if not is_local(path) or os.path.isfile(path) or not os.path.exists(path):
        write_text(os.path.realpath(path) if is_local(path) else path, text)
        return
    with writing_to(path), open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _is_piped(given: Prompts, options: Options, group: ProcessGroup) -> bool:
    """Whether standard output is for the answers alone, as lines of JSON."""
    is_answered_there = given.are_lines and options.prompt_path == STANDARD and options.output_path is None
    return group.is_first and (options.output_path == STANDARD or is_answered_there)


def _n_rows(fitted: FittedPrompts, options: Options) -> int:
    return options.n_rows or min(fitted.n_answers, MOST_ROWS)


def _write(
    author: Author, fitted: FittedPrompts, pipe: TextIO | None, keep_part: Callable[[list[Written]], None]
) -> list[Written]:
    """All answers; each is a line for the pipe as soon as it is there. Those that Ctrl-C or SIGTERM leaves are kept."""
    written = []
    with sigterm_as_interrupt():
        try:
            for each in counted(author.write(fitted), fitted.n_answers, author.group):
                written.append(each)
                if pipe is not None:
                    print(_lines([each]), end="", file=pipe, flush=True)
        except KeyboardInterrupt:
            with uninterrupted():  # people press Ctrl-C twice, and machines send SIGTERM more than once
                keep_part(written)
            raise
    return written


def _keep_part(keep: Callable[..., str], written: Sequence[Written], n_answers: int, group: ProcessGroup) -> None:
    if group.is_first and written:
        say(f"{len(written)} of {n_answers} answers written to {keep(written, PARTIAL)}")


def _lines(written: Sequence[Written]) -> str:
    return "".join(format_line(each.prompt.own, each.prompt.given, each.sample, each.answer) for each in written)


def _texts(author: Author, written: Sequence[Written]) -> list[str]:
    return [author.text_of(each) for each in written]


def _keep(
    author: Author, given: Prompts, options: Options, step: int, written: Sequence[Written], mark: str = ""
) -> str:
    """Writes the answers of a step into the run's folder, with a mark before the name's ending; returns the path."""
    content = _lines(written) if given.are_lines else format_samples(_texts(author, written))
    ending = mark + (".jsonl" if given.are_lines else ".txt")
    return write_predictions(author.config.model_path, options.sacred_id, step, ending, content)
