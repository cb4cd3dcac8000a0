"""Talks with a model, at the terminal or line by line, or lets it talk to itself; answers are shown as they come."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from commands.chat_template import choose_template
from commands.console import say, stdout_to_stderr
from commands.options import Options
from commands.prompts import read_prompts
from commands.reranking import Reranker, build_reranker, find_sampling_issues
from commands.run_setup import Run, load_trained, set_up_for_generation
from commands.text_generator import (
    DEFAULT_ROWS,
    TextGenerator,
    build_text_generator,
    check_causal,
    check_streams,
    with_a_filter,
)
from commands.typed_lines import piped_lines, typed_lines
from configs.command_line import typed_values
from configs.errors import ConfigError, UserError, ValueIssue
from configs.kinds import clean_path, is_unicode
from configs.load import override_prediction
from configs.reader import raise_issues, shown
from configs.schema import GENERATION_FLAGS, SAMPLING_KEYS, PredictionConfig, RunConfig
from data.dialogue.context import fit_turns
from data.dialogue.conversation import ASSISTANT, SYSTEM, USER, Turn
from data.dialogue.templates import ChatTemplate
from runtime.cluster.process_group import ProcessGroup
from runtime.generation.outputs import GeneratedText
from runtime.generation.requests import sample_requests
from runtime.generation.reranking import format_candidates, rank
from storage.files import exists, write_text

ANSWER_SHARE = 4  # an answer has up to this share of n_ctx
MAX_ANSWER_SHARE = 2
SHOWN_KEYS = (*SAMPLING_KEYS, "predict_max_steps", "stop", "predict_seed")
COMMAND, ESCAPED = "/", "//"


def chat(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Answers each line of standard input until it ends, or writes a conversation of the model with itself.

    On a terminal, Ctrl-C stops the current answer. Otherwise the status is 2 if a line could not be answered.
    """
    check_causal(config)
    check_streams(config, "chat")
    is_typed = options.self_play is None and sys.stdin.isatty()
    with contextlib.nullcontext(sys.stdout) if is_typed and sys.stdout.isatty() else stdout_to_stderr() as output:
        settings, first = chat_settings(config, options), _first_line(config, options)
        run = set_up_for_generation(config, options, group)
        template = choose_template(run)
        system = _system_turns(options.system, template)
        reranker = None if options.reranking is None else _build_reranker(run, settings)
        generator = build_text_generator(run, 1 if reranker is None else DEFAULT_ROWS)
        load_trained(run)
        if reranker is not None:
            reranker.load()
        talk = Chat(Speaker(generator, template, output, reranker), system, settings)
        say(f"{talk.describe()}; {COMMAND}help lists the commands")
        if first is not None:
            talk.play(first, options.self_play)
            return 0
        return talk.run(typed_lines(talk.is_stopped) if is_typed else piped_lines(), is_typed)


