"""Training, with what happens at its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from commands.backend import backend_of
from commands.console import say
from commands.evaluate import format_metrics, plot_run, token_counts
from commands.options import Options
from commands.placing import place_run
from commands.predict import build_sampler
from commands.prompts import encode_prompts, read_prompts
from commands.run_data import RunData, waited_for
from commands.trained_weights import load_weights, restore_latest
from configs.errors import CheckpointError, DataError
from configs.schema import RunConfig
from data.loading.batch import Batch
from data.loading.locate import describe_batch
from data.tfrecord.shards import list_shards
from data.tokenization.tokenizer import Tokenizer
from inputs import evaluation_batches, training_batches
from meshtf import tf
from models.kernels.noise import noise_key
from runtime.checkpoint import checkpoints
from runtime.checkpoint.position import TrainingPosition
from runtime.cluster.process_group import ProcessGroup
from runtime.mesh.placement import Placement
from runtime.planning.peak_flops import peak_tokens_per_second
from runtime.run import directory as run_directory
from runtime.run.metrics import MetricsWriter, memory_in_use
from runtime.run.progress_bar import Progress
from runtime.training.evaluation import evaluate as evaluate_batches
from runtime.training.loop import Explanation, Observers
from runtime.training.loop import train as train_loop
from runtime.training.nan_diagnosis import Diagnosis
from runtime.training.steps import build_eval_step

DIAGNOSIS_SECONDS = 1800  # that a process may take to look at a step that diverged
SAVE_SECONDS = 1800  # that a process may take for its part of a checkpoint while others wait for it


def train(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Trains from the newest checkpoint, or from the beginning, up to `train_steps`; returns the exit status."""
    placement = place_run(config, options, group)
    speed = _peak_tokens_per_second(config, placement, group)
    data = group.first_process_first(lambda: RunData.of(config))
    tokenizer, train_patterns = data.tokenizer(), data.train_patterns()
    _check_pauses(config, options, data, group)
    data.check_same(group)
    turns = backend_of(placement).build_training(config, placement, group)
    begun_from = checkpoints.latest_checkpoint(config.model_path)
    position = _start(config, options, placement, tokenizer)
    group.check_same("the run's position", repr(position))
    if position.step >= config.training.train_steps:
        say(f"step {position.step} of {config.training.train_steps}: training is finished; raise train_steps to go on")
        return 0
    own_rows = placement.own_rows(config.training.train_batch_size)
    batches = training_batches(config, train_patterns, position.examples, position.examples_per_dataset, own_rows)
    batches = waited_for(group, batches)
    batches = itertools.chain([next(batches)], batches)  # a wrong record is met here, before anything is written
    group.barrier()  # by every process
    with (
        _folder_of_run(config, options, group, tokenizer, begun_from),
        _records(config, position.step, group) as records,
    ):
        with _progress(config, position, group) as progress:
            pause = _Pause(config, options, data, placement, group, tokenizer, records, progress.note)
            observers = Observers(
                write_metrics=functools.partial(_write_measured, records.write, placement.devices),
                save=_saver(config, placement, group, records.flush),
                after_save=pause,
                progress=progress,
                tell_problem=progress.note if group.is_first else functools.partial(print, file=sys.stderr),
                explain_divergence=functools.partial(_explain_divergence, config, placement, group, train_patterns),
                peak_tokens_per_second=speed,
                all_reduce_max=group.all_reduce_max,
            )
            with group.timeout():
                position, signal_number = train_loop(
                    config.training, turns, batches, position, observers, options.steps_per_checkpoint
                )
                if signal_number is None:
                    pause(position)
        if group.is_first:
            plot_run(config)
    return _exit_message(config, position, signal_number)


