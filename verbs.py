"""What the program can do, one function a verb: each puts configs, data, model and runtime together, and owns no
logic of theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import posixpath
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

import numpy as np

from configs.errors import CheckpointError, ConfigError, DataError, DeviceError, UserError
from configs.layout import format_layout, format_mesh_shape
from configs.load import resolved_json
from configs.schema import MeshConfig, RunConfig
from data.inspection import check_sound, format_report, inspect_dataset
from data.inspection_picture import draw_reports
from data.mixture import record_rules
from data.prepare import PreparedDataset, prepare_dataset
from data.shards import list_shards
from data.tokenizer import Tokenizer, check_special_ids, load_tokenizer
from inputs import Batch, evaluation_batches, prompt_tokens, training_batches
from meshtf import tf
from models.decode import Request
from models.kernels.sampling import SamplingRule
from models.losses import loss_of_guessing
from runtime import checkpoints, graph, predictions, run_folder, tpu_step
from runtime.auto_layout import MACHINES, Machine, auto_layout, auto_layout_and_mesh_shape, machine_of
from runtime.cluster import Cluster, find_cluster
from runtime.evaluation import TokenCounts
from runtime.evaluation import evaluate as evaluate_batches
from runtime.export import export_saved_model, write_huggingface_folder
from runtime.init_from import find_weights, load_initial_weights
from runtime.loop import Observers, TrainingPosition
from runtime.loop import train as train_loop
from runtime.mesh import Placement, choose_devices, place
from runtime.metrics import MetricsWriter, read_metrics
from runtime.plan import format_plan, make_plan
from runtime.plan_mesh import dry_placement
from runtime.plan_picture import draw_plan
from runtime.plots import plot_loss
from runtime.progress import Progress
from runtime.spmd import place_process
from runtime.team import Team, assembled
from runtime.tpu import find_tpu
from runtime.tpu_mesh import TpuPlacement, place_on_tpu
from runtime.turns import OneAtATime, Turns, noise_key
from runtime.usage import memory_in_use

DEFAULT_PROMPT = "In the beginning"
DATA_SECONDS = 300  # that a process may wait for its data while others wait for it
SAVE_SECONDS = 1800  # that a process may take for its part of a checkpoint while others wait for it


@dataclasses.dataclass(frozen=True)
class Export:
    """What to write for other programs: in which format, into which folder."""

    format: str
    directory: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """That a layout is to be chosen.

    Attributes:
      may_change_mesh: the mesh_shape is chosen too.
      is_applied: the verb goes on with it; else it is only shown.
    """

    may_change_mesh: bool
    is_applied: bool


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says beside the config.

    Attributes:
      hosts: the processes of a run of many, apart by commas; None: not given.
      host_index: which of them this one is; None: not given.
      tpu: the TPU to run on; None: none.
      gpu_ids: devices by name; None: what is there.
      n_cpu_devices: virtual CPU devices to make; None: none.
      steps_per_checkpoint: steps between checkpoints.
      sacred_id: stands in the names of output files.
      prompt_path: text file to continue; None: a prompt of our own.
      is_new: delete the run at the model path before training, once all else is known to be right.
      init_from: weights to begin with, or to use in place of the newest checkpoint; None: none.
      export: what to write with the verb export.
      choice: of a layout; None: that of the config is taken.
    """

    hosts: str | None
    host_index: int | None
    tpu: str | None
    gpu_ids: tuple[str, ...] | None
    n_cpu_devices: int | None
    steps_per_checkpoint: int
    sacred_id: str
    prompt_path: str | None
    is_new: bool
    init_from: str | None
    export: Export
    choice: Choice | None


