"""Runs evaluation tasks with the current weights of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from commands.chat import chat_settings
from commands.chat_template import choose_template
from commands.run_setup import Run
from commands.text_generator import DEFAULT_ROWS, TextGenerator, build_text_generator
from configs.errors import ConfigError, DataError, did_you_mean
from configs.reader import raise_issues
from configs.schema import VALIDATION, RunConfig, TaskEntry
from data.dialogue.context import fit_turns
from data.dialogue.conversation import ASSISTANT, USER, Turn
from runtime.generation.outputs import sampled_texts
from runtime.generation.requests import GenerationRequest, sample_requests, sample_seed
from runtime.generation.scheduler import Scheduler
from runtime.generation.scoring import Scorer, build_scorer
from tasks.dialogue.evaluation import measure_answers
from tasks.evaluate import evaluate_task
from tasks.load import load_task
from tasks.table import TASKS
from tasks.task import DIALOGUE, LoadedTask, Task, TaskResult

OWN_TASK = '{"name": "mine", "file": "mine.jsonl", "kind": "multiple_choice"}'
Advance = Callable[[int], None]


def load_tasks(config: RunConfig) -> list[LoadedTask]:
    """Reads the tasks of a config, in its order.

    Raises:
        ConfigError: tasks are not known; one line for each.
        DataError: a file is missing, or is not in the form of its task.
    """
    entries = named_tasks(config)
    raise_issues(issue for entry in entries for issue in _find_issues(entry, config))
    return [load_task(_task_of(entry), config.evaluation.eval_tasks_dir) for entry in entries]


def named_tasks(config: RunConfig) -> list[TaskEntry]:
    """Returns the entries of `eval_tasks` without that of the held-out loss."""
    return [entry for entry in config.evaluation.eval_tasks if entry.name != VALIDATION]


def _find_issues(entry: TaskEntry, config: RunConfig) -> Iterator[str]:
    place = f"eval_tasks: {entry.name}"
    if entry.name not in TASKS and entry.file is None:
        remedy = did_you_mean(entry.name, TASKS, "see the table")
        yield f"{place}: is no task of the table; {remedy} ({', '.join(TASKS)}); or give your own as {OWN_TASK}"
    elif entry.name not in TASKS and entry.kind is None:
        yield f"{place}: kind: is missing; write it as {OWN_TASK}"
    elif entry.kind == DIALOGUE and config.prediction.num_beams > 1:
        yield f"{place}: num_beams = {config.prediction.num_beams}: answers are sampled, not searched; set it to 1"


def _task_of(entry: TaskEntry) -> Task:
    given = {key: value for key, value in vars(entry).items() if value is not None and key != "every_steps"}
    return dataclasses.replace(TASKS[entry.name], **given) if entry.name in TASKS else Task(**given)


def check_tasks(run: Run, tasks: Sequence[LoadedTask]) -> None:
    """Checks that a run has what its tasks need.

    Raises:
        ConfigError: it has no tokenizer.
        DataError: a context of a dialogue leaves no room for an answer.
    """
    if tasks and run.tokenizer is None:
        raise ConfigError("eval_tasks: need a tokenizer; give tokenizer_path in the dataset config")
    for loaded in tasks:
        if loaded.task.kind == DIALOGUE:
            _fit_contexts(run, loaded)


@dataclasses.dataclass(frozen=True)
class TaskRunner:
    """Runs tasks; programs are built once, at the first task that needs them.

    Attributes:
        run: its config, processes and tokenizer.
        tasks: what it can run.
    """

    run: Run
    tasks: Sequence[LoadedTask]

    def build(self) -> None:
        """Builds the programs of all tasks, which makes the model's variables."""
        for loaded in self.tasks:
            _ = self._generator if loaded.task.kind == DIALOGUE else self._scorer

    def evaluate(self, loaded: LoadedTask, advance: Advance) -> TaskResult:
        """Runs a task; `advance` is called with a number of requests that are done.

        Raises:
            Stopped: a signal has ended it, if `run.group` checks for one.
        """
        if loaded.task.kind == DIALOGUE:
            return measure_answers(loaded, list(self._answers(loaded, advance)))
        return evaluate_task(loaded, self.run.tokenizer, self._scorer, advance)

    @cached_property
    def _scorer(self) -> Scorer:
        return build_scorer(self.run.config, self.run.placement, self.run.group.synchronized)

    @cached_property
    def _generator(self) -> TextGenerator:
        return build_text_generator(self.run, self.run.options.rows or DEFAULT_ROWS)

    def _answers(self, loaded: LoadedTask, advance: Advance) -> Iterator[str]:
        """Yields the answer to each context, the same one each time."""
        scheduler = Scheduler(self._generator.engine, self.run.tokenizer.bytes_of)
        for generated in sampled_texts(scheduler, self._requests(loaded)):
            advance(1)
            yield " ".join(generated.text.split())

    def _requests(self, loaded: LoadedTask) -> Iterator[GenerationRequest]:
        run, settings = self.run, chat_settings(self.run.config, self.run.options)
        seed = run.config.training.seed if settings.predict_seed is None else settings.predict_seed
        end_ids, n_ctx = choose_template(run).end_ids, run.config.model.n_ctx
        for number, ids in enumerate(_fit_contexts(run, loaded)):
            yield from sample_requests(ids, settings, sample_seed(seed, number), n_ctx, end_ids)


def _fit_contexts(run: Run, loaded: LoadedTask) -> list[tuple[int, ...]]:
    """Returns the ids that a model is given for each context of a dialogue task."""
    template, settings = choose_template(run), chat_settings(run.config, run.options)
    max_tokens, fitted = run.config.model.n_ctx - settings.predict_max_steps, []
    for item in loaded.items:
        try:
            fitted.append(fit_turns(template, _turns(item.turns), max_tokens).ids)
        except DataError as error:
            raise DataError(f"{loaded.path}: line {item.line}: {error}") from error
    return fitted


def _turns(texts: Sequence[str]) -> list[Turn]:
    """Returns the turns of two speakers, of whom the user is the last."""
    roles = (USER, ASSISTANT)
    return [Turn(roles[(len(texts) - 1 - number) % 2], text) for number, text in enumerate(texts)]
