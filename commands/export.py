"""The command `--export`: writes the model for other programs, or its weights alone for this one."""

from __future__ import annotations

from commands.console import say
from commands.options import Options
from commands.run_data import trained_tokenizer
from commands.run_setup import check_no_averages_wanted, checked_weights, newest_checkpoint
from configs.errors import ConfigError
from configs.schema import RunConfig
from runtime.checkpoint.export import write_huggingface_folder, write_weights_folder
from runtime.checkpoint.init_from import find_averages, find_weights
from runtime.checkpoint.reader import step_in_name
from runtime.checkpoint.saved_model import export_saved_model
from runtime.run import directory as run_directory


def export(config: RunConfig, options: Options) -> int:
    """Writes a TensorFlow SavedModel, a directory for Hugging Face's transformers, or a run without optimiser state."""
    if config.model.ranks and options.export_format == "saved_model":
        raise ConfigError(
            f"{config.name}: objective = ranking: no SavedModel computes scores; give --export_format hf or weights"
        )
    if options.init_from is not None:
        check_no_averages_wanted(options)
    path = newest_checkpoint(config) if options.init_from is None else options.init_from
    find, directory = find_averages if options.ema else find_weights, options.export_dir
    found = checked_weights(path, config, options.notes)
    weights = find(found)
    tokenizer = trained_tokenizer(config, options.init_from)
    if options.init_from is None:
        run_directory.check_settings(config, tokenizer and tokenizer.to_json())
    if options.export_format == "hf":
        write_huggingface_folder(directory, config, weights, tokenizer and tokenizer.to_json())
    elif options.export_format == "weights":
        step, files = step_in_name(found) or 0, tokenizer.files() if tokenizer else {}
        write_weights_folder(directory, config, weights, step, files)
    else:
        export_saved_model(directory, config, weights)
    say(f"exported {path} to {directory}")
    return 0
