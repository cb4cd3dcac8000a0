"""Live parity with Hugging Face, in both directions: our models loaded by transformers, and theirs loaded by us.

Run it with `make parity`. It needs torch and transformers 5 besides our own packages. OLD_TRANSFORMERS names the Python
of an environment with transformers 4.57.1 and TensorFlow, which still reads GPT-Neo's checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from configs.load import load_config
from configs.schema import ROTARY_SCALING, ModelConfig
from data.tokenization.tokenizer import from_json
from models.rotary import rotary_frequencies, rotary_gain
from runtime.checkpoint.init_from import load_initial_weights
from runtime.checkpoint.weight_sources import find_checkpoint
from runtime.mesh.placement import place
from runtime.training.steps import build_train_step
from tests import tiny
from tests.answers import Answer, assert_equal, model_of, our_answer
from tests.models.reference_attention import segments

REPOSITORY = Path(__file__).parents[1]
READER = Path(__file__).with_name("read_with_transformers.py")
GOLDEN = Path(__file__).with_name("golden")
TOLERANCE = 1e-4
TEXT = "def parity(models):\n    return [a == b for a, b in models]  # naïve — 語\n\n\nclass Neomesh:"
SIZES = {"n_head": 4, "n_embd": 32, "n_layer": 2, "n_ctx": 320, "n_vocab": 400}
# GPT-Neo's loader assumes a radius of 256; the context is longer.
ALTERNATING = {"attention_types": [[["global", "local"], 1]], "local_attention_radius": 256}
MODELS = {
    "GPT-Neo": ALTERNATING,
    "GPT-Neo, local": {"attention_types": [[["local"], 2]], "local_attention_radius": 9},
    "GPT-Neo, global, silu": {"activation_function": "silu"},
    "GPT-2": {"qkv_bias": True, "scale_attn_weights": True},
    "GPT-2, unscaled": {"qkv_bias": True},
    "GPT-2, no biases": {"scale_attn_weights": True, "activation_function": "relu"},
}


def tokens_of(model: ModelConfig) -> np.ndarray:
    return np.random.default_rng(11).integers(0, model.n_vocab, (2, model.n_ctx))


def ours(weights: str | Path, model: ModelConfig, devices: tuple[str, ...]) -> Answer:
    """The answer of Neomesh, for any weights that `--init_from` takes."""
    return our_answer(weights, model, tokens_of(model).astype(np.int32), devices)


def theirs(folder: Path, model: ModelConfig) -> Answer:
    """The answer of transformers 5 for a folder, in float32."""
    tokens = torch.from_numpy(tokens_of(model))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        outputs = loaded(tokens, labels=tokens)
    return Answer(outputs.logits.numpy(), float(outputs.loss))


def theirs_of_old(folder: Path, checkpoint: str, model: ModelConfig, tmp_path: Path) -> tuple[Answer, list[int]]:
    """The answer of transformers 4.57.1 for a checkpoint or, if that is empty, a folder; and the ids of TEXT."""
    np.savez(tmp_path / "inputs.npz", tokens=tokens_of(model), text=TEXT)
    arguments = [READER, folder, checkpoint, tmp_path / "inputs.npz", tmp_path / "outputs.npz"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([os.environ["OLD_TRANSFORMERS"], *map(str, arguments)], env=environment, check=True)
    outputs = np.load(tmp_path / "outputs.npz")
    return Answer(outputs["logits"], float(outputs["loss"])), outputs["ids"].tolist()


# The loss of weighted labels, and of texts that do not see one another.


@pytest.mark.parametrize("name", ["gpt_neo_alternating", "gpt_2"])
def test_the_loss_of_packed_texts_is_that_of_labels_of_minus_100(name: str, devices: tuple[str, ...]) -> None:
    """Texts packed into rows here; one a row there, filled up with labels of -100."""
    model, generator = model_of(GOLDEN / name), np.random.default_rng(3)
    lengths = ((5, model.n_ctx - 5), (model.n_ctx,), (1, 2, model.n_ctx - 3))
    starts = segments(*lengths)
    ids, counts = generator.integers(0, model.n_vocab, starts.shape), generator.random(starts.shape) < 0.6
    is_label = counts & (starts < np.arange(model.n_ctx))  # the first token of a text is predicted by nothing
    weights = np.roll(is_label, -1, axis=1).astype(np.float32)
    batch = ids.astype(np.int32), np.roll(ids, -1, axis=1).astype(np.int32), weights, starts
    config = tiny.run_config(model=vars(model), training={"train_batch_size": len(ids)}, data=tiny.MASKED)
    placement = place(config.mesh, devices[:1])
    step = build_train_step(config, placement)
    load_initial_weights(str(GOLDEN / name), placement.store)
    loss = float(step(*batch, np.float32(0.0), np.int32(0), np.int32(0))["loss"])
    expected = loss_of_texts(GOLDEN / name, ids, np.where(counts, ids, -100), starts)
    assert expected > 1.0
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)


def loss_of_texts(folder: Path, ids: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> float:
    """The loss of transformers, each text in a row of its own."""
    texts = [(row, starts[row] == start) for row in range(len(starts)) for start in np.unique(starts[row])]
    rows = np.zeros((2, len(texts), ids.shape[1]), np.int64)
    rows[1] = -100
    for number, (row, own) in enumerate(texts):
        rows[:, number, : own.sum()] = ids[row, own], labels[row, own]
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return float(loaded(torch.from_numpy(rows[0]), labels=torch.from_numpy(rows[1])).loss)


# Rotary embeddings.


@pytest.mark.parametrize("width", [8, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 3.0},
        {
            **{"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 8192,
        },
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {
            **{"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0},
            **{"beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False},
        },
    ],
    ids=str,
)
def test_scaled_rotary_frequencies(scaling: dict[str, object], width: int) -> None:
    sizes = {"head_dim": width, "rotary_base": 500_000.0}
    model = dataclasses.replace(tiny.MODEL, **sizes, rotary_scaling=ROTARY_SCALING.parse(scaling))
    theirs = {"rope_theta": model.rotary_base, **scaling, "rope_type": scaling["type"]}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, head_dim=width, rope_parameters=theirs)
    frequencies, gain = ROPE_INIT_FUNCTIONS[scaling["type"]](config, "cpu")
    np.testing.assert_allclose(rotary_frequencies(model), frequencies.numpy(), rtol=1e-6)
    assert rotary_gain(model) == pytest.approx(gain, rel=1e-12)


# Our models, loaded by transformers.


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model trained from the command line: its run directory, and the folder that it was exported to."""

    run: Path
    exported: Path

    @property
    def model(self) -> ModelConfig:
        return load_config(str(self.run / "config.json")).model

    @property
    def checkpoint(self) -> str:
        return find_checkpoint(str(self.run))


