"""Weights that are there already: those of the newest checkpoint, or of `--init_from`."""

from __future__ import annotations

from commands.console import say
from commands.options import Options
from configs.errors import CheckpointError
from configs.schema import RunConfig
from data.tokenization.tokenizer import Tokenizer
from runtime.checkpoint import checkpoints
from runtime.checkpoint.init_from import load_initial_weights
from runtime.checkpoint.position import TrainingPosition
from runtime.mesh.placement import Placement
from runtime.run import directory as run_directory


def newest_checkpoint(config: RunConfig) -> str:
    path = checkpoints.latest_checkpoint(config.model_path)
    if path is None:
        raise CheckpointError(
            f"model_path = {config.model_path}: holds no checkpoint; train first, or give the model_path of "
            "a trained model"
        )
    return path


def restore_latest(config: RunConfig, placement: Placement) -> TrainingPosition:
    path = newest_checkpoint(config)
    position = checkpoints.restore(path, placement.store, config.training.train_batch_size)
    say(f"restored {path}")
    return position


def load_weights(config: RunConfig, placement: Placement, path: str) -> TrainingPosition:
    """Weights that another run has made: nothing of them has been trained here."""
    load_initial_weights(path, placement.store)
    say(f"weights of {path}")
    return TrainingPosition(0, 0)


def load_trained(
    config: RunConfig, options: Options, placement: Placement, tokenizer: Tokenizer | None
) -> TrainingPosition:
    """Sets the variables to the weights that are asked for: those of `--init_from`, or of the newest checkpoint."""
    if options.init_from is not None:
        return load_weights(config, placement, options.init_from)
    run_directory.check_settings(config, tokenizer and tokenizer.to_json())
    return restore_latest(config, placement)
