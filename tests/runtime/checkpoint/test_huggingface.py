"""Weights of Hugging Face's folders: the same logits and loss as theirs, every form of file, and the errors
for unusable ones.

The folders under tests/golden were written by transformers; make_golden.py there shows how.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.errors import CheckpointError, ConfigError, UserError
from configs.huggingface import family_for
from runtime.checkpoint.huggingface import read_weights, write_weights
from tests.answers import Answer, assert_equal, model_of, our_answer

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = ("gpt_neo_global", "gpt_neo_local", "gpt_neo_alternating", "gpt_2", "gpt_2_unscaled")
FAMILIES = ("gptj", "gpt_neox", "llama", "olmo2", "gemma2")


def expected_of(folder: Path) -> tuple[np.ndarray, Answer]:
    """Tokens, and the results of transformers for them."""
    expected = np.load(folder / "expected.npz")
    return expected["tokens"].astype(np.int32), Answer(expected["logits"], float(expected["loss"]))


@pytest.mark.parametrize("name", (*FOLDERS, *FAMILIES))
def test_logits_and_loss_equal_those_of_transformers(name: str, devices: tuple[str, ...]) -> None:
    folder = GOLDEN / name
    tokens, expected = expected_of(folder)
    assert_equal(our_answer(folder, model_of(folder), tokens, devices), expected, tolerance=2e-5)


@pytest.mark.parametrize("key", ["attention_types", "activation_function", "local_attention_radius"])
def test_a_wrong_setting_changes_the_logits(key: str, devices: tuple[str, ...], tmp_path: Path) -> None:
    """The golden files detect a wrong setting."""
    wrong = {"attention_types": ("local", "global"), "activation_function": "gelu", "local_attention_radius": 6}[key]
    folder = copied(tmp_path, "gpt_neo_local")
    model, (tokens, expected) = dataclasses.replace(model_of(folder), **{key: wrong}), expected_of(folder)
    answer = our_answer(folder, model, tokens, devices)
    assert np.abs(answer.logits - expected.logits).max() > 0.01


# Every form of file.


def copied(tmp_path: Path, name: str = "gpt_2") -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def values(folder: Path) -> dict[str, np.ndarray]:
    return {name: stored.read() for name, stored in read_weights(str(folder)).items()}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == np.float32
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_names_and_shapes_match_the_model() -> None:
    weights = read_weights(str(GOLDEN / "gpt_2"))
    block = {f"attn/{name}": (16, 16) for name in "qkvo"} | {f"attn/{name}_bias": (16,) for name in "qkv"}
    block |= {"attn/compute_output_bias/o_b": (16,)}
    block |= {f"norm_{number}/{name}": (16,) for number in (1, 2) for name in "gb"}
    block |= {"mlp/conv1d_main/c_fc/kernel": (16, 64), "mlp/conv1d_main/c_fc/bias": (64,)}
    block |= {"mlp/conv1d_main/c_proj/kernel": (64, 16), "mlp/conv1d_main/c_proj/bias": (16,)}
    shapes = {f"gpt2/h{layer}/{name}": shape for layer in range(2) for name, shape in block.items()}
    shapes |= {"gpt2/wte": (48, 16), "gpt2/wpe": (24, 16), "gpt2/ln_f/g": (16,), "gpt2/ln_f/b": (16,)}
    assert {name: stored.shape for name, stored in weights.items()} == shapes
    assert {name: value.shape for name, value in values(GOLDEN / "gpt_2").items()} == shapes
    neo = read_weights(str(GOLDEN / "gpt_neo_local"))
    assert {name: stored.shape for name, stored in neo.items()} == {
        name: shape for name, shape in shapes.items() if not name.endswith(("q_bias", "k_bias", "v_bias"))
    }


def test_linear_layers_are_transposed_and_conv1d_is_not() -> None:
    theirs = load_file(GOLDEN / "gpt_neo_local" / "model.safetensors")
    ours = values(GOLDEN / "gpt_neo_local")
    np.testing.assert_array_equal(ours["gpt2/h1/attn/k"], theirs["transformer.h.1.attn.attention.k_proj.weight"].T)
    theirs, ours = load_file(GOLDEN / "gpt_2" / "model.safetensors"), values(GOLDEN / "gpt_2")
    np.testing.assert_array_equal(ours["gpt2/h1/attn/k"], theirs["transformer.h.1.attn.c_attn.weight"][:, 16:32])
    np.testing.assert_array_equal(ours["gpt2/h1/attn/v_bias"], theirs["transformer.h.1.attn.c_attn.bias"][32:])


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")


def test_prefix_constants_and_tied_layer_are_optional(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 24, 24), np.uint8), "h.1.attn.masked_bias": np.float32([-1e4])}
    rewrite(folder, bare | {"lm_head.weight": bare["wte.weight"]})
    assert_same(values(folder), values(GOLDEN / "gpt_2"))
    rewrite(folder, bare | {"lm_head.weight": bare["wte.weight"] + 1})
    with pytest.raises(CheckpointError) as error:
        read_weights(str(folder))
    assert str(error.value) == (
        f"{folder}/model.safetensors: lm_head.weight: differs from the token table; give weights that tie the two: "
        "Neomesh's output layer is the token table"
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: type) -> None:
    folder = copied(tmp_path)
    rewrite(folder, {name: value.astype(dtype) for name, value in load_file(folder / "model.safetensors").items()})
    expected = {name: value.astype(dtype).astype(np.float32) for name, value in values(GOLDEN / "gpt_2").items()}
    assert_same(values(folder), expected)


def shard(folder: Path) -> dict[str, str]:
    """Splits model.safetensors into shards; returns the file of each tensor."""
    tensors = load_file(folder / "model.safetensors")
    files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "model.safetensors").unlink()
    return files


def test_several_shards_are_read_as_one_model(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    shard(folder)
    assert_same(values(folder), values(GOLDEN / "gpt_2"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert message(folder) == (
        f"{folder}/model-00002-of-00002.safetensors: is not there, but model.safetensors.index.json names it; copy "
        "it too"
    )


# Folders that cannot be used.


def message(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        values(folder)
    return str(error.value)


def test_a_missing_or_unknown_tensor_or_another_shape_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"
    rewrite(folder, {key: value for key, value in tensors.items() if key != name})
    assert message(folder) == (
        f"{folder}: has no tensor h.1.mlp.c_fc.weight; copy the folder again: its config.json describes a model with it"
    )
    rewrite(folder, tensors | {"score.weight": np.zeros((2, 16), np.float32)})
    assert message(folder).startswith(f"{folder}/model.safetensors: score.weight: is not a tensor of the model that ")
    rewrite(folder, tensors | {name: tensors[name].T})
    assert message(folder) == (
        f"{folder}/model.safetensors: {name}: is [64, 16] there and [16, 64] by config.json; give weights that fit it"
    )


@pytest.mark.parametrize("kept_bytes", [0, 5, 100, 20_000])
def test_a_truncated_file_is_named(tmp_path: Path, kept_bytes: int) -> None:
    folder = copied(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    problem = message(folder)
    assert problem.startswith(f"{path}: cannot be read: ") and "\n" not in problem
    assert problem.endswith("; copy the file again, or give other weights")


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    shard(folder)
    path = folder / "model.safetensors.index.json"
    path.write_text('{"weights": {}}')
    assert message(folder).startswith(f"{path}: cannot be read: ")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 0, "activation_function": "gelu_10"}))
    with pytest.raises(ConfigError) as error:
        read_weights(str(folder))
    lines = str(error.value).splitlines()
    assert [": ".join(line.split(": ")[:2]) for line in lines] == [
        f"{folder}/config.json: n_inner = 0",
        f'{folder}/config.json: activation_function = "gelu_10"',
    ]


@pytest.mark.parametrize("weight_map", [{"wte.weight": 3}, {"wte.weight": ["a"]}, ["a"], None, "a"])
def test_an_index_that_names_no_files_is_refused(tmp_path: Path, weight_map: object) -> None:
    folder = copied(tmp_path)
    shard(folder)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    assert message(folder).startswith(f"{path}: weight_map does not give a file for each tensor; ")


def test_a_duplicate_tensor_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, tensors | {"wte.weight": tensors["transformer.wte.weight"] + 1})
    problem, path = message(folder), f"{folder}/model.safetensors"
    places = [f"{path}: transformer.wte.weight", f"{path}: wte.weight"]
    assert problem in [f"{a}: is given twice, as {b} too; keep one" for a, b in (places, places[::-1])]


@pytest.mark.parametrize(("dtype", "shown"), [(np.int64, "I64"), (np.uint8, "U8"), (np.bool_, "BOOL")])
def test_a_tensor_of_integers_is_refused(tmp_path: Path, dtype: type, shown: str) -> None:
    folder, name = copied(tmp_path), "transformer.h.0.mlp.c_fc.weight"
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, tensors | {name: tensors[name].astype(dtype)})
    assert message(folder) == (
        f"{folder}/model.safetensors: {name}: is of {shown}; give weights of floating-point numbers, not quantized"
    )


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float16), (-np.inf, ml_dtypes.bfloat16), (1e300, np.float64)]
)
def test_a_tensor_with_nan_or_infinity_is_refused(tmp_path: Path, value: float, dtype: type) -> None:
    folder, name = copied(tmp_path), "transformer.h.1.attn.c_attn.weight"
    tensors = load_file(folder / "model.safetensors")
    broken = tensors[name].astype(dtype)
    broken[3, 40] = value
    rewrite(folder, tensors | {name: broken})
    weights = read_weights(str(folder))
    with pytest.raises(CheckpointError) as error:
        weights["gpt2/h1/attn/v"].read()
    assert str(error.value) == (
        f"{folder}/model.safetensors: {name}: holds NaN or infinity; give weights from before the training "
        "diverged, or copy the file again"
    )


@pytest.mark.parametrize("broken", ["integers", "NaN", None])
def test_pickles_are_checked_like_safetensors(tmp_path: Path, broken: str | None) -> None:
    torch = pytest.importorskip("torch")
    folder, name = copied(tmp_path), "transformer.h.1.mlp.c_fc.bias"
    tensors = {key: torch.from_numpy(value) for key, value in load_file(folder / "model.safetensors").items()}
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.bool)
    if broken == "integers":
        tensors[name] = tensors[name].long()
    if broken == "NaN":
        tensors[name] = tensors[name] / 0 * 0
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    if broken is None:
        assert_same(values(folder), values(GOLDEN / "gpt_2"))
        return
    problem = {"integers": "is of torch.int64", "NaN": "holds NaN or infinity"}[broken]
    assert message(folder).startswith(f"{folder}/pytorch_model.bin: {name}: {problem}; ")


def test_pickles_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError) as error:
        read_weights(str(folder))
    assert str(error.value) == (
        f"{folder}/pytorch_model.bin: is PyTorch's format, and PyTorch is not installed; pip install torch, or "
        "give the folder with model.safetensors"
    )


# Writing.


@pytest.mark.parametrize("name", (*FOLDERS, *FAMILIES))
def test_written_tensors_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(str(path), read_weights(str(GOLDEN / name)), model_of(GOLDEN / name))
    written, expected = load_file(path), load_file(GOLDEN / name / "model.safetensors")
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)
    assert path.read_bytes()[8:].startswith(b'{"__metadata__": {"format": "pt"}')


def test_scaled_logits_without_biases_get_biases_of_0(tmp_path: Path) -> None:
    model = dataclasses.replace(model_of(GOLDEN / "gpt_2"), qkv_bias=False)
    weights = {
        name: stored for name, stored in read_weights(str(GOLDEN / "gpt_2")).items() if not name.endswith("_bias")
    }
    write_weights(str(tmp_path / "model.safetensors"), weights, model)
    written = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(written["transformer.h.1.attn.c_attn.bias"], np.zeros(48))


def test_only_weights_of_the_config_are_written(tmp_path: Path) -> None:
    weights, model = dict(read_weights(str(GOLDEN / "gpt_neo_local"))), model_of(GOLDEN / "gpt_neo_local")
    path = str(tmp_path / "model.safetensors")
    for wrong in ({"n_layer": 1, "attention_types": ("local",)}, {"n_ctx": 12}, {"n_layer": 3}):
        with pytest.raises(CheckpointError, match="give the config that was trained"):
            write_weights(path, weights, dataclasses.replace(model, **wrong))
    assert list(tmp_path.iterdir()) == []


def test_the_table_holds_every_variable_once() -> None:
    """Every variable of a model is in the table exactly once."""
    for name in ("gpt_2", "gpt_neo_alternating"):
        model = model_of(GOLDEN / name)
        listed = [v for t in family_for(model).tensors(vars(model)) for v in t.variables]
        assert len(listed) == len(set(listed)) == len(read_weights(str(GOLDEN / name)))