def _peak_tokens_per_second(config: RunConfig, placement: Placement, group: ProcessGroup) -> float | None:
    """Tokens a second of all devices of the run at their peak; None: it is not known."""
    peak = backend_of(placement).peak_flops(config, placement, group)
    if peak is None:
        return None
    say(f"peak of the devices: {peak / 1e12:,.4g} TFLOP/s")
    return peak_tokens_per_second(config.model, peak)


def _explain_divergence(
    config: RunConfig,
    placement: Placement,
    group: ProcessGroup,
    patterns: Sequence[str],
    position: TrainingPosition,
    batch: Batch,
) -> Explanation:
    """Computes the step from a position once more, and looks for its examples."""
    try:
        where = describe_batch(config, patterns, position.examples, position.examples_per_dataset)
    except DataError:  # the files are gone; that is not what is to be told now
        where = ""
    build_diagnosis = backend_of(placement).build_diagnosis
    if build_diagnosis is None:
        return Explanation(where)
    with group.timeout(DIAGNOSIS_SECONDS):
        try:
            look = group.synchronized(build_diagnosis(config, placement))
            key = noise_key(config.training.seed, position.step)
            counts = look(batch.tokens_BS, batch.labels_BS, batch.weights_BS, key)
        except tf.errors.ResourceExhaustedError:
            return Explanation(where, "there is no room to compute the step once more and see where")
    return Explanation(where, Diagnosis.of(counts).describe())


def _write_measured(write: Callable[..., None], devices: Sequence[str], step: int, values: Mapping[str, float]) -> None:
    """Writes what a step gave and what it took."""
    write("train", step, {**values, **memory_in_use(devices)})


def _saver(
    config: RunConfig, placement: Placement, group: ProcessGroup, write_all_metrics: Callable[[], None]
) -> Callable[[TrainingPosition], str]:
    """What writes checkpoints, once the metrics are written: whoever goes on from one does not measure them again."""
    writer = checkpoints.CheckpointWriter(config.model_path, placement.store, group)

    def save(position: TrainingPosition) -> str:
        with group.timeout(SAVE_SECONDS):
            write_all_metrics()
            return writer.save(position)

    return save


@contextlib.contextmanager
def _folder_of_run(
    config: RunConfig, options: Options, group: ProcessGroup, tokenizer: Tokenizer | None, begun_from: str | None
) -> Iterator[None]:
    """Takes the run's folder for this run alone, and begins it anew if that is asked for.

    Raises:
        CheckpointError: since the weights were read, from the checkpoint `begun_from`, another process has trained
            there.
    """
    with run_directory.locked(config.model_path) if group.is_first else contextlib.nullcontext():
        if group.is_first:
            if checkpoints.latest_checkpoint(config.model_path) != begun_from:
                raise CheckpointError(
                    f"model_path = {config.model_path}: another process has trained here until now; start the same "
                    "command again to go on from there, or give another model_path"
                )
            if options.is_new and run_directory.is_run(config.model_path):
                run_directory.delete_contents(config.model_path)
                say(f"deleted the run in {config.model_path}")
            run_directory.keep_settings(config, tokenizer and tokenizer.to_json())
        group.barrier()
        run_directory.check_kept(config)
        yield


@contextlib.contextmanager
def _progress(config: RunConfig, position: TrainingPosition, group: ProcessGroup) -> Iterator[Progress]:
    """What a person sees, of the first process only."""
    n_steps = config.training.train_steps
    with open(os.devnull, "w") as nobody, Progress(n_steps, position.step, None if group.is_first else nobody) as shown:
        yield shown


@contextlib.contextmanager
def _records(config: RunConfig, step: int | None, group: ProcessGroup) -> Iterator[_Records]:
    """Where metrics are written: all processes measure the same ones, and the first writes them."""
    if not group.is_first:
        yield _Records(lambda *line: None, lambda *histogram: None, lambda: None)
        return
    with MetricsWriter(config.model_path, step) as writer:
        yield _Records(writer.write, writer.write_histogram, writer.flush)


