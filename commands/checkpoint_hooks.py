"""What happens at a checkpoint once it is saved: evaluation, samples, and histograms of the weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from commands.console import say
from commands.evaluate import build_evaluator, format_metrics, tokens_per_step
from commands.predict import build_sampler
from commands.prompts import PromptFile, check_shared_prompt, encode_prompts, read_prompts
from commands.run_data import RunData
from commands.run_setup import Run
from data.tfrecord.shards import list_shards
from inputs import evaluation_batches
from runtime.checkpoint import reader
from runtime.checkpoint.position import TrainingPosition
from runtime.run import directory as run_directory
from runtime.run.dialogpt_logs import write_logs
from runtime.run.metrics import MetricsWriter
from runtime.training.signals import Stopped

SAVE_SECONDS = 1800  # timeout for one process's part of a checkpoint

CheckpointHook = Callable[[TrainingPosition], None]


@dataclasses.dataclass(frozen=True)
class CheckpointHooks:
    """Runs hooks in their order. What a signal ends is done when the run resumes from that checkpoint."""

    run: Run
    hooks: Sequence[CheckpointHook]

    @staticmethod
    def of(
        run: Run,
        data: RunData,
        prompts: PromptFile | None,
        metrics: MetricsWriter | None,
        note: Callable[[str], None],
    ) -> CheckpointHooks:
        """Returns the hooks that the config asks for.

        Args:
            run: whose checkpoints they are; a signal ends a hook before its next step if `run.group` checks for it.
            data: its datasets.
            prompts: those that samples continue; None: no samples.
            metrics: gets evaluation results and histograms; None where another process writes them.
            note: shows a line without disturbing the progress bar.
        """
        return CheckpointHooks(run, list(_hooks(run, data, prompts, metrics, note)))

    def __call__(self, position: TrainingPosition, first: int = 0) -> None:
        """Runs the hooks of a checkpoint, from the first one that is not done yet.

        Raises:
            Stopped: a signal has ended them.
        """
        for number, hook in enumerate(self.hooks[first:], first):
            try:
                hook(position)
            except Stopped:
                if self.run.group.is_first:
                    run_directory.write_interrupted(self.run.config.model_path, position.step, number)
                raise

    def catch_up(self, position: TrainingPosition) -> None:
        """Runs those that a signal has ended at this checkpoint.

        Raises:
            Stopped: another one has.
        """
        first = interrupted_hook(self.run, position)
        if first is not None:
            self(position, first)
            if self.run.group.is_first:
                run_directory.forget_interrupted(self.run.config.model_path)


def interrupted_hook(run: Run, position: TrainingPosition) -> int | None:
    """Returns the number of the first hook that is left to do at a checkpoint, the same in all processes."""
    found = run_directory.read_interrupted(run.config.model_path, position.step) if run.group.is_first else None
    number = run.group.all_reduce_max(-1 if found is None else found)
    return None if number < 0 else number


def _hooks(
    run: Run,
    data: RunData,
    prompts: PromptFile | None,
    metrics: MetricsWriter | None,
    note: Callable[[str], None],
) -> Iterator[CheckpointHook]:
    if run.config.evaluation.eval_steps and data.has_eval_part():
        yield _evaluation_hook(run, data, metrics, note)
    if prompts is not None:
        yield _sample_hook(run, prompts, note)
    if run.config.training.log_weights and run.group.is_first:
        yield _histogram_hook(run, metrics)
    if metrics is not None:
        yield lambda position: write_logs(run.config.model_path, tokens_per_step(run.config))


def check_hook_inputs(run: Run, data: RunData) -> PromptFile | None:
    """Checks held-out data and prompts at the start, so that training does not fail at its first checkpoint.

    Returns:
        the prompts; None: no samples are asked for.

    Raises:
        UserError: they cannot be used.
    """
    for pattern in data.eval_patterns():
        if run.config.evaluation.eval_steps and pattern:
            list_shards(pattern)
    if not run.config.prediction.predict_steps or not run.config.model.writes_text or run.tokenizer is None:
        return None
    check_shared_prompt(run.options, run.group)
    given = read_prompts(run.options, run.config)
    run.group.check_same("the prompt", given.text)
    encode_prompts(given.prompts, run.config, run.tokenizer, say)
    return given


# Programs are built at the first checkpoint, not before the first step.


def _evaluation_hook(
    run: Run, data: RunData, metrics: MetricsWriter | None, note: Callable[[str], None]
) -> CheckpointHook:
    evaluator = functools.cache(lambda: build_evaluator(run))

    def evaluate(position: TrainingPosition) -> None:
        batches = evaluation_batches(data.config, data.eval_patterns(), run.config.evaluation.eval_steps)
        measured = evaluator()(batches)
        if metrics is not None:
            metrics.write("eval", position.step, measured)
        note(f"step {position.step}: held-out {format_metrics(measured)}")

    return evaluate


def _sample_hook(run: Run, prompts: PromptFile, note: Callable[[str], None]) -> CheckpointHook:
    sampler = functools.cache(lambda: build_sampler(run, prompts))

    def sample(position: TrainingPosition) -> None:
        path = sampler()(position.step)
        if run.group.is_first:
            note(f"step {position.step}: samples in {path}")

    return sample


def _histogram_hook(run: Run, metrics: MetricsWriter) -> CheckpointHook:
    def write_histograms(position: TrainingPosition) -> None:
        names = [stored.name for stored in run.placement.store if stored.variable.trainable]
        # Read from the checkpoint, where each variable is whole on any mesh.
        path = reader.latest_checkpoint(run.config.model_path)
        with run.group.timeout(SAVE_SECONDS):
            for name, value in reader.read_variables(path, names):
                if run.group.size == 1:  # the other processes wait at the next step
                    run.group.before_step()
                metrics.write_histogram(position.step, f"weights/{name.removeprefix('gpt2/')}", value)

    return write_histograms
