"""What the program can do, one function a verb: each puts configs, data, model and runtime together, and owns no
logic of theirs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import posixpath
import secrets
from collections.abc import Callable

import numpy as np

from configs.errors import CheckpointError, ConfigError, UserError
from configs.load import resolved_json
from configs.schema import RunConfig
from data.inspection import format_report, inspect_dataset
from data.prepare import PreparedDataset, prepare_dataset
from data.shards import list_shards
from data.tokenizer import Tokenizer, check_special_ids, load_tokenizer
from inputs import evaluation_batches, prompt_tokens, record_n_ctx, training_batches
from meshtf import tf
from models.decode import Request
from models.kernels import SamplingRule
from runtime import checkpoints, predictions
from runtime.evaluation import TokenCounts
from runtime.evaluation import evaluate as evaluate_batches
from runtime.files import write_text
from runtime.graph import LoweredStep, build_eval_step, build_generation, build_train_step
from runtime.loop import Observers, TrainingPosition, noise_key
from runtime.loop import train as train_loop
from runtime.mesh import Placement, choose_devices, place
from runtime.metrics import MetricsWriter, read_metrics
from runtime.plots import plot_loss
from runtime.progress import Progress

DEFAULT_PROMPT = "In the beginning"
TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says beside the config.

    Attributes:
      gpu_ids: devices by name; None: what is there.
      n_cpu_devices: virtual CPU devices to make; None: none.
      steps_per_checkpoint: steps between checkpoints.
      sacred_id: stands in the names of output files.
      prompt_path: text file to continue; None: a prompt of our own.
      is_new: delete the run at the model path before training, once all else is known to be right.
    """

    gpu_ids: tuple[str, ...] | None
    n_cpu_devices: int | None
    steps_per_checkpoint: int
    sacred_id: str
    prompt_path: str | None
    is_new: bool


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

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the datasets share, checked against their configs; None: they name none."""
        if not self.prepared or self.prepared[0].tokenizer_path is None:
            return None
        first = self.prepared[0]
        tokenizer = load_tokenizer(first.tokenizer_path, first.tokenizer_is_pretrained)
        for use in self.config.data.datasets:
            check_special_ids(tokenizer, use.dataset)
        return tokenizer


def say(text: str) -> None:
    """Tells the person at the screen what is going on."""
    print(text, flush=True)


def _place(config: RunConfig, options: Options) -> Placement:
    placement = place(config.mesh, choose_devices(options.gpu_ids, options.n_cpu_devices))
    say(f"mesh: {placement.describe()}")
    return placement


def _restore_latest(config: RunConfig, placement: Placement) -> TrainingPosition:
    path = checkpoints.latest_checkpoint(config.model_path)
    if path is None:
        raise CheckpointError(
            f"model_path = {config.model_path} -- holds no checkpoint -- train first, or give the model_path of "
            "a trained model"
        )
    position = checkpoints.restore(path, placement.store, config.training.train_batch_size)
    say(f"restored {path}")
    return position


def _token_counts(config: RunConfig, tokenizer: Tokenizer | None) -> TokenCounts:
    """Which labels count in evaluation; the model's vocabulary may have rows that the tokenizer never uses."""
    data = config.data
    padding_id = None if data.padding_id == data.eos_id else data.padding_id
    if tokenizer is None:
        return TokenCounts(padding_id, None)
    known = tokenizer.token_byte_lengths()
    return TokenCounts(padding_id, np.pad(known, (0, max(0, config.model.n_vocab - len(known)))))


# ------------------------------------------------------------------------------------------------------------ training


def train(config: RunConfig, options: Options) -> int:
    """Trains from the newest checkpoint, or from the beginning, up to `train_steps`; returns the exit status."""
    placement = _place(config, options)
    data = _Data.of(config)
    tokenizer, train_patterns = data.tokenizer(), data.train_patterns()
    if options.is_new:
        _forget(config)
    _check_tokenizer_of_run(config, tokenizer)
    step = build_train_step(config, placement)
    position = _start(config, placement)
    if position.step >= config.training.train_steps:
        say(f"step {position.step} of {config.training.train_steps}: training is finished; raise train_steps to go on")
        return 0
    batches = training_batches(config, train_patterns, position.examples)
    batches = itertools.chain([next(batches)], batches)  # a wrong record is met here, before anything is written
    writer = checkpoints.CheckpointWriter(config.model_path, placement.store)
    _keep_settings(config, tokenizer)
    with (
        MetricsWriter(config.model_path, position.step) as metrics,
        Progress(config.training.train_steps, position.step) as progress,
    ):
        pause = _Pause(config, options, data, placement, tokenizer, metrics, progress.note)
        observers = Observers(functools.partial(metrics.write, "train"), writer.save, pause, progress)
        position, signal_number = train_loop(
            config.training, step, batches, position, observers, options.steps_per_checkpoint
        )
        if signal_number is None:
            pause(position)
    _plot(config)
    return _farewell(config, position, signal_number)


