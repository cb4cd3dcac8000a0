"""Whole models in one file of PyTorch, as DialoGPT released its weights: `make parity` runs what needs PyTorch."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.errors import CheckpointError, UserError
from configs.weights import initial_model_keys, names_weights, no_weights, tokenizer_beside
from runtime.checkpoint.init_from import check_initial_weights, find_weights, load_initial_weights
from runtime.mesh.placement import place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.answers import model_of

GOLDEN = Path(__file__).parents[2] / "golden" / "gpt_2"
TENSORS = {name.removeprefix("transformer."): value for name, value in load_file(GOLDEN / "model.safetensors").items()}
SUFFIXES = ("pkl", "pth", "pt")
PREFIXES = ("", "transformer.", "module.transformer.", "module.")


def released(prefix: str) -> dict[str, np.ndarray]:
    """Returns what DialoGPT's LSP_train.py saves: halves, the output layer twice, and the masks of attention."""
    tensors = {f"{prefix}{name}": value for name, value in TENSORS.items()}
    tensors |= {f"{prefix}h.{layer}.attn.bias": np.tril(np.ones((1, 1, 24, 24))) for layer in range(2)}
    tensors[f"{'module.' * prefix.startswith('module.')}lm_head.decoder.weight"] = TENSORS["wte.weight"]
    return {name: value.astype(np.float16) for name, value in tensors.items()}


def save(path: Path, tensors: Mapping[str, Any], is_zip: bool = True) -> Path:
    torch = pytest.importorskip("torch")
    given = {name: torch.from_numpy(value) if hasattr(value, "dtype") else value for name, value in tensors.items()}
    torch.save(given, path, _use_new_zipfile_serialization=is_zip)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        find_weights(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_halves_are_read_as_float32(tmp_path: Path, prefix: str, suffix: str, is_zip: bool) -> None:
    actual = find_weights(str(save(tmp_path / f"small_ft.{suffix}", released(prefix), is_zip)))
    expected = find_weights(str(GOLDEN))
    assert actual.keys() == expected.keys()
    for name, stored in expected.items():
        value = actual[name].read()
        assert value.dtype == np.float32 and actual[name].shape == stored.shape
        np.testing.assert_array_equal(value, stored.read().astype(np.float16), err_msg=name)


def test_a_file_of_gpt_neo_is_read_too(tmp_path: Path) -> None:
    golden = GOLDEN.with_name("gpt_neo_alternating")
    actual = find_weights(str(save(tmp_path / "neo.pt", load_file(golden / "model.safetensors"))))
    for name, stored in find_weights(str(golden)).items():
        np.testing.assert_array_equal(actual[name].read(), stored.read(), err_msg=name)


def test_the_config_beside_a_file_describes_its_model(tmp_path: Path) -> None:
    path = save(tmp_path / "small_ft.pkl", released(""))
    assert names_weights(str(path)) and initial_model_keys(str(path)) == {} and tokenizer_beside(str(path)) is None
    assert str(no_weights(str(path))) == (
        f"{path}: is without a config.json; give a config too, such as --model dialogpt_small"
    )
    shutil.copy(GOLDEN / "config.json", tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    assert initial_model_keys(str(path)) == initial_model_keys(str(GOLDEN))
    assert tokenizer_beside(str(path)) == str(tmp_path)


def test_a_model_of_another_size_is_described_by_its_own(tmp_path: Path, devices: tuple[str, ...]) -> None:
    """A file as small_reverse.pkl is, whose name says small: medium, here with each tensor one number in memory."""
    torch = pytest.importorskip("torch")
    sizes = {16: 1024, 64: 4096, 48: 50257, 24: 1024}
    blocks = {name for name in TENSORS if name.startswith("h.0.")}
    names = {name.replace("h.0.", f"h.{layer}."): name for layer in range(24) for name in blocks}
    names |= {name: name for name in TENSORS if not name.startswith("h.")}
    qkv = {48: 3072}
    tensors = {
        name: torch.zeros(1, dtype=torch.float16).expand(
            [(qkv | {16: 1024} if "c_attn" in like else sizes)[size] for size in TENSORS[like].shape]
        )
        for name, like in names.items()
    }
    path = tmp_path / "small_reverse.pkl"
    torch.save(tensors, path)
    assert path.stat().st_size < 300_000
    placement, model = place(tiny.mesh_config("", ""), devices[:1]), model_of(GOLDEN)
    build_train_step(tiny.run_config(model=vars(model)), placement)
    size = "24 layers of 1024 features, as dialogpt_medium"
    for load in (
        lambda: load_initial_weights(str(path), placement.store),
        lambda: check_initial_weights(str(path), model),
    ):
        with pytest.raises(CheckpointError) as error:
            load()
        assert str(error.value) == (
            f"{path} ({size}): wte.weight: is [50257, 1024] there and [48, 16] by the config; give the config of these "
            "weights, or other weights"
        )


def test_a_file_of_another_kind_of_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    save(path, released("") | {"classifier.weight": np.zeros((1, 16), np.float32)})
    assert refusal(path) == (
        f"{path} (2 layers of 16 features): classifier.weight: is not a tensor of the model that wte.weight describes; "
        "give weights that fit it, of a language model without another head"
    )
    save(path, {name: value for name, value in released("").items() if not name.startswith("wpe")})
    assert refusal(path) == f"{path}: has no table wpe.weight, as GPT-2 and GPT-Neo have; give other weights"
    save(path, {name: value for name, value in released("").items() if name != "h.1.ln_2.bias"})
    assert refusal(path) == f"{path}: has no tensor h.1.ln_2.bias; copy the file again, or give other weights"
    save(path, released("") | {"wte.weight": TENSORS["wte.weight"] + 1})
    assert ": differs from the token table; " in refusal(path)


# Files that would run a program.


class Program:
    """An object whose unpickling runs a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


RUNS = "asks for posix.system, which is no tensor and could run a program,"
IS_OTHER = "holds something else than tensors,"


@pytest.mark.parametrize(
    ("form", "what"), [("zip", RUNS), ("legacy", RUNS), (0, IS_OTHER), (2, RUNS), (4, IS_OTHER)], ids=str
)
@pytest.mark.parametrize("name", ["small_ft.pkl", "updown.pth", "model.pt", "pytorch_model.bin"])
def test_a_file_that_would_run_a_program_is_refused_without_running_it(
    tmp_path: Path, name: str, form: str | int, what: str
) -> None:
    shutil.copy(GOLDEN / "config.json", tmp_path)
    path, ran = tmp_path / name, tmp_path / "ran"
    if isinstance(form, int):
        pytest.importorskip("torch")
        path.write_bytes(pickle.dumps({"wte.weight": Program(ran)}, protocol=form))
    else:
        save(path, released("") | {"extra": Program(ran)}, form == "zip")
    remedy = "so it is not read; give model.safetensors, or a file that holds the state_dict alone"
    assert refusal(path) == f"{path}: {what} {remedy}"
    assert not ran.exists()


def test_without_pytorch_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    path, ran = tmp_path / "small_ft.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Program(ran)))
    with pytest.raises(UserError) as error:
        find_weights(str(path))
    assert str(error.value) == (
        f"{path}: is PyTorch's format, and PyTorch is not installed; pip install torch, or give the folder with "
        "model.safetensors"
    )
    assert not ran.exists()
