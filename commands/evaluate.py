"""The command `--eval`: measures the loss on held-out data, and evaluates by tasks."""

from __future__ import annotations

import contextlib
import functools
import posixpath
from collections.abc import Callable, Iterator

import numpy as np

from commands.console import counting, say
from commands.options import Options
from commands.run_data import with_data_timeout
from commands.run_setup import (
    Run,
    check_trained,
    load_trained,
    place_run,
    set_up_for_generation,
    set_up_with_data,
)
from commands.task_outputs import TaskOutputs, check_records, format_table
from commands.task_runner import TaskRunner, load_tasks, prepare_tasks
from configs.schema import VALIDATION, RunConfig
from data.loading.batch import Batch
from inputs import evaluation_batches
from models.losses import uniform_loss
from runtime.cluster.process_group import ProcessGroup
from runtime.run.dialogpt_logs import write_logs
from runtime.run.metrics import MetricsWriter, read_metrics
from runtime.run.plots import plot_loss
from runtime.run.token_count import TokenCount
from runtime.training.evaluation import TokenCounts, evaluate_pairs
from runtime.training.evaluation import evaluate as evaluate_batches
from runtime.training.signals import signals_as_interrupt
from runtime.training.steps import build_eval_step


def evaluate(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Evaluates the newest checkpoint, or the weights of `--init_from`: by tasks, then its loss on held-out data.

    The held-out loss covers `eval_steps` batches, or all of the held-out data if that is 0. What is measured of the
    run's own checkpoint is added to the run's metrics.
    """
    tasks = load_tasks(config)
    measure_loss = None
    if _measures_loss(config, options):
        check_trained(config, options)
        run, data = set_up_with_data(config, options, group, place_run(config, options, group))
        data.check_same(group)
        batches = evaluation_batches(data.config, data.eval_patterns(), config.evaluation.eval_steps or None)
        measure_loss = functools.partial(build_evaluator(run), batches)
    else:
        run = set_up_for_generation(config, options, group)
    runner = TaskRunner(run, prepare_tasks(run, tasks))
    if tasks:
        check_records(run)
    runner.build()
    position = load_trained(run)
    group.check_same("the run's position", repr(position))
    with _metrics_writer(run) as metrics, group.timeout():
        _run_tasks(runner, TaskOutputs(run, metrics), position.step)
        if measure_loss is not None:
            _show_loss(config, position.step, measure_loss(), metrics)
    if metrics is not None:
        write_views(config)
    return 0


def _measures_loss(config: RunConfig, options: Options) -> bool:
    """Returns whether the held-out loss is wanted: it is named, nothing is, or the config asks for it as GPT-Neo's."""
    listed = config.evaluation.eval_tasks
    is_implied = "eval_tasks" not in options.typed_keys and config.evaluation.eval_steps > 0
    return not listed or is_implied or any(entry.name == VALIDATION for entry in listed)


@contextlib.contextmanager
def _metrics_writer(run: Run) -> Iterator[MetricsWriter | None]:
    """Opens the run's metrics; None for other weights, which are not part of the run, and in other processes."""
    if run.options.init_from is not None or not run.group.is_first:
        yield None
        return
    with MetricsWriter(run.config.model_path) as metrics:
        yield metrics


def _run_tasks(runner: TaskRunner, outputs: TaskOutputs, step: int) -> None:
    """Runs all tasks and shows a table of them, or of those that were finished before a signal or an error."""
    results = []
    with signals_as_interrupt():
        try:
            for task in runner.tasks:
                with counting(task.name, task.n_requests, runner.run.group) as advance:
                    result = runner.evaluate(task, advance)
                results.append((task.loaded.task, result))
                outputs.write(step, result)
        finally:
            if results:
                say(f"step {step}: tasks\n{format_table(results)}")


def _show_loss(config: RunConfig, step: int, measured: dict[str, float], metrics: MetricsWriter | None) -> None:
    say(f"step {step}: held-out {format_metrics(measured)}")
    baseline = uniform_loss(config.model)
    say(f"loss {measured['loss']:.2f}, {baseline - measured['loss']:.2f} below the uniform baseline ({baseline:.2f})")
    if metrics is not None:
        metrics.write("eval", step, measured)


def build_evaluator(run: Run) -> Callable[[Iterator[Batch]], dict[str, float]]:
    """Builds a function from batches to the metrics of the current weights by name."""
    step = run.group.synchronized(build_eval_step(run.config, run.placement))
    if run.config.model.ranks:
        return lambda batches: evaluate_pairs(step, with_data_timeout(run.group, batches))
    counts = _token_counts(run)
    return lambda batches: evaluate_batches(step, with_data_timeout(run.group, batches), counts)


def _token_counts(run: Run) -> TokenCounts:
    """Returns which labels count; the model's vocabulary may have rows that the tokenizer never uses."""
    model, data = run.config.model, run.config.data
    padding_id = None if data.padding_id == data.eos_id else data.padding_id
    if run.tokenizer is None or not model.is_causal:  # masked tokens alone are not text, and have no bytes
        return TokenCounts(not model.entmax_loss, padding_id, None)
    known = run.tokenizer.token_byte_lengths()
    bytes_V = np.pad(known, (0, max(0, model.n_vocab - len(known))))
    return TokenCounts(not model.entmax_loss, padding_id, bytes_V)


def format_metrics(measured: dict[str, float]) -> str:
    """Returns the metrics as one line."""
    return "  ".join(
        f"{name} {value:,.4f}" if isinstance(value, float) else f"{name} {value:,}" for name, value in measured.items()
    )


def write_views(config: RunConfig) -> None:
    """Draws the run's learning curve so far into `loss.png`, and writes DialoGPT's logs."""
    plot_loss(
        read_metrics(config.model_path),
        posixpath.join(config.model_path, "loss.png"),
        title=config.name,
        uniform_loss=uniform_loss(config.model),
        token_count=TokenCount.of(config),
    )
    write_logs(config.model_path, TokenCount.of(config))