def _keep_settings(config: RunConfig, tokenizer: Tokenizer | None) -> None:
    """Writes the resolved config and the tokenizer beside the checkpoints."""
    write_text(posixpath.join(config.model_path, "config.json"), resolved_json(config))
    if tokenizer is not None:
        write_text(posixpath.join(config.model_path, TOKENIZER_FILE), tokenizer.to_json())


def _check_tokenizer_of_run(config: RunConfig, tokenizer: Tokenizer | None) -> None:
    """Refuses a tokenizer other than that of the run: the model would read and write other text with the same ids."""
    path = posixpath.join(config.model_path, TOKENIZER_FILE)
    if tokenizer is None or not tf.io.gfile.exists(path):
        return
    with tf.io.gfile.GFile(path) as file:
        if file.read() != tokenizer.to_json():
            raise CheckpointError(
                f"{path} -- is not the tokenizer of the dataset now: its text or settings have changed since training "
                "began -- give another model_path, or --new to begin again"
            )


def _start(config: RunConfig, placement: Placement) -> TrainingPosition:
    say(f"model: {placement.store.n_trainable_parameters():,} parameters")
    if checkpoints.latest_checkpoint(config.model_path) is not None:
        return _restore_latest(config, placement)
    placement.store.initialize(config.training.seed)
    return TrainingPosition(0, 0)


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
    tokenizer: Tokenizer | None
    metrics: MetricsWriter
    note: Callable[[str], None]

    def __call__(self, position: TrainingPosition) -> None:
        if self.config.evaluation.eval_steps and self.data.has_eval_part():
            measured = self._measure()
            self.metrics.write("eval", position.step, measured)
            self.note(f"step {position.step}: held-out {_format_metrics(measured)}")
        if self.config.prediction.predict_steps and self.tokenizer is not None:
            texts = self._write_samples()
            path = predictions.write_predictions(self.config.model_path, self.options.sacred_id, position.step, texts)
            self.note(f"step {position.step}: samples in {path}")

    @functools.cached_property
    def _eval_step(self) -> LoweredStep:
        return build_eval_step(self.config, self.placement)

    @functools.cached_property
    def _generator(self) -> Callable[[], list[str]]:
        return _build_generator(self.config, self.placement, self.tokenizer, read_prompt(self.options.prompt_path))

    def _measure(self) -> dict[str, float]:
        batches = evaluation_batches(self.config, self.data.eval_patterns(), self.config.evaluation.eval_steps)
        return evaluate_batches(self._eval_step, batches, _token_counts(self.config, self.tokenizer))

    def _write_samples(self) -> list[str]:
        return self._generator()


def _format_metrics(measured: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {value:,.4f}" if isinstance(value, float) else f"{name} {value:,}" for name, value in measured.items()
    )


def _plot(config: RunConfig) -> None:
    plot_loss(
        read_metrics(config.model_path),
        posixpath.join(config.model_path, "loss.png"),
        title=config.name,
        n_vocab=config.model.n_vocab,
        tokens_per_step=config.training.train_batch_size * config.model.n_ctx,
    )


# ---------------------------------------------------------------------------------------------------------- evaluation


def evaluate(config: RunConfig, options: Options) -> int:
    """Measures the loss of the newest checkpoint on the held-out part: all of it, or `eval_steps` batches."""
    placement = _place(config, options)
    data = _Data.of(config)
    tokenizer = data.tokenizer()
    _check_tokenizer_of_run(config, tokenizer)
    batches = evaluation_batches(config, data.eval_patterns(), config.evaluation.eval_steps or None)
    step = build_eval_step(config, placement)
    position = _restore_latest(config, placement)
    measured = evaluate_batches(step, batches, _token_counts(config, tokenizer))
    with MetricsWriter(config.model_path) as metrics:
        metrics.write("eval", position.step, measured)
    say(f"step {position.step}: held-out {_format_metrics(measured)}")
    under_guessing = math.log(config.model.n_vocab) - measured["loss"]
    say(f"the loss is {under_guessing:.2f} nats under that of guessing, ln({config.model.n_vocab})")
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


