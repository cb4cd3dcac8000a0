"""A SavedModel, which serves batches and lengths of any size with the logits of the model."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.schema import MoeParams
from meshtf import tf
from runtime.checkpoint.saved_model import export_saved_model
from tests.runtime.checkpoint.graphs import MODEL, TOKENS, Graph, run_of


@pytest.fixture(scope="module")
def expected(graph: Graph) -> np.ndarray:
    """The logits of `TOKENS`; the logits of a prefix are a prefix of the logits."""
    return graph.logits(TOKENS)


@pytest.fixture(scope="module")
def served(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = f"{tmp_path_factory.mktemp('deeper')}/made/export"
    export_saved_model(directory, run_of(graph.model), graph.weights)
    return directory


def test_any_batch_size_and_length_is_served(expected: np.ndarray, served: str) -> None:
    serve = tf.saved_model.load(served).signatures["serving_default"]
    ((), inputs) = serve.structured_input_signature
    assert inputs == {"input_example_tensor": tf.TensorSpec((None, None), tf.int64, name="input_example_tensor")}
    for batch, length in ((3, 16), (1, 16), (2, 7), (1, 1)):
        logits = serve(input_example_tensor=tf.constant(TOKENS[:batch, :length], tf.int64))["logits"]
        assert (logits.dtype, logits.shape) == (tf.float32, (batch, length, 20))
        np.testing.assert_allclose(logits, expected[:batch, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 17)), "input_example_tensor is too long: the model takes at most n_ctx = 16 tokens"),
        (np.full((1, 3), 20), "input_example_tensor holds a number that is not an id: ids are 0 to n_vocab - 1 = 19"),
        (np.full((1, 3), -1), "input_example_tensor holds a number that is not an id: ids are 0 to n_vocab - 1 = 19"),
    ],
)
def test_invalid_inputs_are_refused(served: str, tokens: np.ndarray, message: str) -> None:
    serve = tf.saved_model.load(served).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        serve(input_example_tensor=tf.constant(tokens, tf.int64))


def test_logits_are_float32_for_bfloat16_activations(devices: tuple[str, ...], tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, precision="bfloat16", n_layer=1, attention_types=("local",))
    graph = Graph.of(model, devices)
    export_saved_model(f"{tmp_path}/export", run_of(model), graph.weights)
    serve = tf.saved_model.load(f"{tmp_path}/export").signatures["serving_default"]
    logits = serve(input_example_tensor=tf.constant(TOKENS, tf.int64))["logits"]
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, tf.cast(graph.logits(TOKENS), tf.float32), rtol=0, atol=0.05)


PROGRAM = """
import sys
import numpy as np
import tensorflow as tf

serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
np.save(sys.argv[3], serve(input_example_tensor=tf.constant(np.load(sys.argv[2]), tf.int64))["logits"])
"""


def test_another_process_needs_only_tensorflow(expected: np.ndarray, served: str, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS[:2, :9])
    arguments = [served, tmp_path / "tokens.npy", tmp_path / "logits.npy"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected[:2, :9], rtol=0, atol=1e-5)


def test_a_model_that_is_not_causal_takes_exactly_n_ctx_tokens(devices: tuple[str, ...], tmp_path: Path) -> None:
    graph = Graph.of(dataclasses.replace(MODEL, mlm_training=True, n_layer=1, attention_types=("global",)), devices)
    export_saved_model(f"{tmp_path}/export", run_of(graph.model), graph.weights)
    serve = tf.saved_model.load(f"{tmp_path}/export").signatures["serving_default"]
    logits = serve(input_example_tensor=tf.constant(TOKENS, tf.int64))["logits"]
    np.testing.assert_allclose(logits, graph.logits(TOKENS), rtol=0, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="has a wrong length: the model takes n_ctx = 16 tokens"):
        serve(input_example_tensor=tf.constant(TOKENS[:, :9], tf.int64))


OPTIONS = {
    "linear, parametric": {"attention_types": ("linear", "local"), "activation_function": "prelu"},
    "rotary, scalenorm": {"rotary_emb": True, "scalenorm": True, "num_mem_kv": 3, "mlp_glu": True},
    "axial, rezero, macaron": {"axial_pos_emb": (4, 4), "rezero": True, "macaron": True, "no_weight_tie": True},
    "shared, none": {"share_parameters": True, "attention_types": ("none", "none")},
    "experts": {
        "moe_layers": (1,),
        "moe_params": MoeParams(moe_num_experts=4, moe_hidden_size=16, moe_group_size=8, moe_capacity_factor_eval=0.5),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_model_option_is_served(options: dict[str, object], devices: tuple[str, ...], tmp_path: Path) -> None:
    graph = Graph.of(dataclasses.replace(MODEL, **options), devices)
    export_saved_model(f"{tmp_path}/export", run_of(graph.model), graph.weights)
    serve = tf.saved_model.load(f"{tmp_path}/export").signatures["serving_default"]
    logits = serve(input_example_tensor=tf.constant(TOKENS[:2, :7], tf.int64))["logits"]
    np.testing.assert_allclose(logits, graph.logits(TOKENS)[:2, :7], rtol=0, atol=1e-5)
