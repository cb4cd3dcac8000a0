"""The loss on held-out data."""

from __future__ import annotations

import posixpath

import numpy as np

from commands.console import say
from commands.options import Options
from commands.placing import place_run
from commands.run_data import RunData, waited_for
from commands.trained_weights import load_trained
from configs.schema import RunConfig
from data.tokenization.tokenizer import Tokenizer
from inputs import evaluation_batches
from models.losses import uniform_loss
from runtime.cluster.process_group import ProcessGroup
from runtime.run.metrics import MetricsWriter, read_metrics
from runtime.run.plots import plot_loss
from runtime.training.evaluation import TokenCounts
from runtime.training.evaluation import evaluate as evaluate_batches
from runtime.training.steps import build_eval_step


def token_counts(config: RunConfig, tokenizer: Tokenizer | None) -> TokenCounts:
    """Which labels count in evaluation; the model's vocabulary may have rows that the tokenizer never uses."""
    data, has_likelihood = config.data, not config.model.entmax_loss
    padding_id = None if data.padding_id == data.eos_id else data.padding_id
    if tokenizer is None or not config.model.is_causal:  # masked tokens alone are no text, whose bytes would count
        return TokenCounts(has_likelihood, padding_id, None)
    known = tokenizer.token_byte_lengths()
    bytes_V = np.pad(known, (0, max(0, config.model.n_vocab - len(known))))
    return TokenCounts(has_likelihood, padding_id, bytes_V)


def format_metrics(measured: dict[str, float]) -> str:
    """What was measured, on one line."""
    return "  ".join(
        f"{name} {value:,.4f}" if isinstance(value, float) else f"{name} {value:,}" for name, value in measured.items()
    )


def plot_run(config: RunConfig) -> None:
    """Draws the learning curve of a run, up to now."""
    plot_loss(
        read_metrics(config.model_path),
        posixpath.join(config.model_path, "loss.png"),
        title=config.name,
        uniform_loss=uniform_loss(config.model),
        tokens_per_step=config.training.train_batch_size * config.model.n_ctx,
    )


def evaluate(config: RunConfig, options: Options, group: ProcessGroup) -> int:
    """Measures the loss on the held-out part, all of it or `eval_steps` batches: of the newest checkpoint, for the
    metrics of the run; or of the weights of `--init_from`.
    """
    placement = place_run(config, options, group)
    data = group.first_process_first(lambda: RunData.of(config))
    data.check_same(group)
    tokenizer = data.tokenizer()
    batches = evaluation_batches(config, data.eval_patterns(), config.evaluation.eval_steps or None)
    step = group.synchronized(build_eval_step(config, placement))
    position = load_trained(config, options, placement, tokenizer)
    group.check_same("the run's position", repr(position))
    with group.timeout():
        measured = evaluate_batches(step, waited_for(group, batches), token_counts(config, tokenizer))
    say(f"step {position.step}: held-out {format_metrics(measured)}")
    guessing = uniform_loss(config.model)
    say(f"the loss is {guessing - measured['loss']:.2f} under that of guessing, {guessing:.2f}")
    if options.init_from is None and group.is_first:  # other weights are no part of the run
        with MetricsWriter(config.model_path) as metrics:
            metrics.write("eval", position.step, measured)
        plot_run(config)
    return 0
