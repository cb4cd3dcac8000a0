"""The plan of every config that ships, on its own mesh and layout."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from configs.load import CONFIGS_DIR, load_config
from configs.schema import ModelConfig, RunConfig
from main import main
from runtime.planning.dry_run import build_dry_step, dry_placement

NAMES = sorted(path.stem for path in CONFIGS_DIR.glob("*.json"))


def n_devices(config: RunConfig) -> int:
    return math.prod(size for _, size in config.mesh.mesh_shape or ())


def n_parameters(model: ModelConfig) -> int:
    """Counts tables, kernels, norms and biases; GPT-Neo's query, key and value have none, DialoGPT's have."""
    width, hidden = model.n_embd, model.feed_forward_width
    queries, keys = model.n_head * model.features_per_head, model.kv_heads * model.features_per_head
    norm = width if model.norm == "rmsnorm" else 2 * width
    n_positions = 0 if model.rotary_emb else model.n_ctx
    tables = (model.n_vocab * (1 + model.no_weight_tie) + n_positions) * width + norm * model.has_final_norm
    attention = norm + 2 * width * (queries + keys) + model.qkv_bias * (queries + 2 * keys)
    attention += model.attn_output_bias * width + (model.qk_norm == "head") * 2 * model.features_per_head
    feed_forward = norm + (2 + model.gated_mlp) * width * hidden
    feed_forward += model.mlp_bias * (width + (1 + model.gated_mlp) * hidden)
    n_attention = sum(kind != "none" for kind in model.attention_types)
    return tables + model.has_head_bias * model.n_vocab + n_attention * attention + model.n_layer * feed_forward


def test_there_are_configs() -> None:
    assert {"quickstart", "gpt3_small_256", "gpt3_13B_256_Pile"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_two_layers_is_planned(name: str) -> None:
    types = load_config(name).model.attention_types[:2]
    pattern = f'attention_types=[[["{types[0]}","{types[1]}"],1]]'
    config = load_config(name, ["n_layer=2", pattern])
    step = build_dry_step(config, dry_placement(config.mesh, n_devices(config)))
    weights = [variable for variable in step.graph.all_variables if variable.trainable]
    assert sum(weight.shape.size for weight in weights) == n_parameters(config.model)
    layout, sizes = dict(config.mesh.layout or ()), dict(config.mesh.mesh_shape or ())
    (embedding,) = [weight for weight in weights if weight.name == "gpt2/wte"]
    whole = {dim.name: dim.size // sizes.get(layout.get(dim.name), 1) for dim in embedding.shape.dims}
    assert step.mesh_impl.slice_shape(embedding.shape) == list(whole.values())
    assert {transfer.axis for transfer in step.transfers} == set(layout.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_command_plans_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--model", name, "--plan", "--set", "model_path=run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name} on ") and f"\nparameters     {n_parameters(load_config(name).model):,}\n" in out
    assert out.endswith("plot written to run/plan.png\n")
