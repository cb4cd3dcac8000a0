"""What a config leaves to the tokenizer: which one its datasets have, and the ids of its special tokens."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from commands.run_tokenizer import with_tokenizer
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import RunConfig
from data.preprocessing.prepare import prepare_dataset
from data.tfrecord.records import read_examples
from data.tfrecord.shards import list_shards
from data.tokenization.bpe_training import save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import EOS_TOKEN, load_tokenizer
from runtime.checkpoint.export import _tokenizer_config
from runtime.run import directory as run_directory
from tests.configs.config_files import MODEL, write_configs

TRAINED = train_byte_level_bpe(["the cat sat on the mat"] * 5, 265)
OTHER = train_byte_level_bpe(["a dog ran far from its home"] * 5, 265)
GPT2_PATH = "gpt2"


def write_gpt2_like(folder: Path) -> None:
    """A folder as GPT-2's: bytes first, the end of text last, and no padding token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, "th", EOS_TOKEN])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Texts, a folder of GPT-2's tokenizer, one of weights with a tokenizer, and one of weights without."""
    monkeypatch.chdir(tmp_path)
    write_gpt2_like(tmp_path / GPT2_PATH)
    for folder in ("weights", "bare"):
        os.mkdir(folder)
        Path(folder, "config.json").write_text("{}")
    save_tokenizer(TRAINED, "weights/tokenizer.json")
    os.mkdir("texts")
    for number in range(6):
        Path("texts", f"{number}.txt").write_text("the cat sat on the mat " * (number + 3))


def config_of(tmp_path: Path, dataset: dict, **changes: object) -> RunConfig:
    model = MODEL | {"n_vocab": 300, "model_path": "run", "datasets": ["words"]} | changes
    return load_config(write_configs(tmp_path, model, words={"n_vocab": 300} | dataset))


def resolved(config: RunConfig, init_from: str | None = None, new: bool = False) -> tuple[RunConfig, list[str]]:
    lines: list[str] = []
    return with_tokenizer(config, SimpleNamespace(init_from=init_from, new=new), lines.append), lines


RECORDS = {"path": "words/*.tfrecords"}
FORMS = {
    "a pretrained tokenizer": (RECORDS | {"tokenizer_is_pretrained": True, "tokenizer_path": GPT2_PATH}, (257, 257)),
    "a trained one": (RECORDS | {"tokenizer_path": "weights/tokenizer.json"}, (0, 1)),
    "one to be trained": ({"text": "texts"}, (0, 1)),
    "one of the two ids": (RECORDS | {"tokenizer_path": "weights/tokenizer.json", "eos_id": 0}, (0, 1)),
    "both ids": (RECORDS | {"tokenizer_path": "nowhere.json", "eos_id": 7, "padding_id": 8}, (7, 8)),
    "a padding id beyond": (RECORDS | {"tokenizer_path": GPT2_PATH, "n_vocab": 258, "padding_id": 258}, (257, 258)),
    "ids that are null": ({"text": "texts", "eos_id": None, "padding_id": None}, (0, 1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_that_are_left_out_are_the_tokenizers(tmp_path, form):
    dataset, expected = FORMS[form]
    data = resolved(config_of(tmp_path, dataset))[0].data
    assert (data.datasets[0].dataset.eos_id, data.datasets[0].dataset.padding_id) == expected
    assert (data.eos_id, data.padding_id) == expected


def test_the_model_configs_ids_stay(tmp_path):
    dataset = FORMS["a trained one"][0]
    data = resolved(config_of(tmp_path, dataset, eos_id=5, padding_id=300))[0].data
    assert (data.eos_id, data.padding_id) == (5, 5)
    assert resolved(config_of(tmp_path, dataset, padding_id=9))[0].data.padding_id == 9


def test_a_padding_id_of_the_table_size_means_eos(tmp_path):
    dataset = RECORDS | {"tokenizer_path": GPT2_PATH, "n_vocab": 300, "padding_id": 300}
    assert resolved(config_of(tmp_path, dataset))[0].data.padding_id == 257


def test_an_end_of_text_that_nobody_knows_is_asked_for(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.decoder = decoders.Fuse()
    backend.save("words.tok.json")
    with pytest.raises(ConfigError) as error:
        resolved(config_of(tmp_path, RECORDS | {"tokenizer_path": "words.tok.json"}))
    assert str(error.value) == (
        f"words: eos_id: is left out, and the tokenizer has no {EOS_TOKEN}; give the id that ends a document"
    )


def test_the_run_keeps_what_its_ids_mean(tmp_path):
    """The dataset's tokenizer may be gone when a trained run predicts."""
    save_tokenizer(TRAINED, "run/tokenizer.json")
    data = resolved(config_of(tmp_path, RECORDS | {"tokenizer_path": "gone.json"}))[0].data
    assert (data.eos_id, data.padding_id) == (0, 1)


@pytest.mark.parametrize(("folder", "pad_token"), [(GPT2_PATH, None), ("weights", "<|padding|>")])
def test_an_exported_tokenizer_has_the_padding_of_the_tokenizer_or_none(tmp_path, folder, pad_token):
    config = resolved(config_of(tmp_path, RECORDS | {"tokenizer_path": folder}))[0]
    exported = _tokenizer_config(config, load_tokenizer(folder).to_json())
    assert (exported["eos_token"], exported.get("pad_token")) == (EOS_TOKEN, pad_token)


