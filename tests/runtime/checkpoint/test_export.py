"""Exported models: a SavedModel that serves batches and lengths of any size, and a folder of Hugging Face's."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from configs.errors import CheckpointError, ConfigError, UserError
from configs.schema import DataConfig, ModelConfig, MoeParams, RunConfig
from configs.weights import initial_model_keys
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.huggingface import read_weights
from runtime.checkpoint.init_from import set_weights
from runtime.checkpoint.saved_model import export_saved_model
from runtime.checkpoint.weight_sources import StoredTensor, Weights
from runtime.mesh.placement import VariableStore, place
from tests import tiny

MODEL = dataclasses.replace(tiny.MODEL, n_embd=8, n_head=2, n_vocab=20)
TOKENS = np.random.default_rng(0).integers(0, MODEL.n_vocab, (3, MODEL.n_ctx)).astype(np.int32)


def run_of(model: ModelConfig) -> RunConfig:
    data = DataConfig(no_dataset=True, eos_id=1, padding_id=0)
    return dataclasses.replace(tiny.run_config(), model=model, data=data)


def model_function(
    model: ModelConfig, store: VariableStore, devices: tuple[str, ...], tokens: np.ndarray
) -> Callable[..., list[np.ndarray]]:
    """The model's graph, with its variables in the store, as a function of tokens."""

    def build(tokens: mtf.Tensor) -> list[mtf.Tensor]:
        return [gpt2.logits(Context(tokens.mesh, model, Dims.of(model, *tokens.shape.to_integer_list)), tokens)]

    placement = dataclasses.replace(place(tiny.mesh_config("", ""), devices[:1]), store=store)
    return tiny.compiled(build, placement, ("batch sequence", tokens))


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model of ours with weights: what the exported one must equal."""

    model: ModelConfig
    weights: Weights
    devices: tuple[str, ...]

    @staticmethod
    def of(model: ModelConfig, devices: tuple[str, ...]) -> Graph:
        store, random = VariableStore(), np.random.default_rng(1)
        model_function(model, store, devices, TOKENS)
        values = {stored.name: random.normal(0.0, 0.5, stored.whole_shape).astype(np.float32) for stored in store}
        weights = {name: StoredTensor(name, value.shape, lambda value=value: value) for name, value in values.items()}
        return Graph(model, weights, devices)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        store = VariableStore()
        function = model_function(self.model, store, self.devices, tokens)
        set_weights(self.weights, store, "the test")
        return function(tokens)[0]


# SavedModel.


@pytest.fixture(scope="module")
def graph(devices: tuple[str, ...]) -> Graph:
    return Graph.of(MODEL, devices)


@pytest.fixture(scope="module")
def expected(graph: Graph) -> np.ndarray:
    """The logits of `TOKENS`; those of a beginning of a row are a beginning of its logits."""
    return graph.logits(TOKENS)


@pytest.fixture(scope="module")
def served(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = f"{tmp_path_factory.mktemp('deeper')}/made/export"
    export_saved_model(directory, run_of(graph.model), graph.weights)
    return directory


def test_batch_and_length_are_free(expected: np.ndarray, served: str) -> None:
    serve = tf.saved_model.load(served).signatures["serving_default"]
    ((), inputs) = serve.structured_input_signature
    assert inputs == {"input_example_tensor": tf.TensorSpec((None, None), tf.int64, name="input_example_tensor")}
    for batch, length in ((3, 16), (1, 16), (2, 7), (1, 1)):
        logits = serve(input_example_tensor=tf.constant(TOKENS[:batch, :length], tf.int64))["logits"]
        assert (logits.dtype, logits.shape) == (tf.float32, (batch, length, 20))
        np.testing.assert_allclose(logits, expected[:batch, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (np.zeros((1, 17)), "input_example_tensor is too long: the model takes at most n_ctx = 16 tokens"),
        (np.full((1, 3), 20), "input_example_tensor holds a number that is not an id: ids are 0 to n_vocab - 1 = 19"),
        (np.full((1, 3), -1), "input_example_tensor holds a number that is not an id: ids are 0 to n_vocab - 1 = 19"),
    ],
)
def test_what_cannot_be_served_is_said(served: str, tokens: np.ndarray, said: str) -> None:
    serve = tf.saved_model.load(served).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=said):
        serve(input_example_tensor=tf.constant(tokens, tf.int64))


def test_logits_are_float32_whatever_the_activations(devices: tuple[str, ...], tmp_path: Path) -> None:
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


def test_another_process_needs_no_code_of_ours(expected: np.ndarray, served: str, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", TOKENS[:2, :9])
    arguments = [served, tmp_path / "tokens.npy", tmp_path / "logits.npy"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected[:2, :9], rtol=0, atol=1e-5)


def test_a_model_that_sees_later_tokens_takes_whole_contexts(devices: tuple[str, ...], tmp_path: Path) -> None:
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
def test_every_option_is_served(options: dict[str, object], devices: tuple[str, ...], tmp_path: Path) -> None:
    graph = Graph.of(dataclasses.replace(MODEL, **options), devices)
    export_saved_model(f"{tmp_path}/export", run_of(graph.model), graph.weights)
    serve = tf.saved_model.load(f"{tmp_path}/export").signatures["serving_default"]
    logits = serve(input_example_tensor=tf.constant(TOKENS[:2, :7], tf.int64))["logits"]
    np.testing.assert_allclose(logits, graph.logits(TOKENS)[:2, :7], rtol=0, atol=1e-5)


# Hugging Face.


def tokenizer_json() -> str:
    vocabulary = {"<|padding|>": 0, "<|endoftext|>": 1} | {letter: 2 + n for n, letter in enumerate("abcdefgh")}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|padding|>", "<|endoftext|>"])
    return backend.to_str(pretty=True)


def test_a_folder_that_is_read_back_is_the_same_model(graph: Graph, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "hf"
    write_huggingface_folder(str(folder), run_of(MODEL), graph.weights, tokenizer_json())
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert os.listdir(folder.parent) == ["hf"]
    weights = read_weights(str(folder))
    assert weights.keys() == graph.weights.keys()
    for name, stored in weights.items():
        np.testing.assert_array_equal(stored.read(), graph.weights[name].read(), err_msg=name)
    expected = {
        "n_embd": 8,
        "n_head": 2,
        "n_layer": 2,
        "n_ctx": 16,
        "n_vocab": 20,
        "activation_function": "gelu",
        "attention_types": [[["global", "local"], 1]],
        "local_attention_radius": 5,
        "qkv_bias": False,
        "scale_attn_weights": False,
        "mlm_training": False,
    }
    assert expected.items() <= initial_model_keys(str(folder)).items()
    assert (folder / "tokenizer.json").read_text() == tokenizer_json()
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 16,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
    }


def test_without_a_tokenizer(graph: Graph, tmp_path: Path) -> None:
    write_huggingface_folder(f"{tmp_path}/hf", run_of(MODEL), graph.weights, None)
    assert sorted(os.listdir(tmp_path / "hf")) == ["config.json", "model.safetensors"]


# What is said, and what is left, when it cannot be done.


def test_options_that_do_not_fit_are_named(graph: Graph, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, attention_types=("linear", "global"), rotary_emb=True)
    with pytest.raises(ConfigError) as error:
        write_huggingface_folder(f"{tmp_path}/hf", run_of(model), graph.weights, None)
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        "attention_types = linear",
        "rotary_emb = true",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [export_saved_model, lambda *given: write_huggingface_folder(*given, None)])
def test_nothing_is_overwritten_and_nothing_half_written(graph: Graph, tmp_path: Path, export: Callable) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("")
    with pytest.raises(UserError) as error:
        export(str(taken), run_of(MODEL), graph.weights)
    assert str(error.value) == f"{taken}: exists already; give a folder that is new or empty"
    with pytest.raises(CheckpointError):
        export(f"{tmp_path}/new", run_of(MODEL), {**graph.weights, "gpt2/h7/attn/q": graph.weights["gpt2/wte"]})
    assert os.listdir(tmp_path) == ["taken"]
    for name in ("empty", "empty.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty.part" / "mine").write_text("")
    export(f"{tmp_path}/empty/", run_of(MODEL), graph.weights)
    assert sorted(os.listdir(tmp_path)) == ["empty", "empty.part", "taken"] and os.listdir(tmp_path / "empty")
    assert os.listdir(tmp_path / "empty.part") == ["mine"]
    assert (tmp_path / "empty").stat().st_mode == taken.stat().st_mode


def test_a_link_stays_one(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, target in (("link", "elsewhere"), ("dangling", "deeper/new")):
        (tmp_path / name).symlink_to(tmp_path / target)
        write_huggingface_folder(f"{tmp_path}/{name}", run_of(MODEL), graph.weights, None)
        assert (tmp_path / name).is_symlink()
        assert sorted(os.listdir(tmp_path / target)) == ["config.json", "model.safetensors"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("link", "loop"):
        with pytest.raises(UserError, match=f"/{name}: exists already; give a folder that is new or empty"):
            write_huggingface_folder(f"{tmp_path}/{name}", run_of(MODEL), graph.weights, None)


def test_of_two_exports_at_once_one_is_whole_and_one_fails(graph: Graph, tmp_path: Path) -> None:
    """The second begins when the first has written its config.json and is about to write weights."""
    directory = f"{tmp_path}/hf"

    def read() -> np.ndarray:
        if not os.path.exists(directory):
            write_huggingface_folder(directory, run_of(MODEL), graph.weights, tokenizer_json())
        return graph.weights["gpt2/wte"].read()

    slow = {**graph.weights, "gpt2/wte": dataclasses.replace(graph.weights["gpt2/wte"], read=read)}
    with pytest.raises(UserError) as error:
        write_huggingface_folder(directory, run_of(MODEL), slow, None)
    assert str(error.value) == f"{directory}: exists already; give a folder that is new or empty"
    assert os.listdir(tmp_path) == ["hf"]
    assert len(os.listdir(directory)) == 4 and read_weights(directory).keys() == graph.weights.keys()


def test_a_place_that_cannot_be_written_to(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=": cannot be written: .*; give another folder, or make room and "):
        write_huggingface_folder(f"{tmp_path}/file/hf", run_of(MODEL), graph.weights, None)
    with pytest.raises(UserError, match="gs://bucket/hf: is in a bucket; give a local folder"):
        write_huggingface_folder("gs://bucket/hf", run_of(MODEL), graph.weights, None)
    for path in (f"{tmp_path}/a\0b", ""):
        with pytest.raises(UserError, match=": is not a path; give a folder that is new or empty"):
            write_huggingface_folder(path, run_of(MODEL), graph.weights, None)
