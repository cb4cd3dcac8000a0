"""Tests of data/create_tfrecords.py."""

from __future__ import annotations

import glob
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data.chunking
import data.create_tfrecords
from configs.errors import DataError
from configs.load import load_config
from data.create_tfrecords import Report, Settings, create_tfrecords, describe, main, parse_arguments, to_json
from data.shards import list_shards
from data.tfrecords import read_examples
from data.tokenizer import Tokenizer, load_tokenizer
from data.train_tokenizer import FILE_NAME, save_tokenizer, train_byte_level_bpe

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
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_no_token_is_lost_with_any_number_of_processes(tmp_path, tokenizer, encoder_path, monkeypatch):
    texts = random_texts(1000)
    source = write_lines(tmp_path / "texts", texts, files=12)  # 12: part10 comes after part9
    monkeypatch.setattr(data.chunking, "BATCH_CHARACTERS", 3000)  # many batches, so that every process has some
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
    account = report.account
    assert (account.documents_read, account.documents_kept) == (1000, sum(map(bool, texts)))
    assert account.discarded_empty == texts.count("")
    assert account.text_bytes == sum(len(text.encode()) for text in texts)
    assert account.text_tokens + account.separator_tokens == len(expected)
    assert account.padding_tokens == padding
    assert account.examples * 17 == len(expected) + padding
    names = [os.path.basename(path) for path in report.tfrecords]
    assert names[:2] == ["t_0_0_1000.tfrecords", "t_1_0_1000.tfrecords"]
    assert names[-1] == f"t_{len(names) - 1}_0_{account.examples - 1000 * (len(names) - 1)}.tfrecords"
    assert set(written[0]) == set(names)


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
    account = report.account
    total = account.examples * 10
    assert lines[2] == (
        f"tokens: {account.text_tokens} of text + 1 separators + {account.padding_tokens} of padding at the very end = "
        f"{total} = {account.examples} examples of 10"
    )
    assert account.text_tokens + 1 + account.padding_tokens == total
    assert lines[-1] == "discarded bad.txt: not UTF-8 at byte 3"
    assert "short" not in load_tokenizer(encoder_path).decode(all_ids(report))
    parsed = json.loads(to_json(report))
    assert (parsed["documents_read"], parsed["discarded_short"], parsed["text_tokens"]) == (4, 1, account.text_tokens)
    assert parsed["tfrecords"] == list(report.tfrecords)


def test_cleaning_and_separator_are_what_their_flags_say(tmp_path, tokenizer, encoder_path):
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


def test_files_that_are_there_are_kept_unless_asked_otherwise(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token stream"] * 30, files=1)
    create_tfrecords(settings_for(tmp_path, encoder_path, files_per=1))
    before = contents(tmp_path / "out")
    assert len(before) > 3
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, encoder_path))
    assert str(error.value) == (
        f"{tmp_path}/out/t_0_0_1.tfrecords: already there -- choose another --name or --output_dir, or give "
        f"--overwrite to replace {len(before)} file(s)"
    )
    assert contents(tmp_path / "out") == before
    report = create_tfrecords(settings_for(tmp_path, encoder_path, overwrite=True))
    assert [f"{tmp_path}/out/{name}" for name in contents(tmp_path / "out")] == list(report.tfrecords)