@pytest.mark.parametrize(("folder", "is_padding_apart"), [(GPT2_PATH, False), (None, True)])
def test_prepared_text_is_filled_up_with_the_tokenizers_padding(tmp_path, folder, is_padding_apart):
    dataset = {"text": "texts", "tokenizer_path": folder, "cache_dir": str(tmp_path / "c")}
    (use,) = config_of(tmp_path, dataset).data.datasets
    prepared = prepare_dataset(use.dataset, 16, lambda line: None)
    report = json.loads(Path(prepared.train_pattern.replace("/train/*.tfrecords", "/manifest.json")).read_text())
    ends, padding = (report["train"][f"{kind}_tokens"] for kind in ("separator", "padding"))
    ids = [int(i) for shard in list_shards(prepared.train_pattern) for row in read_examples(shard.path) for i in row]
    assert padding > 0
    if is_padding_apart:
        assert (ids.count(0), ids.count(1)) == (ends, padding)
    else:
        assert (ids.count(257), ids.count(0)) == (ends + padding, 0)


@pytest.mark.parametrize("weights", ["weights", "weights/config.json", "weights/model.ckpt-5"])
def test_a_dataset_without_a_tokenizer_uses_that_of_the_weights(tmp_path, weights):
    Path("weights/model.ckpt-5.index").touch()
    Path("weights/model.safetensors").touch()
    weights = weights.replace("config.json", "model.safetensors")
    config, lines = resolved(config_of(tmp_path, {"text": "texts", "n_vocab": 260}), weights)
    (use,) = config.data.datasets
    assert (use.dataset.tokenizer_path, use.dataset.n_vocab) == ("weights", TRAINED.n_vocab)
    assert (config.data.eos_id, config.data.padding_id) == (0, 1)
    assert lines == [f"words: names no tokenizer, and uses that of the weights, weights ({TRAINED.n_vocab} ids)"]


def test_the_files_of_older_programs_are_a_tokenizer_too(tmp_path):
    Path(GPT2_PATH, "config.json").write_text("{}")
    config, _ = resolved(config_of(tmp_path, {"text": "texts"}), GPT2_PATH)
    assert config.data.datasets[0].dataset.tokenizer_path == GPT2_PATH
    assert (config.data.eos_id, config.data.padding_id) == (257, 257)


def test_that_one_is_trained_for_weights_without_is_said(tmp_path):
    config, lines = resolved(config_of(tmp_path, {"text": "texts"}), "bare")
    assert config.data.datasets[0].dataset.tokenizer_path is None
    assert lines == [
        "words: a tokenizer is trained, as none lies beside bare: the ids get other meanings; give tokenizer_path to "
        "keep those of the weights"
    ]


def test_another_tokenizer_of_the_same_size_is_refused_unless_asked_for(tmp_path):
    assert OTHER.n_vocab == TRAINED.n_vocab
    save_tokenizer(OTHER, "other.json")
    dataset = {"text": "texts", "tokenizer_path": "other.json"}
    with pytest.raises(ConfigError) as error:
        resolved(config_of(tmp_path, dataset), "weights")
    assert str(error.value).startswith(
        "words: tokenizer_path = other.json: is not the tokenizer of the weights, weights: the id 258 is "
    )
    assert str(error.value).endswith(
        "; leave tokenizer_path out, or set keep_tokenizer to false to train with other ids"
    )
    config, lines = resolved(config_of(tmp_path, dataset, keep_tokenizer=False), "weights")
    assert (config.data.datasets[0].dataset.tokenizer_path, lines) == ("other.json", [])


@pytest.mark.parametrize("change", ["copy", "added", "renamed files"])
def test_the_same_tokenizer_in_another_form_is_taken(tmp_path, change):
    backend = tokenizers.Tokenizer.from_str(TRAINED.to_json())
    if change == "added":
        backend.add_special_tokens(["<|user|>"])
    path = "same.json"
    backend.save(path)
    if change == "renamed files":
        path = "folder"
        os.mkdir(path)
        backend.model.save(path)
    dataset = {"text": "texts", "tokenizer_path": path}
    assert resolved(config_of(tmp_path, dataset), "weights")[0].data.datasets[0].dataset.tokenizer_path == path


def test_too_few_rows_for_the_tokenizer_of_the_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"n_vocab = 260: is less than the 265 ids of the tokenizer of the weights"):
        resolved(config_of(tmp_path, {"text": "texts", "n_vocab": 260}, n_vocab=260), "weights")


def test_a_run_that_goes_on_keeps_the_tokenizer_of_its_weights(tmp_path):
    """Without --init_from too, by which it began."""
    config = config_of(tmp_path, {"text": "texts"})
    first, _ = resolved(config, "weights")
    run_directory.write_settings(first, TRAINED)
    again, lines = resolved(config)
    (use,) = again.data.datasets
    assert load_tokenizer(use.dataset.tokenizer_path).to_json() == TRAINED.to_json()
    assert lines == []
    renewed, _ = resolved(config, new=True)
    assert renewed.data.datasets[0].dataset.tokenizer_path is None


def test_a_run_that_trained_its_tokenizer_goes_on_as_it_was(tmp_path):
    config = config_of(tmp_path, {"text": "texts"})
    first, _ = resolved(config)
    run_directory.write_settings(first, TRAINED)
    assert resolved(config)[0] == first


def test_weights_alone_give_the_special_ids(tmp_path):
    config = config_of(tmp_path, {"text": "texts"})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=(), eos_id=1, padding_id=0))
    data = resolved(config, "weights")[0].data
    assert (data.eos_id, data.padding_id) == (0, 1)
    assert resolved(config)[0] == config