@dataclasses.dataclass(frozen=True)
class _Data:
    """The datasets of a run, ready to read."""

    config: RunConfig
    prepared: tuple[PreparedDataset, ...]

    @staticmethod
    def of(config: RunConfig) -> _Data:
        prepared = tuple(prepare_dataset(use.dataset, config.model.n_ctx, say) for use in config.data.datasets)
        return _Data(config, prepared)

    def train_patterns(self) -> list[str]:
        missing = [
            use.dataset.id
            for use, ready in zip(self.config.data.datasets, self.prepared, strict=True)
            if not ready.train_pattern
        ]
        if missing or not self.prepared:
            named = ", ".join(missing) or "no dataset"
            raise ConfigError(
                f"{named}: nothing to train on -- give datasets in the model config, and a path in each dataset config"
            )
        patterns = [ready.train_pattern for ready in self.prepared]
        for pattern in patterns:
            list_shards(pattern)  # so that a glob that matches nothing is found before anything is changed
        return patterns

    def eval_patterns(self) -> list[str | None]:
        return [ready.eval_pattern for ready in self.prepared]

    def has_eval_part(self) -> bool:
        return any(self.eval_patterns())

    def check_same(self, team: Team) -> None:
        """Finds processes that read other data, as a copy that is not finished, before they wait for each other."""
        if team.size == 1:
            return
        patterns = [pattern for ready in self.prepared for pattern in (ready.train_pattern, ready.eval_pattern)]
        team.check_same("the data", repr([_counts_of(pattern) for pattern in patterns if pattern]))
        tokenizer = self.tokenizer()
        team.check_same("the tokenizer", (tokenizer and tokenizer.to_json()) or "")

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the datasets share, checked against their configs; None: they name none."""
        if not self.prepared or self.prepared[0].tokenizer_path is None:
            return None
        first = self.prepared[0]
        tokenizer = load_tokenizer(first.tokenizer_path, first.tokenizer_is_pretrained)
        for use in self.config.data.datasets:
            check_special_ids(tokenizer, use.dataset)
        _check_eos(self.config, tokenizer)
        return tokenizer


def _counts_of(pattern: str) -> list[tuple[str, int]]:
    """Names of the files of a glob, and what each holds; none for a part that is not there, and may not be needed."""
    try:
        return [(posixpath.basename(shard.path), shard.n_examples) for shard in list_shards(pattern)]
    except DataError:
        return []


def _check_eos(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Checks what a model config may say over its datasets' heads."""
    if tokenizer.eos_id not in (None, config.data.eos_id):
        raise ConfigError(
            f"{config.name}: eos_id = {config.data.eos_id} -- the tokenizer's <|endoftext|> is {tokenizer.eos_id} -- "
            "leave eos_id out of the model config"
        )


def say(text: str) -> None:
    """Tells the person at the screen what is going on."""
    print(text, flush=True)


def _place(config: RunConfig, options: Options, team: Team) -> Placement:
    if options.tpu is not None:
        placement = place_on_tpu(config.mesh, find_tpu(options.tpu))
    elif team.device is None:
        placement = place(config.mesh, choose_devices(options.gpu_ids, options.n_cpu_devices))
    else:
        placement = place_process(config.mesh, team.index, team.size, team.device)
    say(f"mesh: {placement.describe()}")
    return placement


def _programs(placement: Placement) -> ModuleType:
    """Where the programs for a placement are built."""
    return tpu_step if isinstance(placement, TpuPlacement) else graph


def _training(config: RunConfig, placement: Placement, team: Team) -> Turns:
    """Steps of training: several at once on a TPU, and one at a time elsewhere."""
    if isinstance(placement, TpuPlacement):
        return tpu_step.build_train_turn(config, placement)
    return OneAtATime(team.meeting(graph.build_train_step(config, placement)))


def _newest_checkpoint(config: RunConfig) -> str:
    path = checkpoints.latest_checkpoint(config.model_path)
    if path is None:
        raise CheckpointError(
            f"model_path = {config.model_path} -- holds no checkpoint -- train first, or give the model_path of "
            "a trained model"
        )
    return path


def _restore_latest(config: RunConfig, placement: Placement) -> TrainingPosition:
    path = _newest_checkpoint(config)
    position = checkpoints.restore(path, placement.store, config.training.train_batch_size)
    say(f"restored {path}")
    return position


def _load_weights(config: RunConfig, placement: Placement, path: str) -> TrainingPosition:
    """Weights that another run has made: nothing of them has been trained here."""
    load_initial_weights(path, placement.store)
    say(f"weights of {path}")
    return TrainingPosition(0, 0)


def _trained(
    config: RunConfig, options: Options, placement: Placement, tokenizer: Tokenizer | None
) -> TrainingPosition:
    """Sets the variables to the weights that are asked for: those of `--init_from`, or of the newest checkpoint."""
    if options.init_from is not None:
        return _load_weights(config, placement, options.init_from)
    run_folder.check_settings(config, tokenizer and tokenizer.to_json())
    return _restore_latest(config, placement)