def neomesh(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "main.py", *map(str, arguments)], cwd=REPOSITORY, check=True)


def train_and_export(options: Mapping[str, object], folder: Path) -> Trained:
    dataset = {"id": "parity", "text": "tests/*.py", "n_vocab": 400, "cache_dir": f"{folder}/data"}
    dataset |= {"eos_id": 0, "padding_id": 1}
    training = {"train_steps": 6, "train_batch_size": 4, "lr": 0.02, "iterations": 2}
    run = {"model_path": f"{folder}/run", "datasets": [dataset | {"eval_fraction": 0.0}]}
    (folder / "config.json").write_text(json.dumps({**SIZES, **training, **run, **options}))
    neomesh("--model", folder / "config.json")
    neomesh("--model", folder / "config.json", "--export", "--export_format", "hf", "--export_dir", folder / "hf")
    return Trained(folder / "run", folder / "hf")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Returns a function that trains one of MODELS on first use."""
    done: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in done:
            done[name] = train_and_export(MODELS[name], tmp_path_factory.mktemp("trained"))
        return done[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_our_models(
    trained: Callable[[str], Trained], name: str, devices: tuple[str, ...], tmp_path: Path
) -> None:
    made = trained(name)
    here = ours(made.checkpoint, made.model, devices)
    assert_equal(theirs(made.exported, made.model), here, TOLERANCE)
    assert_equal(theirs_of_old(made.exported, "", made.model, tmp_path)[0], here, TOLERANCE)
    assert_equal(ours(made.exported, model_of(made.exported), devices), here, TOLERANCE)


def test_gpt_neos_own_loader_reads_a_checkpoint(
    trained: Callable[[str], Trained], devices: tuple[str, ...], tmp_path: Path
) -> None:
    made = trained("GPT-Neo")
    there, _ = theirs_of_old(made.exported, made.checkpoint, made.model, tmp_path)
    assert_equal(there, ours(made.checkpoint, made.model, devices), TOLERANCE)


def test_tokenizers_give_the_same_ids(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    made = trained("GPT-Neo")
    here = from_json((made.run / "tokenizer.json").read_text())
    there = AutoTokenizer.from_pretrained(made.exported)
    assert there.encode(TEXT) == here.encode(TEXT) == theirs_of_old(made.exported, "", made.model, tmp_path)[1]
    assert there.decode(there.encode(TEXT)) == here.decode(here.encode(TEXT))
    assert (there.eos_token_id, there.bos_token_id, there.pad_token_id) == (here.eos_id, here.eos_id, here.padding_id)


# Models of transformers, loaded by us: the golden models in every file format.


def write_pickle(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    torch.save(dict(tensors), folder / "pytorch_model.bin")


def write_old_pickle(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes the format of PyTorch before 1.6, with the tensors that models of that time stored."""
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    tensors["h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 24, 24))
    tensors["lm_head.weight"] = tensors["wte.weight"]
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def write_pickle_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    files = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def write_half_pickle(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    write_pickle(folder, {name: value.bfloat16() for name, value in tensors.items()})


def write_safetensors_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.load_state_dict(tensors, strict=False)  # without the output layer, which is tied
    model.save_pretrained(folder, max_shard_size="9KB")


FORMS = (write_pickle, write_old_pickle, write_pickle_shards, write_half_pickle, write_safetensors_shards)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.removeprefix("write_"))
@pytest.mark.parametrize("name", ["gpt_neo_alternating", "gpt_2"])
def test_we_load_models_of_transformers(
    name: str, form: Callable[..., None], devices: tuple[str, ...], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    form(folder, tensors)
    model = model_of(folder)
    assert_equal(ours(folder, model, devices), theirs(folder, model), TOLERANCE)
