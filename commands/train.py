"""The training command: loads weights and data, and runs the loop. What happens at a checkpoint: `checkpoint_hooks`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Mapping

from commands.backend import backend_of
from commands.checkpoint_hooks import SAVE_SECONDS, HookInputs, build_hooks, check_hook_inputs, interrupted_hooks
from commands.console import say
from commands.evaluate import write_views
from commands.options import Options
from commands.run_data import RunData, with_data_timeout
from commands.run_setup import (
    Run,
    check_base,
    check_given,
    load_init_from,
    newest_checkpoint,
    place_run,
    restore_latest,
    resumes,
    set_up_with_data,
)
from commands.task_runner import load_tasks
from configs.errors import CheckpointError, ConfigError, DataError
from configs.schema import RunConfig
from data.loading.batch import Batch
from data.loading.describe_batch import describe_batch
from inputs import training_batches
from meshtf import tf
from models.kernels.noise import noise_key
from runtime.checkpoint import reader
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.writer import CheckpointWriter
from runtime.cluster.process_group import ProcessGroup
from runtime.mesh.placement import Placement, VariableStore
from runtime.planning.peak_flops import peak_tokens_per_second
from runtime.run import directory as run_directory
from runtime.run import lock
from runtime.run.memory import memory_in_use
from runtime.run.metrics import MetricsWriter
from runtime.run.progress_bar import Progress
from runtime.training import loop
from runtime.training.changed_settings import describe_changes
from runtime.training.loop import DivergenceReport, Hooks
from runtime.training.lr_schedules import learning_rate
from runtime.training.multi_step import MultiStep
from runtime.training.nan_diagnosis import Diagnosis
from runtime.training.profiler import UNTRACED_STEPS, profiled
from runtime.training.signals import StopRequest, stopped_during
from runtime.training.state_sharding import describe_sharding
from runtime.training.steps import check_batch_splits

DIAGNOSIS_SECONDS = 1800  # timeout for the diagnosis of a divergence


def train(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Trains from the newest checkpoint, or from step 0, up to `train_steps`; returns the exit status."""
    _check_weights(config, options)
    tasks = load_tasks(config)
    placement = place_run(config, options, group)
    check_batch_splits(config.training, placement.axis_size("batch"))
    peak = _peak_tokens_per_second(config, placement, group)
    run, data = set_up_with_data(config, options, group, placement)
    data.train_patterns()  # finds what is missing before anything is built
    inputs = check_hook_inputs(run, data, tasks)
    data.check_same(group)
    multi_step = run.backend.build_training(config, placement, group)
    if sharding := describe_sharding(config, placement):
        say(sharding)
    resumed_from = reader.latest_checkpoint(config.model_path)
    position = _load_weights(run)
    train_steps = config.training.train_steps
    if position.step >= train_steps and not interrupted_hooks(run, position):
        say(f"step {position.step} of {train_steps}: training is finished; raise train_steps to train on")
        return 0
    _check_profile(options.profile, train_steps - position.step)
    batches = _load_batches(run, data, position)
    with _locked_run_directory(run, resumed_from), _metrics_writer(run, position) as metrics:
        with StopRequest(group.all_reduce_max) as stop, _progress_bar(run, position) as progress, group.timeout():
            hooks = _build_hooks(run, inputs, metrics, progress, peak, stop)
            with _profiled(run, multi_step, progress) as steps:
                position, signal_number = _run_to_the_end(run, steps, batches, position, hooks)
        if group.is_first:
            write_views(config)
    return _log_end(config, position, signal_number)


def _check_weights(config: RunConfig, options: Options) -> None:
    """Checks what training begins with, before any text is tokenized for it.

    Raises:
        ConfigError: adapters have no weights to belong to.
        CheckpointError: weights cannot be read, or are of another model.
    """
    if resumes(config, options):
        check_base(newest_checkpoint(config), options.init_from)
    elif options.init_from is not None:
        check_given(config, options)
    elif config.model.lora_rank:
        raise ConfigError(
            f"{config.name}: lora_rank = {config.model.lora_rank}: adapts trained weights, and there are none; give "
            "--init_from PATH, or leave lora_rank out"
        )


def _check_profile(n_steps: int | None, n_left: int) -> None:
    """Checks that enough steps are left to trace.

    Raises:
        ConfigError: there are too few.
    """
    if n_steps is not None and UNTRACED_STEPS + n_steps > n_left:
        raise ConfigError(
            f"--profile {n_steps}: begins after {UNTRACED_STEPS} steps, and the run has {n_left} left; "
            "raise train_steps"
        )


