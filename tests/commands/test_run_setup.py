"""What is said of weights that are read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from commands.run_setup import checked_weights
from configs.load import load_config
from configs.weights import config_notes
from tests.runtime.checkpoint.test_weight_sources import GPT_NEO, written


def test_what_was_said_of_the_config_is_not_said_of_the_checkpoint_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"n_head": 2, "n_embd": 16, "n_layer": 2, "n_ctx": 16, "n_vocab": 300, "moe_layers": [1]}
    file = tmp_path / "model.json"
    file.write_text(
        json.dumps(
            {
                **keys,
                "train_batch_size": 1,
                "train_steps": 1,
                "lr": 1e-3,
                "no_dataset": True,
                "model_path": "run",
                "datasets": [],
            }
        )
    )
    config = load_config(str(file))
    notes, path = config_notes(file, config.model), written(tmp_path, GPT_NEO)
    assert len(notes) == 5
    checked_weights(path, config, notes)
    assert capsys.readouterr().out == ""
    checked_weights(path, config, [])
    said = capsys.readouterr().out.splitlines()
    assert said == [note.replace(str(file), path, 1) for note in notes]
    rectified = dataclasses.replace(config, model=dataclasses.replace(config.model, moe_activation="rrelu"))
    checked_weights(path, rectified, notes)
    assert capsys.readouterr().out.startswith(f"{path}: GPT-Neo drew the slope of rrelu once a process, ")
