"""Random combinations of options: trained, saved, restored and decoded on one device and on a 2 x 2 mesh, with the same
losses and the same text.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from configs.kinds import ATTENTION_TYPES
from configs.layout import find_layout_issues, parse_layout, parse_mesh_shape
from configs.schema import (
    ACTIVATIONS,
    LINEAR_NORMALIZATIONS,
    NO_SHARDING,
    NORM_AFTER,
    NORM_BEFORE,
    NORM_PLACEMENTS,
    OPTIMIZERS,
    PARALLEL_RESIDUALS,
    QK_NORMS,
    RECOMPUTATIONS,
    ROTARY_STYLES,
    SEQUENTIAL,
    SHARDINGS,
    MoeParams,
    PredictionConfig,
    RotaryScaling,
    RunConfig,
)
from models.kernels.sampling import SamplingParams
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import restore
from runtime.checkpoint.writer import CheckpointWriter
from runtime.generation.engine import build_engine
from runtime.generation.requests import GenerationRequest
from runtime.mesh.lowering import LoweredStep
from runtime.mesh.placement import Placement, place
from runtime.training.steps import build_train_step
from tests import tiny

N_COMBINATIONS = 100
LAYOUTS = (
    "batch:x,heads:y,vocab:y,intermediate_expanded:y",
    "batch:x,embd:y",
    "sequence:x,memory_length:y,embed_sequence:x,vocab:y",
    "batch:x,heads:y,kv_heads:y,experts:y",
    "batch:x,experts:x,expert_hidden:y",
    "heads:x,kv_heads:x,vocab:y,expert_hidden:x,embed_sequence:y,lora_rank:y",
)
# Functions with a step: which side of it a feature lies on is a matter of rounding.
CONTINUOUS = tuple(name for name in ACTIVATIONS if name != "sign")
LLAMA_3 = RotaryScaling(
    type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
YARN = RotaryScaling(type="yarn", factor=4.0, original_max_position_embeddings=64)
PROMPT = np.array([3, 1, 4, 15], np.int32)


def draw_model(draw: random.Random) -> dict[str, object]:
    """Model settings that go together."""
    kinds = tuple(draw.choices(tuple(ATTENTION_TYPES), k=2))
    flags = ("mlp_glu", "macaron", "share_parameters", "no_weight_tie", "qkv_bias", "entmax_loss")
    flags += ("scale_by_depth", "scale_by_in")
    has_dropout = draw.random() < 0.3
    model = {
        "attention_types": kinds,
        "local_attention_radius": draw.choice((1, 3, 5, 40)),
        "activation_function": draw.choice(CONTINUOUS),
        "num_mem_kv": draw.choice((0, 3)) if "global" in kinds else 0,
        "mlm_training": draw.random() < 0.15,
        "linear_attention_normalization": draw.choice(LINEAR_NORMALIZATIONS),
        "none_doubles_residual": draw.random() < 0.3,
        "recompute": draw.choice((*RECOMPUTATIONS, None)),
        **{flag: draw.random() < 0.3 for flag in flags},
        **draw_heads(draw),
        **draw.choice(({}, {}, draw_rotary(draw), {"axial_pos_emb": (2, 8)})),
        **draw.choice(({}, {}, {"scalenorm": True}, {"rezero": True})),
        **(tiny.ALL_DROPOUTS if has_dropout else {}),
        **(draw_mixture(draw) if draw.random() < 0.35 else {}),
    }
    return model | draw_norms(draw, model) | draw_widths(draw, model)


def draw_norms(draw: random.Random, model: dict[str, object]) -> dict[str, object]:
    """Norms and their places that go with the settings of the model."""
    kinds = ({}, {"norm": "rmsnorm"}, {"norm": "rmsnorm", "norm_unit_offset": True})
    is_free = not (model.get("rezero") or model["macaron"])
    placement = draw.choice((NORM_BEFORE, *NORM_PLACEMENTS)) if is_free else NORM_BEFORE
    is_parallel = is_free and placement != NORM_AFTER and not model["none_doubles_residual"]
    return {
        "norm_epsilon": draw.choice((1e-5, 1e-2)),
        "norm_placement": placement,
        "parallel_residual": draw.choice(PARALLEL_RESIDUALS) if is_parallel else SEQUENTIAL,
        **({} if model.get("scalenorm") else draw.choice(kinds)),
    }


def draw_widths(draw: random.Random, model: dict[str, object]) -> dict[str, object]:
    """Feed-forward layers, embeddings and output layers."""
    return {
        "n_inner": draw.choice((None, None, 24)),
        "gated_mlp": not model["mlp_glu"] and draw.random() < 0.4,
        "mlp_bias": draw.random() < 0.7,
        "final_norm": draw.choice((None, True, False)),
        "head_bias": draw.choice((None, True, False)),
        "embedding_scale": draw.choice((None, 5.5)),
        "mup_base_width": draw.choice((0, 0, 8)) if "linear" not in model["attention_types"] else 0,
        "logit_softcap": draw.choice((None, 10.0)),
    }


def draw_adapters(draw: random.Random, model: dict[str, object]) -> dict[str, object]:
    """Adapters of layers that the model has."""
    has_attention = set(model["attention_types"]) != {"none"}
    has_feed_forward = model["macaron"] or len(model.get("moe_layers", ())) < 2
    targets = [*("qkvo" if has_attention else ""), *(("c_fc", "c_proj") if has_feed_forward else ())]
    targets += ["c_gate"] if has_feed_forward and model["gated_mlp"] else []
    if not targets or draw.random() < 0.7:
        return {}
    return {
        "lora_rank": draw.choice((2, 4)),
        "lora_alpha": draw.choice((1.0, 8.0)),
        "lora_dropout": 0.2 if "embed_dropout" in model else 0.0,
        "lora_targets": tuple(draw.sample(targets, draw.randint(1, len(targets)))),
    }


def draw_heads(draw: random.Random) -> dict[str, object]:
    return {
        **draw.choice(({}, {"scale_attn_weights": True}, {"attention_scale": 0.4})),
        "n_kv_head": draw.choice((None, None, 2, 4)),
        "head_dim": draw.choice((None, None, 6)),
        "attn_output_bias": draw.random() < 0.7,
        "attention_softcap": draw.choice((None, None, 2.0)),
        "qk_norm": draw.choice(("off", "off", *QK_NORMS)),
    }


def draw_rotary(draw: random.Random) -> dict[str, object]:
    return {
        "rotary_emb": True,
        "rotary_dim": draw.choice((None, None, 4)),
        "rotary_style": draw.choice(ROTARY_STYLES),
        "rotary_base": draw.choice((10000.0, 500.0)),
        "rotary_scaling": draw.choice((None, None, LLAMA_3, YARN)),
    }


def draw_mixture(draw: random.Random) -> dict[str, object]:
    params = MoeParams(
        moe_num_experts=4,
        moe_hidden_size=24,
        moe_gating=draw.choice(("top_1", "top_2")),
        moe_group_size=draw.choice((5, 16)),
        moe_second_policy_train=draw.choice(("all", "none", "threshold", "random")),
        moe_second_policy_eval=draw.choice(("all", "random")),
        moe_dropout_rate=draw.choice((0.0, 0.2)),
    )
    return {
        "moe_layers": draw.choice(((0,), (1,), (0, 1))),
        "moe_params": params,
        "moe_activation": draw.choice(CONTINUOUS),
    }


def draw_training(draw: random.Random, model: dict[str, object]) -> dict[str, object]:
    optimizers = [name for name in OPTIMIZERS if name != "adafactor" or not model["mup_base_width"]]
    return {
        "opt_name": draw.choice(optimizers),
        "gradient_clipping": draw.choice((None, 1.0)),
        "tokens_per_mb_per_replica": draw.choice((None, 2 * tiny.MODEL.n_ctx)),
        "log_grads": draw.random() < 0.2,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_what_a_config_may_say(layout: str) -> None:
    assert list(find_layout_issues(parse_mesh_shape("x:2,y:2"), parse_layout(layout), {})) == []


def combination(number: int) -> tuple[RunConfig, RunConfig]:
    """The same run on one device and on a mesh."""
    draw = random.Random(number)
    model = draw_model(draw)
    training, layout = draw_training(draw, model), draw.choice(LAYOUTS)
    model |= draw_adapters(draw, model)
    shard = draw.choice(SHARDINGS) if "batch" in layout else NO_SHARDING
    meshes = (tiny.mesh_config("", ""), tiny.mesh_config("x:2,y:2", layout, shard))
    configs = (tiny.run_config(mesh, model, training) for mesh in meshes)
    one, many = (dataclasses.replace(config, prediction=PredictionConfig(predict_batch_size=4)) for config in configs)
    return one, many


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in the middle of training."""

    config: RunConfig
    placement: Placement
    step: LoweredStep

    @staticmethod
    def of(config: RunConfig, devices: tuple[str, ...]) -> Run:
        placement = place(config.mesh, devices if config.mesh.mesh_shape else devices[:1])
        step = build_train_step(config, placement)
        placement.store.initialize(seed=1)
        tiny.disturb(placement.store)
        return Run(config, placement, step)

    def train(self, number: int) -> dict[str, np.ndarray]:
        tokens, labels = tiny.batch(number)
        weights = np.random.default_rng(number).uniform(size=tokens.shape).astype(np.float32)
        rate, key = np.float32(1e-3), np.int32(number + 1)
        return self.step(tokens, labels, weights / weights.sum(), rate, np.int32(number), key)

    def write(self) -> np.ndarray:
        engine = build_engine(self.config, self.placement, 2)
        engine.prefill(
            {row: GenerationRequest(tuple(PROMPT.tolist()), SamplingParams(temperature=0.0), 0, 6) for row in range(2)}
        )
        written = engine.decode_steps(6)
        return np.array([written[row].tokens for row in range(2)])


def assert_same_step(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def numbered(number: int) -> object:
    """A case that says its quarter, for the Makefile runs each in processes of its own: XLA keeps all that it has
    compiled, and a process that has compiled some fifty of these models has no memory maps left.
    """
    quarter = 1 + 4 * number // N_COMBINATIONS
    return pytest.param(number, id=f"quarter{quarter}-{number}")


@pytest.mark.slow
@pytest.mark.parametrize("number", map(numbered, range(N_COMBINATIONS)))
def test_a_combination(devices: tuple[str, ...], tmp_path: Path, number: int) -> None:
    one, many = (Run.of(config, devices) for config in combination(number))
    for update in range(3):
        expected = one.train(update)
        assert np.isfinite(expected["loss"])
        assert_same_step(expected, many.train(update))
    checkpoint = tiny.save(CheckpointWriter(str(tmp_path), many.placement.store), TrainingPosition(3, 24))
    one.placement.store.initialize(seed=2)
    assert restore(checkpoint, one.placement.store, tiny.BATCH_SIZE) == TrainingPosition(3, 24)
    if one.config.model.is_causal:
        np.testing.assert_array_equal(one.write(), many.write())
    assert_same_step(many.train(3), one.train(3))