@dataclasses.dataclass(frozen=True)
class _Records:
    """Writes metrics and histograms, soon, and makes sure that they are written."""

    write: Callable[..., None]
    write_histogram: Callable[..., None]
    flush: Callable[[], None]


def _check_pauses(config: RunConfig, options: Options, data: RunData, group: ProcessGroup) -> None:
    """Finds now what would otherwise end training at its first checkpoint."""
    for pattern in data.eval_patterns():
        if config.evaluation.eval_steps and pattern:
            list_shards(pattern)
    tokenizer = data.tokenizer()
    if config.prediction.predict_steps and tokenizer is not None:
        given = read_prompts(options.prompt_path, config)
        group.check_same("the prompt", given.text)
        encode_prompts(given.prompts, config, tokenizer, say)


def _start(config: RunConfig, options: Options, placement: Placement, tokenizer: Tokenizer | None) -> TrainingPosition:
    """Where training begins: the newest checkpoint, so that the same command goes on, or else the beginning."""
    say(f"model: {placement.store.n_trainable_parameters():,} parameters")
    if not options.is_new and checkpoints.latest_checkpoint(config.model_path) is not None:
        run_directory.check_settings(config, tokenizer and tokenizer.to_json())
        if options.init_from is not None:
            say(f"--init_from {options.init_from} is left alone: the run has begun, and goes on by itself")
        return restore_latest(config, placement)
    placement.store.initialize(config.training.seed)
    return TrainingPosition(0, 0) if options.init_from is None else load_weights(config, placement, options.init_from)


def _exit_message(config: RunConfig, position: TrainingPosition, signal_number: int | None) -> int:
    if signal_number is not None:
        say(f"stopped at step {position.step}; the checkpoint is written: the same command goes on from here")
        return 128 + signal_number
    say(f"trained to step {position.step}; checkpoints, metrics and loss.png are in {config.model_path}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Pause:
    """What happens at a checkpoint: evaluation if `eval_steps` > 0, samples if `predict_steps` > 0, histograms of the
    variables with `log_weights`.
    """

    config: RunConfig
    options: Options
    data: RunData
    placement: Placement
    group: ProcessGroup
    tokenizer: Tokenizer | None
    records: _Records
    note: Callable[[str], None]

    def __call__(self, position: TrainingPosition) -> None:
        if self.config.evaluation.eval_steps and self.data.has_eval_part():
            measured = self._measure()
            self.records.write("eval", position.step, measured)
            self.note(f"step {position.step}: held-out {format_metrics(measured)}")
        if self.config.prediction.predict_steps and self.tokenizer is not None:
            path = self._sample(position.step)
            if self.group.is_first:
                self.note(f"step {position.step}: samples in {path}")
        if self.config.training.log_weights and self.group.is_first:
            self._write_histograms(position)

    def _write_histograms(self, position: TrainingPosition) -> None:
        """Of the variables as they lie in the newest checkpoint: there each is whole, on whatever mesh."""
        names = [stored.name for stored in self.placement.store if stored.variable.trainable]
        with self.group.timeout(SAVE_SECONDS):
            for name, value in checkpoints.read_variables(checkpoints.latest_checkpoint(self.config.model_path), names):
                self.records.write_histogram(position.step, f"weights/{name.removeprefix('gpt2/')}", value)

    @functools.cached_property
    def _eval_step(self) -> Callable[..., dict[str, np.ndarray]]:
        return self.group.synchronized(build_eval_step(self.config, self.placement))

    @functools.cached_property
    def _sample(self) -> Callable[[int], str]:
        return build_sampler(self.config, self.options, self.placement, self.group, self.tokenizer)

    def _measure(self) -> dict[str, float]:
        batches = evaluation_batches(self.config, self.data.eval_patterns(), self.config.evaluation.eval_steps)
        counts = token_counts(self.config, self.tokenizer)
        return evaluate_batches(self._eval_step, waited_for(self.group, batches), counts)
