"""GPT-2 as OpenAI released it gives the logits of the same weights in Hugging Face's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.errors import CheckpointError, ConfigError
from configs.weights import initial_model_keys
from meshtf import tf
from runtime.checkpoint.init_from import find_weights
from tests.answers import assert_equal, model_of, our_answer
from tests.runtime.checkpoint.test_huggingface import expected_of

GOLDEN = Path(__file__).parents[2] / "golden" / "gpt_2"
HPARAMS = {"n_vocab": 48, "n_ctx": 24, "n_embd": 16, "n_head": 2, "n_layer": 2}
# The names of variables in github.com/openai/gpt-2, src/model.py, after those of Hugging Face.
NAMES = {
    "wte.weight": "wte",
    "wpe.weight": "wpe",
    "ln_f.weight": "ln_f/g",
    "ln_f.bias": "ln_f/b",
    **{
        f"h.{layer}.{theirs}": f"h{layer}/{ours}"
        for layer in range(2)
        for theirs, ours in {
            "ln_1.weight": "ln_1/g",
            "ln_1.bias": "ln_1/b",
            "ln_2.weight": "ln_2/g",
            "ln_2.bias": "ln_2/b",
            "attn.c_attn.weight": "attn/c_attn/w",
            "attn.c_attn.bias": "attn/c_attn/b",
            "attn.c_proj.weight": "attn/c_proj/w",
            "attn.c_proj.bias": "attn/c_proj/b",
            "mlp.c_fc.weight": "mlp/c_fc/w",
            "mlp.c_fc.bias": "mlp/c_fc/b",
            "mlp.c_proj.weight": "mlp/c_proj/w",
            "mlp.c_proj.bias": "mlp/c_proj/b",
        }.items()
    },
}


def write(folder: Path, change: Callable[[dict[str, np.ndarray]], object] = lambda tensors: None) -> Path:
    theirs = load_file(GOLDEN / "model.safetensors")
    tensors = {f"model/{ours}": theirs[f"transformer.{name}"] for name, ours in NAMES.items()}
    tensors = {name: value[None] if name.endswith("/w") else value for name, value in tensors.items()}
    change(tensors)
    folder.mkdir(exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=f"{folder}/model.ckpt",
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    )
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    return folder


def test_the_logits_are_those_of_hugging_face(tmp_path: Path, devices: tuple[str, ...]) -> None:
    folder = write(tmp_path / "124M")
    tokens, expected = expected_of(GOLDEN)
    assert initial_model_keys(str(folder)) == initial_model_keys(str(GOLDEN))
    assert_equal(our_answer(folder, model_of(folder), tokens, devices), expected, tolerance=1e-5)


@pytest.mark.parametrize("path", ["", "model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_it_is_found_with_and_without_its_state_file(tmp_path: Path, path: str) -> None:
    folder = write(tmp_path / "124M")
    (folder / "checkpoint").unlink()
    assert find_weights(str(folder / path)).keys() == find_weights(str(GOLDEN)).keys()
    assert initial_model_keys(str(folder / path)) == initial_model_keys(str(GOLDEN))


def test_slots_of_optimisers_are_left_out(tmp_path: Path) -> None:
    slots = {"model/wte/Adam": np.zeros((48, 16), np.float32), "model/h0/mlp/c_fc/w/Adam_1": np.zeros(3, np.float32)}
    folder = write(tmp_path / "124M", lambda tensors: tensors.update(slots | {"beta1_power": np.float32(0.9)}))
    assert find_weights(str(folder)).keys() == find_weights(str(GOLDEN)).keys()


def test_a_missing_unknown_or_other_tensor_is_named(tmp_path: Path) -> None:
    path, name = f"{tmp_path}/124M/model.ckpt", "model/h1/ln_2/g"
    for change, problem in (
        (lambda tensors: tensors.pop(name), f"{path}: has no tensor {name}; "),
        (
            lambda tensors: tensors.update({"model/h1/more": np.zeros(3, np.float32)}),
            f"{path}: model/h1/more: is not a ",
        ),
        (lambda tensors: tensors.update({name: np.zeros(3, np.float32)}), f"{path}: {name}: is [3] there and [16] by "),
    ):
        write(tmp_path / "124M", change)
        with pytest.raises(CheckpointError) as error:
            find_weights(f"{tmp_path}/124M")
        assert str(error.value).startswith(problem)


def test_a_broken_hparams_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "124M")
    (folder / "hparams.json").write_text(json.dumps(HPARAMS | {"n_layer": "two"}))
    with pytest.raises(ConfigError, match='^.*/124M/hparams.json: n_layer = "two": is not a size; '):
        initial_model_keys(str(folder))
