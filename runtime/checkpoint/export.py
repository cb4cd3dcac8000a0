"""Exports a model as a folder for Hugging Face's library, or as a checkpoint of its weights alone."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping

import tokenizers

from configs.huggingface import huggingface_config
from configs.load import resolved_json
from configs.schema import RunConfig
from configs.weights import CONFIG_FILE
from data.tokenization.backend import start_ids
from meshtf import tf
from runtime.checkpoint.huggingface import write_weights
from runtime.checkpoint.mup import without_mup
from runtime.checkpoint.weight_files import SAFETENSORS
from runtime.checkpoint.weight_sources import Weights
from runtime.checkpoint.writer import write_weights_checkpoint
from storage.files import new_folder, write_text


def write_huggingface_folder(directory: str, config: RunConfig, weights: Weights, tokenizer_json: str | None) -> None:
    """Writes what `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load, in float32.

    Args:
        directory: a new or empty folder.
        config: the config of the run.
        weights: the variables of the run, by name.
        tokenizer_json: the content of a tokenizers JSON file; None: the run has no tokenizer.

    Raises:
        ConfigError: Hugging Face's architectures lack an option of the model.
        CheckpointError: the weights do not match the config.
        UserError: the folder is not empty, or cannot be written.
    """
    model, weights = without_mup(config.model, weights)
    config = dataclasses.replace(config, model=model)
    hf_config = huggingface_config(config.model, config.data.eos_id) | _special_ids(config, tokenizer_json)
    with new_folder(directory) as folder:
        _write_json(folder, "config.json", hf_config)
        write_weights(os.path.join(folder, SAFETENSORS), weights, config.model)
        if tokenizer_json is not None:
            write_text(os.path.join(folder, "tokenizer.json"), tokenizer_json)
            _write_json(folder, "tokenizer_config.json", _tokenizer_config(config, tokenizer_json))


def write_weights_folder(
    directory: str, config: RunConfig, weights: Weights, step: int, tokenizer_files: Mapping[str, str]
) -> None:
    """Writes a run with one checkpoint, which holds the weights and no optimiser state: `--model` and `--init_from`.

    Args:
        directory: a new or empty folder.
        config: the config of the run.
        weights: the variables of the run, by name.
        step: that they were trained to.
        tokenizer_files: the contents of the tokenizer's files, by name.

    Raises:
        CheckpointError: a file of the weights is damaged.
        UserError: the folder is not empty, or cannot be written.
    """
    with new_folder(directory, tf.errors.OpError) as folder:
        write_weights_checkpoint(folder, weights, step)
        settings = {CONFIG_FILE: resolved_json(dataclasses.replace(config, model_path=directory))}
        for name, content in (settings | tokenizer_files).items():
            write_text(os.path.join(folder, name), content)


def _special_ids(config: RunConfig, tokenizer_json: str | None) -> dict[str, object]:
    """Returns what texts begin with, and every id that ends one, where these are more than eos."""
    start = () if tokenizer_json is None else start_ids(tokenizers.Tokenizer.from_str(tokenizer_json))
    ends = list(dict.fromkeys([config.data.eos_id, *config.data.end_ids]))
    bos = {"bos_token_id": start[0]} if start else {}
    return bos | ({"eos_token_id": ends} if len(ends) > 1 else {})


def _tokenizer_config(config: RunConfig, tokenizer_json: str) -> dict[str, object]:
    """Returns the tokenizer_config.json that makes Hugging Face use the tokenizers JSON file unchanged."""
    backend = tokenizers.Tokenizer.from_str(tokenizer_json)
    eos_id, padding_id, name_of = config.data.eos_id, config.data.padding_id, backend.id_to_token
    special = {"bos_token": next(iter(start_ids(backend)), eos_id), "eos_token": eos_id}
    if padding_id != eos_id:  # which stands for a tokenizer without padding
        special["pad_token"] = padding_id
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.model.n_ctx,
        "clean_up_tokenization_spaces": False,
        **{role: name_of(token) for role, token in special.items() if name_of(token) is not None},
    }


def _write_json(folder: str, name: str, value: dict[str, object]) -> None:
    write_text(os.path.join(folder, name), json.dumps(value, indent=2) + "\n")