def _profiled(run: Run, multi_step: MultiStep, progress: Progress) -> contextlib.AbstractContextManager[MultiStep]:
    """Traces what `--profile` asks for, in the first process only: the others' traces would be alike."""
    if run.options.profile is None or not run.group.is_first:
        return contextlib.nullcontext(multi_step)
    return profiled(multi_step, run.options.profile, run.config.model_path, progress.note)


def _run_to_the_end(
    run: Run, multi_step: MultiStep, batches: Iterator[Batch], position: TrainingPosition, hooks: Hooks
) -> tuple[TrainingPosition, int | None]:
    """Does what a signal has left undone, trains, and runs the hooks of the last checkpoint.

    Returns:
        The last position, and the signal that ended this early, or None.
    """
    training, steps_per_checkpoint = run.config.training, run.options.steps_per_checkpoint
    signal_number = stopped_during(hooks.at_pause.catch_up, position)
    if signal_number or position.step >= training.train_steps:
        return position, signal_number
    rate = functools.partial(learning_rate, training=training, n_embd=run.config.model.n_embd)
    position, signal_number = loop.train(training, rate, multi_step, batches, position, hooks, steps_per_checkpoint)
    return position, signal_number or stopped_during(hooks.at_pause, position)


def _peak_tokens_per_second(config: RunConfig, placement: Placement, group: ProcessGroup) -> float | None:
    """Returns the throughput of all devices at their peak; None if it is unknown."""
    peak = backend_of(placement).peak_flops(config, placement, group)
    if peak is None:
        say("peak of the devices: not known, so no mfu is shown; that of CPUs is measured while nothing else uses them")
        return None
    say(f"peak of the devices: {peak / 1e12:,.4g} TFLOP/s")
    return peak_tokens_per_second(config.model, peak)


def _load_weights(run: Run) -> TrainingPosition:
    """Restores the newest checkpoint of the run, or else starts from `--init_from` or from random weights."""
    say(f"model: {_parameter_count(run.placement.store)}")
    if resumes(run.config, run.options):
        run_directory.check_settings(run.config, run.tokenizer_json)
        if run.options.init_from is not None and not run.config.model.lora_rank:
            say(f"--init_from {run.options.init_from}: ignored, since the run resumes from its own checkpoint")
        if run.options.adapter is not None:
            say(f"--adapter {run.options.adapter}: ignored, since the run resumes from its own checkpoint")
        kept = run_directory.kept_config(run.config.model_path)
        position = restore_latest(run)
        changes = kept and describe_changes(kept, run.config, position.step)
        if changes:
            say(changes)
    else:
        run.placement.store.initialize(run.config.training.seed)
        given = run.options.init_from
        position = TrainingPosition(0, 0) if given is None else load_init_from(run, run.config.data.eos_id)
    run.group.check_same("the run's position", repr(position))
    return position


def _parameter_count(store: VariableStore) -> str:
    n_all, n_trained = store.n_parameters(), store.n_trainable_parameters()
    frozen = "" if n_all == n_trained else f", {n_trained:,} of them ({100 * n_trained / n_all:.3g} %) trained"
    return f"{n_all:,} parameters{frozen}"


def _load_batches(run: Run, data: RunData, position: TrainingPosition) -> Iterator[Batch]:
    start = (position.examples, position.examples_per_dataset, run.placement.own_rows, position.step)
    batches = training_batches(data.config, data.train_patterns(), *start)
    batches = with_data_timeout(run.group, batches)
    # The first batch is read now, so that a bad record is found in every process before anything is written.
    batches = itertools.chain([next(batches)], batches)
    run.group.barrier()
    return batches


@contextlib.contextmanager
def _locked_run_directory(run: Run, resumed_from: str | None) -> Iterator[None]:
    """Locks the run's directory for this run, and with `--new` deletes what is in it.

    Raises:
        CheckpointError: another process has trained there since the weights were read, from `resumed_from`.
    """
    config, group = run.config, run.group
    with lock.locked(config.model_path) if group.is_first else contextlib.nullcontext():
        if group.is_first:
            if reader.latest_checkpoint(config.model_path) != resumed_from:
                raise CheckpointError(
                    f"model_path = {config.model_path}: another process has trained here in the meantime; run the same "
                    "command again to resume from its checkpoint, or give another model_path"
                )
            if run.options.new and run_directory.is_run(config.model_path):
                run_directory.delete_contents(config.model_path)
                say(f"deleted the run in {config.model_path}")
            run_directory.write_settings(config, run.tokenizer)
        group.barrier()
        run_directory.check_shared(config)
        yield


@contextlib.contextmanager
def _metrics_writer(run: Run, position: TrainingPosition) -> Iterator[MetricsWriter | None]:
    """Opens the run's metrics in the first process; None in the others, which measure the same."""
    if not run.group.is_first:
        yield None
        return
    with MetricsWriter(run.config.model_path, position.step) as metrics:
        yield metrics