def _token_counts(config: RunConfig, tokenizer: Tokenizer | None) -> TokenCounts:
    """Which labels count in evaluation; the model's vocabulary may have rows that the tokenizer never uses."""
    data, has_likelihood = config.data, not config.model.entmax_loss
    padding_id = None if data.padding_id == data.eos_id else data.padding_id
    if tokenizer is None or not config.model.is_causal:  # masked tokens alone are no text, whose bytes would count
        return TokenCounts(has_likelihood, padding_id, None)
    known = tokenizer.token_byte_lengths()
    bytes_V = np.pad(known, (0, max(0, config.model.n_vocab - len(known))))
    return TokenCounts(has_likelihood, padding_id, bytes_V)


# ------------------------------------------------------------------------------------------------------------ training


def train(config: RunConfig, options: Options, team: Team) -> int:
    """Trains from the newest checkpoint, or from the beginning, up to `train_steps`; returns the exit status."""
    placement = _place(config, options, team)
    data = team.in_turn(lambda: _Data.of(config))
    tokenizer, train_patterns = data.tokenizer(), data.train_patterns()
    _check_pauses(config, options, data, team)
    data.check_same(team)
    turns = _training(config, placement, team)
    begun_from = checkpoints.latest_checkpoint(config.model_path)
    position = _start(config, options, placement, tokenizer)
    team.check_same("the run's position", repr(position))
    if position.step >= config.training.train_steps:
        say(f"step {position.step} of {config.training.train_steps}: training is finished; raise train_steps to go on")
        return 0
    own_rows = placement.own_rows(config.training.train_batch_size)
    batches = training_batches(config, train_patterns, position.examples, position.taken, own_rows)
    batches = _waited_for(team, batches)
    batches = itertools.chain([next(batches)], batches)  # a wrong record is met here, before anything is written
    team.barrier()  # by every process
    with _folder_of_run(config, options, team, tokenizer, begun_from), _records(config, position.step, team) as metrics:
        with _progress(config, position, team) as progress:
            pause = _Pause(config, options, data, placement, team, tokenizer, metrics.write, progress.note)
            save = _saver(config, placement, team, metrics.flush)
            tell_problem = progress.note if team.is_first else functools.partial(print, file=sys.stderr)
            observers = Observers(
                functools.partial(_write_measured, metrics.write, placement.devices),
                save,
                pause,
                progress,
                tell_problem,
                team.greatest,
            )
            with team.promising():
                position, signal_number = train_loop(
                    config.training, turns, batches, position, observers, options.steps_per_checkpoint
                )
                if signal_number is None:
                    pause(position)
        if team.is_first:
            _plot(config)
    return _farewell(config, position, signal_number)


