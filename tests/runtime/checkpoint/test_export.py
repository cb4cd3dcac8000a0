"""A model exported as a folder for Hugging Face's library, and the errors of exports."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from configs.errors import CheckpointError, ConfigError, UserError
from configs.weights import initial_end_ids, initial_model_keys
from runtime.checkpoint.export import write_huggingface_folder
from runtime.checkpoint.huggingface import read_weights
from runtime.checkpoint.saved_model import export_saved_model
from tests.runtime.checkpoint.graphs import MODEL, Graph, run_of


def tokenizer_json() -> str:
    vocabulary = {"<|padding|>": 0, "<|endoftext|>": 1} | {letter: 2 + n for n, letter in enumerate("abcdefgh")}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|padding|>", "<|endoftext|>"])
    return backend.to_str(pretty=True)


def test_an_exported_folder_reads_back_as_the_same_model(graph: Graph, tmp_path: Path) -> None:
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


def test_an_exported_folder_tells_what_begins_and_ends_a_text(graph: Graph, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer_json())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|padding|> $A", special_tokens=[("<|padding|>", 0)]
    )
    config = run_of(MODEL)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, end_ids=(1, 5)))
    write_huggingface_folder(f"{tmp_path}/hf", config, graph.weights, backend.to_str())
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (0, [1, 5])
    assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["bos_token"] == "<|padding|>"
    assert initial_end_ids(f"{tmp_path}/hf") == [1, 5]


def test_a_run_without_a_tokenizer_exports_none(graph: Graph, tmp_path: Path) -> None:
    write_huggingface_folder(f"{tmp_path}/hf", run_of(MODEL), graph.weights, None)
    assert sorted(os.listdir(tmp_path / "hf")) == ["config.json", "model.safetensors"]


def test_options_that_hugging_face_lacks_are_named(graph: Graph, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, attention_types=("linear", "global"), rotary_emb=True)
    with pytest.raises(ConfigError) as error:
        write_huggingface_folder(f"{tmp_path}/hf", run_of(model), graph.weights, None)
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        "attention_types = linear",
        "rotary_emb = true",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [export_saved_model, lambda *given: write_huggingface_folder(*given, None)])
def test_an_export_overwrites_nothing_and_leaves_nothing_partial(
    graph: Graph, tmp_path: Path, export: Callable
) -> None:
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


def test_a_link_to_an_empty_folder_stays_a_link(graph: Graph, tmp_path: Path) -> None:
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


def test_of_two_simultaneous_exports_one_is_complete_and_one_fails(graph: Graph, tmp_path: Path) -> None:
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


def test_a_directory_that_cannot_be_written_is_refused(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=": cannot be written: .*; give another folder, or make room and "):
        write_huggingface_folder(f"{tmp_path}/file/hf", run_of(MODEL), graph.weights, None)
    with pytest.raises(UserError, match="gs://bucket/hf: is in a bucket; give a local folder"):
        write_huggingface_folder("gs://bucket/hf", run_of(MODEL), graph.weights, None)
    for path in (f"{tmp_path}/a\0b", ""):
        with pytest.raises(UserError, match=": is not a path; give a folder that is new or empty"):
            write_huggingface_folder(path, run_of(MODEL), graph.weights, None)
