"""Averages of the parameters: trained, resumed, evaluated and exported."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from main import main
from runtime.checkpoint.weight_sources import checkpoint_tensors
from runtime.run.metrics import read_metrics
from tests.program import TINY, write_project

NAME = "gpt2/h0/attn/q"
SETTINGS = {**TINY, "lr_decay": None, "eval_steps": 1, "opt_name": "adamw", "activation_function": "gelu"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    for name, keys in {"averaged": {"ema_decay": 0.6}, "resumed": {"ema_decay": 0.6}, "plain": {}}.items():
        Path(f"{name}.json").write_text(json.dumps({**SETTINGS, **keys, "model_path": f"runs/{name}"}))
    return tmp_path


def train(name: str, n_steps: int) -> None:
    assert main(["--model", f"{name}.json", "--set", f"train_steps={n_steps}", "--steps_per_checkpoint", "1"]) == 0


def value(run: str, step: int, name: str = NAME) -> np.ndarray:
    return checkpoint_tensors(f"runs/{run}/model.ckpt-{step}")[name].read()


def eval_losses(run: str) -> list[float]:
    return [line["loss"] for line in read_metrics(f"runs/{run}") if line["split"] == "eval"]


def test_averages_go_on_exactly_and_are_used_where_they_are_asked_for(project: Path) -> None:
    train("averaged", 4)
    train("resumed", 2)
    train("resumed", 4)
    values = [value("averaged", step) for step in (1, 2, 3, 4)]
    average = functools.reduce(lambda mean, new: 0.6 * mean + 0.4 * new, values)
    np.testing.assert_allclose(value("averaged", 4, f"{NAME}/ema"), average, rtol=0, atol=1e-6)
    np.testing.assert_allclose(value("resumed", 4, f"{NAME}/ema"), average, rtol=0, atol=1e-6)

    assert main(["--model", "averaged.json", "--eval"]) == main(["--model", "averaged.json", "--eval", "--ema"]) == 0
    *_, in_training, alone, averaged = eval_losses("averaged")
    assert alone == pytest.approx(in_training, rel=1e-6) and abs(averaged - alone) > 1e-4
    export = ["--model", "averaged.json", "--export", "--export_format", "hf", "--ema"]
    assert main([*export, "--export_dir", "folder"]) == 0
    exported = load_file("folder/model.safetensors")
    (queries,) = [tensor for name, tensor in exported.items() if name.endswith("h.0.attn.attention.q_proj.weight")]
    np.testing.assert_allclose(queries.T, average, rtol=0, atol=1e-6)


def test_what_has_no_averages_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("plain", 1)
    assert main(["--model", "plain.json", "--eval", "--ema"]) == 2
    problem = "runs/plain/model.ckpt-1: has no averages; leave out --ema, or train with ema_decay"
    assert problem in capsys.readouterr().err
    assert main(["--model", "plain.json", "--export", "--ema"]) == 2
    assert problem in capsys.readouterr().err
    assert main(["--model", "plain.json", "--set", "ema_decay=0.5", "--set", "train_steps=2"]) == 2
    assert "/ema), which ema_decay goes on from; leave out ema_decay" in capsys.readouterr().err
    assert main(["--model", "plain.json", "--ema"]) == 2
    assert "--ema: works with --eval, --predict" in capsys.readouterr().err
    assert main(["--model", "plain.json", "--eval", "--ema", "--init_from", "runs/plain/model.ckpt-1"]) == 2
    assert "--ema: runs/plain/model.ckpt-1 is no run, whose checkpoints have averages" in capsys.readouterr().err
