"""The values that one key may have, and the exact message for any other value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import ConfigError, ValueIssue
from configs.kinds import clean_path, clean_path_flags
from configs.load import load_config, resolved_json
from configs.schema import RUN_FIELDS, DatasetConfig, MoeParams, TaskEntry, keys_of
from tests.configs.config_files import MODEL, message_of, write_configs


def test_names_are_read_in_any_case(tmp_path):
    changes = {"opt_name": "Adam", "precision": "BFloat16", "lr_decay": "Cosine", "activation_fn": "RELU"}
    config = load_config(write_configs(tmp_path, MODEL | changes))
    assert (config.training.opt_name, config.training.lr_decay) == ("adam", "cosine")
    assert (config.model.precision, config.model.activation_function) == ("bfloat16", "relu")


@pytest.mark.parametrize(
    ("written", "read"),
    [("BERT", "bert"), ("noamWD", "noamwd"), ("None", None), ("Constant", None), (None, None)],
)
def test_schedules_of_dialogpt_are_read_as_it_writes_them(tmp_path, written, read):
    assert load_config(write_configs(tmp_path, MODEL | {"lr_decay": written})).training.lr_decay == read


def test_empty_mesh_shape_and_layout_are_none(tmp_path):
    config = load_config(write_configs(tmp_path, MODEL | {"mesh_shape": "", "layout": None}))
    assert (config.mesh.mesh_shape, config.mesh.layout) == (None, None)


@pytest.mark.parametrize(
    "written", [["lambada", {"name": "b.c", "limit": 3, "every_steps": 9}], ["piqa"], "piqa, sciq", []]
)
def test_evaluation_tasks_are_written_as_they_are_read(tmp_path, written):
    config = load_config(write_configs(tmp_path, MODEL | {"eval_tasks": written}))
    (tmp_path / "again.json").write_text(resolved_json(config))
    assert load_config(str(tmp_path / "again.json")) == config
    named = {"lambada": "lambada_openai"}
    listed = written.split(", ") if isinstance(written, str) else written
    wanted = [named.get(each, each) if isinstance(each, str) else each for each in listed]
    assert json.loads(resolved_json(config))["eval_tasks"] == wanted


def test_typed_names_are_those_of_the_tasks_that_the_file_describes(tmp_path):
    mine = {"name": "mine", "file": "a.jsonl", "kind": "rolling", "limit": 3}
    path = write_configs(tmp_path, MODEL | {"eval_tasks": [mine, "piqa"]})
    for override in ("--eval_tasks=sciq, mine", "eval_tasks=sciq,mine", 'eval_tasks=["sciq", "mine"]'):
        tasks = load_config(path, [override]).evaluation.eval_tasks
        assert tasks == (TaskEntry(name="sciq"), TaskEntry(**mine))
    flagged = load_config(path, ['--eval_tasks=["mine", {"name": "sciq", "limit": 2}]']).evaluation.eval_tasks
    assert flagged == (TaskEntry(**mine), TaskEntry(name="sciq", limit=2))
    assert load_config(path, ['eval_tasks=[{"name": "mine"}]']).evaluation.eval_tasks == (TaskEntry(name="mine"),)


@pytest.mark.parametrize(("written", "typed"), [("lambada", "lambada_openai"), ("lambada_openai", "lambada")])
def test_both_names_of_a_task_find_what_the_file_describes(tmp_path, written, typed):
    path = write_configs(tmp_path, MODEL | {"eval_tasks": [{"name": written, "limit": 3}]})
    (task,) = load_config(path, [f"--eval_tasks={typed}"]).evaluation.eval_tasks
    assert task == TaskEntry(name="lambada_openai", limit=3)


TASKS = 'write it as ["lambada_openai", {"name": "mine", "file": "mine.jsonl", "kind": "multiple_choice"}]'
WRONG_VALUES = {
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
    "a quoted number without exponent": (
        {"epsilon": "0.1"},
        'epsilon = "0.1": is a string, not a number; give a number >= 1e-37, without quotes',
    ),
    "a quoted number that is too small": (
        {"epsilon": "1e-60"},
        'epsilon = "1e-60": is out of range; give a number >= 1e-37',
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
    "a stop that is a number": (
        {"stop": ["a", 1]},
        'stop = ["a", 1]: is not a string or a list of strings; write it as "a" or ["a", "b"]',
    ),
    "an empty stop": ({"stop": [""]}, 'stop = [""]: holds an empty string; give strings of at least one character'),
    "zero beams": ({"num_beams": 0}, "num_beams = 0: is out of range; give an integer from 1 to 1000"),
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
    "sizes without steps": (
        {"batch_size_warmup": [8, 16]},
        "batch_size_warmup = [8, 16]: is not a list of [step, size] pairs; write it as [[0, 8], [1000, 16]]",
    ),
    "sizes from a later step on": (
        {"batch_size_warmup": [[5, 8]]},
        "batch_size_warmup = [[5, 8]]: begins at step 5; let the first pair be [0, SIZE]",
    ),
    "sizes out of order": (
        {"batch_size_warmup": [[0, 8], [9, 9], [9, 10]]},
        "batch_size_warmup = [[0, 8], [9, 9], [9, 10]]: has steps that do not rise; write it as [[0, 8], [1000, 16]]",
    ),
    "a size of nothing": (
        {"batch_size_warmup": [[0, 0]]},
        "batch_size_warmup = [[0, 0]]: the size 0 is out of range; give an integer >= 1",
    ),
    "an unknown decay": (
        {"lr_decay": "step"},
        'lr_decay = "step": is not a known name; use linear, cosine, linear_to_zero, wsd, noam, noamwd, bert',
    ),
    "an unknown optimizer": (
        {"opt_name": "sgd"},
        'opt_name = "sgd": is not a known name; use adam, adamw, lion, muon, adafactor',
    ),
    "an unknown precision": (
        {"precision": "float16"},
        'precision = "float16": is not a known name; use float32, bfloat16',
    ),
    "a precision that is a number": ({"precision": 16}, "precision = 16: is not a string; use float32, bfloat16"),
    "a task without a name": (
        {"eval_tasks": [{"file": "a.jsonl"}]},
        'eval_tasks = [{"file": "a.jsonl"}]: holds a task that is neither a name nor an object with one; ' + TASKS,
    ),
    "a task that is a number": (
        {"eval_tasks": [3]},
        "eval_tasks = [3]: holds a task that is neither a name nor an object with one; " + TASKS,
    ),
    "tasks that are no list": ({"eval_tasks": 3}, "eval_tasks = 3: is not a list; " + TASKS),
    "a task that is a path": (
        {"eval_tasks": ["a/b"]},
        "eval_tasks = [\"a/b\"]: name 'a/b' cannot name a task; use at most 100 letters, digits and _ . + -, "
        "such as my_task",
    ),
    "a task whose name is too long for a file": (
        {"eval_tasks": "x" * 101},
        f"eval_tasks = \"{'x' * 76}...: name '{'x' * 101}' cannot name a task; use at most 100 letters, digits "
        "and _ . + -, such as my_task",
    ),
    "a task with the name of generated texts": (
        {"eval_tasks": "piqa,samples"},
        "eval_tasks = \"piqa,samples\": name 'samples' cannot name a task; use at most 100 letters, digits and _ . + "
        "-, such as my_task",
    ),
    "an unknown member of a task": (
        {"eval_tasks": [{"name": "piqa", "shots": 2}]},
        'eval_tasks = [{"name": "piqa", "shots": 2}]: has the unknown member shots; use '
        + ", ".join(keys_of(TaskEntry)),
    ),
    "an unknown kind of task": (
        {"eval_tasks": [{"name": "piqa", "kind": "quiz"}]},
        'eval_tasks = [{"name": "piqa", "kind": "quiz"}]: kind \'quiz\' is not a known name; use continuation, '
        "rolling, multiple_choice, dialogue",
    ),
    "a task twice": (
        {"eval_tasks": ["lambada_openai", "lambada"]},
        'eval_tasks = ["lambada_openai", "lambada"]: names lambada_openai twice; give each task once, or another name '
        "for another setting of it",
    ),
    "a limit of the held-out loss": (
        {"eval_tasks": [{"name": "validation", "limit": 3}]},
        'eval_tasks = [{"name": "validation", "limit": 3}]: gives validation the member limit; leave it out; '
        "eval_steps limits the batches",
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
    "attention repeated zero times": (
        {"attention_types": [[["global"], 0]]},
        'attention_types = [[["global"], 0]]: the number of repeats 0 is out of range; give an integer from 1 to 1024',
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
    "a split inside the heads": (
        {"mesh_shape": "x:2", "layout": "features_per_head:x"},
        'layout = "features_per_head:x": features_per_head:x splits heads, which attention needs whole; give heads:x',
    ),
    "a switch that is a number": (
        {"rotary_emb": 1},
        "rotary_emb = 1: is not true or false; write true or false, without quotes",
    ),
    "three axes": (
        {"axial_pos_emb": [2, 2, 4]},
        "axial_pos_emb = [2, 2, 4]: has 3 members; give two, whose product is n_ctx, such as [16, 64]",
    ),
    "a layer of experts in quotes": (
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
    "a scaling without a type": (
        {"rotary_emb": True, "rotary_scaling": {"factor": 2.0}},
        'rotary_scaling = {"factor": 2.0}: is not an object with a type; write it as {"type": "linear", "factor": 2.0}',
    ),
    "a scaling that lacks something": (
        {"rotary_emb": True, "rotary_scaling": {"type": "yarn", "factor": 2.0}},
        'rotary_scaling = {"type": "yarn", "factor": 2.0}: lacks original_max_position_embeddings; yarn needs factor, '
        "original_max_position_embeddings",
    ),
    "a scaling with another's member": (
        {"rotary_emb": True, "rotary_scaling": {"type": "linear", "factor": 2.0, "beta_slow": 1.0}},
        'rotary_scaling = {"type": "linear", "factor": 2.0, "beta_slow": 1.0}: has beta_slow, which linear does not '
        "have; leave it out",
    ),
    "an epsilon that float32 rounds to 0": (
        {"epsilon": 1e-60},
        "epsilon = 1e-60: is out of range; give a number >= 1e-37",
    ),
    "an empty path": ({"model_path": " "}, 'model_path = " ": is empty; give a string that is not empty'),
    "a path that is a number": (
        {"model_path": 7},
        "model_path = 7: is not a string; give a string in double quotes",
    ),
}


@pytest.mark.parametrize("change, expected", WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_a_wrong_value_gives_its_exact_message(tmp_path, change, expected):
    path = write_configs(tmp_path, MODEL | change)
    assert message_of(path) == f"{path}: {expected}"


HUGE = (10**9, 10**10, 2**31, 2**63, 10**30)
SIZES = ("n_embd", "n_head", "n_layer", "n_ctx", "n_vocab", "num_mem_kv", "train_batch_size", "eval_batch_size")


@pytest.mark.parametrize("key", [*SIZES, "predict_batch_size"])
def test_sizes_that_no_machine_holds_are_refused_with_the_range(key: str) -> None:
    kind = RUN_FIELDS[key].metadata["kind"]
    for size in HUGE:
        with pytest.raises(ValueIssue, match=r"^is out of range; give an integer from \d to \d+$"):
            kind.parse(size)


@pytest.mark.parametrize("key", ["train_steps", "warmup_steps", "lr_decay_end", "iterations", "eval_steps", "top_k"])
def test_no_integer_is_larger_than_32_bits(key: str) -> None:
    with pytest.raises(ValueIssue, match=r"^is out of range; give an integer from \d to 2147483647$"):
        RUN_FIELDS[key].metadata["kind"].parse(2**31)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~", "/home/me"),
        ("~/runs/x", "/home/me/runs/x"),
        ("$HOME/runs", "/home/me/runs"),
        ("${HOME}//runs///x/", "/home/me/runs/x/"),
        ("runs//x", "runs/x"),
        ("//tmp//x", "/tmp/x"),
        ("./x/../y", "./x/../y"),
        ("gs://b/runs//x", "gs://b/runs/x"),
        ("gs://b/runs/./x/", "gs://b/runs/x/"),
        ("s3://b//runs/*//x", "s3://b/runs/*/x"),
        ("$BUCKET//x", "gs://mine/x"),
        ("x~/a$", "x~/a$"),
        ("{python_stdlib}", "{python_stdlib}"),
    ],
)
def test_paths_as_people_write_them(monkeypatch: pytest.MonkeyPatch, given: str, path: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("BUCKET", "gs://mine")
    assert clean_path(given) == path
    for key in PATH_KEYS:
        kind = {**RUN_FIELDS, **keys_of(DatasetConfig)}[key].metadata["kind"]
        assert kind.parse(given) == ((path,) if key.startswith("text") else path)
    flags = {"model": given, "input": [given], "output": None}
    assert clean_path_flags(flags, ("model", "input", "output")) == {"model": path, "input": [path]}


PATH_KEYS = ("model_path", "path", "eval_path", "tokenizer_path", "text", "text_exclude", "cache_dir")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("runs/\0x", "holds a NUL character; leave it out"),
        ("runs/\ud800", "is not UTF-8 text: it holds half of a character (a surrogate); write the whole character"),
        ("$NOWHERE_TO_BE_FOUND/x", "names $NOWHERE_TO_BE_FOUND, which is not set; set it, or write the path out"),
        ("~nobody-of-this-name/x", "names the home of an unknown user; write the path out"),
    ],
)
def test_paths_that_no_file_can_have(path: str, problem: str) -> None:
    for key in PATH_KEYS:
        kind = {**RUN_FIELDS, **keys_of(DatasetConfig)}[key].metadata["kind"]
        with pytest.raises(ValueIssue) as caught:
            kind.parse(path)
        assert str(caught.value) == problem
    with pytest.raises(ConfigError) as refused:
        clean_path_flags({"output": path}, ["output"])
    assert str(refused.value) == f"--output {path}: {problem}"


def test_a_folder_that_is_there_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("$NOWHERE").mkdir()
    assert clean_path("$NOWHERE") == "$NOWHERE"
