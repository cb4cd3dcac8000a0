"""What the config.json beside weights says of their model, whoever has written it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.load import load_config, resolved_json
from configs.schema import ModelConfig, keys_of
from configs.weights import FREE_KEYS, initial_model_keys

GOLDEN = Path(__file__).parents[1] / "golden"
GPT_NEO = {
    "n_head": 16,
    "n_embd": 2048,
    "n_layer": 24,
    "n_ctx": 2048,
    "n_vocab": 50257,
    "attention_types": [[["global", "local"], 12]],
    "embed_dropout": 0.1,
    "precision": "bfloat16",
    "mesh_shape": "x:128,y:2",
    "datasets": [["pile", None, None, None]],
    "opt_name": "something",
}


def keys_beside(folder: Path, config: Any) -> dict[str, Any]:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return initial_model_keys(str(folder))


def test_a_config_of_gpt_neo(tmp_path: Path) -> None:
    keys = keys_beside(tmp_path, GPT_NEO)
    sizes = {key: GPT_NEO[key] for key in ("n_head", "n_embd", "n_layer", "n_ctx", "n_vocab", "attention_types")}
    assert sizes.items() <= keys.items()
    assert (keys["local_attention_radius"], keys["activation_function"], keys["rotary_emb"]) == (256, "gelu", False)
    assert not set(keys) & {*FREE_KEYS, "moe_activation", "mesh_shape", "datasets", "opt_name"}
    assert set(keys) == set(keys_of(ModelConfig)) - {*FREE_KEYS, "moe_activation"}
    assert initial_model_keys(f"{tmp_path}/model.ckpt-362000") == keys


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"activation_function": "relu"}, {"activation_function": "gelu"}),
        ({"activation_function": "relu", "activation_fn": "mish"}, {"activation_function": "mish"}),
        ({"rotary_emb": False}, {"rotary_emb": True}),
        ({"rotary_emb": None}, {"rotary_emb": False}),
        ({"temperature": 1.0, "activation_function": "relu"}, {"activation_function": "relu"}),
        ({"temperature": 1.0, "rotary_emb": False}, {"rotary_emb": False}),
        ({"n_ctx": None, "n_positions": 1024}, {"n_ctx": 1024}),
    ],
)
def test_what_gpt_neo_made_of_its_keys(tmp_path: Path, changed: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected.items() <= keys_beside(tmp_path, GPT_NEO | changed).items()


def test_what_cannot_be_understood_is_left_out(tmp_path: Path) -> None:
    keys = keys_beside(tmp_path, GPT_NEO | {"num_mem_kv": "many", "scalenorm": 7, "n_head": None})
    assert not set(keys) & {"num_mem_kv", "scalenorm", "n_head"} and keys["n_embd"] == 2048
    assert "local_attention_radius" not in keys_beside(tmp_path, GPT_NEO | {"attention_types": [[["global"], 24]]})
    assert keys_beside(tmp_path, GPT_NEO | {"moe_layers": [2]})["moe_activation"] == "relu"


def test_the_config_of_a_run_says_all_of_its_model(tmp_path: Path) -> None:
    """And the model that is built from what it says is the run's, but for what may change."""
    types = '[[["local", "none"], 1], [["global"], 1]]'
    overrides = ["activation_function=relu", "local_attention_radius=7", f"attention_types={types}"]
    config = load_config("quickstart", overrides)
    (tmp_path / "config.json").write_text(resolved_json(config))
    fields = keys_of(ModelConfig)
    parsed = {
        key: fields[key].metadata["kind"].parse(value) for key, value in initial_model_keys(str(tmp_path)).items()
    }
    free = {key: getattr(config.model, key) for key in (*FREE_KEYS, "moe_activation")}
    assert ModelConfig(**parsed, **free) == config.model
    assert dataclasses.replace(config.model, **parsed) == config.model


def test_a_config_of_hugging_face() -> None:
    assert initial_model_keys(str(GOLDEN / "gpt_neo_local"))["local_attention_radius"] == 5
    assert initial_model_keys(str(GOLDEN / "gpt_2"))["qkv_bias"] is True


def test_nothing_is_known_without_a_file(tmp_path: Path) -> None:
    assert initial_model_keys(str(tmp_path)) == initial_model_keys(f"{tmp_path}/model.ckpt-1") == {}
    assert initial_model_keys("gs://bucket/model.ckpt-1") == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError) as error:
        initial_model_keys(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/config.json -- ") and str(error.value).endswith(
        "copy the file again"
    )