def chat_settings(config: RunConfig, options: Options) -> PredictionConfig:
    """Returns the settings of a chat: those of the run, and else DialoGPT's top_k and short answers."""
    given, n_ctx = config.prediction, config.model.n_ctx
    limit = given.predict_max_steps or n_ctx // ANSWER_SHARE
    filtered = with_a_filter(given, options.typed_keys)
    n_tokens = max(1, min(limit, n_ctx // MAX_ANSWER_SHARE))
    return dataclasses.replace(filtered, predict_batch_size=1, predict_max_steps=n_tokens)


def _build_reranker(run: Run, settings: PredictionConfig) -> Reranker:
    """Builds what chooses among answers; the settings must draw different ones."""
    raise_issues(find_sampling_issues("--chat", settings, run.options.reranking.candidates))
    return build_reranker(run)


def _first_line(config: RunConfig, options: Options) -> str | None:
    """Returns the line by which the model begins to talk to itself; None: it does not.

    Raises:
        ConfigError: it is empty, or there are several.
    """
    if options.self_play is None:
        return None
    given = read_prompts(options, config)
    if given.is_jsonl or not given.text.strip():
        raise ConfigError("--self_play: begins with one line of plain text; give it as --prompt_text")
    return given.text.strip()


def _system_turns(text: str | None, template: ChatTemplate) -> tuple[Turn, ...]:
    if not text:
        return ()
    if not template.has_system:
        raise ConfigError(
            f"--system: the chat template {template.name} has no system line; leave it out, or give a --chat_template "
            "that has one"
        )
    return (Turn(SYSTEM, text),)


@dataclasses.dataclass(frozen=True)
class Speaker:
    """Draws answers and shows them.

    Attributes:
        generator: of the model.
        template: how turns become tokens.
        output: where answers appear.
        reranker: chooses among answers; None: the first one drawn is the answer.
    """

    generator: TextGenerator
    template: ChatTemplate
    output: TextIO
    reranker: Reranker | None = None

    @property
    def n_ctx(self) -> int:
        """Tokens of the context."""
        return self.generator.run.config.model.n_ctx

    def answer(
        self, turns: Sequence[Turn], settings: PredictionConfig, is_stopped: Callable[[], bool]
    ) -> tuple[str, int]:
        """Returns the answer to turns, and how many of the oldest were left out to make room.

        Raises:
            UserError: the last turn does not fit, or the template refuses the turns.
        """
        fitted = fit_turns(self.template, turns, self.n_ctx - settings.predict_max_steps)
        n_drawn = 1 if self.reranker is None else self.reranker.run.options.reranking.candidates
        drawing = dataclasses.replace(settings, predict_batch_size=n_drawn)
        requests = sample_requests(
            fitted.ids, drawing, self.generator.seed(settings), self.n_ctx, self.template.end_ids
        )
        if self.reranker is None:
            return self.generator.stream(next(requests), self.output, is_stopped), fitted.n_left_out
        texts = self.generator.draw(requests, is_stopped)
        said = [turn.text for turn in turns if turn.role != SYSTEM][fitted.n_left_out :]
        return self._best(said, texts), fitted.n_left_out

    def _best(self, said: Sequence[str], texts: Sequence[GeneratedText]) -> str:
        """Shows the best of the texts that are finished, and all candidates if that is asked for; returns it."""
        ranked = rank(texts, self.reranker.scores(said, [text.text for text in texts])) if texts else ()
        best = ranked[0].generated.text if ranked else ""
        print(best, file=self.output, flush=True)
        if ranked and self.reranker.run.options.reranking.shows_candidates:
            say(format_candidates(ranked))
        return best


class Chat:
    """A conversation.

    Attributes:
        is_stopped: set to stop the current answer.
    """

    def __init__(self, speaker: Speaker, system: tuple[Turn, ...], settings: PredictionConfig) -> None:
        """Begins a conversation with what the system line says, if there is one."""
        self.is_stopped = threading.Event()
        self._speaker, self._system, self._settings = speaker, system, settings
        self._turns: list[Turn] = []
        self._has_left_out = False
        self._commands: Mapping[str, tuple[str, Callable[[str], None]]] = {
            "reset": ("forgets what was said", self._reset),
            "undo": ("forgets the last message and its answer", self._undo),
            "save PATH": ("writes the conversation to a new file of JSON", self._save),
            "seed N": ("sets the seed of answers; none: a random one each time", self._seed),
            "settings": ("shows the settings of answers", self._show_settings),
            "help": (f"shows this; a message that begins with {COMMAND} is typed with {ESCAPED}", self._help),
            "quit": ("ends, as Ctrl-D does; Ctrl-C stops an answer", self._help),
        }

    def describe(self) -> str:
        """Returns the line that a chat begins with."""
        settings = self._settings
        return (
            f"chat template: {self._speaker.template.name}; temperature = {settings.temperature}, top_k = "
            f"{settings.top_k}, answers of up to {settings.predict_max_steps} tokens"
        )

    def run(self, lines: Iterator[str], is_typed: bool) -> int:
        """Answers lines that are not blank and carries out commands until /quit or the end; returns the exit status."""
        status = 0
        for line in filter(str.strip, lines):
            if line.strip() == f"{COMMAND}quit":
                break
            try:
                self._take(line)
            except UserError as error:
                say(str(error))
                status = 0 if is_typed else error.exit_status
        return status

    def play(self, first: str, n_turns: int) -> None:
        """Lets the model answer itself, this many times, after a first line."""
        print(first, file=self._speaker.output, flush=True)
        texts = [first]
        for _ in range(n_turns):
            self._turns = _seen_by_next(texts)
            texts.append(self._answer())

    def _take(self, line: str) -> None:
        """Answers a message, or carries out a command."""
        if line.startswith(COMMAND) and not line.startswith(ESCAPED):
            self._command(line)
            return
        if not is_unicode(line):
            raise UserError("the line: is not UTF-8 text; type it again")
        self._turns.append(Turn(USER, line.removeprefix(COMMAND)))
        try:
            self._turns.append(Turn(ASSISTANT, self._answer()))
        except UserError:
            del self._turns[-1]
            raise

    def _answer(self) -> str:
        text, n_left_out = self._speaker.answer([*self._system, *self._turns], self._settings, self.is_stopped.is_set)
        if n_left_out and not self._has_left_out:
            say(f"the conversation: no longer fits into n_ctx = {self._speaker.n_ctx}; its oldest turns are left out")
            self._has_left_out = True
        return text

    def _command(self, line: str) -> None:
        name, _, argument = line.removeprefix(COMMAND).strip().partition(" ")
        for usage, (_, carry_out) in self._commands.items():
            known, _, parameter = usage.partition(" ")
            if known == name:
                if argument and not parameter:
                    raise UserError(f"{line.strip()}: takes nothing after it; type {COMMAND}{name}")
                carry_out(argument.strip())
                return
        raise UserError(f"{COMMAND}{name}: is not a command; {COMMAND}help lists them, and {ESCAPED} begins a message")

    def _help(self, _: str) -> None:
        for usage, (meaning, _) in self._commands.items():
            say(f"{COMMAND}{usage:<12}{meaning}")

    def _reset(self, _: str) -> None:
        self._turns, self._has_left_out = [], False
        say("begins anew")

    def _undo(self, _: str) -> None:
        if not self._turns:
            raise UserError(f"{COMMAND}undo: nothing was said yet; type a message")
        del self._turns[-2:]
        say(f"messages: {len(self._turns) // 2}")

    def _save(self, path: str) -> None:
        if not path:
            raise UserError(f"{COMMAND}save: names no file; give one, such as {COMMAND}save chat.jsonl")
        try:
            path = clean_path(path)
        except ValueIssue as issue:
            raise UserError(f"{COMMAND}save {path}: {issue}") from None
        if exists(path):
            raise UserError(f"{COMMAND}save {path}: is there already; give another file")
        messages = [{"role": turn.role, "content": turn.text} for turn in [*self._system, *self._turns]]
        write_text(path, json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        say(f"written to {path}")

    def _seed(self, text: str) -> None:
        config = dataclasses.replace(self._speaker.generator.run.config, prediction=self._settings)
        self._settings = override_prediction(config, {"seed": next(typed_values(text), text)}, f"{COMMAND}seed")
        self._show("seed")

    def _show_settings(self, _: str) -> None:
        say(f"chat template = {self._speaker.template.name}, n_ctx = {self._speaker.n_ctx}, turns = {len(self._turns)}")
        for flag, key in GENERATION_FLAGS.items():
            if key in SHOWN_KEYS:
                self._show(flag)

    def _show(self, flag: str) -> None:
        say(f"{flag} = {shown(getattr(self._settings, GENERATION_FLAGS[flag]))}")


def _seen_by_next(texts: Sequence[str]) -> list[Turn]:
    """Returns what was said by turns as the one who speaks next sees it: the last turn is the other's."""
    roles = itertools.cycle((USER, ASSISTANT))
    return [Turn(role, text) for role, text in zip(roles, reversed(texts), strict=False)][::-1]
