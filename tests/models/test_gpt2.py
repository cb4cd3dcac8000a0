"""The model: logits against NumPy, causality, names, shapes and initial values of the variables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from configs.schema import ModelConfig
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from models.ops.dropout import Noise
from models.variables import SlicedVariable
from runtime.mesh.placement import place
from tests import tiny
from tests.models import reference

MODEL = dataclasses.replace(tiny.MODEL, n_layer=3, attention_types=("global", "local", "none"))


def compiled_logits(
    model: ModelConfig, length: int, devices: Sequence[str]
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, np.ndarray]]:
    """The model on one device as a function of tokens [batch, length], and its variables."""
    placement = place(tiny.mesh_config("", ""), devices[:1])

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        return [gpt2.logits(Context(tokens.mesh, model, Dims.of(model, tiny.BATCH_SIZE, length)), tokens)]

    shape = ("batch sequence", np.zeros((tiny.BATCH_SIZE, length), np.int32))
    function = tiny.compiled(build, placement, shape)
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    return lambda tokens: function(tokens)[0], tiny.values_of(placement.store)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 16),
        ({"scale_by_depth": True, "scale_by_in": True, "activation_function": "mish"}, 16),
        # A batch shorter than n_ctx; dropout is for training only.
        ({"local_attention_radius": 1, "n_head": 1, **tiny.ALL_DROPOUTS}, 11),
    ],
    ids=["plain", "scaled", "short"],
)
def test_logits(devices: tuple[str, ...], changes: dict[str, object], length: int) -> None:
    model = dataclasses.replace(MODEL, **changes)
    logits, values = compiled_logits(model, length, devices)
    tokens = tiny.batch()[0][:, :length]
    expected = reference.logits(model, values, tokens)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits(tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_token_does_not_change_earlier_logits(devices: tuple[str, ...]) -> None:
    logits, _ = compiled_logits(MODEL, MODEL.n_ctx, devices)
    tokens = tiny.batch()[0]
    before = logits(tokens)
    for position in (0, 1, 9, 15):
        changed = tokens.copy()
        changed[:, position] = (changed[:, position] + 1) % MODEL.n_vocab
        after = logits(changed)
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert np.abs(after[:, position:] - before[:, position:]).max((0, 2)).min() > 1e-4


def test_local_attention_sees_its_radius_only(devices: tuple[str, ...]) -> None:
    radius = MODEL.local_attention_radius
    model = dataclasses.replace(MODEL, n_layer=1, attention_types=("local",))
    logits, _ = compiled_logits(model, model.n_ctx, devices)
    tokens = tiny.batch()[0]
    changed = tokens.copy()
    changed[:, 2] = (changed[:, 2] + 1) % model.n_vocab
    differs = (logits(changed) != logits(tokens)).any((0, 2))
    assert np.flatnonzero(differs).tolist() == list(range(2, 2 + radius))


def test_random_numbers_differ_by_layer_and_step(devices: tuple[str, ...]) -> None:
    places = ["wte", "wpe", "h0/attn", "h0/attn/residual", "h0/mlp/residual", "h1/attn"]

    def build(ones: mtf.Tensor, key: mtf.Tensor) -> list[mtf.Tensor]:
        dims = Dims.of(MODEL, tiny.BATCH_SIZE, MODEL.n_ctx)
        rows = mtf.mtf_range(ones.mesh, dims.batch, tf.int32)
        keys = [mtf.reduce_sum(key) + step for step in (0, 1)]
        contexts = [Context(ones.mesh, MODEL, dims, Noise(key, rows)) for key in keys]
        return [context.dropout(ones, 0.5, place) for context in contexts for place in places]

    inputs = [("batch sequence embd", np.ones((8, 16, 32), np.float32)), ("one", np.array([3], np.int32))]
    masks = np.array(tiny.evaluate(build, place(tiny.mesh_config("", ""), devices[:1]), *inputs)).reshape(12, -1) != 0
    agreement = (masks[:, None] == masks).mean(-1)[np.triu_indices(12, 1)]
    assert np.abs(agreement - 0.5).max() < 5 * 0.5 / np.sqrt(masks.shape[1])


BLOCK_SHAPES = {
    "norm_1/g": [32],
    "norm_1/b": [32],
    "attn/q": [32, 32],
    "attn/k": [32, 32],
    "attn/v": [32, 32],
    "attn/o": [32, 32],
    "attn/compute_output_bias/o_b": [32],
    "norm_2/g": [32],
    "norm_2/b": [32],
    "mlp/conv1d_main/c_fc/kernel": [32, 128],
    "mlp/conv1d_main/c_fc/bias": [128],
    "mlp/conv1d_main/c_proj/kernel": [128, 32],
    "mlp/conv1d_main/c_proj/bias": [32],
}


def variables_of(model: ModelConfig) -> dict[str, SlicedVariable]:
    """The variables of a mesh graph that is not lowered; enough for names, shapes and initial values."""
    mesh, dims = mtf.Mesh(mtf.Graph(), "mesh"), Dims.of(model, 2, model.n_ctx)
    gpt2.logits(Context(mesh, model, dims), mtf.zeros(mesh, mtf.Shape([dims.batch, dims.sequence]), tf.int32))
    return mesh.graph.name_to_variable


def test_names_and_shapes_are_those_of_the_checkpoints() -> None:
    expected = {"gpt2/wte": [64, 32], "gpt2/wpe": [16, 32], "gpt2/ln_f/g": [32], "gpt2/ln_f/b": [32]}
    expected |= {f"gpt2/h{layer}/{name}": shape for layer in (0, 1) for name, shape in BLOCK_SHAPES.items()}
    assert {name: v.shape.to_integer_list for name, v in variables_of(tiny.MODEL).items()} == expected


def test_a_layer_without_attention_has_no_attention_variables() -> None:
    names = {name.removeprefix("gpt2/h2/") for name in variables_of(MODEL) if name.startswith("gpt2/h2/")}
    assert names == {name for name in BLOCK_SHAPES if name.startswith(("norm_2", "mlp"))}


WIDE = ModelConfig(n_head=4, n_embd=128, n_layer=4, n_ctx=256, n_vocab=512)


@pytest.mark.parametrize(
    ("changes", "c_fc", "c_proj"),
    [
        ({}, 0.02, 0.02),
        ({"scale_by_depth": True}, 0.02, 0.02 / math.sqrt(4)),
        ({"scale_by_in": True}, 0.02 / math.sqrt(128), 0.02 / math.sqrt(512)),
        ({"scale_by_depth": True, "scale_by_in": True}, 0.02 / math.sqrt(128), 0.02 / math.sqrt(512 * 4)),
    ],
    ids=["plain", "by depth", "by in", "by both"],
)
def test_initial_values(changes: dict[str, bool], c_fc: float, c_proj: float) -> None:
    q, k = (128 * 32) ** -0.5, 128**-0.5
    stds = {"wte": 0.02, "wpe": 0.01, "h0/attn/q": q, "h3/attn/k": k, "h3/attn/v": k, "h3/attn/o": k}
    stds |= {"h1/mlp/conv1d_main/c_fc/kernel": c_fc, "h1/mlp/conv1d_main/c_proj/kernel": c_proj}
    variables = variables_of(dataclasses.replace(WIDE, **changes))
    for name, std in stds.items():
        value = variables[f"gpt2/{name}"].initial_value(seed=1)
        assert abs(value.std() / std - 1.0) < 5.0 / math.sqrt(2 * value.size), name
        assert abs(value.mean()) < 5.0 * std / math.sqrt(value.size), name
        assert value.dtype == np.float32
    for name, variable in variables.items():
        constant = 1.0 if name.endswith("/g") else 0.0
        if name.endswith(("/g", "/b", "bias", "o_b")):
            assert (variable.initial_value(seed=1) == constant).all(), name


def test_initial_values_are_a_function_of_seed_and_name() -> None:
    first, again = variables_of(WIDE), variables_of(WIDE)
    q = first["gpt2/h0/attn/q"].initial_value(seed=1)
    np.testing.assert_array_equal(again["gpt2/h0/attn/q"].initial_value(seed=1), q)
    for other in (first["gpt2/h0/attn/q"].initial_value(seed=2), first["gpt2/h1/attn/q"].initial_value(seed=1)):
        assert abs(np.corrcoef(q.ravel(), other.ravel())[0, 1]) < 5.0 / math.sqrt(q.size)


def test_scores_of_a_ranker(devices: tuple[str, ...]) -> None:
    model = dataclasses.replace(MODEL, objective="ranking", no_weight_tie=True)
    placement = place(tiny.mesh_config("", ""), devices[:1])
    tokens = tiny.batch()[0]

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        return [gpt2.rank(Context(tokens.mesh, model, Dims.of(model, tiny.BATCH_SIZE, model.n_ctx)), tokens).scores]

    function = tiny.compiled(build, placement, ("batch sequence", tokens))
    placement.store.initialize(seed=1)
    tiny.disturb(placement.store)
    values = tiny.values_of(placement.store)
    x = reference.hidden(model, values, tokens, 1.0)[0]
    expected = reference.layer_norm(x, values["gpt2/ln_f/g"], values["gpt2/ln_f/b"]) @ values["gpt2/score"][0]
    assert expected.std() > 0.1
    np.testing.assert_allclose(function(tokens)[0], expected, rtol=1e-5, atol=1e-5)
