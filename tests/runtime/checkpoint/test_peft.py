"""Folders of PEFT: read, written and read again, and each malformed one named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.errors import UserError
from configs.load import load_config
from configs.schema import RunConfig
from runtime.checkpoint.adapters import merged
from runtime.checkpoint.init_from import find_adapters, find_weights
from runtime.checkpoint.peft import read_adapters, write_adapters
from runtime.checkpoint.weight_sources import StoredTensor, Weights

GOLDEN = Path(__file__).parents[2] / "golden"
RANK = 3
PLAIN = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": True}
Matrices = dict[str, np.ndarray]


def matrices(modules: Mapping[str, tuple[int, int]], rank: int = RANK, seed: int = 0) -> Matrices:
    """Random adapters as PEFT keeps them, by the names of modules and their sizes in and out."""
    rng = np.random.default_rng(seed)
    found: Matrices = {}
    for module, (n_in, n_out) in modules.items():
        name = f"base_model.model.{module}"
        found[f"{name}.lora_A.weight"] = rng.normal(size=(rank, n_in)).astype(np.float32)
        found[f"{name}.lora_B.weight"] = rng.normal(size=(n_out, rank)).astype(np.float32)
    return found


def write_peft(folder: Path, keys: Mapping[str, object], found: Matrices) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(keys))
    save_file(found, folder / "adapter_model.safetensors")
    return folder


def config_of(base: str, adapter: Path, *overrides: str) -> RunConfig:
    return load_config(str(GOLDEN / base), overrides, str(GOLDEN / base), str(adapter))


def products(adapters: Weights, config: RunConfig) -> Matrices:
    """What is added to each kernel."""
    names = [name.removesuffix("/lora_a") for name in adapters if name.endswith("/lora_a")]
    scale = config.model.lora_scale
    return {name: scale * adapters[f"{name}/lora_a"].read() @ adapters[f"{name}/lora_b"].read() for name in names}


GPT_2 = {f"transformer.h.{layer}.{name}": size for layer in (0, 1) for name, size in (("attn.c_attn", (16, 48)),)}


def test_the_fused_projection_of_gpt_2_becomes_three_adapters(tmp_path: Path) -> None:
    found = matrices(GPT_2)
    folder = write_peft(tmp_path / "theirs", {**PLAIN, "target_modules": ["c_attn"]}, found)
    config = config_of("gpt_2", folder)
    model = config.model
    assert (model.lora_rank, model.lora_alpha, model.lora_targets) == (RANK, 6.0, ("q", "k", "v"))
    adapters = find_adapters(str(folder), model, {})
    added = products(adapters, config)
    for layer in (0, 1):
        name = f"base_model.model.transformer.h.{layer}.attn.c_attn"
        whole = 2.0 * (found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]).T
        for part, letter in zip(np.split(whole, 3, axis=1), "qkv", strict=True):
            np.testing.assert_allclose(added[f"gpt2/h{layer}/attn/{letter}"], part, rtol=0, atol=1e-5)
    base = find_weights(str(GOLDEN / "gpt_2"))
    kernel = merged(base, adapters, model.lora_scale)["gpt2/h1/attn/v"]
    np.testing.assert_allclose(kernel.read(), base["gpt2/h1/attn/v"].read() + added["gpt2/h1/attn/v"], atol=1e-6)
    part = kernel.read_part((slice(3, 7), slice(2, 5)))
    np.testing.assert_allclose(part, kernel.read()[3:7, 2:5], rtol=0, atol=1e-6)


def test_heads_alternate_in_the_fused_projection_of_gpt_neox(tmp_path: Path) -> None:
    modules = {"gpt_neox.layers.1.attention.query_key_value": (16, 48)}
    found = matrices(modules)
    keys = {**PLAIN, "target_modules": "gpt_neox.*query_key_value", "use_rslora": True}
    config = config_of("gpt_neox", write_peft(tmp_path / "theirs", keys, found))
    assert config.model.lora_scale == pytest.approx(6 / RANK**0.5)
    adapters = read_adapters(str(tmp_path / "theirs"), config.model)
    added = products(adapters, config)
    down, up = found.values()
    whole = (config.model.lora_scale * up @ down).T.reshape(16, 4, 3, 4)
    for index, letter in enumerate("qkv"):
        np.testing.assert_allclose(added[f"gpt2/h1/attn/{letter}"], whole[:, :, index].reshape(16, 16), atol=1e-5)
        assert not added[f"gpt2/h0/attn/{letter}"].any()  # has no adapter there


def test_ranks_by_module_become_the_largest(tmp_path: Path) -> None:
    prefix = "model.layers.0"
    found = matrices({f"{prefix}.self_attn.q_proj": (16, 16)}) | matrices({f"{prefix}.mlp.up_proj": (16, 24)}, rank=5)
    shape = load_file(GOLDEN / "llama" / "model.safetensors")[f"{prefix}.mlp.up_proj.weight"].shape
    found |= matrices({f"{prefix}.mlp.up_proj": shape[::-1]}, rank=5)
    patterns = {"rank_pattern": {r"mlp\.up_proj": 5}, "alpha_pattern": {r".*\.up_proj": 1.0}}
    keys = {**PLAIN, "target_modules": ["q_proj", "up_proj"], **patterns}
    config = config_of("llama", write_peft(tmp_path / "theirs", keys, found))
    assert (config.model.lora_rank, config.model.lora_alpha) == (5, 10.0)
    added = products(read_adapters(str(tmp_path / "theirs"), config.model), config)
    for name, ours, scale in ((f"{prefix}.mlp.up_proj", "mlp/conv1d_main/c_fc/kernel", 0.2),):
        up, down = (found[f"base_model.model.{name}.lora_{end}.weight"] for end in "BA")
        np.testing.assert_allclose(added[f"gpt2/h0/{ours}"], scale * (up @ down).T, rtol=0, atol=1e-5)


ALL = "q,k,v,o,c_fc,c_proj"


@pytest.mark.parametrize(
    ("base", "targets", "rank"),
    [
        ("gpt_2", "q,v,o", 2 * RANK),
        ("gpt_neox", ALL, 3 * RANK),
        ("gpt_neo_global", ALL, RANK),
        ("llama", f"{ALL},c_gate", RANK),
        ("olmo2", "q,v", RANK),
        ("gptj", "k,c_proj", RANK),
        ("gemma2", "k,c_gate", RANK),
    ],
)
def test_what_is_written_is_read_again(tmp_path: Path, base: str, targets: str, rank: int) -> None:
    folder = str(GOLDEN / base)
    overrides = [f"lora_rank={RANK}", "lora_alpha=6", f"lora_targets={targets}", "lora_dropout=0.1"]
    config = load_config(folder, overrides, folder)
    rng, adapters = np.random.default_rng(3), {}
    for name, stored in find_weights(folder).items():
        if name.removesuffix("/kernel").rpartition("/")[2] in targets.split(",") and len(stored.shape) == 2:
            for end, shape in (("a", (stored.shape[0], RANK)), ("b", (RANK, stored.shape[1]))):
                value = rng.normal(size=shape).astype(np.float32)
                adapters[f"{name}/lora_{end}"] = StoredTensor(name, shape, lambda value=value: value)
    write_adapters(str(tmp_path / "ours"), config, adapters, folder)
    again = config_of(base, tmp_path / "ours")
    assert again.model.lora_rank == rank and set(config.model.lora_targets) <= set(again.model.lora_targets)
    wanted, got = products(adapters, config), products(read_adapters(str(tmp_path / "ours"), again.model), again)
    for name, value in got.items():
        np.testing.assert_allclose(value, wanted.get(name, np.zeros_like(value)), rtol=0, atol=1e-5, err_msg=name)
    assert wanted.keys() <= got.keys()


def without(found: Matrices, end: str) -> Matrices:
    return {name: value for name, value in found.items() if not name.endswith(end)}


FOUND = matrices(GPT_2)
FIRST = next(iter(FOUND))
KEYS = {**PLAIN, "target_modules": ["c_attn"]}
LONG = matrices({"transformer.h.0.attn.c_attn": (17, 48)})
BAD_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "another method": ({"peft_type": "IA3"}, 'peft_type = "IA3": only LORA is known'),
    "no rank": ({"r": None}, "r = null: must be a whole number above 0"),
    "a rank of 0": ({"r": 0}, "r = 0: must be a whole number above 0"),
    "a text as alpha": ({"lora_alpha": "6"}, 'lora_alpha = "6": must be a number above 0'),
    "dropout of everything": ({"lora_dropout": 1}, "lora_dropout = 1: must be a number in [0, 1)"),
    "trained biases": ({"bias": "all"}, 'bias = "all": biases that are trained are not known'),
    "dora": ({"use_dora": True}, "use_dora = true: is not known, and changes what adapters compute"),
    "trained modules": ({"modules_to_save": ["wte"]}, 'modules_to_save = ["wte"]: is not known'),
    "pissa": ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa": changes the base'),
    "a new key": ({"use_new_thing": 1}, "use_new_thing = 1: is not known of PEFT"),
    "no modules": ({"target_modules": None}, "target_modules = null: must be a list of names"),
    "a broken expression": ({"target_modules": "(c_attn"}, 'target_modules = "(c_attn": must be a list of names'),
    "other modules": ({"target_modules": ["q_proj"]}, 'target_modules = ["q_proj"]: names no linear layer of blocks'),
    "all excluded": ({"exclude_modules": ["c_attn"]}, "names no linear layer of blocks of GPT-2"),
    "a broken pattern": ({"rank_pattern": {"c_attn": 0}}, "rank_pattern = {"),
}
BAD_TENSORS: dict[str, tuple[Callable[[Matrices], Matrices], str]] = {
    "half": (
        lambda found: without(found, "h.1.attn.c_attn.lora_B.weight"),
        "has no tensor h.1.attn.c_attn.lora_B.weight",
    ),
    "another width": (lambda found: found | LONG, "is [3, 17] there and [3, 16] by adapter_config.json"),
    "of the table": (
        lambda found: found | {"base_model.model.transformer.wte.lora_embedding_A": FOUND[FIRST]},
        "belongs to no linear layer of blocks",
    ),
    "magnitudes": (
        lambda found: found | {FIRST.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(48, np.float32)},
        "belongs to no linear layer of blocks",
    ),
    "integers": (lambda found: found | {FIRST: np.ones((3, 16), np.int8)}, "is of I8; give weights of floating-point"),
    "NaN": (lambda found: found | {FIRST: np.full((3, 16), np.nan, np.float32)}, "holds NaN or infinity"),
}


@pytest.mark.parametrize(("keys", "problem"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_that_is_not_understood_is_named(tmp_path: Path, keys: dict[str, object], problem: str) -> None:
    folder = write_peft(tmp_path / "bad", {**KEYS, **keys}, FOUND)
    with pytest.raises(UserError) as error:
        config_of("gpt_2", folder)
    assert f"{folder}/adapter_config.json: {problem}" in str(error.value) or problem in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(("change", "problem"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[Matrices], Matrices], problem: str
) -> None:
    folder = write_peft(tmp_path / "bad", KEYS, change(dict(FOUND)))
    config = config_of("gpt_2", folder)
    with pytest.raises(UserError) as error:
        for stored in find_adapters(str(folder), config.model, {}).values():
            stored.read()
    assert problem in str(error.value) and str(folder) in str(error.value)


def test_a_folder_without_its_files_is_named(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "bad", KEYS, FOUND)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds neither adapter_model.safetensors nor adapter_model.bin"):
        find_adapters(str(folder), config_of("gpt_2", folder).model, {})
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="holds no adapters; give a folder of PEFT"):
        config_of("gpt_2", folder)
    write_peft(folder, KEYS, FOUND)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config.json"):
        config_of("gpt_2", folder)


def test_a_config_may_not_contradict_the_adapters(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "theirs", KEYS, FOUND)
    assert config_of("gpt_2", folder, "lora_dropout=0.3").model.lora_dropout == 0.3
    with pytest.raises(UserError, match="lora_rank = 8: the weights were made with 3"):
        config_of("gpt_2", folder, "lora_rank=8")
