"""Writes small model and dataset configs for the tests of configs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_config

MODEL = {
    "n_head": 4,
    "n_embd": 64,
    "n_layer": 2,
    "n_ctx": 32,
    "n_vocab": 128,
    "train_batch_size": 8,
    "train_steps": 100,
    "model_path": "runs/tiny",
    "datasets": ["words"],
}


MASKED = {"mlm_training": True, "mlm_mask_id": 5}


WORDS = {"n_vocab": 128, "path": "words/*.tfrecords", "tokenizer_path": "words.json", "eos_id": 3, "padding_id": 2}


PAGES = {"n_vocab": 100, "path": "pages/*.tfrecords", "tokenizer_path": "words.json", "eos_id": 5, "padding_id": 2}


def write_configs(folder: Path, model: dict, **datasets: dict) -> str:
    """Writes a model config and its dataset configs; returns the path of the model config."""
    (folder / "dataset_configs").mkdir(exist_ok=True)
    for name, dataset in ({"words": WORDS, "pages": PAGES} | datasets).items():
        (folder / "dataset_configs" / f"{name}.json").write_text(json.dumps(dataset))
    path = folder / "tiny.json"
    path.write_text(json.dumps(model))
    return str(path)


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


def message_of(model: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(model, overrides)
    return str(caught.value)
