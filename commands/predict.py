"""Continues prompts from a file or standard input, once or at each checkpoint of training."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

from commands.console import say, stdout_to_stderr, with_progress
from commands.options import Options
from commands.prompts import (
    STDIO,
    EncodedPrompts,
    PromptFile,
    check_shared_prompt,
    encode_prompts,
    read_prompts,
)
from commands.reranking import build_reranker, with_candidates
from commands.run_setup import Run, load_trained, set_up_for_generation
from commands.text_generator import DEFAULT_ROWS, Sample, TextGenerator, build_text_generator, check_causal
from configs.errors import ConfigError
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.outputs import GeneratedText, format_line, format_samples, write_predictions
from runtime.generation.reranking import candidate_keys, format_candidates, ranking_keys
from runtime.training.signals import signals_as_interrupt, uninterrupted
from storage.files import is_local, write_text, writing_to
from storage.streams import raise_if_lost

PARTIAL = ".partial"  # marks the output of an interrupted prediction, so that it replaces no complete file


def predict(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Continues prompts with the newest checkpoint, prints the texts and writes them to the run directory."""
    check_causal(config)
    _check_streams(options, group)
    given = read_prompts(options, config)
    group.check_same("the prompt", given.text)
    with stdout_to_stderr() if _is_piped(given, options, group) else contextlib.nullcontext() as pipe:
        run = set_up_for_generation(config, options, group)
        encoded = encode_prompts(given.prompts, run.config, run.tokenizer, say)
        drawn = encoded if options.reranking is None else with_candidates(encoded, run)
        generator = build_text_generator(run, _n_rows(drawn, options))
        reranker = options.reranking and build_reranker(run)
        position = load_trained(run)
        if reranker is not None:
            reranker.load()
        group.check_same("the run's position", repr(position))
        save = functools.partial(_save, generator, given, position.step)
        samples = generator.generate(drawn) if reranker is None else reranker.choose(encoded, generator.generate(drawn))
        samples = with_progress(samples, encoded.n_samples, group)
        samples = _collect(samples, pipe, lambda some: _save_partial(save, some, encoded.n_samples, group))
        if group.is_first:
            _deliver(generator, given, samples, save, is_shown=pipe is None)
    return 0


def build_sampler(run: Run, given: PromptFile) -> Callable[[int], tuple[str, list[GeneratedText]]]:
    """Returns a function that continues prompts at a step of training and returns the path of the texts, and them."""
    encoded = encode_prompts(given.prompts, run.config, run.tokenizer, lambda warning: None)
    generator = build_text_generator(run, _n_rows(encoded, run.options))

    def sample(step: int) -> tuple[str, list[GeneratedText]]:
        samples = list(generator.generate(encoded))
        path = _save(generator, given, step, samples) if run.group.is_first else ""
        return path, [sample.generated for sample in samples]

    return sample


def _deliver(
    generator: TextGenerator,
    given: PromptFile,
    samples: Sequence[Sample],
    save: Callable[[Sequence[Sample]], str],
    is_shown: bool,
) -> None:
    """Saves the answers, and then shows them; whatever fails, the rest is still done."""
    places, output = [], generator.run.options.output
    try:
        places.append(f"written to {save(samples)}")
    finally:
        try:
            if output not in (None, STDIO):
                _write_output(output, _lines(samples))
                places.append(f"and to {output}")
        finally:
            if is_shown and not given.is_jsonl:
                say(format_samples(_texts(generator, samples)))
            elif is_shown and not places:
                print(_lines(samples), end="")
            for place in places:
                say(place)


def _check_streams(options: Options, group: ProcessGroup) -> None:
    """Checks that input and output can be used, before anything is computed."""
    check_shared_prompt(options, group)
    if options.output not in (None, STDIO) and is_local(options.output) and group.is_first:
        _check_output(options.output, options.prompt)


def _check_output(path: str, prompt_path: str | None) -> None:
    if not path:
        raise ConfigError("--output: names no file; give one, or - for standard output")
    if os.path.isdir(path):
        raise ConfigError(f"--output {path}: is a directory; give a file, or - for standard output")
    if prompt_path and os.path.exists(prompt_path) and os.path.exists(path) and os.path.samefile(path, prompt_path):
        raise ConfigError(f"--output {path}: is the prompt file; give another file for the answers")
    if os.path.exists(path) and not os.path.isfile(path):
        is_writable, target = os.access(path, os.W_OK), path
    else:
        target = os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path) or "."
        while not os.path.lexists(target):  # missing directories are created
            target = os.path.dirname(target) or "."
        is_writable = os.path.isdir(target) and os.access(target, os.W_OK)
    if not is_writable:
        raise ConfigError(f"--output {path}: {target} is not writable; give a file that can be written")


def _write_output(path: str, text: str) -> None:
    """Writes a file whole, following links; a pipe or a device is written to directly."""
    if not is_local(path) or os.path.isfile(path) or not os.path.exists(path):
        write_text(os.path.realpath(path) if is_local(path) else path, text)
        return
    with writing_to(path), open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _is_piped(given: PromptFile, options: Options, group: ProcessGroup) -> bool:
    """Returns whether standard output is reserved for the texts, as JSON lines."""
    is_filter = given.is_jsonl and options.prompt == STDIO and options.output is None
    return group.is_first and (options.output == STDIO or is_filter)


def _n_rows(encoded: EncodedPrompts, options: Options) -> int:
    return options.rows or min(encoded.n_samples, DEFAULT_ROWS)


def _collect(
    found: Iterable[Sample], pipe: TextIO | None, save_partial: Callable[[list[Sample]], None]
) -> list[Sample]:
    """Returns all samples, and writes each to the pipe as soon as it is finished.

    Whatever ends it early, Ctrl-C, SIGTERM and their like too, those that are finished by then are saved.
    """
    samples = []
    with signals_as_interrupt():
        try:
            for sample in found:
                samples.append(sample)
                if pipe is not None:
                    print(_lines([sample]), end="", file=pipe, flush=True)
                    raise_if_lost(pipe)
        except BaseException:
            with uninterrupted():  # people press Ctrl-C twice, and machines send SIGTERM more than once
                save_partial(samples)
            raise
    return samples


def _save_partial(save: Callable[..., str], samples: Sequence[Sample], n_samples: int, group: ProcessGroup) -> None:
    if group.is_first and samples:
        say(f"{len(samples)} of {n_samples} answers written to {save(samples, PARTIAL)}")


def _lines(samples: Sequence[Sample]) -> str:
    return "".join(
        format_line(each.prompt.extra, each.prompt.given, each.number, each.generated, _ranking(each))
        for each in samples
    )


def _ranking(sample: Sample) -> dict[str, Any]:
    """Returns what a line of JSON says of reranking."""
    keys = {} if sample.scores is None else ranking_keys(sample.scores)
    return keys | ({"candidates": list(map(candidate_keys, sample.candidates))} if sample.candidates else {})


def _texts(generator: TextGenerator, samples: Sequence[Sample]) -> list[str]:
    return [
        "\n\n".join(filter(None, [generator.text_of(sample), format_candidates(sample.candidates)]))
        for sample in samples
    ]


def _save(generator: TextGenerator, given: PromptFile, step: int, samples: Sequence[Sample], mark: str = "") -> str:
    """Writes the samples of a step to the run directory, with a mark before the file's extension; returns the path."""
    content = _lines(samples) if given.is_jsonl else format_samples(_texts(generator, samples))
    ending = mark + (".jsonl" if given.is_jsonl else ".txt")
    run = generator.run
    return write_predictions(run.config.model_path, run.options.sacred_id, step, ending, content)
