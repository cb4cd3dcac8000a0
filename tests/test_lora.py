"""Adapters from the command line: trained, resumed, merged, and what happens when their base is gone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from main import main
from meshtf import tf
from runtime.checkpoint.init_from import find_weights, own_adapters
from runtime.checkpoint.weight_sources import checkpoint_tensors
from tests.answers import assert_equal, our_answer
from tests.program import TINY, write_project

SETTINGS = {**TINY, "lr_decay": None, "eval_steps": 1, "opt_name": "adamw", "weight_decay": 0.1, "ema_decay": 0.5}
ADAPTERS = {"lora_rank": 3, "lora_alpha": 6.0, "lora_dropout": 0.2, "lora_targets": ["q", "o", "c_fc"]}
RUNS = {"base": {}, "adapted": ADAPTERS, "resumed": ADAPTERS}
KERNELS = ("gpt2/h0/attn/q", "gpt2/h0/attn/o", "gpt2/h0/mlp/conv1d_main/c_fc/kernel")
FROM_BASE = ("--init_from", "runs/base/model.ckpt-1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_project(folder)
    for name, keys in RUNS.items():
        (folder / f"{name}.json").write_text(json.dumps({**SETTINGS, **keys, "model_path": f"runs/{name}"}))
    return folder


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def run(*arguments: str) -> int:
    return main(["--model", *arguments])


def train(name: str, n_steps: int, *flags: str) -> None:
    assert run(f"{name}.json", "--set", f"train_steps={n_steps}", "--steps_per_checkpoint", "1", *flags) == 0


def values(checkpoint: str) -> dict[str, np.ndarray]:
    return {name: stored.read() for name, stored in checkpoint_tensors(checkpoint).items() if "global" not in name}


def eval_loss(capsys: pytest.CaptureFixture[str], *arguments: str) -> float:
    capsys.readouterr()
    assert run(*arguments, "--eval") == 0
    return float(re.search(r"held-out loss (\d+\.\d+)", capsys.readouterr().out)[1])


def test_adapters_alone_are_trained_and_kept_and_a_run_resumes_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    train("base", 1)
    train("adapted", 4, *FROM_BASE)
    printed = capsys.readouterr().out
    assert "parameters, 432 of them (" in printed  # 3 (32 + 32 + 16 + 64)
    train("resumed", 2, *FROM_BASE)
    train("resumed", 4)
    kept, resumed = values("runs/adapted/model.ckpt-4"), values("runs/resumed/model.ckpt-4")
    matrices = {f"{kernel}/lora_{end}" for kernel in KERNELS for end in "ab"}
    assert kept.keys() == {name + slot for name in matrices for slot in ("", "/adam_m", "/adam_v", "/ema")}
    for name, value in kept.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    first = values("runs/adapted/model.ckpt-1")
    assert all((first[name] != kept[name]).any() for name in matrices)


def test_merged_weights_are_the_adapted_model(capsys: pytest.CaptureFixture[str], devices: tuple[str, ...]) -> None:
    merged, base = find_weights("runs/adapted"), find_weights("runs/base")
    kept = own_adapters("runs/adapted/model.ckpt-4")
    for name, stored in merged.items():
        added = 2.0 * kept[f"{name}/lora_a"].read() @ kept[f"{name}/lora_b"].read() if name in KERNELS else 0.0
        np.testing.assert_allclose(stored.read(), base[name].read() + added, rtol=0, atol=1e-7, err_msg=name)
    assert run("adapted.json", "--export", "--export_format", "hf", "--export_dir", "merged") == 0
    adapted, plain = load_config("adapted.json").model, load_config("base.json").model
    tokens = np.random.default_rng(0).integers(0, 300, (2, 16), dtype=np.int32)
    expected = our_answer(FROM_BASE[1], adapted, tokens, devices, kept)
    for weights in ("merged", "runs/adapted/model.ckpt-4"):
        assert_equal(our_answer(weights, plain, tokens, devices), expected, 1e-5)
    before = our_answer(FROM_BASE[1], plain, tokens, devices)
    assert np.abs(before.logits - expected.logits).max() > 1e-2

    loss = pytest.approx(eval_loss(capsys, "adapted.json"), abs=1.5e-4)
    assert eval_loss(capsys, "base.json", "--init_from", "merged") == loss
    assert eval_loss(capsys, "base.json", *FROM_BASE) != loss
    assert eval_loss(capsys, "adapted.json", *FROM_BASE, "--adapter", "runs/adapted") == loss
    averaged = eval_loss(capsys, "adapted.json", "--ema")
    assert averaged != loss
    export = ("adapted.json", "--export", "--ema", "--export_format")
    assert run(*export, "peft", "--export_dir", "averaged") == 0
    assert eval_loss(capsys, "base.json", *FROM_BASE, "--adapter", "averaged") == pytest.approx(averaged, abs=1.5e-4)


def test_a_base_that_is_gone_or_has_changed_is_named(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    capsys.readouterr()
    base = project / "runs/base/model.ckpt-1"
    files = sorted(base.parent.glob("model.ckpt-1.*"))
    moved = project / "moved"
    moved.mkdir()
    for file in files:
        file.rename(moved / file.name)
    assert run("adapted.json", "--eval") == 2
    problem = f"{base}: is the base of the adapters in runs/adapted/model.ckpt-4, and cannot be read; put it back"
    assert problem in capsys.readouterr().err
    assert run("resumed.json", "--set", "train_steps=5") == 2
    assert problem.replace("adapted/", "resumed/") in capsys.readouterr().err
    train("resumed", 5, "--init_from", str(moved / "model.ckpt-1"))
    assert run("resumed.json", "--eval") == 0  # by the new place

    trained_on = {name: stored.read() for name, stored in find_weights(f"{moved}/model.ckpt-1").items()}
    trained_on["gpt2/h0/norm_1/g"][3] += 1e-6
    names, tensors = list(trained_on), list(trained_on.values())
    tf.raw_ops.SaveV2(prefix=str(base), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    assert run("adapted.json", "--eval") == 2
    assert problem.replace("cannot be read; put it back", "has changed since") in capsys.readouterr().err
    for file in files:
        (moved / file.name).rename(file)
    assert run("adapted.json", "--eval") == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("adapted.json", "--set", "model_path=runs/none"),
            "lora_rank = 3: adapts trained weights",
        ),
        (("base.json", "--set", "model_path=runs/adapted", "--eval"), "the config has no lora_rank"),
        (("adapted.json", "--set", "model_path=runs/base", "--eval"), "has no adapters (gpt2/h0/attn/"),
        (("adapted.json", "--set", "lora_alpha=1", "--eval"), "lora_alpha = 6.0: the run was trained with it"),
    ],
)
def test_adapters_and_whole_weights_are_told_apart(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    assert run(*arguments) == 2
    assert problem in capsys.readouterr().err
