"""The command `--export`: writes the model for other programs, or its weights alone for this one."""

from __future__ import annotations

import dataclasses

from commands.console import say
from commands.options import Options
from commands.run_data import trained_tokenizer
from commands.run_setup import check_no_averages_wanted, checked_weights, newest_checkpoint
from configs.errors import ConfigError
from configs.schema import RunConfig
from configs.weights import no_adapters
from data.tokenization.tokenizer import Tokenizer
from runtime.checkpoint.adapters import merged, read_base
from runtime.checkpoint.export import write_huggingface_folder, write_weights_folder
from runtime.checkpoint.init_from import find_adapters, find_averages, find_weights, own_adapters
from runtime.checkpoint.peft import write_adapters
from runtime.checkpoint.reader import EMA_SUFFIX, step_in_name
from runtime.checkpoint.saved_model import export_saved_model
from runtime.checkpoint.weight_sources import Weights
from runtime.run import directory as run_directory


def export(config: RunConfig, options: Options) -> int:
    """Writes a SavedModel, a directory for Hugging Face's transformers or PEFT, or a run without optimiser state."""
    if config.model.ranks and options.export_format == "saved_model":
        raise ConfigError(
            f"{config.name}: objective = ranking: no SavedModel computes scores; give --export_format hf or weights"
        )
    if options.init_from is not None:
        check_no_averages_wanted(options)
    path = newest_checkpoint(config) if options.init_from is None else options.init_from
    exported, source = (_adapters if options.export_format == "peft" else _whole_weights)(config, options, path)
    tokenizer = trained_tokenizer(config, options.init_from)
    if options.init_from is None:
        run_directory.check_settings(config, tokenizer and tokenizer.to_json())
    _write(config, options, exported, source, tokenizer)
    say(f"exported {path} to {options.export_dir}")
    return 0


def _write(config: RunConfig, options: Options, exported: Weights, source: str, tokenizer: Tokenizer | None) -> None:
    directory, merged_config = options.export_dir, dataclasses.replace(config, model=config.model.without_adapters())
    if options.export_format == "peft":
        write_adapters(directory, config, exported, source)
    elif options.export_format == "hf":
        write_huggingface_folder(directory, merged_config, exported, tokenizer and tokenizer.to_json())
    elif options.export_format == "weights":
        step, files = step_in_name(source) or 0, tokenizer.files() if tokenizer else {}
        write_weights_folder(directory, merged_config, exported, step, files)
    else:
        export_saved_model(directory, merged_config, exported)


def _whole_weights(config: RunConfig, options: Options, path: str) -> tuple[Weights, str]:
    """Returns the weights, with adapters merged into them, and the path of the checkpoint."""
    found = checked_weights(path, config, options.notes)
    weights = (find_averages if options.ema else find_weights)(found)
    if options.adapter is not None:
        weights = merged(weights, find_adapters(options.adapter, config.model, weights), config.model.lora_scale)
    return weights, found


def _adapters(config: RunConfig, options: Options, path: str) -> tuple[Weights, str]:
    """Returns the adapters alone, and the path of the weights that they belong to."""
    if options.adapter is not None:
        return find_adapters(options.adapter, config.model, find_weights(path)), path
    base = None if options.init_from is not None else read_base(path)
    if base is None:
        raise no_adapters(path)
    return own_adapters(path, EMA_SUFFIX if options.ema else ""), base.path
