"""Exports a model as a folder for Hugging Face's library."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

import tokenizers

from configs.errors import UserError
from configs.huggingface import huggingface_config
from configs.schema import RunConfig
from meshtf import tf
from runtime.checkpoint.huggingface import SAFETENSORS, write_weights
from runtime.checkpoint.weight_sources import Weights
from storage.files import flush_to_disk, is_local


@contextlib.contextmanager
def new_folder(directory: str) -> Iterator[str]:
    """Yields a temporary folder, which is renamed when complete, so that the directory is whole or absent.

    Raises:
        UserError: the directory exists already, or cannot be written.
    """
    if not is_local(directory):
        raise UserError(f"{directory}: is in a bucket; give a local folder, and copy it there afterwards")
    if not directory or "\0" in directory:
        raise UserError(f"{directory!r}: is not a path; give a folder that is new or empty")
    directory, target = (
        os.path.abspath(directory),
        os.path.realpath(directory),
    )  # a link stays a link
    _check_free(directory, target)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=os.path.dirname(target)) as private:
            folder = os.path.join(private, "folder")
            os.mkdir(folder)  # with default permissions; only the user may read the temporary one
            yield folder
            _flush_folder(folder)
            _check_free(directory, target)  # another export may have finished first
            os.replace(folder, target)
        flush_to_disk(os.path.dirname(target))
    except (tf.errors.OpError, OSError) as error:
        reason = getattr(error, "message", str(error))
        raise UserError(
            f"{directory}: cannot be written: {reason}; give another folder, or make room and check the permissions"
        ) from error


def _check_free(directory: str, target: str) -> None:
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError(f"{directory}: exists already; give a folder that is new or empty")


def _flush_folder(directory: str) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            flush_to_disk(os.path.join(folder, name))


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
    hf_config = huggingface_config(config.model, config.data.eos_id)
    with new_folder(directory) as folder:
        _write_json(folder, "config.json", hf_config)
        write_weights(os.path.join(folder, SAFETENSORS), weights, config.model)
        if tokenizer_json is not None:
            _write_text(folder, "tokenizer.json", tokenizer_json)
            _write_json(folder, "tokenizer_config.json", _tokenizer_config(config, tokenizer_json))


def _tokenizer_config(config: RunConfig, tokenizer_json: str) -> dict[str, object]:
    """Returns the tokenizer_config.json that makes Hugging Face use the tokenizers JSON file unchanged."""
    name_of = tokenizers.Tokenizer.from_str(tokenizer_json).id_to_token
    special = {"bos_token": config.data.eos_id, "eos_token": config.data.eos_id, "pad_token": config.data.padding_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.model.n_ctx,
        "clean_up_tokenization_spaces": False,
        **{role: name_of(token) for role, token in special.items() if name_of(token) is not None},
    }


def _write_json(folder: str, name: str, value: dict[str, object]) -> None:
    _write_text(folder, name, json.dumps(value, indent=2) + "\n")


def _write_text(folder: str, name: str, text: str) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)
