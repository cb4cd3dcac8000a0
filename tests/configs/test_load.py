"""Loading a whole config: shipped ones, defaults, overrides, and the resolved config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from configs.kinds import ATTENTION_TYPES
from configs.load import CONFIGS_DIR, load_config, resolved_json
from configs.schema import ACTIVATIONS
from tests.configs.config_files import MODEL, WORDS, message_of, without, write_configs

SHIPPED = sorted(CONFIGS_DIR.glob("*.json"))


GPT_NEO_MODELS = (
    "gpt2_small",
    "gpt3_small_256",
    "gpt3_medium_256",
    "gpt3_large_256",
    "gpt3_PAR_small_256",
    "gpt3_2-7B_256",
    "gpt3_6-7B_256",
    "gpt3_13B_256",
    "gpt3_XL_256_Pile",
    "gpt3_13B_256_Pile",
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_name_with_the_values_of_its_file(path):
    config = load_config(path.stem)
    written = json.loads(path.read_text())
    assert config.name == path.stem
    assert (config.model.n_embd, config.model.n_vocab) == (written["n_embd"], written["n_vocab"])
    assert len(config.model.attention_types) == written["n_layer"]
    assert config.training.train_batch_size == written["train_batch_size"]
    assert config == load_config(str(path))


def test_the_ten_models_of_gpt_neo_ship():
    assert {path.stem for path in SHIPPED} >= set(GPT_NEO_MODELS)


def test_settings_of_gpt2_small():
    config = load_config("gpt2_small")
    assert (config.model.n_head, config.model.features_per_head, config.model.n_ctx) == (6, 128, 1024)
    assert config.model.embed_dropout == config.model.attn_dropout == config.model.res_dropout == 0.1
    assert (config.training.lr, config.training.lr_decay, config.training.lr_decay_end) == (0.0006, "cosine", 300_000)
    assert config.mesh.mesh_shape == (("all", 64),)
    assert config.mesh.layout == (("batch", "all"),)
    (use,) = config.data.datasets
    assert (use.dataset.id, use.stitch, use.datatype, use.weight) == ("openwebtext2_new_inputs", None, "chunks", None)


def test_settings_of_the_13b_model():
    config = load_config("gpt3_13B_256")
    assert config.model.attention_types == ("global", "local") * 20
    assert (config.model.precision, config.model.recompute_grad) == ("bfloat16", True)
    assert config.training.tokens_per_mb_per_replica == 2048
    assert config.training.lr_decay_end == config.training.train_steps == 143_075
    (use,) = config.data.datasets
    assert (use.dataset.id, use.stitch, use.datatype, use.weight) == (
        "openwebtext-documents",
        25,
        "documents_random",
        1.0,
    )


def test_attention_of_the_parallel_small_model():
    types = load_config("gpt3_PAR_small_256").model.attention_types
    assert types == ("global", "none", "none") * 5 + ("none",) * 4


@pytest.mark.parametrize("name, padding_id", [("gpt2_small", 50256), ("gpt3_small_256", 50257)])
def test_a_padding_id_one_past_the_token_table_becomes_eos(name, padding_id):
    config = load_config(name)
    assert config.data.datasets[0].dataset.padding_id == 50257
    assert (config.data.eos_id, config.data.padding_id) == (50256, padding_id)


def test_names_are_found_from_any_working_directory(tmp_path):
    code = "from configs.load import load_config; print(load_config('gpt2_small').training.train_steps)"
    environment = os.environ | {"PYTHONPATH": str(CONFIGS_DIR.parent)}
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (child.stdout, child.stderr) == ("1000000\n", "")


def test_defaults(tmp_path):
    config = load_config(write_configs(tmp_path, MODEL))
    assert config.name == "tiny"
    assert config.model.attention_types == ("global", "global")
    assert (config.model.activation_function, config.model.z_loss) == ("gelu", 1e-4)
    assert config.training.lr_decay_end == 100
    assert config.evaluation.eval_batch_size == 8
    assert (config.prediction.temperature, config.prediction.top_k, config.prediction.top_p) == (0.9, 0, 1.0)
    assert (config.data.eos_id, config.data.padding_id) == (3, 2)
    assert (config.mesh.mesh_shape, config.mesh.layout) == (None, None)


def test_settings_of_prediction_are_parsed(tmp_path):
    changes = {"stop": "\n", "cache_dtype": "BFloat16", "never_end": True, "temperature": 0}
    config = load_config(write_configs(tmp_path, MODEL | changes)).prediction
    assert (config.stop, config.cache_dtype, config.never_end) == (("\n",), "bfloat16", True)
    assert load_config(write_configs(tmp_path, MODEL | {"stop": None})).prediction.stop == ()
    for temperature in (0, 0.9):  # the default does not conflict
        beams = {"num_beams": 4, "predict_batch_size": 4, "temperature": temperature, "length_penalty": -1}
        assert load_config(write_configs(tmp_path, MODEL | beams)).prediction.length_penalty == -1.0


def test_beam_search_on_the_command_line_resets_the_sampling_keys(tmp_path):
    path = write_configs(tmp_path, MODEL | {"temperature": 0.7, "top_p": 0.5, "never_end": True})
    config = load_config(path, ["num_beams=4"]).prediction
    assert (config.temperature, config.top_p, config.never_end, config.num_beams) == (0.9, 1.0, False, 4)
    assert message_of(path, ("num_beams=4", "top_p=0.6")).startswith("--set: top_p = 0.6: has no effect on beam search")
    assert load_config(path, ["num_beams=1"]).prediction.top_p == 0.5


def test_gpt_neos_keys_are_accepted_when_they_are_off(tmp_path):
    off = {"rotary_emb": False, "moe_layers": [], "num_mem_kv": 0, "axial_pos_emb": None, "mlm_training": False}
    inert = {"ada_epsilon1": 1e-30, "mlm_mask_prob": 0.15, "moe_params": {"moe_dropout_rate": 0.0}, "model": "GPT"}
    assert load_config(write_configs(tmp_path, MODEL | off | inert)) == load_config(write_configs(tmp_path, MODEL))


def test_overrides_replace_keys_of_the_file_and_the_last_one_counts(tmp_path):
    changes = {"activation_function": "gelu", "mesh_shape": "x:2", "gradient_clipping": 1.0}
    path = write_configs(tmp_path, MODEL | changes)
    overrides = ["lr=1e-4", "n_layer=3", "layout=batch:x", "activation_fn=relu", "gradient_clipping=null", "n_layer=5"]
    config = load_config(path, overrides)
    assert (config.training.lr, config.training.gradient_clipping) == (1e-4, None)
    assert (config.model.n_layer, config.model.activation_function) == (5, "relu")
    assert config.mesh.layout == (("batch", "x"),)


@pytest.mark.parametrize(
    "override, expected",
    [
        ("temperature=nan", "--set: temperature = nan: is not finite; give a number >= 0"),
        ("top_p=-Inf", "--set: top_p = -Inf: is not finite; give a number in (0, 1]"),
        ("top_k=infinity", "--set: top_k = infinity: is not finite; give an integer >= 0"),
        ("lr=fast", "--set: lr = fast: is not a number; give a number > 0"),
        ("lr", "--set: lr: is not a key=value pair; write key=value"),
        ("=3", "--set: =3: is not a key=value pair; write key=value"),
        ("n_layers=3", "--set: n_layers = 3: is not a known key; did you mean n_layer?"),
        (
            "activation_fn=rellu",
            "--set: activation_fn = rellu: is not a known name; use " + ", ".join(ACTIVATIONS),
        ),
        (
            "n_head=3",
            "--set: n_head = 3: does not divide n_embd = 64; choose n_head and n_embd so that n_embd / n_head is "
            "whole, or give head_dim",
        ),
    ],
)
def test_messages_about_overrides_name_the_flag(tmp_path, override, expected):
    assert message_of(write_configs(tmp_path, MODEL), (override,)) == expected


def test_all_issues_of_all_files_are_raised_together(tmp_path):
    model = without(MODEL, "n_embd") | {"n_head": 0, "lr": "x", "mesh_shape": "x:3", "layout": "vocab:x"}
    path = write_configs(tmp_path, model, words=WORDS | {"n_vocab": "many"})
    assert message_of(path, ("top_p=2",)).splitlines() == [
        f"{path}: n_head = 0: is out of range; give an integer >= 1",
        f'{path}: lr = "x": is a string, not a number; give a number > 0, without quotes',
        "--set: top_p = 2: is out of range; give a number in (0, 1]",
        f"{path}: n_embd: is missing; give an integer >= 1",
        f'{path}: layout = "vocab:x": vocab:x splits n_vocab = 128 over 3 devices, '
        "which does not divide it; change n_vocab, the size of x, or the rule",
        f'{tmp_path / "dataset_configs" / "words.json"}: n_vocab = "many": is a string, not an integer; '
        "give an integer >= 2, without quotes",
    ]


def test_an_unknown_config_name():
    expected = f"{CONFIGS_DIR / 'gpt2_smal.json'}: there is no config of this name; did you mean gpt2_small? "
    expected += f"(relative paths start at {Path.cwd()})"
    assert message_of("gpt2_smal") == expected
    assert "gpt3_13B_256_Pile, " in message_of("zzz")
    assert message_of("a" * 5000).count("\n") == 0


def test_config_errors_are_errors_of_the_user():
    with pytest.raises(UserError):
        load_config("no_such_name")
    assert issubclass(UserError, ValueError)


def test_the_resolved_config_stands_alone(tmp_path):
    (tmp_path / "source").mkdir()
    config = load_config(
        write_configs(tmp_path / "source", MODEL | {"datasets": [["words", 4, "documents_random", 2]]})
    )
    resolved = tmp_path / "config.json"
    resolved.write_text(resolved_json(config))
    keys = json.loads(resolved.read_text())
    assert (keys["name"], keys["attention_types"]) == ("tiny", [[["global"], 2]])
    assert (keys["eval_batch_size"], keys["lr_decay_end"]) == (8, 100)
    assert load_config(str(resolved)) == config


@pytest.mark.parametrize("name", GPT_NEO_MODELS)
def test_the_resolved_config_of_a_shipped_model_loads_to_the_same(tmp_path, name):
    config = load_config(name)
    path = tmp_path / "config.json"
    path.write_text(resolved_json(config))
    assert load_config(str(path)) == config


RANDOM_CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "attention_types": st.lists(st.sampled_from(tuple(ATTENTION_TYPES)), min_size=6, max_size=6).map(
            lambda types: [[[name], 1] for name in types]
        ),
        "activation_fn": st.sampled_from(ACTIVATIONS),
        "moe_layers": st.lists(st.integers(0, 5), unique=True),
        "moe_params": st.fixed_dictionaries({}, optional={"moe_num_experts": st.integers(2, 64)}),
        "axial_pos_emb": st.sampled_from([None, [4, 8], [32, 1]]),
        "mlm_mask_ignore_ids": st.lists(st.integers(0, 127)),
        "lr": st.floats(1e-12, 1.0),
        "gradient_clipping": st.none() | st.floats(1e-6, 1e6),
        "lr_decay": st.sampled_from([None, "linear", "cosine"]),
        "lr_decay_end": st.none() | st.integers(1, 10**9),
        "eval_batch_size": st.integers(1, 100),
        "top_p": st.floats(0, 1, exclude_min=True),
        "stop": st.none() | st.text(min_size=1) | st.lists(st.text(min_size=1)),
        "predict_seed": st.none() | st.integers(0, 2**31 - 1),
        "name": st.text(min_size=1).filter(str.strip),
        "padding_id": st.integers(0, 128),
        "mesh_shape": st.sampled_from(["", "x:2", "x:2;y:4"]),
        "datasets": st.sampled_from([["words"], [["words", 3, "documents_random", 0.5]], ["words", "words"]]),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=RANDOM_CHANGES)
def test_resolved_configs_load_to_equal_configs(tmp_path, changes):
    config = load_config(write_configs(tmp_path, MODEL | {"n_layer": 6} | changes))
    path = tmp_path / "config.json"
    path.write_text(resolved_json(config))
    assert load_config(str(path)) == config


def test_a_config_may_come_from_a_pipe(tmp_path):
    config = write_configs(tmp_path, MODEL)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(Path(config).read_bytes()))
    writer.start()
    assert load_config(str(pipe), ["name=model"]) == load_config(config, ["name=model"])
    writer.join()
