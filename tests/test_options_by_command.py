"""Every option of the model, from the command line: each run trains, evaluates, and writes text with its cache."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from configs.kinds import ATTENTION_TYPES
from configs.load import load_config
from configs.schema import ModelConfig, MoeParams, RunConfig
from main import main
from runtime.run.metrics import read_metrics
from tests.program import TINY, write_project

N_STEPS = 3
MASKED = {"mlm_training": True, "mlm_mask_id": 2}
EXPERTS = {"moe_num_experts": 2, "moe_hidden_size": 8}
SIZES = {"n_head", "n_embd", "n_layer", "n_ctx", "n_vocab"}
# Options that go together share a run.
RUNS = {
    "linear and none, top 2 experts, dropout": {
        "attention_types": [[["linear", "none"], 1]],
        "linear_attention_normalization": "feature",
        "none_doubles_residual": True,
        "moe_layers": [0, 1],
        "moe_activation": "gelu",
        "moe_params": {**EXPERTS, "moe_gating": "top_2", "moe_dropout_rate": 0.1, "moe_second_policy_train": "all"},
        "mlp_glu": True,
        "res_dropout": 0.1,
        "attn_dropout": 0.1,
        "no_weight_tie": True,
        "scale_by_in": True,
    },
    "local, rotary, top 1 experts": {
        "attention_types": [[["local", "global"], 1]],
        "local_attention_radius": 4,
        "rotary_emb": True,
        "moe_layers": [1],
        "moe_params": {
            **EXPERTS,
            "moe_gating": "top_1",
            "moe_group_size": 8,
            "moe_capacity_factor_train": 1.0,
            "moe_capacity_factor_eval": 1.5,
            "moe_min_expert_capacity": 2,
            "moe_loss_coef": 0.1,
            "moe_z_loss": 0.01,
        },
        "macaron": True,
        "scalenorm": True,
        "qkv_bias": True,
        "scale_attn_weights": True,
        "n_kv_head": 1,
        "head_dim": 6,
        "rotary_dim": 4,
        "rotary_base": 500.0,
        "rotary_style": "interleaved",
        "rotary_scaling": {"type": "linear", "factor": 2.0},
        "attention_softcap": 20.0,
        "qk_norm": "head",
        "activation_function": "prelu",
    },
    "axial, memory, rezero, shared, entmax": {
        "attention_types": [[["global"], 2]],
        "axial_pos_emb": [4, 4],
        "num_mem_kv": 2,
        "rezero": True,
        "attention_scale": 0.3,
        "attn_output_bias": False,
        "share_parameters": True,
        "entmax_loss": True,
        "entmax_sampling": True,
        "moe_layers": [0],
        "moe_params": {
            **EXPERTS,
            "moe_second_policy_train": "threshold",
            "moe_second_policy_eval": "threshold",
            "moe_second_threshold_train": 0.1,
            "moe_second_threshold_eval": 0.1,
        },
    },
    "norms before and after, in parallel, gated": {
        "norm": "rmsnorm",
        "norm_epsilon": 1e-6,
        "norm_unit_offset": True,
        "norm_placement": "both",
        "parallel_residual": "two_norms",
        "n_inner": 24,
        "gated_mlp": True,
        "mlp_bias": False,
        "activation_function": "gelu_exact",
        "no_weight_tie": True,
        "final_norm": True,
        "head_bias": False,
        "embedding_scale": 4.0,
        "mup_base_width": 4,
        "logit_softcap": 20.0,
    },
    "plain block in bfloat16, recomputed": {
        "precision": "bfloat16",
        "recompute_grad": True,
        "scale_by_depth": True,
        "z_loss": 0.01,
        "n_layer": 1,
        "opt_name": "adafactor",
    },
    "adapters": {
        "lora_rank": 2,
        "lora_alpha": 4.0,
        "lora_dropout": 0.1,
        "lora_targets": ["q", "v", "c_proj"],
        "n_layer": 1,
        "recompute": "attention",
    },
    "masked": MASKED,
    "ranking": {
        "objective": "ranking",
        "datasets": [{"id": "pairs", "n_vocab": 300, "pairs": "pairs.jsonl", "eval_fraction": 0.3}],
    },
}
PAIR = {"context": ["the cat sat", "one dog"], "better": "a mat", "worse": "far from home"}
BASES = {"adapters": {"n_layer": 1}}  # what a run begins from
# What a model that writes no text is refused for.
WRITES_NOTHING = {"masked": "mlm_training", "ranking": "objective = ranking"}


def settings(name: str) -> dict[str, object]:
    return {**TINY, "n_layer": 2, "train_steps": N_STEPS, "eval_steps": 1, "lr_decay": None, **RUNS[name]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    write_project(folder)
    (folder / "pairs.jsonl").write_text(f"{json.dumps(PAIR)}\n" * 40)
    for name in RUNS:
        (folder / f"{name}.json").write_text(json.dumps({**settings(name), "model_path": f"runs/{name}"}))
    return folder


def write_base(name: str) -> list[str]:
    """Trains the weights that a run begins from, if it needs some, and returns the flags that name them."""
    if name not in BASES:
        return []
    base = {**TINY, **BASES[name], "train_steps": 1, "model_path": f"runs/base of {name}"}
    Path("base.json").write_text(json.dumps(base))
    assert main(["--model", "base.json"]) == 0
    return ["--init_from", base["model_path"]]


@pytest.mark.parametrize("name", RUNS)
def test_trained_evaluated_and_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(project)
    model = ["--model", f"{name}.json"]
    assert main([*model, *write_base(name)]) == 0
    assert main([*model, "--eval"]) == 0
    lines = read_metrics(f"runs/{name}")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3]
    first, *_, last = (line["loss"] for line in lines if line["split"] == "train")
    in_training, alone = (line["loss"] for line in lines if line["split"] == "eval")
    assert last < first or name in BASES  # adapters begin at 0 and at a trained loss: three batches differ by more
    assert math.isclose(in_training, alone, rel_tol=1e-5)
    if name in WRITES_NOTHING:
        assert main([*model, "--predict"]) == 2
        assert WRITES_NOTHING[name] in capsys.readouterr().err
        return
    (project / "prompts.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "a mat and one dog", "temperature": 0}\n')
    wanted = ["--max_new_tokens", "4", "--never_end", "--output", "answers.jsonl"]
    assert main([*model, "--predict", "--prompt", "prompts.jsonl", *wanted]) == 0
    answers = [json.loads(line) for line in (project / "answers.jsonl").read_text().splitlines()]
    assert [len(answer["tokens"]) for answer in answers] == [4, 4]


def test_no_option_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    configs = [load_config(f"{name}.json") for name in RUNS]
    models = [config.model for config in configs]
    unused = {field.name for field in fields_at_default(models, ModelConfig)} - SIZES
    assert unused == {"embed_dropout"} - {"embed_dropout" for config in configs if config.model.embed_dropout}
    assert not fields_at_default([model.moe_params for model in models if model.moe_layers], MoeParams)
    assert {kind for model in models for kind in model.attention_types} == set(ATTENTION_TYPES)
    policies = {config.model.moe_params.moe_second_policy_train for config in experts(configs)}
    assert policies == {"all", "random", "threshold"}


def experts(configs: list[RunConfig]) -> list[RunConfig]:
    return [config for config in configs if config.model.moe_layers]


def fields_at_default(settings: list, kind: type) -> list[dataclasses.Field]:
    """The fields that have their default in all of the settings."""
    fields = dataclasses.fields(kind)
    return [field for field in fields if all(getattr(one, field.name) == field.default for one in settings)]
