"""The config.json beside weights describes their model, whichever program wrote it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.errors import CheckpointError, ConfigError
from configs.load import CONFIGS_DIR, load_config, resolved_json
from configs.schema import ModelConfig, keys_of
from configs.weights import (
    FREE_KEYS,
    KEYS_OF_GPT_NEO,
    config_notes,
    initial_end_ids,
    initial_model_keys,
    weights_at,
)

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
    idle = {"moe_activation", "linear_attention_normalization", "none_doubles_residual"}
    assert set(keys) == set(keys_of(ModelConfig)) - {*FREE_KEYS, *idle}
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


OURS = GPT_NEO | {"temperature": 1.0}
LINEAR, NONE = {"attention_types": [[["linear"], 24]]}, {"attention_types": [[["none"], 24]]}
BY_POSITION, BY_FEATURE = ({"linear_attention_normalization": kind} for kind in ("position", "feature"))
UNKNOWN = {"linear_attention_normalization": None}
ELISH, PUBLISHED = {"activation_function": "elish"}, {"activation_function": "elish_published"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OURS | LINEAR, BY_FEATURE),
        (OURS | LINEAR | {"mlm_training": True}, UNKNOWN),
        (OURS | LINEAR | BY_POSITION, BY_POSITION),
        (GPT_NEO | LINEAR, BY_POSITION),
        (OURS | ELISH, PUBLISHED),
        (OURS | ELISH | BY_POSITION, ELISH),
        (GPT_NEO | {"activation_fn": "elish"}, ELISH),
        (OURS | {"moe_layers": [1], "moe_activation": "elish"}, {"moe_activation": "elish_published"}),
        (OURS | NONE, {"none_doubles_residual": False}),
        (OURS | NONE | {"none_doubles_residual": True}, {"none_doubles_residual": True}),
        (GPT_NEO | NONE, {"none_doubles_residual": None}),
    ],
)
def test_functions_that_have_changed(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    """A run of ours that was trained before has the former ones; None: nothing is known, or nothing changes."""
    keys = keys_beside(tmp_path, config)
    assert {key: keys.get(key) for key in expected} == expected


def test_former_linear_attention_is_never_taken_over_by_itself(tmp_path: Path) -> None:
    types = 'attention_types=[[["linear"], 3]]'
    keys = json.loads(resolved_json(load_config("quickstart", [types])))
    del keys["linear_attention_normalization"]
    (tmp_path / "config.json").write_text(json.dumps(keys))
    with pytest.raises(ConfigError) as error:
        load_config("quickstart", [types], weights=str(tmp_path))
    assert str(error.value).endswith(
        f'linear_attention_normalization: the weights were made with "feature" ({tmp_path}/config.json); '
        "set linear_attention_normalization to feature"
    )
    kept = load_config("quickstart", [types, "linear_attention_normalization=feature"], weights=str(tmp_path))
    assert kept.model.linear_attention_normalization == "feature"


def test_what_cannot_be_understood_of_gpt_neo_is_left_out(tmp_path: Path) -> None:
    keys = keys_beside(tmp_path, GPT_NEO | {"num_mem_kv": "many", "scalenorm": 7})
    assert not set(keys) & {"num_mem_kv", "scalenorm"} and keys["n_embd"] == 2048
    assert "local_attention_radius" not in keys_beside(tmp_path, GPT_NEO | {"attention_types": [[["global"], 24]]})
    assert keys_beside(tmp_path, GPT_NEO | {"moe_layers": [2]})["moe_activation"] == "relu"


def message(folder: Path, config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        keys_beside(folder, config)
    return str(error.value)


@pytest.mark.parametrize(
    ("changed", "issue"),
    [
        ({"n_head": None}, "n_head = null: is not an integer; give an integer >= 1"),
        ({"n_ctx": "2048"}, 'n_ctx = "2048": is a string, not an integer; give an integer >= 1, without quotes'),
        ({"local_attention_radius": 0}, "local_attention_radius = 0: is out of range; give an integer >= 1"),
        ({"attention_types": "global"}, 'attention_types = "global": is not a list of [pattern, repeats] pairs; '),
    ],
)
def test_sizes_and_attention_must_be_understood(tmp_path: Path, changed: dict[str, Any], issue: str) -> None:
    for config in (GPT_NEO, GPT_NEO | {"temperature": 1.0}):
        assert message(tmp_path, config | changed).startswith(f"{tmp_path}/config.json: {issue}")


@pytest.mark.parametrize(
    ("changed", "issue"),
    [
        ({"scalenorm": 7}, "scalenorm = 7: is not true or false; "),
        ({"moe_layers": "all"}, 'moe_layers = "all": is not a list; '),
        ({"scale_norm": True}, "scale_norm = true: is not a known key; correct it, or use the version that "),
    ],
)
def test_all_of_a_config_of_ours_must_be_understood(tmp_path: Path, changed: dict[str, Any], issue: str) -> None:
    ours = GPT_NEO | {"temperature": 1.0, "model": "GPT"}
    assert keys_beside(tmp_path, ours)["scalenorm"] is False
    assert message(tmp_path, ours | changed).startswith(f"{tmp_path}/config.json: {issue}")


def test_absent_attention_is_global(tmp_path: Path) -> None:
    config = {key: value for key, value in GPT_NEO.items() if key != "attention_types"}
    assert keys_beside(tmp_path, config)["attention_types"] == [[["global"], 24]]
    assert keys_beside(tmp_path, config | {"temperature": 1.0})["attention_types"] == [[["global"], 24]]
    assert "attention_types" not in keys_beside(tmp_path, {"n_embd": 8})


@pytest.mark.parametrize("name", ["gpt_neo_global", "gpt_2"])
def test_every_value_can_be_parsed_and_is_compared(tmp_path: Path, name: str) -> None:
    """By what loads the config of a run: each conflict is one line there."""
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    wrong = ["n_layer=3", "mlm_training=true", "qkv_bias=" + ("false" if name == "gpt_2" else "true"), "macaron=true"]
    with pytest.raises(ConfigError) as error:
        load_config("quickstart", [*wrong, "local_attention_radius=256"], weights=str(folder))
    for key in ("n_layer = 3", "mlm_training = true", "qkv_bias = ", "macaron = true"):
        assert f": {key}" in str(error.value) and f"({folder}/config.json)" in str(error.value)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"window_size": "7", "n_positions": 0}))
    with pytest.raises(ConfigError, match=": is not a size; copy the file again"):
        load_config("quickstart", weights=str(folder))


def test_too_many_layers_for_a_pattern(tmp_path: Path) -> None:
    gpt_2 = json.loads((GOLDEN / "gpt_2" / "config.json").read_text())
    issue = "n_layer = 10001: is not a size; copy the file again, it must give an integer from 1 to 1024"
    assert issue in message(tmp_path, gpt_2 | {"n_layer": 10_001})


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


@pytest.mark.parametrize("name", ["checkpoint", "model.ckpt-1.index", "model.safetensors", "pytorch_model.bin"])
def test_nothing_is_known_without_a_config(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run [1]"
    folder.mkdir()
    (folder / name).write_text("")
    assert initial_model_keys(str(folder)) == {}


def test_nothing_is_known_of_a_checkpoint_alone_or_in_a_bucket(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt-1.index").write_text("")
    for ending in ("", ".index", ".data-00000-of-00001"):
        assert initial_model_keys(f"{tmp_path}/model.ckpt-1{ending}") == {}
    assert initial_model_keys("gs://bucket/model.ckpt-1") == {}


def test_a_path_without_weights(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "other", tmp_path / "other" / "notes.txt", "/dev/null"):
        with pytest.raises(CheckpointError) as error:
            initial_model_keys(str(path))
        assert str(error.value).startswith(f"{path}: holds no weights; give a checkpoint ")
    (tmp_path / "config.json").write_text(json.dumps(GPT_NEO))
    with pytest.raises(CheckpointError, match="config.json: holds no weights"):
        initial_model_keys(f"{tmp_path}/config.json")
    with pytest.raises(ConfigError) as empty:
        initial_model_keys("")
    assert str(empty.value) == "--init_from: is empty; give a path"


def test_a_path_may_name_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.ckpt-3.index", "model.safetensors", "model-00001-of-00002.safetensors"):
        (tmp_path / name).write_text("")
    (tmp_path / "runs.index").mkdir()
    expected = {
        "model.ckpt-3": "model.ckpt-3",
        "model.ckpt-3.index": "model.ckpt-3",
        "model.ckpt-3.data-00000-of-00002": "model.ckpt-3",
        "model-00001-of-00002.safetensors": "",
        "runs.index": "runs.index",
    }
    for given, place in expected.items():
        assert weights_at(f"{tmp_path}/{given}") == f"{tmp_path}/{place}".rstrip("/")
    monkeypatch.chdir(tmp_path)
    assert weights_at("model.safetensors") == "."


BROKEN = {
    "": "correct the file there",
    "{": "correct the file there",
    "[1]": 'write {"key": value, ...}',
    "\udcff": "save it as UTF-8",
    "[" * 100_000: "correct the file",
}


@pytest.mark.parametrize("text, remedy", BROKEN.items(), ids=["empty", "unclosed", "list", "bytes", "depth"])
def test_a_broken_file_is_named_with_a_remedy(tmp_path: Path, text: str, remedy: str) -> None:
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError) as error:
        initial_model_keys(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/config.json: ") and str(error.value).endswith(f"; {remedy}")


EXPERTS = {"moe_layers": [2, 4], "moe_params": {"moe_dropout_rate": 0.0}}
POLICY, Z_LOSS = "moe_params: moe_second_policy_eval is all; ", "moe_params: moe_z_loss is 0.001; "


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        (EXPERTS, [POLICY, Z_LOSS, *["experts: "] * 3]),
        (EXPERTS | {"moe_params": {"moe_second_policy_eval": "all"}}, [Z_LOSS, *["experts: "] * 3]),
        (EXPERTS | {"moe_params": {"moe_second_policy_eval": "random", "moe_z_loss": 0.0}}, ["experts: "] * 3),
        (EXPERTS | {"moe_params": None}, [POLICY, Z_LOSS, *["experts: "] * 3]),
        (EXPERTS | {"temperature": 1.0}, []),  # a key that GPT-Neo never had
    ],
)
def test_what_is_said_of_experts(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    file = tmp_path / "experts.json"
    config = json.loads((CONFIGS_DIR / "gpt3_small_256.json").read_text())
    file.write_text(json.dumps(config | changes))
    notes = config_notes(file, load_config(str(file)).model)
    assert len(notes) == len(said)
    for note, beginning in zip(notes, said, strict=True):
        assert note.startswith(f"{file}: {beginning}")


@pytest.mark.parametrize("path", sorted(CONFIGS_DIR.glob("gp*.json")), ids=lambda path: path.stem)
def test_every_config_of_gpt_neo_is_known_by_its_keys(path: Path) -> None:
    assert json.loads(path.read_text()).keys() <= KEYS_OF_GPT_NEO


def test_the_ends_of_a_text_lie_beside_weights(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "gpt_2" / "config.json").read_text()) | {"vocab_size": 48}

    def ends(of_config: object, of_generation: object = None) -> list[int]:
        (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": of_config}))
        (tmp_path / "model.safetensors").touch()
        if of_generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": of_generation}))
        return initial_end_ids(str(tmp_path))

    assert (ends(None), ends(7), ends([7, 3])) == ([], [7], [7, 3])
    assert ends(50256) == []  # no token of the table
    assert ends(7, [5, 47, 48]) == [5, 47]
    with pytest.raises(ConfigError) as error:
        ends(7, ["7"])
    assert str(error.value) == (
        f'{tmp_path}/generation_config.json: eos_token_id = ["7"]: is neither an id nor a list of ids; copy it again'
    )


def test_a_config_takes_the_ends_of_its_weights(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "gpt_2", tmp_path / "gpt_2")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 47]}')
    config = load_config(str(folder))
    assert (config.data.eos_id, config.data.end_ids) == (5, (5, 47))
    assert load_config(str(folder), ["end_ids=[3]"]).data.end_ids == (3,)
    assert load_config(str(folder), ["keep_tokenizer=false"]).data.end_ids == ()
