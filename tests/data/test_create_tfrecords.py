"""Tests of data/create_tfrecords.py."""

from __future__ import annotations

import glob
import hashlib
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

import data.preprocessing.parallel_encoding
import data.preprocessing.splits
import data.text.documents
import data.tokenization.tokenizer
from configs.errors import DataError, UserError
from configs.load import load_config
from data import check_tfrecords
from data.create_tfrecords import describe, main, parse_arguments, to_json
from data.preprocessing.manifest import read_manifest
from data.preprocessing.pipeline import Report, create_tfrecords
from data.preprocessing.settings import Settings
from data.text.deduplication import digest_fraction
from data.text.documents import Document, fingerprint
from data.tfrecord.records import read_examples
from data.tfrecord.shards import list_shards, shuffle_shards
from data.tokenization.bpe_training import FILE_NAME, save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import Tokenizer, load_tokenizer
from data.train_tokenizer import parse_arguments as parse_tokenizer_arguments
from inputs import training_batches

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = ["token", "stream", "schöne", "Welt", "\n", "example", "<|endoftext|>", "of", "1979"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_byte_level_bpe([" ".join(WORDS)] * 5, 290)


@pytest.fixture
def encoder_path(tmp_path: Path, tokenizer: Tokenizer) -> str:
    path = str(tmp_path / "tokenizers" / FILE_NAME)
    save_tokenizer(tokenizer, path)
    return path


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a few sentences be more than one batch."""
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 1000)


def random_texts(number: int) -> list[str]:
    draw = random.Random(7)
    return [" ".join(draw.choices(WORDS, k=draw.choice([0, 1, 3, 20, 60]))) for _ in range(number)]


def write_lines(folder: Path, texts: list[str], files: int) -> str:
    folder.mkdir()
    for n in range(files):
        lines = [json.dumps({"text": text}) for text in texts[n * len(texts) // files : (n + 1) * len(texts) // files]]
        (folder / f"part{n}.jsonl").write_text("\n".join(lines))
    return str(folder)


def all_ids(report: Report) -> list[int]:
    return [int(token) for path in report.tfrecords for example in read_examples(path) for token in example]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_no_token_is_lost_with_any_number_of_processes(tmp_path, tokenizer, encoder_path, small_batches):
    texts = random_texts(1000)
    source = write_lines(tmp_path / "texts", texts, files=12)  # 12: part10 comes after part9
    expected = [token for text in texts if text for token in [*tokenizer.encode(text), 0]]
    written = []
    for processes in (1, 2, 5):
        output = tmp_path / f"out{processes}"
        report = create_tfrecords(
            Settings(source, 1000, "t", str(output), encoder_path, chunk_size=16, processes=processes)
        )
        written.append(contents(output))
    assert written[0] == written[1] == written[2]
    padding = -len(expected) % 17
    assert all_ids(report) == expected + [1] * padding
    stats = report.stats
    assert (stats.documents_read, stats.documents_kept) == (1000, sum(map(bool, texts)))
    assert stats.discarded_empty == texts.count("")
    assert stats.text_bytes == sum(len(text.encode()) for text in texts)
    assert stats.text_tokens + stats.separator_tokens == len(expected)
    assert stats.padding_tokens == padding
    assert stats.examples * 17 == len(expected) + padding
    names = [os.path.basename(path) for path in report.tfrecords]
    assert names[:2] == ["t_0_0_1000.tfrecords", "t_1_0_1000.tfrecords"]
    assert names[-1] == f"t_{len(names) - 1}_0_{stats.examples - 1000 * (len(names) - 1)}.tfrecords"
    assert set(written[0]) == {*names, "t.manifest.json"}


def test_one_file_and_more_processes_than_files(tmp_path, tokenizer, encoder_path):
    (tmp_path / "one.txt").write_text("token stream")
    report = create_tfrecords(
        Settings(
            f"{tmp_path}/one.txt", output_dir=f"{tmp_path}/out", encoder_path=encoder_path, chunk_size=7, processes=3
        )
    )
    expected = [*tokenizer.encode("token stream"), 0]
    assert all_ids(report) == expected + [1] * (-len(expected) % 8)


def settings_for(tmp_path: Path, tokenizer_path: str, **values: object) -> Settings:
    defaults = {"input_dir": f"{tmp_path}/texts", "name": "t", "output_dir": f"{tmp_path}/out", "processes": 1}
    return Settings(**(defaults | {"encoder_path": tokenizer_path, "chunk_size": 9} | values))


def test_discarded_documents_are_reported_with_the_reason(tmp_path, encoder_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "bad.txt").write_bytes(b"caf\xe9")
    (texts / "empty.txt").write_bytes(b"")
    (texts / "long.txt").write_text("token stream " * 20)
    (texts / "short.txt").write_text("x")
    report = create_tfrecords(settings_for(tmp_path, encoder_path, minimum_size=2))
    lines = describe(report).splitlines()
    assert lines[0] == "files: 4 read"
    assert lines[1] == "documents: 4 read = 1 kept + 3 discarded (1 undecodable, 1 empty, 1 too short)"
    stats = report.stats
    total = stats.examples * 10
    assert lines[2] == (
        f"tokens: {stats.text_tokens} of text + 1 separators + {stats.padding_tokens} of padding at the end = "
        f"{total} = {stats.examples} examples of 10"
    )
    assert stats.text_tokens + 1 + stats.padding_tokens == total
    assert lines[-1] == "discarded bad.txt: not UTF-8 at byte 3"
    assert "short" not in load_tokenizer(encoder_path).decode(all_ids(report))
    parsed = json.loads(to_json(report))
    assert (parsed["documents_read"], parsed["discarded_short"], parsed["text_tokens"]) == (4, 1, stats.text_tokens)
    assert parsed["tfrecords"] == list(report.tfrecords)


def test_cleaning_and_separator_follow_their_flags(tmp_path, tokenizer, encoder_path):
    write_lines(tmp_path / "texts", ["schÃ¶n , Welt"], files=1)
    for name, expected in [
        ("plain", "schÃ¶n , Welt"),
        ("ftfy", "schön , Welt"),
        ("wikitext_detokenize", "schÃ¶n, Welt"),
    ]:
        flags = {} if name == "plain" else {name: True}
        report = create_tfrecords(settings_for(tmp_path, encoder_path, name=name, separator=7, **flags))
        ids = all_ids(report)
        end = ids.index(7)
        assert tokenizer.decode(ids[:end]) == expected
        assert set(ids[end + 1 :]) <= {1}


def test_existing_files_are_kept_without_overwrite(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token stream"] * 30, files=1)
    create_tfrecords(settings_for(tmp_path, encoder_path, files_per=1))
    before = contents(tmp_path / "out")
    assert len(before) > 3
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, encoder_path))
    assert str(error.value) == (
        f"{tmp_path}/out/t_0_0_1.tfrecords: already exists; choose another --name or --output_dir, or give "
        f"--overwrite to replace {len(before) - 1} file(s)"
    )
    assert contents(tmp_path / "out") == before
    report = create_tfrecords(settings_for(tmp_path, encoder_path, overwrite=True))
    assert set(contents(tmp_path / "out")) == {os.path.basename(path) for path in (*report.tfrecords, report.manifest)}


def test_without_text_nothing_is_overwritten(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token stream"], files=1)
    create_tfrecords(settings_for(tmp_path, encoder_path))
    before = contents(tmp_path / "out")
    write_lines(tmp_path / "empty", ["", ""], files=1)
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, encoder_path, input_dir=f"{tmp_path}/empty", overwrite=True))
    assert str(error.value) == (
        f"{tmp_path}/empty: no text to write; documents: 2 read = 0 kept + 2 discarded (0 undecodable, 2 empty, "
        "0 too short)"
    )
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunk_size": 0}, "--chunk_size 0: is too small; give 1 or more"),
        ({"files_per": 0}, "--files_per 0: is too small; give 1 or more"),
        ({"processes": -1}, "--processes -1: is too small; give 0 or more"),
        ({"chunk_size": 10**9}, "--chunk_size 1000000000: is too large; give 16777216 or less"),
        *[
            (
                {"name": name},
                f"--name '{name}': cannot begin a visible file name; choose one without slashes and "
                "without a leading dot",
            )
            for name in ("", "a/b", "..")
        ],
        (
            {"separator": 1, "write_dataset_config": "{tmp}/mine.json"},
            "--separator 1: a dataset config must use the tokenizer's <|endoftext|>, 0; leave out --separator or "
            "--write_dataset_config",
        ),
        (
            {"write_dataset_config": "{tmp}/texts/part0.jsonl/mine.json"},
            "{tmp}/texts/part0.jsonl/mine.json: cannot be written: File exists; make room there, or give another path",
        ),
        ({"separator": 290}, "--separator 290: the tokenizer has 290 ids; give a smaller one"),
        (
            {"input_dir": "{tmp}/none"},
            "{tmp}/none: no file found; name a directory, a glob or a file that has text",
        ),
        (
            {"encoder_path": "{tmp}/none.json"},
            "{tmp}/none.json: no such tokenizer; give a tokenizers JSON file (data/train_tokenizer.py makes one), or "
            "a folder with vocab.json and merges.txt",
        ),
    ],
)
def test_each_error_says_what_to_do_and_writes_nothing(tmp_path, encoder_path, values, message):
    write_lines(tmp_path / "texts", ["token"], files=1)
    values = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(UserError) as error:
        create_tfrecords(settings_for(tmp_path, encoder_path, **values))
    assert str(error.value) == message.format(tmp=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_an_end_of_text_needs_a_separator(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("")
    write_lines(tmp_path / "texts", ["aba"], files=1)
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, str(tmp_path)))
    assert str(error.value) == f"{tmp_path}: has no <|endoftext|>; give the id between documents with --separator"
    report = create_tfrecords(settings_for(tmp_path, str(tmp_path), separator=1, chunk_size=5))
    assert all_ids(report) == [0, 1, 0, 1, 1, 1]


def test_flags_are_gpt_neos():
    flags = (
        "--input_dir in --files_per 5 --name n --output_dir out --encoder_path e --minimum_size 3 --ftfy "
        "--wikitext-detokenize --separator 9 --chunk_size 4 --write_dataset_config --processes 2"
    )
    settings = parse_arguments(flags.split())
    config = str(REPOSITORY / "configs" / "dataset_configs" / "n.json")
    assert settings == Settings("in", 5, "n", "out", "e", 3, True, True, 9, 4, config, 2)
    plain = parse_arguments(["--input_dir", "in"])
    assert plain == Settings("in", 100_000, "openwebtext", "./tfrecords", "gpt2", 0, False, False, None, 2048, None, 0)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("new.json", "new.json"),
        ("mine/new.json", "mine/new.json"),
        ("mine/model.json", "mine/dataset_configs/n.json"),
        ("model.json", "dataset_configs/n.json"),
        ("mine", "mine/dataset_configs/n.json"),
        ("mine/dataset_configs", "mine/dataset_configs/n.json"),
        ("mine/dataset_configs/n.json", "mine/dataset_configs/n.json"),  # a dataset config that is there stays one
        ("torn.json", "torn.json"),
        ("gs://bucket/n.json", "gs://bucket/n.json"),
    ],
)
def test_a_dataset_config_is_written_where_a_model_config_looks_for_it(tmp_path, monkeypatch, given, written):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "dataset_configs").mkdir(parents=True)
    for name in ("model.json", "mine/model.json"):
        (tmp_path / name).write_text('{"n_layer": 2, "datasets": ["n"]}')
    (tmp_path / "mine" / "dataset_configs" / "n.json").write_text('{"n_vocab": 5}')
    (tmp_path / "torn.json").write_text("{")
    settings = parse_arguments(["--input_dir", "in", "--name", "n", "--write_dataset_config", given])
    assert settings.write_dataset_config == written


def test_flags_of_gpt_neos_page_are_taken(capsys):
    page = ["--mode", "documents", "--base_dir", "in", "--name", "n", "--output_dir", "out", "--use_gpt2_tokenizer"]
    settings = parse_arguments([*page, "--separator", "[0]", "--minimum-size", "3", "--no_ftfy"])
    assert settings == Settings("in", name="n", output_dir="out", minimum_size=3, separator=0, mode="documents")
    assert settings.example_tokens is None and capsys.readouterr().err == ""
    parse_arguments([*page, "--chunk_size", "16"])
    assert capsys.readouterr().err.startswith("--chunk_size has no effect: with --mode documents, ")


@pytest.mark.parametrize("program", [parse_arguments, parse_tokenizer_arguments])
def test_a_marker_may_be_typed_with_escapes(program):
    folder = "--input_dir" if program is parse_arguments else "--base_dir"
    others = [] if program is parse_arguments else ["--vocab_size", "300"]
    assert program([folder, "in", *others, "--document_separator", r"\n\n"]).document_separator == "\n\n"
    assert program([folder, "in", *others, "--document_separator"]).document_separator == "eos"


@pytest.mark.parametrize(("text", "ids"), [("0", 0), ("[0]", 0), (" [ 50256 ] ", 50256)])
def test_a_separator_is_an_id_or_a_list_of_one(text, ids):
    assert parse_arguments(["--input_dir", "in", "--separator", text]).separator == ids


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--separator", "[0, 1]"], "argument --separator: [0, 1]: is not one id; give one, such as 0 or [0]"),
        (["--separator", "x"], "argument --separator: x: is not one id; give one, such as 0 or [0]"),
        (
            ["--use_gpt2_tokenizer", "--encoder_path", "mine.json"],
            "argument --encoder_path: not allowed with argument --use_gpt2_tokenizer",
        ),
        (["--mode", "document"], "argument --mode: invalid choice: 'document' (choose from "),
    ],
)
def test_a_wrong_flag_is_refused(capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--input_dir", "in", *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_without_arguments_all_options_are_shown(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "--minimum_size" in capsys.readouterr().out


def test_records_of_documents_are_told_apart_and_read_by_their_datatype(tmp_path, tokenizer, encoder_path, capsys):
    texts = [text for text in random_texts(40) if text]
    write_lines(tmp_path / "texts", texts, files=2)
    settings = settings_for(tmp_path, encoder_path, mode="documents", minimum_size=5, files_per=7)
    report = create_tfrecords(replace(settings, write_dataset_config=f"{tmp_path}/dataset_configs/t.json"))
    documents = [tokenizer.encode(text) for text in texts]
    documents = [ids for ids in documents if len(ids) >= 5]
    assert [ids.tolist() for path in report.tfrecords for ids in read_examples(path)] == documents
    lines = describe(report).splitlines()
    tokens = sum(map(len, documents))
    assert lines[2] == f"tokens: {tokens:,} of text in {len(documents)} records of one document each"
    entry = '[["t", 25, "documents_random", 1.0]]'
    assert lines[-1] == f'to train on them: "input_fn": "generic_text", "datasets": {entry}'
    assert json.loads(to_json(report))["example_tokens"] is None
    assert read_manifest(f"{tmp_path}/out/t.manifest.json").example_tokens is None

    assert check_tfrecords.main([f"{tmp_path}/out/*.tfrecords"]) == 0
    assert "checking documents, ids below 290" in capsys.readouterr().out

    keys = {"n_head": 2, "n_embd": 8, "n_layer": 1, "n_ctx": 12, "n_vocab": 290, "train_batch_size": 3}
    keys |= {"train_steps": 1, "model_path": "run", "datasets": [["t", 3, "random_sample", 1.0]]}
    (tmp_path / "m.json").write_text(json.dumps(keys))
    config = load_config(f"{tmp_path}/m.json")
    batch = next(training_batches(config, [config.data.datasets[0].dataset.path], 0, None))
    shards = list_shards(config.data.datasets[0].dataset.path)
    in_order = [ids.tolist() for shard in shuffle_shards(shards, 1) for ids in read_examples(shard.path)]
    for row, (tokens_S, label) in enumerate(zip(batch.tokens_BS, batch.labels_BS[:, -1], strict=True)):
        stitched = [token for ids in in_order[3 * row :] for token in [*ids, 0]]
        window = [*tokens_S.tolist(), int(label)]
        assert any(stitched[n : n + 13] == window for n in range(len(stitched)))


def test_unknown_flags_are_passed_to_beam_or_refused(capsys):
    more = "--text_key body --deduplicate --max_documents 7 --eval_fraction 0.5 --runner FlinkRunner --flink_master a:1"
    settings = parse_arguments(["--input_dir", "in", *more.split()])
    assert (settings.text_key, settings.deduplicate, settings.max_documents) == ("body", True, 7)
    assert (settings.eval_fraction, settings.runner) == (0.5, "FlinkRunner")
    assert settings.beam_options == ("--flink_master", "a:1")
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--input_dir", "in", "--flink_master", "a:1"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --flink_master a:1" in capsys.readouterr().err


def test_the_command_line_from_another_directory(tmp_path, tokenizer, encoder_path):
    write_lines(tmp_path / "texts", random_texts(50), files=2)
    config_path = tmp_path / "dataset_configs" / "mine.json"
    flags = (
        "--input_dir texts --output_dir out --name t --chunk_size 16 --processes 2 "
        f"--write_dataset_config {config_path} --encoder_path {os.path.relpath(encoder_path, tmp_path)}"
    )
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "data" / "create_tfrecords.py"), *flags.split()],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("TF_")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.stdout.startswith("files: 2 read\ndocuments: 50 read = ")

    model = {
        "n_head": 1,
        "n_embd": 8,
        "n_layer": 1,
        "n_ctx": 16,
        "n_vocab": 290,
        "datasets": ["mine"],
        "model_path": "m",
    }
    (tmp_path / "model.json").write_text(json.dumps(model | {"train_batch_size": 1, "train_steps": 1, "lr": 1e-3}))
    dataset = load_config(str(tmp_path / "model.json")).data.datasets[0].dataset
    assert (dataset.n_vocab, dataset.eos_id, dataset.padding_id) == (290, 0, 1)
    assert load_tokenizer(dataset.tokenizer_path, dataset.tokenizer_is_pretrained).n_vocab == 290
    assert glob.glob(dataset.path) == [str(tmp_path / path) for path in report["tfrecords"]]
    examples = [example for path in glob.glob(dataset.path) for example in read_examples(path)]
    assert np.shape(examples) == (report["examples"], 17)


def test_a_user_error_is_one_message_and_status_2(tmp_path, encoder_path, capsys):
    flags = ["--input_dir", f"{tmp_path}/none", "--encoder_path", encoder_path]
    assert main(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{tmp_path}/none: no file found; name a directory, a glob or a file that has text\n"


def test_an_existing_dataset_config_is_kept(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token"], files=1)
    config = tmp_path / "mine.json"
    config.write_text("{}")
    with pytest.raises(DataError, match=f"{config}: already exists; "):
        create_tfrecords(settings_for(tmp_path, encoder_path, write_dataset_config=str(config)))
    assert config.read_text() == "{}"
    assert not (tmp_path / "out").exists()


def test_a_damaged_input_leaves_existing_files_unchanged(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token stream"] * 30, files=1)
    create_tfrecords(settings_for(tmp_path, encoder_path))
    before = contents(tmp_path / "out")
    (tmp_path / "texts" / "z.xz").write_bytes(b"no xz file")
    for values in ({"overwrite": True}, {"name": "other"}):
        with pytest.raises(DataError, match="z.xz: cannot be read "):
            create_tfrecords(settings_for(tmp_path, encoder_path, files_per=1, **values))
        assert contents(tmp_path / "out") == before


def test_the_same_command_resumes_after_a_damaged_input_is_replaced(tmp_path, encoder_path, small_batches):
    write_lines(tmp_path / "texts", random_texts(60), files=2)
    damaged = tmp_path / "texts" / "z.txt.xz"
    damaged.write_bytes(b"no xz file")
    settings = settings_for(tmp_path, encoder_path, files_per=3)
    with pytest.raises(DataError, match="z.txt.xz: cannot be read "):
        create_tfrecords(settings)
    damaged.write_bytes(lzma.compress(b"token stream"))
    logged = []
    create_tfrecords(settings, log=logged.append)
    assert [line.partition(" after ")[0] for line in logged] == ["resuming"]
    assert int(logged[0].split()[2]) > 10
    unbroken = settings_for(tmp_path, encoder_path, files_per=3, output_dir=f"{tmp_path}/unbroken")
    create_tfrecords(unbroken)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def broken_off(settings: Settings) -> None:
    """Has files finished, and breaks off at the last source file, which is then made whole."""
    last = Path(settings.input_dir) / "z.txt.xz"
    last.write_bytes(b"no xz file")
    with pytest.raises(DataError):
        create_tfrecords(settings)
    last.write_bytes(lzma.compress(b"token stream"))


def test_files_of_an_interrupted_run_with_other_settings_or_input_are_made_again(tmp_path, encoder_path, small_batches):
    write_lines(tmp_path / "texts", random_texts(60), files=2)
    settings = settings_for(tmp_path, encoder_path, files_per=3)
    broken_off(settings)
    logged = []
    other = replace(settings, minimum_size=3)
    create_tfrecords(other, log=logged.append)
    assert logged == ["an interrupted run had other settings: starting from the beginning"]
    create_tfrecords(replace(other, output_dir=f"{tmp_path}/unbroken"))
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")

    settings = replace(settings, name="u")
    broken_off(settings)
    first = tmp_path / "texts" / "part0.jsonl"
    first.write_text(first.read_text() + '\n{"text": "stream"}')
    logged.clear()
    create_tfrecords(settings, log=logged.append)
    assert logged == []  # no file of the ended run was of use
    create_tfrecords(replace(settings, output_dir=f"{tmp_path}/unbroken"))
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_an_interrupted_run_resumes_into_files_added_at_the_end(tmp_path, encoder_path, small_batches):
    write_lines(tmp_path / "texts", random_texts(60), files=2)
    settings = settings_for(tmp_path, encoder_path, files_per=3, deduplicate=True, eval_fraction=0.3)
    broken_off(settings)
    (tmp_path / "texts" / "zz.txt").write_text("example")
    logged = []
    create_tfrecords(settings, log=logged.append)
    assert logged[0].startswith("resuming after ")
    create_tfrecords(replace(settings, output_dir=f"{tmp_path}/unbroken"))
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


RUN_AND_KILL = """
import json, os, signal, sys, time
import data.preprocessing.parallel_encoding
from data.preprocessing.pipeline import create_tfrecords
from data.preprocessing.settings import Settings

data.preprocessing.parallel_encoding.BATCH_CHARACTERS = 1000
if __name__ == "__main__":
    for values, seconds in json.loads(sys.argv[1]):
        for killed in (True, False):
            child = os.fork()
            if not child:
                create_tfrecords(Settings(**values), log=lambda line: None)
                os._exit(0)
            if killed:
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            print(killed and os.WIFSIGNALED(status), os.path.isdir(values["output_dir"] + "/.t.partial"))
"""


def run_and_kill(runs: list[tuple[Settings, float]]) -> list[str]:
    """Runs each, kills it after its seconds, and runs it again to the end; returns the result of each run."""
    described = json.dumps([(asdict(settings), seconds) for settings, seconds in runs])
    return run_script(RUN_AND_KILL, described)


def run_script(script: str, *arguments: str) -> list[str]:
    """Runs a script with all that it starts, which end with it; returns the lines that it prints."""
    command = [sys.executable, "-c", script, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, start_new_session=True, **pipes) as running:
        try:
            printed, complaints = running.communicate(timeout=1200)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, complaints[-2000:]
    return printed.splitlines()


def check_killed_runs(tmp_path: Path, encoder_path: str, moments: int, processes: int) -> None:
    write_lines(tmp_path / "texts", random_texts(600), files=7)
    settings = settings_for(
        tmp_path, encoder_path, files_per=30, processes=processes, deduplicate=True, eval_fraction=0.2
    )
    started = time.monotonic()
    create_tfrecords(replace(settings, output_dir=f"{tmp_path}/unbroken"))
    seconds = time.monotonic() - started
    expected = contents(tmp_path / "unbroken")
    assert len(expected) > 8
    draw = random.Random(3)
    delays = [draw.uniform(0, seconds) for _ in range(moments)]
    runs = [(replace(settings, output_dir=f"{tmp_path}/out{n}"), delay) for n, delay in enumerate(delays)]
    outcomes = run_and_kill(runs)
    assert outcomes[1::2] == ["False False"] * moments
    assert any(outcome.startswith("True") for outcome in outcomes[::2])
    for run, _ in runs:
        assert contents(Path(run.output_dir)) == expected


def test_a_run_killed_three_times_gives_the_files_of_an_uninterrupted_one(tmp_path, encoder_path):
    check_killed_runs(tmp_path, encoder_path, moments=3, processes=1)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_any_moment_gives_the_files_of_an_uninterrupted_one(tmp_path, encoder_path, processes):
    check_killed_runs(tmp_path, encoder_path, moments=20, processes=processes)


KILL_AT_STEPS = """
import json, os, shutil, signal, sys
import data.preprocessing.pipeline  # with TensorFlow: once, not in every child
from data.preprocessing.pipeline import create_tfrecords
from data.preprocessing.settings import Settings
from meshtf import tf

values, begun, steps, made = json.loads(sys.argv[1]), *sys.argv[2:]
n_steps, pipe = 0, os.pipe()


def run(settings, last_step):
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    for module, names in ((tf.io.gfile, ("rename", "remove", "rmtree")), (os, ("replace", "remove"))):
        for name in names:
            setattr(module, name, stopping(last_step, getattr(module, name)))
    create_tfrecords(settings, log=lambda line: None)
    os.write(pipe[1], b"%6d" % n_steps)
    os._exit(0)


def stopping(last_step, change):
    def changed(*arguments, **named):
        global n_steps
        if n_steps == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
        n_steps += 1
        return change(*arguments, **named)

    return changed


shutil.copytree(begun, made)
run(Settings(**values, output_dir=made), -1)
count = int(os.read(pipe[0], 6))
for back in range(1, count + 1)[slice(None, None, 3 if steps == "some" else 1)]:
    output = f"{made}{back}"
    shutil.copytree(begun, output)
    print(run(Settings(**values, output_dir=output), count - back), run(Settings(**values, output_dir=output), -1))
"""


@pytest.mark.parametrize("steps", ["some", pytest.param("all", marks=[pytest.mark.slow, pytest.mark.processes])])
def test_nothing_is_lost_when_killed_at_any_rename(tmp_path, encoder_path, steps):
    write_lines(tmp_path / "texts", random_texts(60), files=3)
    begun, made = tmp_path / "begun", tmp_path / "made"
    settings = settings_for(tmp_path, encoder_path, files_per=100, overwrite=True, eval_fraction=0.3)
    create_tfrecords(replace(settings, output_dir=str(begun), eval_fraction=0.0, files_per=30))  # is overwritten
    values = asdict(settings)
    del values["output_dir"]
    outcomes = run_script(KILL_AT_STEPS, json.dumps(values), str(begun), steps, str(made))
    assert set(outcomes) == {"True False"}
    expected = contents(made)
    assert set(expected) != set(contents(begun))
    outputs = list(tmp_path.glob("made*"))
    assert len(outputs) == 1 + len(outcomes) > (8 if steps == "some" else 20)
    for output in outputs:
        assert contents(output) == expected
        assert not any(path.is_dir() for path in output.iterdir())


def test_two_processes_do_not_write_the_same_files(tmp_path, encoder_path, monkeypatch):
    write_lines(tmp_path / "texts", ["token"], files=1)
    settings = settings_for(tmp_path, encoder_path)

    def documents(*file: object) -> Iterator[Document]:
        with pytest.raises(UserError) as error:
            create_tfrecords(settings)
        assert str(error.value) == (
            f"{tmp_path}/out/.t.partial: another process works there; wait for it, or choose another --name"
        )
        yield Document("a", "token")

    monkeypatch.setattr(data.preprocessing.splits, "read_documents", documents)
    assert create_tfrecords(settings).stats.documents_kept == 1


def documents_of(paths: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    ids = [int(token) for path in paths for example in read_examples(path) for token in example]
    return [text.replace("<|padding|>", "") for text in tokenizer.decode(ids).split("<|endoftext|>")][:-1]


def test_a_fraction_of_the_texts_is_held_out_whatever_file_they_are_in(tmp_path, tokenizer, encoder_path):
    texts = [f"token {n}" for n in range(300)]
    write_lines(tmp_path / "texts", texts, files=3)
    config = str(tmp_path / "mine.json")
    settings = settings_for(tmp_path, encoder_path, eval_fraction=0.25, write_dataset_config=config)
    report = create_tfrecords(settings)
    held_out = documents_of(report.eval_tfrecords, tokenizer)
    kept = documents_of(report.tfrecords, tokenizer)
    assert len(held_out) == pytest.approx(75, abs=25)
    assert sorted(held_out + kept) == sorted(texts)
    assert held_out == [text for text in texts if digest_fraction(fingerprint(text)) < 0.25]
    assert (report.stats.documents_kept, report.eval_stats.documents_kept) == (len(kept), len(held_out))
    assert f"held out: documents: {len(held_out)} read = {len(held_out)} kept" in describe(report)
    dataset = json.loads(Path(config).read_text())
    for key, paths in (("path", report.tfrecords), ("eval_path", report.eval_tfrecords)):
        assert [shard.path for shard in list_shards(dataset[key])] == list(paths)
    write_lines(tmp_path / "others", texts[::-1], files=1)
    others = replace(settings, input_dir=f"{tmp_path}/others", output_dir=f"{tmp_path}/o", write_dataset_config=None)
    assert sorted(documents_of(create_tfrecords(others).eval_tfrecords, tokenizer)) == sorted(held_out)


def test_without_a_held_out_document_the_report_says_so_and_the_config_names_none(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token", "stream"], files=1)
    config = tmp_path / "mine.json"
    settings = settings_for(tmp_path, encoder_path, eval_fraction=1e-9, write_dataset_config=str(config))
    report = create_tfrecords(settings)
    assert (report.stats.documents_kept, report.eval_tfrecords) == (2, ())
    assert "held out: tfrecords: none" in describe(report).splitlines()
    assert json.loads(config.read_text())["eval_path"] == ""


def test_a_full_disk_is_an_error_after_which_the_run_resumes(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", random_texts(300), files=1)
    settings = settings_for(tmp_path, encoder_path, files_per=30)
    script = (
        "import resource, signal\n"
        "import data.preprocessing.shard_writer\n"
        "from data.preprocessing.pipeline import create_tfrecords\n"
        "from data.preprocessing.settings import Settings\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "append = data.preprocessing.shard_writer.ShardWriter._write_example\n"
        "def fill_up(writer, example):\n"
        "    append(writer, example)\n"
        "    if writer._n_written == 100:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "data.preprocessing.shard_writer.ShardWriter._write_example = fill_up\n"
        f"create_tfrecords({settings!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert message.startswith(f"configs.errors.UserError: {tmp_path}/out/.t.partial: cannot be written: ")
    logged = []
    create_tfrecords(settings, log=logged.append)
    assert logged == ["resuming after 3 finished file(s) of an interrupted run"]
    create_tfrecords(replace(settings, output_dir=f"{tmp_path}/unbroken"))
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("kept_bytes", [None, 0, 100], ids=["whole", "empty manifest", "cut manifest"])
def test_replacing_a_dataset_removes_its_old_held_out_files(tmp_path, encoder_path, kept_bytes):
    write_lines(tmp_path / "texts", random_texts(100), files=1)
    manifest = Path(create_tfrecords(settings_for(tmp_path, encoder_path, eval_fraction=0.3)).manifest)
    manifest.write_bytes(manifest.read_bytes()[:kept_bytes])
    create_tfrecords(settings_for(tmp_path, encoder_path, name="t_eval_more"))
    others = {name for name in contents(tmp_path / "out") if name.startswith("t_eval_more")}
    report = create_tfrecords(settings_for(tmp_path, encoder_path, overwrite=True))
    own = {os.path.basename(path) for path in (*report.tfrecords, report.manifest)}
    assert set(contents(tmp_path / "out")) == own | others


def test_duplicates_are_left_out_if_asked(tmp_path, tokenizer, encoder_path):
    write_lines(tmp_path / "texts", ["token", "stream", "token", "token ", "", "", "stream"], files=3)
    report = create_tfrecords(settings_for(tmp_path, encoder_path, deduplicate=True))
    assert documents_of(report.tfrecords, tokenizer) == ["token", "stream", "token "]
    assert "= 3 kept + 4 discarded (0 undecodable, 1 empty, 0 too short, 3 duplicate)" in describe(report)
    report = create_tfrecords(settings_for(tmp_path, encoder_path, overwrite=True))
    assert documents_of(report.tfrecords, tokenizer) == ["token", "stream", "token", "token ", "stream"]


def test_a_pipe_holds_text(tmp_path, tokenizer, encoder_path):
    text = "".join(f"stream {n} of token\n" for n in range(50))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_text, args=(text,))
    writing.start()
    report = create_tfrecords(replace(settings_for(tmp_path, encoder_path, eval_fraction=0.2), input_dir=str(pipe)))
    writing.join()
    (trained_on,), (held_out,) = (documents_of(paths, tokenizer) for paths in (report.tfrecords, report.eval_tfrecords))
    assert trained_on + held_out == text
    assert report.notes[0] == "read as plain text: 1 pipe"


def test_a_tokenizers_own_end_of_text_ends_documents_and_separates_them(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 2}, []))
    backend.add_special_tokens(["<pad>", "</s>"])
    backend.save(f"{tmp_path}/t.json")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("ab</s>c</s>\nba")
    config = f"{tmp_path}/t.config.json"
    settings = {"document_separator": "eos", "write_dataset_config": config}
    report = create_tfrecords(settings_for(tmp_path, f"{tmp_path}/t.json", **settings))
    assert all_ids(report) == [0, 1, 4, 2, 4, 1, 0, 4, 3, 3]
    values = json.loads(Path(config).read_text())
    assert (values["eos_id"], values["padding_id"]) == (4, 3)


@pytest.mark.parametrize("most", [1, 4, 5, 8, 100])
def test_no_more_documents_are_read_than_asked_for(tmp_path, tokenizer, encoder_path, most):
    texts = ["token", "stream", "a", "b", "example", "c", "d", "of"]
    write_lines(tmp_path / "texts", texts, files=2)
    report = create_tfrecords(settings_for(tmp_path, encoder_path, max_documents=most))
    assert documents_of(report.tfrecords, tokenizer) == texts[:most]


def test_texts_may_stand_under_another_key(tmp_path, tokenizer, encoder_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "no", "content": "token"}\n{"text": "no"}')
    report = create_tfrecords(settings_for(tmp_path, encoder_path, text_key="content"))
    assert documents_of(report.tfrecords, tokenizer) == ["token"]
    assert report.stats.problems == ["a.jsonl:2: no text under the key 'content'; text_key can name 'text'"]


@pytest.mark.parametrize("flags", [{}, {"wikitext_detokenize": True}])
def test_a_long_text_is_shared_among_processes_and_stays_one_document(
    tmp_path, tokenizer, encoder_path, monkeypatch, flags
):
    monkeypatch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(data.preprocessing.splits, "MAX_TEXT_BYTES", 5000)
    monkeypatch.setattr(data.text.documents, "_PART_BYTES", 1501)
    text = "token stream schöne\nWelt " * 1000
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text(text)
    (tmp_path / "texts" / "c.txt").write_text("short")
    report = create_tfrecords(settings_for(tmp_path, encoder_path, processes=2, deduplicate=True, **flags))
    kept = [*tokenizer.encode(text), 0, *tokenizer.encode("short"), 0]
    assert all_ids(report) == kept + [1] * (-len(kept) % 10)
    assert (report.stats.documents_kept, report.stats.discarded_duplicate) == (2, 1)
    assert report.stats.text_bytes == len(text.encode()) + 5


def test_the_manifest_says_what_the_files_hold(tmp_path, tokenizer, encoder_path):
    source = write_lines(tmp_path / "texts", random_texts(100), files=3)
    report = create_tfrecords(settings_for(tmp_path, encoder_path, files_per=50, eval_fraction=0.2))
    manifest = read_manifest(report.manifest)
    assert (manifest.name, manifest.example_tokens) == ("t", 10)
    assert manifest.tokenizer["sha256"] == hashlib.sha256(Path(encoder_path).read_bytes()).hexdigest()
    assert manifest.input == {"files": 3, "bytes": sum(path.stat().st_size for path in Path(source).iterdir())}
    assert (manifest.settings["eval_fraction"], manifest.settings["separator"]) == (0.2, 0)
    assert {"processes", "overwrite", "output_dir"}.isdisjoint(manifest.settings)
    for part, paths in (("train", report.tfrecords), ("eval", report.eval_tfrecords)):
        entries = manifest.splits[part].files
        assert [f"{tmp_path}/out/{entry.name}" for entry in entries] == list(paths)
        for entry, path in zip(entries, paths, strict=True):
            examples = list(read_examples(path))
            content = Path(path).read_bytes()
            assert (entry.examples, entry.tokens) == (len(examples), 10 * len(examples))
            assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
            assert entry.documents == sum(int((example == 0).sum()) for example in examples)
        assert sum(entry.documents for entry in entries) == manifest.splits[part].stats.documents_kept


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_documents": 0}, "--max_documents 0: is too small; give 1 or more, or leave it out"),
        ({"eval_fraction": 1.0}, "--eval_fraction 1.0: is not a fraction; give 0 or more, and less than 1"),
        ({"eval_fraction": -0.1}, "--eval_fraction -0.1: is not a fraction; give 0 or more, and less than 1"),
        ({"eval_fraction": float("nan")}, "--eval_fraction nan: is not a fraction; give 0 or more, and less than 1"),
    ],
)
def test_impossible_fractions_and_counts_are_errors(tmp_path, encoder_path, values, message):
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, encoder_path, **values))
    assert str(error.value) == message


def test_an_output_dir_that_is_a_file_is_an_error_before_anything_is_read(tmp_path, encoder_path, monkeypatch):
    write_lines(tmp_path / "texts", ["token"], files=1)
    (tmp_path / "out").touch()
    monkeypatch.setattr(data.preprocessing.splits, "read_documents", lambda *file: pytest.fail("read"))
    with pytest.raises(UserError, match=f"{tmp_path}/out/.t.lock: cannot be written: "):
        create_tfrecords(settings_for(tmp_path, encoder_path))


def test_a_dataset_config_finds_the_files_below_a_folder_with_glob_characters(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token"], files=1)
    config = tmp_path / "mine.json"
    report = create_tfrecords(
        settings_for(
            tmp_path, encoder_path, name="a*", output_dir=f"{tmp_path}/a[b]?", write_dataset_config=str(config)
        )
    )
    assert [shard.path for shard in list_shards(json.loads(config.read_text())["path"])] == list(report.tfrecords)
    assert sorted(path.name for path in tmp_path.glob("mine*")) == ["mine.json"]


def test_text_that_cannot_be_read_gives_the_reason(tmp_path, encoder_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"1 discarded \(1 undecodable, .*\); bad.txt: not UTF-8 at byte 3$"):
        create_tfrecords(settings_for(tmp_path, encoder_path))


STORIES = "Once\n<|endoftext|>\nTwice\n<|endoftext|>\n"


@pytest.mark.parametrize(("separator", "marker"), [("eos", "<|endoftext|>"), (True, "<|endoftext|>"), ("###", "###")])
def test_a_text_may_be_many_documents(tmp_path, tokenizer, encoder_path, separator, marker):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(STORIES.replace("<|endoftext|>", marker))
    report = create_tfrecords(settings_for(tmp_path, encoder_path, document_separator=separator))
    assert documents_of(report.tfrecords, tokenizer) == ["Once", "Twice"]


def test_special_tokens_that_a_text_spells_count_when_asked(tmp_path, tokenizer, encoder_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(STORIES)
    plain = create_tfrecords(settings_for(tmp_path, encoder_path, name="p"))
    report = create_tfrecords(settings_for(tmp_path, encoder_path, special_tokens=True))
    ids = tokenizer.reading_special_tokens.encode(STORIES)
    assert ids.count(tokenizer.eos_id) == 2
    assert all_ids(report)[: len(ids)] == ids
    assert (all_ids(plain).count(tokenizer.eos_id), report.notes) == (1, ())


def test_a_special_token_that_a_text_spells_is_counted(tmp_path, encoder_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(STORIES)
    report = create_tfrecords(settings_for(tmp_path, encoder_path))
    (note,) = report.notes
    assert note == (
        "texts spell special tokens, read as plain characters: <|endoftext|> 2 times; "
        "special_tokens makes them count, document_separator separates documents at one"
    )
    assert f"note: {note}" in describe(report).splitlines()
    parted = create_tfrecords(settings_for(tmp_path, encoder_path, name="p", document_separator="eos"))
    assert parted.notes == ()
    absent = create_tfrecords(settings_for(tmp_path, encoder_path, name="q", document_separator="###"))
    assert absent.notes[1] == "document_separator = '###': does not occur in the texts"


def test_the_end_of_one_text_is_held_out(tmp_path, tokenizer, encoder_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("".join(f"token {n}\n" for n in range(100)))
    report = create_tfrecords(settings_for(tmp_path, encoder_path, eval_fraction=0.1, processes=2))
    texts = documents_of((*report.tfrecords, *report.eval_tfrecords), tokenizer)
    assert texts == ["".join(f"token {n}\n" for n in numbers) for numbers in (range(91), range(91, 100))]
    assert report.notes == ("the text is one document: its end, 0.1 of it, is held out",)


def test_what_is_passed_over_in_folders_and_archives_is_reported(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token"], files=1)
    (tmp_path / "texts" / "a.pdf").touch()
    with zipfile.ZipFile(tmp_path / "texts" / "a.zip", "w") as archive:
        archive.writestr("__MACOSX/._a.txt", b"\0")
        archive.writestr("a.txt", "stream")
    report = create_tfrecords(settings_for(tmp_path, encoder_path))
    assert report.stats.documents_kept == 2
    assert [note.partition(";")[0] for note in report.notes] == ["passed over: 1 .pdf", "passed over: 1 hidden"]


def test_flags_of_reading(tmp_path):
    arguments = ["--input_dir", "in", "--on_bad_file", "skip", "--document_separator"]
    settings = parse_arguments(arguments)
    assert (settings.on_bad_file, settings.document_separator) == ("skip", "eos")
    assert parse_arguments([*arguments, "###"]).document_separator == "###"