def test_without_text_nothing_is_overwritten(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token stream"], files=1)
    create_tfrecords(settings_for(tmp_path, encoder_path))
    before = contents(tmp_path / "out")
    write_lines(tmp_path / "empty", ["", ""], files=1)
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, encoder_path, input_dir=f"{tmp_path}/empty", overwrite=True))
    assert str(error.value) == (
        f"{tmp_path}/empty: no text to write -- documents: 2 read = 0 kept + 2 discarded (0 undecodable, 2 empty, "
        "0 too short)"
    )
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunk_size": 0}, "--chunk_size 0 -- is too small -- give 1 or more"),
        ({"files_per": 0}, "--files_per 0 -- is too small -- give 1 or more"),
        ({"processes": -1}, "--processes -1 -- is too small -- give 0 or more"),
        ({"name": ""}, "--name '' -- is no beginning of a file name -- give one that has no slash"),
        ({"name": "a/b"}, "--name 'a/b' -- is no beginning of a file name -- give one that has no slash"),
        (
            {"separator": 1, "write_dataset_config": "{tmp}/mine.json"},
            "--separator 1 -- the tokenizer's <|endoftext|> is 0, and no dataset config may say otherwise -- leave out "
            "--separator, or --write_dataset_config",
        ),
        (
            {"write_dataset_config": "{tmp}/texts/part0.jsonl/mine.json"},
            "{tmp}/texts/part0.jsonl/mine.json: cannot be written (File exists) -- choose another place, or make room "
            "there",
        ),
        ({"separator": 290}, "--separator 290 -- the tokenizer has 290 ids -- give a smaller one"),
        (
            {"input_dir": "{tmp}/none"},
            "{tmp}/none: no file found -- name a directory, a glob or a file that has text",
        ),
        (
            {"encoder_path": "{tmp}/none.json"},
            "{tmp}/none.json: no such tokenizer -- give a tokenizers JSON file (data/train_tokenizer.py makes one), or "
            "a folder with vocab.json and merges.txt",
        ),
    ],
)
def test_each_error_says_what_to_do_and_writes_nothing(tmp_path, encoder_path, values, message):
    write_lines(tmp_path / "texts", ["token"], files=1)
    values = {key: value.format(tmp=tmp_path) if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, encoder_path, **values))
    assert str(error.value) == message.format(tmp=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_an_end_of_text_needs_a_separator(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("")
    write_lines(tmp_path / "texts", ["aba"], files=1)
    with pytest.raises(DataError) as error:
        create_tfrecords(settings_for(tmp_path, str(tmp_path)))
    assert str(error.value) == f"{tmp_path}: has no <|endoftext|> -- give the id between documents by --separator"
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
    assert captured.err == f"{tmp_path}/none: no file found -- name a directory, a glob or a file that has text\n"


def test_a_dataset_config_that_is_there_is_kept(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token"], files=1)
    config = tmp_path / "mine.json"
    config.write_text("{}")
    with pytest.raises(DataError, match=f"{config}: already there -- "):
        create_tfrecords(settings_for(tmp_path, encoder_path, write_dataset_config=str(config)))
    assert config.read_text() == "{}"
    assert not (tmp_path / "out").exists()


def test_a_damaged_input_leaves_what_was_there_as_it_was(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token stream"] * 30, files=1)
    create_tfrecords(settings_for(tmp_path, encoder_path))
    before = contents(tmp_path / "out")
    (tmp_path / "texts" / "z.xz").write_bytes(b"no xz file")
    for values in ({"overwrite": True}, {"name": "other"}):
        with pytest.raises(DataError, match="z.xz: cannot be read "):
            create_tfrecords(settings_for(tmp_path, encoder_path, files_per=1, **values))
        assert contents(tmp_path / "out") == before


def test_a_killed_run_leaves_what_was_there_as_it_was_and_the_next_one_clears_up(tmp_path, encoder_path):
    write_lines(tmp_path / "texts", ["token stream"] * 30, files=1)
    create_tfrecords(settings_for(tmp_path, encoder_path))
    before = contents(tmp_path / "out")
    settings = settings_for(tmp_path, encoder_path, files_per=1, overwrite=True)
    script = (
        "import os, signal\n"
        "import data.chunking, data.create_tfrecords\n"
        "from data.create_tfrecords import Document, Settings\n"
        "data.chunking.BATCH_CHARACTERS = 1\n"
        "def documents(files):\n"
        "    yield from [Document('a', 'token stream')] * 30\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "data.create_tfrecords.read_all_documents = documents\n"
        f"data.create_tfrecords.create_tfrecords({settings!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left_behind = tmp_path / "out" / ".t.partial"
    assert len(list(left_behind.iterdir())) > 3
    left_behind.rename(tmp_path / "aside")
    assert contents(tmp_path / "out") == before
    (tmp_path / "aside").rename(left_behind)
    report = create_tfrecords(settings)
    assert {f"{tmp_path}/out/{name}" for name in contents(tmp_path / "out")} == set(report.tfrecords)


def test_an_output_dir_that_is_a_file_is_told_before_anything_is_read(tmp_path, encoder_path, monkeypatch):
    write_lines(tmp_path / "texts", ["token"], files=1)
    (tmp_path / "out").touch()
    monkeypatch.setattr(data.create_tfrecords, "read_all_documents", lambda files: pytest.fail("read"))
    with pytest.raises(DataError, match=f"{tmp_path}/out: cannot be written "):
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