def _waited_for(team: Team, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches, for which a process is given more time than for a step: a disk or a network may be slow for a while."""
    while True:
        with team.promising(DATA_SECONDS):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _write_measured(write: Callable[..., None], devices: Sequence[str], step: int, values: Mapping[str, float]) -> None:
    """Writes what a step gave and what it took."""
    write("train", step, {**values, **memory_in_use(devices)})


def _saver(
    config: RunConfig, placement: Placement, team: Team, write_all_metrics: Callable[[], None]
) -> Callable[[TrainingPosition], str]:
    """What writes checkpoints, once the metrics are written: whoever goes on from one does not measure them again."""
    writer = checkpoints.CheckpointWriter(config.model_path, placement.store, team.writers())

    def save(position: TrainingPosition) -> str:
        with team.promising(SAVE_SECONDS):
            write_all_metrics()
            return writer.save(position)

    return save


@contextlib.contextmanager
def _folder_of_run(
    config: RunConfig, options: Options, team: Team, tokenizer: Tokenizer | None, begun_from: str | None
) -> Iterator[None]:
    """Takes the run's folder for this run alone, and begins it anew if that is asked for.

    Raises:
      CheckpointError: since the weights were read, from the checkpoint `begun_from`, another process has trained there.
    """
    with run_folder.locked(config.model_path) if team.is_first else contextlib.nullcontext():
        if team.is_first:
            if checkpoints.latest_checkpoint(config.model_path) != begun_from:
                raise CheckpointError(
                    f"model_path = {config.model_path} -- another process has trained here until now -- start the same "
                    "command again to go on from there, or give another model_path"
                )
            if options.is_new and run_folder.is_run(config.model_path):
                run_folder.delete_contents(config.model_path)
                say(f"deleted the run in {config.model_path}")
            run_folder.keep_settings(config, tokenizer and tokenizer.to_json())
        team.barrier()
        run_folder.check_kept(config)
        yield


@contextlib.contextmanager
def _progress(config: RunConfig, position: TrainingPosition, team: Team) -> Iterator[Progress]:
    """What a person sees, of the first process only."""
    n_steps = config.training.train_steps
    with open(os.devnull, "w") as nobody, Progress(n_steps, position.step, None if team.is_first else nobody) as shown:
        yield shown


@contextlib.contextmanager
def _records(config: RunConfig, step: int | None, team: Team) -> Iterator[_Records]:
    """Where metrics are written: all processes measure the same ones, and the first writes them."""
    if not team.is_first:
        yield _Records(lambda split, step, values: None, lambda: None)
        return
    with MetricsWriter(config.model_path, step) as writer:
        yield _Records(writer.write, writer.flush)


@dataclasses.dataclass(frozen=True)
class _Records:
    """Writes metrics, soon, and makes sure that they are written."""

    write: Callable[..., None]
    flush: Callable[[], None]


def _check_pauses(config: RunConfig, options: Options, data: _Data, team: Team) -> None:
    """Finds now what would otherwise end training at its first checkpoint."""
    for pattern in data.eval_patterns():
        if config.evaluation.eval_steps and pattern:
            list_shards(pattern)
    if config.prediction.predict_steps:
        team.check_same("the prompt", read_prompt(options.prompt_path))


def _start(config: RunConfig, options: Options, placement: Placement, tokenizer: Tokenizer | None) -> TrainingPosition:
    """Where training begins: the newest checkpoint, so that the same command goes on, or else the beginning."""
    say(f"model: {placement.store.n_trainable_parameters():,} parameters")
    if not options.is_new and checkpoints.latest_checkpoint(config.model_path) is not None:
        run_folder.check_settings(config, tokenizer and tokenizer.to_json())
        if options.init_from is not None:
            say(f"--init_from {options.init_from} is left alone: the run has begun, and goes on by itself")
        return _restore_latest(config, placement)
    placement.store.initialize(config.training.seed)
    return TrainingPosition(0, 0) if options.init_from is None else _load_weights(config, placement, options.init_from)


def _farewell(config: RunConfig, position: TrainingPosition, signal_number: int | None) -> int:
    if signal_number is not None:
        say(f"stopped at step {position.step}; the checkpoint is written: the same command goes on from here")
        return 128 + signal_number
    say(f"trained to step {position.step}; checkpoints, metrics and loss.png are in {config.model_path}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Pause:
    """What happens at a checkpoint: evaluation if `eval_steps` > 0, samples if `predict_steps` > 0."""

    config: RunConfig
    options: Options
    data: _Data
    placement: Placement
    team: Team
    tokenizer: Tokenizer | None
    write_metrics: Callable[..., None]
    note: Callable[[str], None]

    def __call__(self, position: TrainingPosition) -> None:
        if self.config.evaluation.eval_steps and self.data.has_eval_part():
            measured = self._measure()
            self.write_metrics("eval", position.step, measured)
            self.note(f"step {position.step}: held-out {_format_metrics(measured)}")
        if self.config.prediction.predict_steps and self.tokenizer is not None:
            texts = self._generator()
            if self.team.is_first:
                path = predictions.write_predictions(
                    self.config.model_path, self.options.sacred_id, position.step, texts
                )
                self.note(f"step {position.step}: samples in {path}")

    @functools.cached_property
    def _eval_step(self) -> Callable[..., dict[str, np.ndarray]]:
        return self.team.meeting(_programs(self.placement).build_eval_step(self.config, self.placement))

    @functools.cached_property
    def _generator(self) -> Callable[[], list[str]]:
        prompt = read_prompt(self.options.prompt_path)
        return _build_generator(self.config, self.placement, self.team, self.tokenizer, prompt)

    def _measure(self) -> dict[str, float]:
        batches = evaluation_batches(self.config, self.data.eval_patterns(), self.config.evaluation.eval_steps)
        counts = _token_counts(self.config, self.tokenizer)
        return evaluate_batches(self._eval_step, _waited_for(self.team, batches), counts)


def _format_metrics(measured: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {value:,.4f}" if isinstance(value, float) else f"{name} {value:,}" for name, value in measured.items()
    )


def _plot(config: RunConfig) -> None:
    plot_loss(
        read_metrics(config.model_path),
        posixpath.join(config.model_path, "loss.png"),
        title=config.name,
        guessing_loss=loss_of_guessing(config.model),
        tokens_per_step=config.training.train_batch_size * config.model.n_ctx,
    )


# ---------------------------------------------------------------------------------------------------------- evaluation


def evaluate(config: RunConfig, options: Options, team: Team) -> int:
    """Measures the loss on the held-out part, all of it or `eval_steps` batches: of the newest checkpoint, for the
    metrics of the run; or of the weights of `--init_from`.
    """
    placement = _place(config, options, team)
    data = team.in_turn(lambda: _Data.of(config))
    data.check_same(team)
    tokenizer = data.tokenizer()
    batches = evaluation_batches(config, data.eval_patterns(), config.evaluation.eval_steps or None)
    step = team.meeting(_programs(placement).build_eval_step(config, placement))
    position = _trained(config, options, placement, tokenizer)
    team.check_same("the run's position", repr(position))
    with team.promising():
        measured = evaluate_batches(step, _waited_for(team, batches), _token_counts(config, tokenizer))
    say(f"step {position.step}: held-out {_format_metrics(measured)}")
    guessing = loss_of_guessing(config.model)
    say(f"the loss is {guessing - measured['loss']:.2f} under that of guessing, {guessing:.2f}")
    if options.init_from is None and team.is_first:  # other weights are no part of the run
        with MetricsWriter(config.model_path) as metrics:
            metrics.write("eval", position.step, measured)
        _plot(config)
    return 0


# ---------------------------------------------------------------------------------------------------------- prediction


def read_prompt(path: str | None) -> str:
    """The prompt's text.

    Raises:
      UserError: the file cannot be read.
    """
    if path is None:
        return DEFAULT_PROMPT
    try:
        with tf.io.gfile.GFile(path) as file:
            return file.read()
    except tf.errors.OpError as error:
        raise UserError(f"--prompt {path} -- cannot be read: {error.message} -- give a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt {path} -- is not UTF-8 text: {error} -- give a text file") from error


def _fit_prompt(config: RunConfig, tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, int]:
    """The prompt's ids and how many tokens may follow: the prompt is kept whole if that leaves room for one."""
    n_ctx, limit = config.model.n_ctx, config.prediction.predict_max_steps or config.model.n_ctx
    prompt_S = prompt_tokens(text, tokenizer, n_ctx, 1, config.data.eos_id)
    if len(prompt_S) == n_ctx - 1 > 1:
        prompt_S = prompt_S[-(n_ctx - min(limit, n_ctx // 2)) :]
        say(f"the prompt fills the context of {n_ctx} tokens: its last {len(prompt_S)} are kept")
    return prompt_S, min(limit, n_ctx - len(prompt_S))


def _build_generator(
    config: RunConfig, placement: Placement, team: Team, tokenizer: Tokenizer, text: str
) -> Callable[[], list[str]]:
    settings, eos_id = config.prediction, config.data.eos_id
    prompt_S, n_new_tokens = _fit_prompt(config, tokenizer, text)
    rule = SamplingRule(settings.temperature, settings.top_k, settings.top_p, settings.entmax_sampling)
    request = Request(rule, n_new_tokens, eos_id)
    step = team.meeting(_programs(placement).build_generation(config, placement, len(prompt_S), request))

    def generate() -> list[str]:
        seed = settings.predict_seed
        if seed is None:
            seed = team.greatest(secrets.randbits(31))
        written_BN = step(prompt_S, noise_key(seed, 0))["written"]
        with_prompt = not settings.remove_partial_sequences
        return predictions.sample_texts(prompt_S, written_BN, eos_id, tokenizer.decode, with_prompt)

    return generate


def predict(config: RunConfig, options: Options, team: Team) -> int:
    """Continues a prompt with the newest checkpoint, on the screen and in a file under the model path."""
    if config.model.mlm_training:
        raise ConfigError(
            f"{config.name}: mlm_training = true -- a masked model writes no text -- leave --predict out, or give the "
            "config of a causal model"
        )
    text = read_prompt(options.prompt_path)
    team.check_same("the prompt", text)
    placement = _place(config, options, team)
    data = team.in_turn(lambda: _Data.of(config))
    data.check_same(team)
    tokenizer = data.tokenizer()
    if tokenizer is None:
        raise ConfigError(
            "datasets = [] -- prediction needs a tokenizer -- name a dataset with a tokenizer_path in the model config"
        )
    generate = _build_generator(config, placement, team, tokenizer, text)
    position = _trained(config, options, placement, tokenizer)
    team.check_same("the run's position", repr(position))
    texts = generate()
    if team.is_first:
        say(predictions.format_samples(texts))
        say(f"written to {predictions.write_predictions(config.model_path, options.sacred_id, position.step, texts)}")
    return 0


# -------------------------------------------------------------------------------------------------------------- export


def export(config: RunConfig, options: Options) -> int:
    """Writes the model for other programs: TensorFlow's SavedModel, or a folder of Hugging Face's."""
    path = _newest_checkpoint(config) if options.init_from is None else options.init_from
    tokenizer = _Data.of(config).tokenizer()
    if options.init_from is None:
        run_folder.check_settings(config, tokenizer and tokenizer.to_json())
    weights, directory = find_weights(path), options.export.directory
    if options.export.format == "hf":
        write_huggingface_folder(directory, config, weights, tokenizer and tokenizer.to_json())
    else:
        export_saved_model(directory, config, weights)
    say(f"{path} is written to {directory}")
    return 0


# ---------------------------------------------------------------------------------------------------------------- data


def check_dataset(config: RunConfig, options: Options) -> int:
    """Reads every record of every dataset, shows and draws what is in them, and names all that is wrong."""
    data = _Data.of(config)
    if not data.prepared:
        raise ConfigError("no dataset: nothing to check -- give datasets in the model config")
    tokenizer = data.tokenizer()
    decode = tokenizer.decode if tokenizer else lambda ids: " ".join(map(str, ids))
    reports = {}
    for use, ready in zip(config.data.datasets, data.prepared, strict=True):
        for part, pattern in (("training", ready.train_pattern), ("evaluation", ready.eval_pattern)):
            if pattern:
                report = inspect_dataset(
                    [pattern], record_rules(config, use).n_ctx, config.model.n_vocab, config.data.eos_id, decode
                )
                reports[f"{use.dataset.id}, {part}: {pattern}"] = report
                say(f"\n{use.dataset.id}, {part}: {pattern}\n{format_report(report)}")
    path = posixpath.join(config.model_path, run_folder.DATASET_PICTURE)
    draw_reports(reports, path)
    say(f"drawn in {path}")
    check_sound([damage for report in reports.values() for damage in report.damages])
    return 0


# ------------------------------------------------------------------------------------------------------------ planning


def _planned_devices(config: RunConfig, options: Options) -> tuple[int, Machine]:
    """How many devices a plan is for, and what one can do: those of mesh_shape, which need not be there, or those
    that are.
    """
    cluster = find_cluster(options.hosts, options.host_index)
    devices = choose_devices(options.gpu_ids, options.n_cpu_devices)
    if cluster is not None:
        devices = devices[:1] * cluster.size
    n_devices = math.prod(size for _, size in config.mesh.mesh_shape or (("all", len(devices)),))
    return n_devices, machine_of(devices) if n_devices == len(devices) else MACHINES["TPU"]


def plan(config: RunConfig, options: Options) -> int:
    """Tells what a training step costs on the mesh of the config, whether its devices are there or not."""
    n_devices, _ = _planned_devices(config, options)
    planned = make_plan(config, dry_placement(config.mesh, n_devices))
    say(format_plan(planned))
    path = posixpath.join(config.model_path, run_folder.PLAN_PICTURE)
    tf.io.gfile.makedirs(config.model_path)
    draw_plan(planned, path)
    say(f"drawn in {path}")
    return 0


def with_chosen_layout(config: RunConfig, options: Options, choice: Choice) -> RunConfig:
    """The config with the layout, and the mesh if it may change, that should train fastest.

    Raises:
      UserError: there is no mesh to lay it over, or no layout fits into memory.
    """
    n_devices, machine = _planned_devices(config, options)
    if choice.may_change_mesh:
        mesh_shape, layout = auto_layout_and_mesh_shape(config, n_devices, machine)
    elif config.mesh.mesh_shape is None:
        raise ConfigError(
            "--auto_layout -- the config has no mesh_shape -- give one, such as --set mesh_shape=x:4,y:2, or "
            "--auto_layout_and_mesh_shape"
        )
    else:
        mesh_shape = config.mesh.mesh_shape
        layout = auto_layout(config, mesh_shape, machine)
    say(f'"mesh_shape": "{format_mesh_shape(mesh_shape)}", "layout": "{format_layout(layout)}"')
    return dataclasses.replace(config, mesh=MeshConfig(mesh_shape=mesh_shape, layout=layout))


# ------------------------------------------------------------------------------------------------------------- new run


def may_forget(config: RunConfig, confirm: Callable[[str], bool]) -> bool:
    """Whether there is no run at `model_path`, or `confirm` says that it may be deleted.

    Raises:
      UserError: what is there is no run.
    """
    path = config.model_path
    run_folder.check_path(path)
    if run_folder.is_empty(path):
        return True
    if not run_folder.is_run(path):
        raise UserError(
            f"--new: model_path = {path} -- holds no run, so it is not deleted -- delete it yourself, or give another "
            "model_path"
        )
    return confirm(f"Delete the run in {path}?")


# Many processes do these together.
VERBS_OF_ALL: dict[str, Callable[[RunConfig, Options, Team], int]] = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
}
# The first of many processes does these alone.
VERBS_OF_ONE: dict[str, Callable[[RunConfig, Options], int]] = {
    "check_dataset": check_dataset,
    "export": export,
    "plan": plan,
}


def _run_together(verb: str, config: RunConfig, options: Options, cluster: Cluster | None) -> int:
    with assembled(cluster) as team, _only_first_speaks(team):
        team.check_same("the config", resolved_json(config))
        team.check_same("the command line", repr(dataclasses.replace(options, hosts=None, host_index=None)))
        if options.choice is not None:
            config = with_chosen_layout(config, options, options.choice)
        return VERBS_OF_ALL[verb](config, options, team)


def _run_alone(verb: str, config: RunConfig, options: Options) -> int:
    if options.choice is not None:
        config = with_chosen_layout(config, options, options.choice)
        if not options.choice.is_applied:
            return 0
    return VERBS_OF_ONE[verb](config, options)


def _check_devices(options: Options) -> None:
    """Refuses what a process of many cannot be told."""
    if options.gpu_ids is not None or options.n_cpu_devices is not None or options.tpu is not None:
        raise DeviceError(
            "--hosts, TF_CONFIG or Slurm -- a process of many has one device, the GPU of its rank on its machine or "
            "the CPU -- leave out --gpu_ids, --cpu_devices and --tpu"
        )


@contextlib.contextmanager
def _only_first_speaks(team: Team) -> Iterator[None]:
    """Keeps what is said, but errors, from being said as many times as there are processes."""
    with open(os.devnull, "w") as nobody, contextlib.ExitStack() as stack:
        if not team.is_first:
            stack.enter_context(contextlib.redirect_stdout(nobody))
        yield


def run(verb: str, config: RunConfig, options: Options) -> int:
    """Runs one verb; returns the exit status.

    Raises:
      UserError: something that the user gave cannot be used.
    """
    run_folder.check_path(config.model_path)
    if options.is_new and options.init_from is not None:
        run_folder.check_outside(config.model_path, options.init_from)
    cluster = find_cluster(options.hosts, options.host_index)
    if cluster is not None:
        _check_devices(options)
    only_shows = options.choice is not None and not options.choice.is_applied
    try:
        if verb in VERBS_OF_ALL and not only_shows:
            return _run_together(verb, config, options, cluster)
        return _run_alone(verb, config, options) if cluster is None or cluster.index == 0 else 0
    except tf.errors.ResourceExhaustedError as error:
        raise DeviceError(
            f"{config.name}: out of memory -- the {verb} step does not fit -- lower the batch size, set "
            "tokens_per_mb_per_replica or recompute_grad, or split the model over more devices"
        ) from error
