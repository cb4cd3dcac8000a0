"""Folders of a family that are damaged or do not fit together: each is named in one line, and says what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from configs.weights import initial_end_ids, initial_model_keys
from runtime.checkpoint.init_from import find_weights

GOLDEN = Path(__file__).parents[2] / "golden" / "llama"
QUERY, KEY = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]

Damage = Callable[[Path], Any]


def write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def change_config(**changed: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return damage


def change_tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = dict(load_file(path))
        change(tensors)
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)

    return damage


def change_bytes(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def with_header(header: str) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode()


def in_shards(weight_map: object | None = None, lost: int | None = None) -> Damage:
    """Splits the tensors into two files with an index; the index has this map, or one of the files is lost."""

    def damage(folder: Path) -> None:
        tensors, whole = load_file(folder / "model.safetensors"), folder / "model.safetensors"
        parts = [dict(list(tensors.items())[number::2]) for number in (0, 1)]
        for name, part in zip(SHARDS, parts, strict=True):
            save_file(part, folder / name)
        places = {tensor: name for name, part in zip(SHARDS, parts, strict=True) for tensor in part}
        index = {"weight_map": places if weight_map is None else weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        whole.unlink()
        if lost is not None:
            (folder / SHARDS[lost]).unlink()

    return damage


def set_to(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return change_tensors(lambda tensors: tensors.update({name: value(tensors[name])}))


# What is done to a folder, and how the message begins after its path.
MALFORMED: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), "/config.json: cannot be read (No such file or directory); "),
    "an empty config": (write("config.json", ""), "/config.json: line 1 column 1: is not JSON ("),
    "half a config": (
        write("config.json", '{"model_type": "llama", '),
        "/config.json: line 1 column 25: is not JSON (",
    ),
    "a config that is a list": (write("config.json", "[]"), "/config.json: holds no JSON object; "),
    "a config in another encoding": (
        write("config.json", '{"model_type": "llama"}'.encode("utf-16")),
        "/config.json: is not UTF-8 text (byte 0); ",
    ),
    "another family": (
        change_config(model_type="mamba2"),
        '/config.json: model_type = "mamba2": is another architecture; give weights of GPT-2 (gpt2), ',
    ),
    "no size": (change_config(hidden_size=None), "/config.json: hidden_size = null: is not a size; "),
    "heads that do not divide": (
        change_config(num_key_value_heads=3),
        "/model.safetensors: model.layers.0.self_attn.k_proj.weight: is [8, 16] there and [12, 16] by config.json; ",
    ),
    "ids that are none": (
        change_config(eos_token_id="</s>"),
        '/config.json: eos_token_id = "</s>": is neither an id nor a list of ids; ',
    ),
    "no weights": (remove("model.safetensors"), ": holds no weights; give a checkpoint "),
    "empty weights": (write("model.safetensors", b""), "/model.safetensors: cannot be read: "),
    "a page of a server": (
        write("model.safetensors", "<!doctype html><title>404</title>"),
        "/model.safetensors: cannot be read: ",
    ),
    "a pointer of Git LFS": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "/model.safetensors: is a pointer of Git LFS, without the weights; run ",
    ),
    "a download that was cut off": (change_bytes(lambda content: content[:-7]), "/model.safetensors: cannot be read: "),
    "a header that was cut off": (change_bytes(lambda content: content[:40]), "/model.safetensors: cannot be read: "),
    "a header longer than the file": (
        change_bytes(lambda content: struct.pack("<Q", 1 << 40) + content[8:]),
        "/model.safetensors: cannot be read: ",
    ),
    "a header that is no JSON": (
        change_bytes(lambda content: with_header("{") + content[9:]),
        "/model.safetensors: cannot be read: ",
    ),
    "offsets outside of the file": (
        write(
            "model.safetensors",
            with_header('{"lm_head.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),
        ),
        "/model.safetensors: cannot be read: ",
    ),
    "a missing tensor": (
        change_tensors(lambda tensors: tensors.pop(QUERY)),
        ": has no tensor layers.1.self_attn.q_proj.weight; ",
    ),
    "a missing layer": (change_config(num_hidden_layers=3), ": has no tensor layers.2.input_layernorm.weight; "),
    "a layer too many": (
        change_config(num_hidden_layers=1),
        "/model.safetensors: model.layers.1.input_layernorm.weight: is not a tensor of the model that ",
    ),
    "a tensor of another model": (
        change_tensors(lambda tensors: tensors.update({"score.weight": np.zeros((2, 16))})),
        "/model.safetensors: score.weight: is not a tensor of the model that config.json ",
    ),
    "a tensor twice": (
        change_tensors(lambda tensors: tensors.update({f"module.{QUERY}": tensors[QUERY]})),
        "/model.safetensors: module.model.layers.1.self_attn.q_proj.weight: is given twice, as ",
    ),
    "the transpose": (
        set_to(KEY, np.transpose),
        "/model.safetensors: model.layers.1.self_attn.k_proj.weight: is [16, 8] there and [8, 16] by ",
    ),
    "keys of all heads": (
        set_to(KEY, lambda value: np.concatenate([value, value])),
        "/model.safetensors: model.layers.1.self_attn.k_proj.weight: is [16, 16] there and [8, 16] ",
    ),
    "integers": (
        set_to(QUERY, lambda value: value.astype(np.int8)),
        "/model.safetensors: model.layers.1.self_attn.q_proj.weight: is of I8; ",
    ),
    "no number": (
        set_to(QUERY, lambda value: np.where(value == value.max(), np.nan, value)),
        "/model.safetensors: model.layers.1.self_attn.q_proj.weight: holds NaN or infinity; ",
    ),
    "an index that is a list": (
        in_shards(weight_map=["lm_head.weight"]),
        "/model.safetensors.index.json: weight_map does not give a file for each tensor; ",
    ),
    "an index of numbers": (
        in_shards(weight_map={"lm_head.weight": 1}),
        "/model.safetensors.index.json: weight_map does not give a file for each tensor; ",
    ),
    "a lost shard": (
        in_shards(lost=1),
        "/model-00002-of-00002.safetensors: is not there, but model.safetensors.index.json names it; ",
    ),
    "tied in the config alone": (
        change_config(tie_word_embeddings=True),
        "/model.safetensors: lm_head.weight: differs from the token table; ",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "folder", ignore=shutil.ignore_patterns("*.npz")))


def read(folder: Path) -> None:
    """Reads all that a run reads of a folder."""
    initial_model_keys(str(folder))
    initial_end_ids(str(folder))
    for stored in find_weights(str(folder)).values():
        stored.read()


def test_the_sound_folder_is_read(folder: Path) -> None:
    read(folder)
    in_shards()(folder)
    read(folder)


@pytest.mark.parametrize(("damage", "expected"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_folder_is_named(folder: Path, damage: Damage, expected: str) -> None:
    damage(folder)
    with pytest.raises(UserError) as error:
        read(folder)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{folder}{expected}")
    assert "; " in line
