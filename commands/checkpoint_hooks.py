"""What happens at a pause of training, such as a checkpoint: evaluation, tasks, samples, histograms of the weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from commands.console import say
from commands.evaluate import build_evaluator, format_metrics
from commands.predict import build_sampler
from commands.prompts import PromptFile, check_shared_prompt, encode_prompts, read_prompts
from commands.run_data import RunData
from commands.run_setup import Run
from commands.task_outputs import TaskOutputs, format_note
from commands.task_runner import PreparedTask, TaskRunner, prepare_tasks
from configs.schema import SAMPLES, VALIDATION
from data.tfrecord.shards import list_shards
from inputs import evaluation_batches
from runtime.checkpoint import reader
from runtime.checkpoint.position import TrainingPosition
from runtime.run import directory as run_directory
from runtime.run.dialogpt_logs import write_logs
from runtime.run.metrics import MetricsWriter
from runtime.run.token_count import TokenCount
from runtime.training.signals import Stopped
from tasks.task import LoadedTask
from tasks.text_quality import measure_texts

SAVE_SECONDS = 1800  # timeout for one process's part of a checkpoint

Hook = Callable[[TrainingPosition], None]


@dataclasses.dataclass(frozen=True)
class CheckpointHook:
    """What is done at multiples of some steps, and at the end of training.

    Attributes:
        name: identifies it in the record of an interrupted pause.
        every_steps: steps between two times.
        run: does it.
    """

    name: str
    every_steps: int
    run: Hook


@dataclasses.dataclass(frozen=True)
class CheckpointHooks:
    """Runs hooks in their order. What a signal ends is done when the run resumes from that step.

    Attributes:
        run: whose hooks they are.
        hooks: all of this process; the first process has those of the others, and more.
        note: shows a line without disturbing the progress bar.
    """

    run: Run
    hooks: Sequence[CheckpointHook]
    note: Callable[[str], None]

    @property
    def periods(self) -> tuple[int, ...]:
        """The steps between two pauses that hooks need."""
        return tuple(sorted({hook.every_steps for hook in self.hooks}))

    def __call__(self, position: TrainingPosition) -> None:
        """Runs the hooks that are due.

        Raises:
            Stopped: a signal has ended them.
        """
        is_last = position.step == self.run.config.training.train_steps
        self._run([hook for hook in self.hooks if is_last or position.step % hook.every_steps == 0], position)

    def catch_up(self, position: TrainingPosition) -> None:
        """Runs those that a signal has ended at this step, and tells of those that the settings name no longer.

        Raises:
            Stopped: another one has.
        """
        names = interrupted_hooks(self.run, position)
        if not names:
            return
        if gone := [name for name in names if name not in {hook.name for hook in self.hooks}]:
            what = f"interrupted at step {position.step}, and no longer in the settings; left out"
            self.note(f"{', '.join(gone)}: {what}")
        self._run([hook for hook in self.hooks if hook.name in names], position)
        if self.run.group.is_first:
            run_directory.forget_interrupted(self.run.config.model_path)

    def _run(self, hooks: Sequence[CheckpointHook], position: TrainingPosition) -> None:
        for number, hook in enumerate(hooks):
            try:
                hook.run(position)
            except Stopped:
                if self.run.group.is_first:
                    left = [hook.name for hook in hooks[number:]]
                    run_directory.write_interrupted(self.run.config.model_path, position.step, left)
                raise


def interrupted_hooks(run: Run, position: TrainingPosition) -> tuple[str, ...]:
    """Returns the names of the hooks that are left to do at a step, once all processes have read them."""
    names = run_directory.read_interrupted(run.config.model_path, position.step)
    run.group.check_same(run_directory.INTERRUPTED_FILE, repr(names))
    return names


@dataclasses.dataclass(frozen=True)
class HookInputs:
    """What hooks read, checked before training starts.

    Attributes:
        data: the datasets of the run.
        prompts: those that samples continue; None: no samples.
        tasks: the evaluation tasks.
    """

    data: RunData
    prompts: PromptFile | None
    tasks: Sequence[PreparedTask]


def check_hook_inputs(run: Run, data: RunData, tasks: Sequence[LoadedTask]) -> HookInputs:
    """Checks held-out data, tasks and prompts at the start, so that training does not fail at its first checkpoint.

    Raises:
        UserError: they cannot be used.
    """
    if _measures_loss(run) and not data.has_eval_part():
        say("held-out loss: not measured while training, since no dataset has a held-out part; give eval_path in one")
    for pattern in data.eval_patterns():
        if _measures_loss(run) and pattern:
            list_shards(pattern)
    return HookInputs(data, _checked_prompts(run), prepare_tasks(run, tasks))


def _measures_loss(run: Run) -> bool:
    evaluation = run.config.evaluation
    return evaluation.eval_steps > 0 or any(entry.name == VALIDATION for entry in evaluation.eval_tasks)


def _checked_prompts(run: Run) -> PromptFile | None:
    if not run.config.prediction.predict_steps or not run.config.model.writes_text or run.tokenizer is None:
        return None
    check_shared_prompt(run.options, run.group)
    given = read_prompts(run.options, run.config)
    run.group.check_same("the prompt", given.text)
    encode_prompts(given.prompts, run.config, run.tokenizer, say)
    return given


def build_hooks(
    run: Run,
    inputs: HookInputs,
    metrics: MetricsWriter | None,
    note: Callable[[str], None],
    wait_for_checkpoint: Callable[[], None],
) -> CheckpointHooks:
    """Returns the hooks that the config asks for.

    Args:
        run: whose checkpoints they are; a signal ends a hook before its next step if `run.group` checks for it.
        inputs: what they read.
        metrics: gets evaluation results and histograms; None where another process writes them.
        note: shows a line without disturbing the progress bar.
        wait_for_checkpoint: returns once the newest checkpoint is finished; called in the first process.
    """
    return CheckpointHooks(run, list(_hooks(run, inputs, metrics, note, wait_for_checkpoint)), note)


# Programs are built when a hook runs first, not before the first step.


def _hooks(
    run: Run,
    inputs: HookInputs,
    metrics: MetricsWriter | None,
    note: Callable[[str], None],
    wait_for_checkpoint: Callable[[], None],
) -> Iterator[CheckpointHook]:
    at_checkpoints = functools.partial(CheckpointHook, every_steps=run.options.steps_per_checkpoint)
    periods = {entry.name: entry.every_steps for entry in run.config.evaluation.eval_tasks}
    if _measures_loss(run) and inputs.data.has_eval_part():
        period = _period(run, periods.get(VALIDATION))
        yield CheckpointHook(VALIDATION, period, _loss_hook(run, inputs.data, metrics, note))
    runner, outputs = TaskRunner(run, inputs.tasks), TaskOutputs(run, metrics)
    for task in inputs.tasks:
        yield CheckpointHook(task.name, _period(run, periods[task.name]), _task_hook(runner, task, outputs, note))
    if inputs.prompts is not None:
        yield at_checkpoints(SAMPLES, run=_sample_hook(run, inputs.prompts, metrics, note))
    if run.config.training.log_weights and run.group.is_first:
        yield at_checkpoints("histograms of weights", run=_histogram_hook(run, metrics, wait_for_checkpoint))
    if metrics is not None:
        write = functools.partial(write_logs, run.config.model_path, TokenCount.of(run.config))
        yield at_checkpoints("logs of training", run=lambda position: write())


def _period(run: Run, own: int | None) -> int:
    """Returns the steps between two evaluations, of which `own` are those that a task asks for."""
    return own or run.config.evaluation.eval_every_steps or run.options.steps_per_checkpoint


def _loss_hook(run: Run, data: RunData, metrics: MetricsWriter | None, note: Callable[[str], None]) -> Hook:
    evaluator = functools.cache(lambda: build_evaluator(run))

    def evaluate(position: TrainingPosition) -> None:
        batches = evaluation_batches(data.config, data.eval_patterns(), run.config.evaluation.eval_steps or None)
        measured = evaluator()(batches)
        if metrics is not None:
            metrics.write("eval", position.step, measured)
        note(f"step {position.step}: held-out {format_metrics(measured)}")

    return evaluate


def _task_hook(runner: TaskRunner, task: PreparedTask, outputs: TaskOutputs, note: Callable[[str], None]) -> Hook:
    def evaluate(position: TrainingPosition) -> None:
        result = runner.evaluate(task, lambda n_done: None)
        outputs.write(position.step, result)
        note(format_note(position.step, result))

    return evaluate


def _sample_hook(run: Run, prompts: PromptFile, metrics: MetricsWriter | None, note: Callable[[str], None]) -> Hook:
    sampler = functools.cache(lambda: build_sampler(run, prompts))

    def sample(position: TrainingPosition) -> None:
        path, texts = sampler()(position.step)
        if metrics is None:
            return
        measured = measure_texts([text.text for text in texts], [text.tokens for text in texts])
        if measured:
            metrics.write("eval", position.step, {f"{SAMPLES}/{name}": value for name, value in measured.items()})
        shown = "".join(f"  {name} {value:.3f}" for name, value in measured.items())
        note(f"step {position.step}: samples in {path}{shown}")

    return sample


def _histogram_hook(run: Run, metrics: MetricsWriter, wait_for_checkpoint: Callable[[], None]) -> Hook:
    def write_histograms(position: TrainingPosition) -> None:
        names = [stored.name for stored in run.placement.store if stored.variable.trainable]
        # Read from the checkpoint, where each variable is whole on any mesh.
        wait_for_checkpoint()
        path = reader.latest_checkpoint(run.config.model_path)
        with run.group.timeout(SAVE_SECONDS):
            for name, value in reader.read_variables(path, names):
                if run.group.size == 1:  # the other processes wait at the next step
                    run.group.before_step()
                metrics.write_histogram(position.step, f"weights/{name.removeprefix('gpt2/')}", value)

    return write_histograms