@contextlib.contextmanager
def _progress_bar(run: Run, position: TrainingPosition) -> Iterator[Progress]:
    """Shows progress in the first process only."""
    with open(os.devnull, "w") as nowhere:
        stream = None if run.group.is_first else nowhere
        with Progress(run.config.training.train_steps, position.step, stream) as progress:
            yield progress


def _build_hooks(
    run: Run,
    inputs: HookInputs,
    metrics: MetricsWriter | None,
    progress: Progress,
    peak_tokens_per_second: float | None,
    stop: StopRequest,
) -> Hooks:
    stoppable = dataclasses.replace(run, group=dataclasses.replace(run.group, before_step=stop.check))
    checkpoints = _checkpoints(run, metrics)
    at_pause = build_hooks(stoppable, inputs, metrics, progress.note, checkpoints.wait)
    return Hooks(
        write_metrics=functools.partial(_write_metrics, run, metrics),
        checkpoints=checkpoints,
        periods=at_pause.periods,
        at_pause=at_pause,
        progress=progress,
        warn=progress.note if run.group.is_first else functools.partial(print, file=sys.stderr),
        diagnose=functools.partial(_diagnose, run, inputs.data),
        peak_tokens_per_second=peak_tokens_per_second,
        stop=stop,
    )


def _write_metrics(run: Run, metrics: MetricsWriter | None, step: int, values: Mapping[str, float]) -> None:
    if metrics is not None:
        _make_again_if_removed(run)
        metrics.write("train", step, {**values, **memory_in_use(run.placement.devices)})


@dataclasses.dataclass(frozen=True)
class _Checkpoints:
    """The checkpoints of a run as the training loop wants them.

    Attributes:
        run: whose they are.
        metrics: those of the run; None where another process writes them.
        writer: writes them.
    """

    run: Run
    metrics: MetricsWriter | None
    writer: CheckpointWriter

    def save(self, position: TrainingPosition) -> None:
        with self.run.group.timeout(SAVE_SECONDS):
            if self.run.group.is_first:
                _make_again_if_removed(self.run)
            self.writer.save(position, self._flush_metrics)

    def _flush_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.flush()  # a run that resumes from the checkpoint does not measure them again

    def check(self) -> None:
        self.writer.check()

    def wait(self) -> None:
        """Returns once this process has written what `save` was called for."""
        with self.run.group.timeout(SAVE_SECONDS):
            self.writer.wait()

    def finish(self) -> None:
        with self.run.group.timeout(SAVE_SECONDS):
            self.writer.finish()

    def abandon(self) -> None:
        with self.run.group.timeout(SAVE_SECONDS):
            self.writer.abandon()


def _checkpoints(run: Run, metrics: MetricsWriter | None) -> _Checkpoints:
    training = run.config.training
    kept = training.keep_checkpoints, training.keep_every_steps
    return _Checkpoints(run, metrics, CheckpointWriter(run.config.model_path, run.placement.store, run.group, *kept))


def _make_again_if_removed(run: Run) -> None:
    if run_directory.is_removed(run.config.model_path):
        say(f"{run.config.model_path}: was removed; making it again, without what was measured and saved before")
        run_directory.write_settings(run.config, run.tokenizer)


def _diagnose(run: Run, data: RunData, position: TrainingPosition, batch: Batch) -> DivergenceReport:
    """Finds the records of a step that diverged, and runs its passes again to see what is not finite."""
    config, build_diagnosis = run.config, run.backend.build_diagnosis
    try:
        start = (position.examples, position.examples_per_dataset, position.step)
        records = describe_batch(data.config, data.train_patterns(), *start)
    except DataError:  # the files are gone, which matters less than the divergence
        records = ""
    if build_diagnosis is None:
        return DivergenceReport(records)
    with run.group.timeout(DIAGNOSIS_SECONDS):
        try:
            sized = config.with_batch_size(config.training.batch_size_at(position.step))
            diagnosis = run.group.synchronized(build_diagnosis(sized, run.placement))
            key = noise_key(config.training.seed, position.step)
            counts = diagnosis(*batch.training_inputs, key)
        except tf.errors.ResourceExhaustedError:
            return DivergenceReport(records, "there is too little memory to run the step again and see where")
    return DivergenceReport(records, Diagnosis.of(counts).describe())


def _log_end(config: RunConfig, position: TrainingPosition, signal_number: int | None) -> int:
    """Logs how training ended; returns the exit status."""
    if signal_number is not None:
        say(f"stopped at step {position.step}; the checkpoint is saved: run the same command again to resume")
        return 128 + signal_number
    say(f"trained to step {position.step}; checkpoints, metrics and loss.png are in {config.model_path}")
    return 0