def _n_new_tokens(config: RunConfig) -> int:
    """As many as asked for, and no more than leave room for one token of prompt."""
    most = config.model.n_ctx - 1
    return min(config.prediction.predict_max_steps or most, most)


def _build_generator(
    config: RunConfig, placement: Placement, tokenizer: Tokenizer, text: str
) -> Callable[[], list[str]]:
    settings, eos_id = config.prediction, config.data.eos_id
    limit = settings.predict_max_steps and _n_new_tokens(config)
    prompt_S = prompt_tokens(text, tokenizer, config.model.n_ctx, limit or 1, eos_id)
    n_new_tokens = limit or config.model.n_ctx - len(prompt_S)
    rule = SamplingRule(settings.temperature, settings.top_k, settings.top_p)
    step = build_generation(config, placement, len(prompt_S), Request(rule, n_new_tokens, eos_id))

    def generate() -> list[str]:
        seed = secrets.randbits(31) if settings.predict_seed is None else settings.predict_seed
        written_BN = step(prompt_S, noise_key(seed, 0))["written"]
        with_prompt = not settings.remove_partial_sequences
        return predictions.sample_texts(prompt_S, written_BN, eos_id, tokenizer.decode, with_prompt)

    return generate


def predict(config: RunConfig, options: Options) -> int:
    """Continues a prompt with the newest checkpoint, on the screen and in a file under the model path."""
    text = read_prompt(options.prompt_path)
    placement = _place(config, options)
    tokenizer = _Data.of(config).tokenizer()
    if tokenizer is None:
        raise ConfigError(
            "datasets = [] -- prediction needs a tokenizer -- name a dataset with a tokenizer_path in the model config"
        )
    _check_tokenizer_of_run(config, tokenizer)
    generate = _build_generator(config, placement, tokenizer, text)
    position = _restore_latest(config, placement)
    texts = generate()
    say(predictions.format_samples(texts))
    say(f"written to {predictions.write_predictions(config.model_path, options.sacred_id, position.step, texts)}")
    return 0


# ---------------------------------------------------------------------------------------------------------------- data


def check_dataset(config: RunConfig, options: Options) -> int:
    """Reads every record of every dataset and shows what is in them."""
    data = _Data.of(config)
    if not data.prepared:
        raise ConfigError("no dataset: nothing to check -- give datasets in the model config")
    tokenizer = data.tokenizer()
    decode = tokenizer.decode if tokenizer else lambda ids: " ".join(map(str, ids))
    for use, ready in zip(config.data.datasets, data.prepared, strict=True):
        for part, pattern in (("training", ready.train_pattern), ("evaluation", ready.eval_pattern)):
            if pattern:
                report = inspect_dataset(
                    [pattern], record_n_ctx(config, use), config.model.n_vocab, config.data.eos_id, decode
                )
                say(f"\n{use.dataset.id}, {part}: {pattern}\n{format_report(report)}")
    return 0


# ------------------------------------------------------------------------------------------------------------- new run


def looks_like_a_run(model_path: str) -> bool:
    """Whether a folder holds what training writes, so that deleting it deletes a run and nothing else."""
    return any(
        tf.io.gfile.exists(posixpath.join(model_path, name)) for name in ("checkpoint", "config.json", "metrics.jsonl")
    )


def may_forget(config: RunConfig, confirm: Callable[[str], bool]) -> bool:
    """Whether there is no run at `model_path`, or `confirm` says that it may be deleted.

    Raises:
      UserError: what is there is no run.
    """
    if not tf.io.gfile.exists(config.model_path):
        return True
    if not looks_like_a_run(config.model_path):
        raise UserError(
            f"--new: model_path = {config.model_path} -- holds no run, so it is not deleted -- delete it yourself, or "
            "give another model_path"
        )
    return confirm(f"Delete the run in {config.model_path}?")


def _forget(config: RunConfig) -> None:
    if tf.io.gfile.exists(config.model_path):
        tf.io.gfile.rmtree(config.model_path)
        say(f"deleted {config.model_path}")


VERBS: dict[str, Callable[[RunConfig, Options], int]] = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "check_dataset": check_dataset,
}


def run(verb: str, config: RunConfig, options: Options) -> int:
    """Runs one verb; returns the exit status."""
    return VERBS[verb](config, options)
