"""Runs evaluation tasks with the current weights of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from commands.chat import chat_settings
from commands.chat_template import choose_template
from commands.console import say
from commands.run_setup import Run
from commands.text_generator import DEFAULT_ROWS, TextGenerator, build_text_generator
from configs.errors import ConfigError, DataError
from configs.reader import raise_issues
from configs.schema import VALIDATION, RunConfig, TaskEntry
from data.dialogue.context import FittedTurns, fit_turns
from data.dialogue.conversation import ASSISTANT, USER, Turn
from runtime.generation.outputs import sampled_texts
from runtime.generation.requests import GenerationRequest, sample_requests, sample_seed
from runtime.generation.scheduler import Scheduler
from runtime.generation.scoring import Scorer, build_scorer
from tasks.answers import measure_answers
from tasks.evaluate import score_requests
from tasks.load import load_task
from tasks.requests import build_requests, count_cut
from tasks.scorer import Continuations
from tasks.table import make_task
from tasks.task import DIALOGUE, LoadedTask, Task, TaskResult

Ids = tuple[int, ...]


def load_tasks(config: RunConfig) -> list[LoadedTask]:
    """Reads the tasks of a config, in its order.

    Raises:
        ConfigError: tasks are not known, or cannot be used; one line for each.
        DataError: a file is missing, or is not in the form of its task.
    """
    issues, tasks = [], []
    for entry in config.evaluation.eval_tasks:
        try:
            tasks += [] if entry.name == VALIDATION else [_make_task(entry, config)]
        except ConfigError as error:
            issues.append(str(error))
    raise_issues(issues)
    return [load_task(task, config.evaluation.eval_tasks_dir) for task in tasks]


def _make_task(entry: TaskEntry, config: RunConfig) -> Task:
    given = {key: value for key, value in vars(entry).items() if value is not None and key != "every_steps"}
    task = make_task(given)
    if task.kind == DIALOGUE and config.prediction.num_beams > 1:
        raise ConfigError(
            f"eval_tasks = {task.name}: samples its answers, and does not search; set num_beams to 1 instead of "
            f"{config.prediction.num_beams}"
        )
    return task


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task with the token ids that a model is given, which stay the same however often it is evaluated.

    Attributes:
        loaded: the task.
        asked: for each item what the scorer is asked; empty for a dialogue.
        contexts: of each answer of a dialogue.
    """

    loaded: LoadedTask
    asked: Sequence[tuple[Continuations, ...]] = ()
    contexts: Sequence[Ids] = ()

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.loaded.task.name

    @property
    def n_requests(self) -> int:
        """How many requests one evaluation has."""
        return sum(map(len, self.asked)) + len(self.contexts)


def prepare_tasks(run: Run, tasks: Sequence[LoadedTask]) -> list[PreparedTask]:
    """Encodes the items of tasks.

    Raises:
        ConfigError: the run has no tokenizer, or a task does not fit it.
        DataError: an item does not fit the tokenizer or the model.
    """
    if tasks and run.tokenizer is None:
        raise ConfigError("eval_tasks: need a tokenizer; give tokenizer_path in the dataset config")
    if run.config.model.entmax_loss and any(loaded.task.kind != DIALOGUE for loaded in tasks):
        say("eval_tasks: entmax_loss is true, and log-likelihoods are of the softmax, which was not trained")
    return [_prepare(run, loaded) for loaded in tasks]


def _prepare(run: Run, loaded: LoadedTask) -> PreparedTask:
    n_ctx = run.config.model.n_ctx
    if loaded.task.kind == DIALOGUE:
        fitted = _fit_contexts(run, loaded)
        _say_cut(loaded, sum(each.n_left_out > 0 for each in fitted), n_ctx)
        return PreparedTask(loaded, contexts=[each.ids for each in fitted])
    start_id = next(iter(run.tokenizer.start_ids), run.config.data.eos_id)
    asked = build_requests(loaded, run.tokenizer, start_id, n_ctx)
    _say_cut(loaded, count_cut(asked, n_ctx), n_ctx)
    return PreparedTask(loaded, asked)


def _say_cut(loaded: LoadedTask, n_cut: int, n_ctx: int) -> None:
    if n_cut:
        share = f"{n_cut:,} of {len(loaded.items):,} items"
        say(
            f"{loaded.task.name}: {share} have a context that is too long for n_ctx = {n_ctx:,}, and lose its beginning"
        )


def _fit_contexts(run: Run, loaded: LoadedTask) -> list[FittedTurns]:
    template, settings = choose_template(run), chat_settings(run.config, run.options)
    max_tokens, contexts = run.config.model.n_ctx - settings.predict_max_steps, []
    for item in loaded.items:
        try:
            contexts.append(fit_turns(template, _turns(item.turns), max_tokens))
        except DataError as error:
            raise DataError(f"{loaded.path}: line {item.line}: {error}") from error
    return contexts


def _turns(texts: Sequence[str]) -> list[Turn]:
    """Returns the turns of two speakers, of whom the user is the last."""
    roles = (USER, ASSISTANT)
    return [Turn(roles[(len(texts) - 1 - number) % 2], text) for number, text in enumerate(texts)]


@dataclasses.dataclass(frozen=True)
class TaskRunner:
    """Runs tasks; programs are built once, at the first task that needs them.

    Attributes:
        run: its config, processes and tokenizer.
        tasks: what it can run.
    """

    run: Run
    tasks: Sequence[PreparedTask]

    def build(self) -> None:
        """Builds the programs of all tasks, which makes the model's variables."""
        for task in self.tasks:
            _ = self._scorer if task.asked else self._generator

    def evaluate(self, task: PreparedTask, advance: Callable[[int], None]) -> TaskResult:
        """Runs a task; `advance` is called with a number of requests that are done.

        Raises:
            Stopped: a signal has ended it, if `run.group` checks for one.
        """
        if task.contexts:
            return measure_answers(task.loaded, list(self._answers(task.contexts, advance)))
        return score_requests(task.loaded, task.asked, self._scorer, advance)

    @cached_property
    def _scorer(self) -> Scorer:
        return build_scorer(self.run.config, self.run.placement, self.run.group.synchronized)

    @cached_property
    def _generator(self) -> TextGenerator:
        return build_text_generator(self.run, self.run.options.rows or DEFAULT_ROWS)

    def _answers(self, contexts: Sequence[Ids], advance: Callable[[int], None]) -> Iterator[str]:
        """Yields the answer to each context, the same one each time."""
        scheduler = Scheduler(self._generator.engine, self.run.tokenizer.bytes_of)
        for generated in sampled_texts(scheduler, self._requests(contexts)):
            advance(1)
            yield " ".join(generated.text.split())

    def _requests(self, contexts: Sequence[Ids]) -> Iterator[GenerationRequest]:
        run, settings = self.run, chat_settings(self.run.config, self.run.options)
        seed = run.config.training.seed if settings.predict_seed is None else settings.predict_seed
        end_ids = choose_template(run).end_ids
        for number, ids in enumerate(contexts):
            yield from sample_requests(ids, settings, sample_seed(seed, number), run.config.model.n_ctx, end_ids)
