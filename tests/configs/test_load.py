"""Configs on disk: what loads, to which values, and the exact message for what does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError, UserError
from configs.kinds import ATTENTION_TYPES
from configs.load import CONFIGS_DIR, load_config, resolved_json
from configs.schema import ACTIVATIONS, MoeParams, keys_of

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

MODEL = {
    "n_head": 4,
    "n_embd": 64,
    "n_layer": 2,
    "n_ctx": 32,
    "n_vocab": 128,
    "train_batch_size": 8,
    "train_steps": 100,
    "model_path": "runs/tiny",
    "datasets": ["words"],
}
MASKED = {"mlm_training": True, "mlm_mask_id": 5}
WORDS = {"n_vocab": 128, "path": "words/*.tfrecords", "tokenizer_path": "words.json", "eos_id": 3, "padding_id": 2}
PAGES = {"n_vocab": 100, "path": "pages/*.tfrecords", "tokenizer_path": "words.json", "eos_id": 5, "padding_id": 2}


def write_configs(folder: Path, model: dict, **datasets: dict) -> str:
    """Writes a model config and its dataset configs; returns the path of the model config."""
    (folder / "dataset_configs").mkdir(exist_ok=True)
    for name, dataset in ({"words": WORDS, "pages": PAGES} | datasets).items():
        (folder / "dataset_configs" / f"{name}.json").write_text(json.dumps(dataset))
    path = folder / "tiny.json"
    path.write_text(json.dumps(model))
    return str(path)


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


def message_of(model: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(model, overrides)
    return str(caught.value)


# What ships.


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


def test_figures_of_gpt2_small():
    config = load_config("gpt2_small")
    assert (config.model.n_head, config.model.features_per_head, config.model.n_ctx) == (6, 128, 1024)
    assert config.model.embed_dropout == config.model.attn_dropout == config.model.res_dropout == 0.1
    assert (config.training.lr, config.training.lr_decay, config.training.lr_decay_end) == (0.0006, "cosine", 300_000)
    assert config.mesh.mesh_shape == (("all", 64),)
    assert config.mesh.layout == (("batch", "all"),)
    (use,) = config.data.datasets
    assert (use.dataset.id, use.stitch, use.datatype, use.weight) == ("openwebtext2_new_inputs", None, "chunks", None)


def test_figures_of_the_13b_model():
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


def test_figures_of_the_parallel_small_model():
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


# Values and defaults.


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


def test_names_are_read_in_any_case(tmp_path):
    changes = {"opt_name": "Adam", "precision": "BFloat16", "lr_decay": "Cosine", "activation_fn": "RELU"}
    config = load_config(write_configs(tmp_path, MODEL | changes))
    assert (config.training.opt_name, config.training.lr_decay) == ("adam", "cosine")
    assert (config.model.precision, config.model.activation_function) == ("bfloat16", "relu")


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


def test_an_alias_may_stand_beside_its_key_with_the_same_value(tmp_path):
    path = write_configs(tmp_path, MODEL | {"activation_fn": "mish", "activation_function": "mish", "n_positions": 32})
    assert load_config(path).model.activation_function == "mish"


def test_gpt_neos_keys_are_accepted_when_they_are_off(tmp_path):
    off = {"rotary_emb": False, "moe_layers": [], "num_mem_kv": 0, "axial_pos_emb": None, "mlm_training": False}
    inert = {"ada_epsilon1": 1e-30, "mlm_mask_prob": 0.15, "moe_params": {"moe_dropout_rate": 0.0}, "model": "GPT"}
    assert load_config(write_configs(tmp_path, MODEL | off | inert)) == load_config(write_configs(tmp_path, MODEL))


def test_empty_mesh_shape_and_layout_are_none(tmp_path):
    config = load_config(write_configs(tmp_path, MODEL | {"mesh_shape": "", "layout": None}))
    assert (config.mesh.mesh_shape, config.mesh.layout) == (None, None)


def test_evaluation_and_prediction_batches_need_not_divide(tmp_path):
    changes = {"mesh_shape": "x:4", "layout": "batch:x", "eval_batch_size": 3, "predict_batch_size": 1}
    assert load_config(write_configs(tmp_path, MODEL | changes)).evaluation.eval_batch_size == 3


def test_raw_text_and_dataset_defaults(tmp_path):
    raw = {"n_vocab": 128, "text": "{python_stdlib}", "text_exclude": ["*/test/*"], "eval_path": ""}
    (use,) = load_config(write_configs(tmp_path, MODEL, words=raw)).data.datasets
    assert (use.dataset.text, use.dataset.text_exclude) == (("{python_stdlib}",), ("*/test/*",))
    assert (use.dataset.path, use.dataset.eval_path, use.dataset.tokenizer_path) == (None, None, None)
    assert (use.dataset.eval_fraction, use.dataset.cache_dir) == (0.05, "datasets/words")
    assert (use.dataset.eos_id, use.dataset.padding_id, use.dataset.text_key) == (1, 0, "text")


def test_a_run_without_dataset(tmp_path):
    config = load_config(write_configs(tmp_path, without(MODEL, "datasets") | {"no_dataset": True}))
    assert config.data.datasets == ()
    assert (config.data.eos_id, config.data.padding_id) == (1, 0)


def test_special_ids_of_the_model_config_settle_a_difference(tmp_path):
    changes = {"datasets": ["words", "pages"], "eos_id": 7, "padding_id": 128}
    config = load_config(write_configs(tmp_path, MODEL | changes))
    assert [use.dataset.eos_id for use in config.data.datasets] == [3, 5]
    assert (config.data.eos_id, config.data.padding_id) == (7, 7)


def test_dataset_configs_of_the_repository_are_a_second_place(tmp_path):
    config = load_config(write_configs(tmp_path, MODEL | {"datasets": ["pile"], "n_vocab": 50257}))
    assert config.data.datasets[0].dataset.path == "gs://neo-datasets/pile/pile_*.tfrecords"


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    path = Path(write_configs(tmp_path, MODEL))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(str(path)).model.n_head == 4


# Overrides.


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
        ("temperature=nan", '--set: temperature = "nan": is not finite; give a number >= 0'),
        ("top_p=-Inf", '--set: top_p = "-Inf": is not finite; give a number in (0, 1]'),
        ("top_k=infinity", '--set: top_k = "infinity": is not finite; give an integer >= 0'),
        ("lr=fast", '--set: lr = "fast": is a string, not a number; give a number > 0, without quotes'),
        ("lr", "--set: lr: is not a key=value pair; write key=value"),
        ("=3", "--set: =3: is not a key=value pair; write key=value"),
        ("n_layers=3", "--set: n_layers = 3: is not a known key; did you mean n_layer?"),
        (
            "activation_fn=rellu",
            '--set: activation_fn = "rellu": is not a known name; use ' + ", ".join(ACTIVATIONS),
        ),
        (
            "n_head=3",
            "--set: n_head = 3: does not divide n_embd = 64; choose n_head and n_embd so that n_embd / n_head is whole",
        ),
    ],
)
def test_issues_of_overrides_name_set(tmp_path, override, expected):
    assert message_of(write_configs(tmp_path, MODEL), (override,)) == expected


# What is wrong with a model config: the change, and all that the message says after "file: ".

WRONG = {
    "a misspelt key": ({"n_haed": 4}, "n_haed = 4: is not a known key; did you mean n_head?"),
    "a key unlike any": (
        {"zzz": 1},
        "zzz = 1: is not a known key; remove it; docs/configuration.md lists the keys",
    ),
    "another model": ({"model": "BERT"}, 'model = "BERT": is not a known model; write "GPT", or remove the key'),
    "a flag for an integer": ({"n_head": True}, "n_head = true: is not an integer; give an integer >= 1"),
    "a decimal integer": ({"train_steps": 1000.0}, "train_steps = 1000.0: is not an integer; write 1000"),
    "a fraction for an integer": ({"n_ctx": 1.5}, "n_ctx = 1.5: is not an integer; give an integer >= 1"),
    "a negative size": ({"n_layer": -2}, "n_layer = -2: is out of range; give an integer >= 1"),
    "a size of zero": ({"n_embd": 0}, "n_embd = 0: is out of range; give an integer >= 1"),
    "an integer in quotes": (
        {"eval_steps": "10"},
        'eval_steps = "10": is a string, not an integer; give an integer >= 0, without quotes',
    ),
    "a number in quotes": (
        {"lr": "1e-4"},
        'lr = "1e-4": is a string, not a number; give a number > 0, without quotes',
    ),
    "null for a number": ({"epsilon": None}, "epsilon = null: is not a number; give a number >= 1e-37"),
    "not a number": ({"lr": float("nan")}, "lr = NaN: is not a finite number; give a number > 0"),
    "infinity": ({"z_loss": float("inf")}, "z_loss = Infinity: is not a finite number; give a number >= 0"),
    "a flag for a number": ({"beta1": False}, "beta1 = false: is not a number; give a number in [0, 1)"),
    "a rate of zero": ({"lr": 0}, "lr = 0: is out of range; give a number > 0"),
    "a dropout of one": ({"attn_dropout": 1.0}, "attn_dropout = 1.0: is out of range; give a number in [0, 1)"),
    "a top_p of zero": ({"top_p": 0.0}, "top_p = 0.0: is out of range; give a number in (0, 1]"),
    "a negative temperature": ({"temperature": -1}, "temperature = -1: is out of range; give a number >= 0"),
    "a min_p above one": ({"min_p": 1.5}, "min_p = 1.5: is out of range; give a number in [0, 1]"),
    "a typical_p of zero": ({"typical_p": 0}, "typical_p = 0: is out of range; give a number in (0, 1]"),
    "a repetition_penalty of zero": (
        {"repetition_penalty": 0},
        "repetition_penalty = 0: is out of range; give a number in [0.01, 100]",
    ),
    "a presence_penalty that is too high": (
        {"presence_penalty": 2.5},
        "presence_penalty = 2.5: is out of range; give a number in [-2, 2]",
    ),
    "a frequency_penalty that is too low": (
        {"frequency_penalty": -3},
        "frequency_penalty = -3: is out of range; give a number in [-2, 2]",
    ),
    "a negative no_repeat_ngram": (
        {"no_repeat_ngram": -1},
        "no_repeat_ngram = -1: is out of range; give an integer from 0 to 1000000",
    ),
    "a stop that is no text": (
        {"stop": ["a", 1]},
        'stop = ["a", 1]: is not a string or a list of strings; write it as "a" or ["a", "b"]',
    ),
    "an empty stop": ({"stop": [""]}, 'stop = [""]: holds an empty string; give strings of at least one character'),
    "no beam": ({"num_beams": 0}, "num_beams = 0: is out of range; give an integer from 1 to 1000"),
    "an infinite length_penalty": (
        {"length_penalty": float("inf")},
        "length_penalty = Infinity: is not a finite number; give a number in [-8, 8]",
    ),
    "an unknown cache_dtype": (
        {"cache_dtype": "float16"},
        'cache_dtype = "float16": is not a known name; use float32, bfloat16',
    ),
    "an unknown prompt_overflow": (
        {"prompt_overflow": "right"},
        'prompt_overflow = "right": is not a known name; use left, refuse',
    ),
    "beams that sample": (
        {"num_beams": 4, "top_p": 0.5},
        "top_p = 0.5: has no effect on beam search (num_beams = 4); leave one of them out",
    ),
    "more samples than beams": (
        {"num_beams": 4, "predict_batch_size": 5},
        "predict_batch_size = 5: is more than num_beams = 4; lower it, or raise num_beams",
    ),
    "a top_k above the vocabulary": (
        {"top_k": 129},
        "top_k = 129: is more than n_vocab = 128; lower it; 0 turns it off",
    ),
    "clipping at zero": (
        {"gradient_clipping": 0},
        "gradient_clipping = 0: is out of range; give a number > 0",
    ),
    "a microbatch of zero": (
        {"tokens_per_mb_per_replica": 0},
        "tokens_per_mb_per_replica = 0: is out of range; give an integer >= 1",
    ),
    "a seed too large": (
        {"seed": 2**31},
        "seed = 2147483648: is out of range; give an integer from 0 to 2147483647",
    ),
    "an integer for a flag": (
        {"recompute_grad": 1},
        "recompute_grad = 1: is not true or false; write true or false, without quotes",
    ),
    "another decay": ({"lr_decay": "step"}, 'lr_decay = "step": is not a known name; use linear, cosine'),
    "another optimiser": ({"opt_name": "sgd"}, 'opt_name = "sgd": is not a known name; use adam, adamw, adafactor'),
    "another precision": (
        {"precision": "float16"},
        'precision = "float16": is not a known name; use float32, bfloat16',
    ),
    "a precision that is no name": ({"precision": 16}, "precision = 16: is not a string; use float32, bfloat16"),
    "two activations": (
        {"activation_function": "gelu", "activation_fn": "relu"},
        'activation_fn = "relu": is the same key as activation_function, which is "gelu"; keep one of the two',
    ),
    "evaluation tasks": (
        {"eval_tasks": ["lambada"]},
        'eval_tasks = ["lambada"]: is known from GPT-Neo but not available in this version; write []',
    ),
    "unknown tasks": ({"eval_tasks": ["x"]}, 'eval_tasks = ["x"]: names unknown evaluation tasks; write []'),
    "heads that do not divide": (
        {"n_head": 5},
        "n_head = 5: does not divide n_embd = 64; choose n_head and n_embd so that n_embd / n_head is whole",
    ),
    "attention for too many layers": (
        {"attention_types": [[["global", "local"], 6]]},
        'attention_types = [[["global", "local"], 6]]: expands to 12 layers, but n_layer = 2; '
        "make it expand to 2, or set n_layer to 12",
    ),
    "a flat attention list": (
        {"attention_types": ["global", "global"]},
        'attention_types = ["global", "global"]: is not a list of [pattern, repeats] pairs; '
        'write it as [[["global", "local"], 6]]',
    ),
    "no attention": (
        {"attention_types": []},
        'attention_types = []: is not a list of [pattern, repeats] pairs; write it as [[["global", "local"], 6]]',
    ),
    "unknown attention": (
        {"attention_types": [[["global", "gobal"], 1]]},
        'attention_types = [[["global", "gobal"], 1]]: the attention \'gobal\' is not a known name; '
        "use global, local, linear, none",
    ),
    "attention no times": (
        {"attention_types": [[["global"], 0]]},
        'attention_types = [[["global"], 0]]: the number of repeats 0 is out of range; give an integer from 1 to 10000',
    ),
    "a mesh without sizes": (
        {"mesh_shape": "x,y"},
        'mesh_shape = "x,y": \'x\' is not a name:value pair; write it as "x:4,y:2"',
    ),
    "a mesh as a list": ({"mesh_shape": [4]}, 'mesh_shape = [4]: is not a string; write it as "x:4,y:2"'),
    "an axis of size zero": (
        {"mesh_shape": "x:0"},
        "mesh_shape = \"x:0\": size '0' of axis 'x' is not an integer >= 1; give the number of devices",
    ),
    "an axis twice": (
        {"mesh_shape": "x:2,x:2"},
        "mesh_shape = \"x:2,x:2\": names the axis 'x' twice; keep one of the two",
    ),
    "a dimension twice": (
        {"mesh_shape": "x:2,y:2", "layout": "batch:x,batch:y"},
        "layout = \"batch:x,batch:y\": names the dimension 'batch' twice; keep one of the two",
    ),
    "an unknown dimension": (
        {"mesh_shape": "x:2", "layout": "head:x"},
        "layout = \"head:x\": names no known dimension: 'head'; did you mean heads?",
    ),
    "an unknown axis": (
        {"mesh_shape": "x:2", "layout": "batch:y"},
        'layout = "batch:y": batch:y names an axis that mesh_shape lacks; use x, or add y to mesh_shape',
    ),
    "a layout without a mesh": (
        {"layout": "batch:x"},
        'layout = "batch:x": batch:x needs a mesh, but there is no mesh_shape; give one, such as "x:2"',
    ),
    "heads cut into pieces": (
        {"mesh_shape": "x:2", "layout": "features_per_head:x"},
        'layout = "features_per_head:x": features_per_head:x splits heads, which attention needs whole; give heads:x',
    ),
    "rotation of an odd number of features": (
        {"rotary_emb": True, "n_embd": 12, "n_head": 4},
        "rotary_emb = true: needs an even number of features per head, but n_embd / n_head = 3; "
        "change n_head or n_embd, or set it to false",
    ),
    "a switch that is a number": (
        {"rotary_emb": 1},
        "rotary_emb = 1: is not true or false; write true or false, without quotes",
    ),
    "axes that do not cover the context": (
        {"axial_pos_emb": [3, 5]},
        "axial_pos_emb = [3, 5]: multiplies to 15, but n_ctx = 32; give two sizes whose product is n_ctx",
    ),
    "three axes": (
        {"axial_pos_emb": [2, 2, 4]},
        "axial_pos_emb = [2, 2, 4]: has 3 members; give two, whose product is n_ctx, such as [16, 64]",
    ),
    "two kinds of positions": (
        {"axial_pos_emb": [4, 8], "rotary_emb": True},
        "axial_pos_emb = [4, 8]: cannot be combined with rotary_emb; keep one of the two",
    ),
    "two kinds of norms": (
        {"scalenorm": True, "rezero": True},
        "scalenorm = true: changes the norms that rezero removes; keep one of the two",
    ),
    "memory without global attention": (
        {"num_mem_kv": 4, "attention_types": [[["local"], 2]]},
        "num_mem_kv = 4: acts in global layers, and attention_types has none; set it to 0, or give a global layer",
    ),
    "experts in a layer that is not there": (
        {"moe_layers": [1, 2]},
        "moe_layers = [1, 2]: names layer 2, but the last of 2 layers is 1; count layers from 0",
    ),
    "experts twice": ({"moe_layers": [1, 1]}, "moe_layers = [1, 1]: names a layer twice; name each once"),
    "experts in no layer": (
        {"moe_layers": ["1"]},
        "moe_layers = [\"1\"]: member '1' is a string, not an integer; give an integer >= 0, without quotes",
    ),
    "an unknown setting of experts": (
        {"moe_params": {"moe_experts": 4}},
        'moe_params = {"moe_experts": 4}: has the unknown member moe_experts; use ' + ", ".join(keys_of(MoeParams)),
    ),
    "a wrong setting of experts": (
        {"moe_params": {"moe_num_experts": 1}},
        'moe_params = {"moe_num_experts": 1}: moe_num_experts 1 is out of range; give an integer >= 2',
    ),
    "experts that do not split": (
        {"moe_layers": [1], "moe_params": {"moe_num_experts": 6}, "mesh_shape": "x:4", "layout": "experts:x"},
        'layout = "experts:x": experts:x splits moe_num_experts = 6 over 4 devices, which does not divide it; '
        "change moe_num_experts, the size of x, or the rule",
    ),
    "masked training without a mask": (
        {"mlm_training": True},
        "mlm_mask_id: is missing; give the id that replaces masked tokens",
    ),
    "a mask that is no id": (
        MASKED | {"mlm_mask_id": 128},
        "mlm_mask_id = 128: is not below n_vocab = 128; give an id of the tokenizer",
    ),
    "a first id that is none": (
        MASKED | {"mlm_cls_token_id": 128},
        "mlm_cls_token_id = 128: is not below n_vocab = 128; give an id of the tokenizer",
    ),
    "an ignored id that is none": (
        MASKED | {"mlm_mask_ignore_ids": [1, 200]},
        "mlm_mask_ignore_ids = [1, 200]: holds 200, which is not below n_vocab = 128; give ids of the tokenizer",
    ),
    "a first id that is the mask": (
        MASKED | {"mlm_cls_token_id": 5},
        "mlm_cls_token_id = 5: is the same as mlm_mask_id; give another id",
    ),
    "a context of the first id alone": (
        MASKED | {"mlm_cls_token_id": 6, "n_ctx": 1},
        "mlm_cls_token_id = 6: fills the whole context of n_ctx = 1; raise n_ctx, or leave it out",
    ),
    "an epsilon that float32 takes for 0": (
        {"epsilon": 1e-60},
        "epsilon = 1e-60: is out of range; give a number >= 1e-37",
    ),
    "more than all masked tokens": (
        MASKED | {"mlm_same_token_prob": 0.6, "mlm_random_token_prob": 0.5},
        "mlm_random_token_prob = 0.5: exceeds 1 together with mlm_same_token_prob = 0.6; lower one of the two",
    ),
    "samples of a masked model": (
        MASKED | {"predict_steps": 1},
        "predict_steps = 1: asks for samples, but a masked language model cannot generate text; set it to 0",
    ),
    "heads that do not split": (
        {"mesh_shape": "x:3", "layout": "heads:x"},
        'layout = "heads:x": heads:x splits n_head = 4 over 3 devices, which does not divide it; '
        "change n_head, the size of x, or the rule",
    ),
    "a feed-forward layer that does not split": (
        {"mesh_shape": "x:512", "layout": "intermediate_expanded:x"},
        'layout = "intermediate_expanded:x": intermediate_expanded:x splits 4 n_embd = 256 over 512 devices, '
        "which does not divide it; change 4 n_embd, the size of x, or the rule",
    ),
    "a tensor split twice over one axis": (
        {"mesh_shape": "y:2", "layout": "vocab:y,embd:y"},
        'layout = "vocab:y,embd:y": vocab:y and embd:y split the token table wte twice over one axis; '
        "give one of them another axis, or leave it out",
    ),
    "attention split twice over one axis": (
        {"mesh_shape": "y:2", "layout": "sequence:y,memory_length:y"},
        'layout = "sequence:y,memory_length:y": sequence:y and memory_length:y split the attention weights twice '
        "over one axis; give one of them another axis, or leave it out",
    ),
    "no datasets": (
        {"datasets": []},
        'datasets = []: names no dataset; give ids, such as ["pile"], or set no_dataset to true',
    ),
    "datasets as a string": (
        {"datasets": "words"},
        'datasets = "words": is not a list; write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]',
    ),
    "a short dataset entry": (
        {"datasets": [["words", 25]]},
        'datasets = [["words", 25]]: holds an entry that is not [id, stitch, datatype, weight]; '
        'write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]',
    ),
    "a dataset without id": (
        {"datasets": [3]},
        "datasets = [3]: holds an entry without a dataset id; "
        'write it as ["pile"] or [["pile", 25, "documents_random", 1.0]]',
    ),
    "an empty dataset id": (
        {"datasets": [{"id": ""}]},
        'datasets = [{"id": ""}]: the dataset id \'\' is no plain name; give one without slashes, such as pile',
    ),
    "a dataset id that is a path": (
        {"datasets": [{"id": "a/b"}]},
        'datasets = [{"id": "a/b"}]: the dataset id \'a/b\' is no plain name; give one without slashes, such as pile',
    ),
    "a dataset id that is a folder": (
        {"datasets": [[{"id": ".."}, None, "chunks", 1.0]]},
        'datasets = [[{"id": ".."}, null, "chunks", 1.0]]: the dataset id \'..\' is no plain name; '
        "give one without slashes, such as pile",
    ),
    "another datatype": (
        {"datasets": [["words", 2, "lines", 1.0]]},
        'datasets = [["words", 2, "lines", 1.0]]: datatype \'lines\' is not a known name; '
        "use chunks, documents_fixed, documents_random",
    ),
    "a weight of zero": (
        {"datasets": [["words", 2, "chunks", 0]]},
        'datasets = [["words", 2, "chunks", 0]]: weight 0 is out of range; give a number > 0',
    ),
    "fixed documents without stitch": (
        {"datasets": [["words", None, "documents_fixed", 1.0]]},
        'datasets = [["words", null, "documents_fixed", 1.0]]: gives documents_fixed no stitch; '
        "give the number of documents to join, such as 25",
    ),
    "documents without stitch": (
        {"datasets": [["words", None, "documents_random", 1.0]]},
        'datasets = [["words", null, "documents_random", 1.0]]: gives documents_random no stitch; '
        "give the number of documents to join, such as 25",
    ),
    "a small vocabulary": (
        {"n_vocab": 127},
        "n_vocab = 127: is less than the 128 ids of dataset words; raise it to 128 or more",
    ),
    "an eos id outside": (
        {"eos_id": 128},
        "eos_id = 128: is not below n_vocab = 128; give the id of the tokenizer",
    ),
    "a padding id outside": (
        {"padding_id": 129},
        "padding_id = 129: is more than n_vocab = 128; give the id of the tokenizer",
    ),
    "datasets that differ": (
        {"datasets": ["words", "pages"]},
        'datasets = ["words", "pages"]: differ in eos_id: words has 3, pages has 5; give eos_id in the model config',
    ),
    "an empty path": ({"model_path": " "}, 'model_path = " ": is empty; give a string that is not empty'),
    "a path that is no string": (
        {"model_path": 7},
        "model_path = 7: is not a string; give a string in double quotes",
    ),
}


@pytest.mark.parametrize("change, expected", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_config_gives_its_exact_message(tmp_path, change, expected):
    path = write_configs(tmp_path, MODEL | change)
    assert message_of(path) == f"{path}: {expected}"


@pytest.mark.parametrize(
    "key, kind",
    [("n_head", "an integer >= 1"), ("n_vocab", "an integer >= 2"), ("model_path", "a string")],
)
def test_a_missing_key_gives_its_exact_message(tmp_path, key, kind):
    path = write_configs(tmp_path, without(MODEL, key))
    assert message_of(path) == f"{path}: {key}: is missing; give {kind}"


def test_missing_datasets(tmp_path):
    path = write_configs(tmp_path, without(MODEL, "datasets"))
    expected = 'datasets: names no dataset; give ids, such as ["pile"], or set no_dataset to true'
    assert message_of(path) == f"{path}: {expected}"


WRONG_DATASETS = {
    "a misspelt key": ({"eosid": 3}, "eosid = 3: is not a known key; did you mean eos_id?"),
    "an eos id outside": (
        {"eos_id": 128},
        "eos_id = 128: is not below n_vocab = 128; give the id of the tokenizer",
    ),
    "a padding id outside": (
        {"padding_id": 129},
        "padding_id = 129: is more than n_vocab = 128; give the id of the tokenizer",
    ),
    "no data": ({"path": ""}, 'path = "": names no data; give path, the glob of tfrecords, or text, the raw text'),
    "two kinds of data": (
        {"text": "books/*.txt"},
        'path = "words/*.tfrecords": names tfrecords, but text names raw text; keep one of the two',
    ),
    "tfrecords without tokenizer": (
        {"tokenizer_path": None},
        "tokenizer_path = null: is missing; give the tokenizer that made the tfrecords",
    ),
    "a held-out path beside raw text": (
        {"path": None, "text": "books", "eval_path": "held/*"},
        'eval_path = "held/*": has no effect on raw text; remove it; eval_fraction holds out documents of text',
    ),
    "a held-out share of tfrecords": (
        {"eval_fraction": 0.1},
        "eval_fraction = 0.1: has an effect on raw text only; remove it, or give text",
    ),
    "a share above one": ({"eval_fraction": 1.5}, "eval_fraction = 1.5: is out of range; give a number in [0, 1)"),
    "texts of another type": (
        {"text": 5},
        'text = 5: is not a string or a list of strings; write it as "a" or ["a", "b"]',
    ),
    "a pretrained tokenizer without name": (
        {"path": None, "text": "books", "tokenizer_path": None, "tokenizer_is_pretrained": True},
        "tokenizer_is_pretrained = true: needs tokenizer_path; give its name, such as gpt2",
    ),
}


@pytest.mark.parametrize("change, expected", WRONG_DATASETS.values(), ids=WRONG_DATASETS.keys())
def test_a_wrong_dataset_config_gives_its_exact_message(tmp_path, change, expected):
    path = write_configs(tmp_path, MODEL, words=WORDS | change)
    dataset_path = tmp_path / "dataset_configs" / "words.json"
    assert message_of(path) == f"{dataset_path}: {expected}"


def test_an_unknown_dataset_names_both_places_and_the_nearest_id(tmp_path):
    path = write_configs(tmp_path, MODEL | {"datasets": ["wrods"]})
    places = f"{tmp_path / 'dataset_configs'} or {CONFIGS_DIR / 'dataset_configs'}"
    assert message_of(path) == (
        f'{path}: datasets = ["wrods"]: there is no wrods.json in {places}; did you mean words?'
    )


def test_datasets_with_different_tokenizers(tmp_path):
    path = write_configs(tmp_path, MODEL | {"datasets": ["words", "pages"]}, pages=WORDS | {"tokenizer_path": "p.json"})
    assert message_of(path) == (
        f'{path}: datasets = ["words", "pages"]: have different tokenizers: p.json, words.json; '
        "give all of them the same tokenizer_path"
    )


def test_a_dataset_written_out_in_an_override(tmp_path):
    path = write_configs(tmp_path, MODEL)
    override = 'datasets=[{"id": "inline", "n_vocab": 0, "path": "a", "tokenizer_path": "b"}]'
    expected = "--set: dataset inline: n_vocab = 0: is out of range; give an integer >= 2"
    assert message_of(path, (override,)) == expected


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


# Files that are no config.


def test_a_key_given_twice(tmp_path):
    path = Path(write_configs(tmp_path, MODEL))
    path.write_text(json.dumps(MODEL)[:-1] + ', "n_head": 8}')
    assert message_of(str(path)) == f"{path}: n_head = 8: is given twice; keep one of the two"


def test_text_that_is_not_json_names_line_and_column(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{\n  "n_head": 4,\n  "n_embd": ,\n}')
    assert message_of(str(path)) == (f"{path}: line 3 column 13: is not JSON (Expecting value); correct the file there")


def test_a_broken_dataset_config_is_one_issue_among_others(tmp_path):
    path = write_configs(tmp_path, MODEL | {"lr": 0})
    dataset_path = tmp_path / "dataset_configs" / "words.json"
    dataset_path.write_text("[]")
    assert message_of(path).splitlines() == [
        f"{path}: lr = 0: is out of range; give a number > 0",
        f'{dataset_path}: holds no JSON object; write {{"key": value, ...}}',
    ]


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "binary.json"
    path.write_bytes(b'{"a": "\xff"}')
    assert message_of(str(path)) == f"{path}: is not UTF-8 text (byte 7); save it as UTF-8"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"n_head": ' + "9" * 10_000 + "}"], ids=["depth", "digits"])
def test_json_that_python_refuses(tmp_path, content):
    path = tmp_path / "strange.json"
    path.write_text(content)
    message = message_of(str(path))
    assert message.startswith(f"{path}") and message.count("\n") == 0


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "none.json"
    assert message_of(str(path)) == f"{path}: cannot be read (No such file or directory); check the path"


def test_a_name_that_is_not_there():
    expected = f"{CONFIGS_DIR / 'gpt2_smal.json'}: there is no config of this name; did you mean gpt2_small?"
    assert message_of("gpt2_smal") == expected
    assert "gpt3_13B_256_Pile, " in message_of("zzz")
    assert message_of("a" * 5000).count("\n") == 0


def test_config_errors_are_errors_of_the_user():
    with pytest.raises(UserError):
        load_config("no_such_name")
    assert issubclass(UserError, ValueError)


# The resolved config.


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
