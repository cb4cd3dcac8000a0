"""Tests of data/preprocessing/prepare.py."""

from __future__ import annotations

import glob
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import zipfile
from pathlib import Path

import pytest

import data.preprocessing.splits
from configs.errors import ConfigError, DataError, UserError
from configs.schema import DatasetConfig
from data.preprocessing.prepare import NOT_THE_STDLIB, PreparedDataset, prepare_dataset
from data.text.files import find_files
from data.tfrecord.records import read_examples
from data.tfrecord.shards import list_shards
from data.tokenization.bpe_training import FILE_NAME, save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[3]
N_CTX = 16


def write_documents(folder: Path, number: int = 60) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    documents = {f"{n}.py": f"def function{n}(x):\n    return x + {n * 37}  # schön\n" * 3 for n in range(number)}
    for name, text in documents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return documents


def dataset_of(tmp_path: Path, **values: object) -> DatasetConfig:
    defaults = {"id": "mine", "n_vocab": 300, "text": (f"{tmp_path}/texts",), "eos_id": 0, "padding_id": 1}
    return DatasetConfig(**(defaults | {"cache_dir": f"{tmp_path}/cache", "eval_fraction": 0.2} | values))


def prepare(dataset: DatasetConfig, n_ctx: int = N_CTX) -> tuple[PreparedDataset, list[str]]:
    lines: list[str] = []
    return prepare_dataset(dataset, n_ctx, lines.append), lines


def texts_of(pattern: str, prepared: PreparedDataset) -> list[str]:
    """Joins the examples of the held-out part again, and cuts them at the ends of documents."""
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    ids = [int(token) for path in sorted(glob.glob(pattern)) for example in read_examples(path) for token in example]
    return tokenizer.decode([token for token in ids if token != 1]).split("<|endoftext|>")[:-1]


def examples_of(pattern: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, example)) for path in sorted(glob.glob(pattern)) for example in read_examples(path)]


def manifest_of(prepared: PreparedDataset) -> dict:
    return json.loads((Path(prepared.tokenizer_path).parent / "manifest.json").read_text())


def test_raw_text_becomes_a_tokenizer_and_two_splits_without_loss(tmp_path):
    documents = write_documents(tmp_path / "texts")
    prepared, lines = prepare(dataset_of(tmp_path))
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    assert tokenizer.n_vocab == 300
    held_out = texts_of(prepared.eval_pattern, prepared)
    assert 3 <= len(held_out) <= 25
    trained_on = [text for text in documents.values() if text not in held_out]
    assert len(trained_on) + len(held_out) == 60

    stream = [token for text in trained_on for token in [*tokenizer.encode(text), 0]]
    stream += [1] * (-len(stream) % (N_CTX + 1))
    cut = [tuple(stream[start : start + N_CTX + 1]) for start in range(0, len(stream), N_CTX + 1)]
    assert sorted(examples_of(prepared.train_pattern)) == sorted(cut)
    assert examples_of(prepared.train_pattern) != cut

    manifest = manifest_of(prepared)
    assert manifest["train"]["documents_kept"] == len(trained_on)
    assert manifest["train"]["text_bytes"] == sum(len(text.encode()) for text in trained_on)
    assert manifest["eval"]["documents_kept"] == len(held_out)
    assert manifest["eval"]["text_tokens"] == sum(len(tokenizer.encode(text)) for text in held_out)
    assert lines[0].startswith("mine: preparing 60 files of raw text in ")
    assert lines[1] == "mine: trained a byte-level BPE tokenizer of 300 ids"
    assert lines[2].startswith(f"mine: train: {len(trained_on)} documents, ")
    assert len(glob.glob(prepared.train_pattern)) == len(glob.glob(prepared.eval_pattern)) == 1


def test_the_tokenizer_never_sees_what_is_held_out(tmp_path):
    documents = write_documents(tmp_path / "texts")
    held_out = texts_of((first := prepare(dataset_of(tmp_path))[0]).eval_pattern, first)
    for name, text in documents.items():
        if text in held_out:
            (tmp_path / "texts" / name).write_text("zqzqzqzq " * 50)
    prepared, _ = prepare(dataset_of(tmp_path))
    assert set(texts_of(prepared.eval_pattern, prepared)) == {"zqzqzqzq " * 50}
    vocabulary = json.loads(Path(prepared.tokenizer_path).read_text())["model"]["vocab"]
    assert not [token for token in vocabulary if "zq" in token]


def test_the_splits_do_not_change_when_a_document_is_added(tmp_path):
    write_documents(tmp_path / "texts")
    before, _ = prepare(dataset_of(tmp_path))
    (tmp_path / "texts" / "new.py").write_text("new = 1\n")
    after, _ = prepare(dataset_of(tmp_path))
    old, new = set(texts_of(before.eval_pattern, before)), set(texts_of(after.eval_pattern, after))
    assert new - old <= {"new = 1\n"}
    assert old <= new


def test_a_cache_is_up_to_date_until_text_or_settings_change(tmp_path):
    write_documents(tmp_path / "texts")
    first, _ = prepare(dataset_of(tmp_path))
    again, lines = prepare(dataset_of(tmp_path))
    assert again == first
    assert lines == [f"mine: {os.path.dirname(first.tokenizer_path)} is up to date"]
    for changed, n_ctx in [({"n_vocab": 290}, N_CTX), ({"eval_fraction": 0.5}, N_CTX), ({}, 8)]:
        other, lines = prepare(dataset_of(tmp_path, **changed), n_ctx)
        assert other != first
        assert lines[0].startswith("mine: preparing ")
    (tmp_path / "texts" / "7.py").write_text("changed = True\n")
    other, lines = prepare(dataset_of(tmp_path))
    assert other != first
    assert lines[0].startswith("mine: preparing 60 files")


def test_the_same_text_elsewhere_gives_the_same_files(tmp_path):
    prepared = []
    for place in ("a", "b"):
        write_documents(tmp_path / place)
        dataset = dataset_of(tmp_path, text=(f"{tmp_path}/{place}",), cache_dir=f"{tmp_path}/cache_{place}")
        prepared.append(prepare(dataset)[0])
    for part in ("train_pattern", "eval_pattern", "tokenizer_path"):
        a, b = ([Path(path).read_bytes() for path in sorted(glob.glob(getattr(p, part)))] for p in prepared)
        assert a == b != []


def test_a_killed_preparation_is_not_taken_for_a_finished_one(tmp_path):
    write_documents(tmp_path / "texts")
    script = (
        "import os, signal, sys\n"
        "from configs.schema import DatasetConfig\n"
        "from data.preprocessing.prepare import prepare_dataset\n"
        "def report(line):\n"
        "    if ': train: ' in line:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "text, cache = sys.argv[1:]\n"
        "dataset = DatasetConfig(id='mine', n_vocab=300, text=(text,), eos_id=0, padding_id=1, cache_dir=cache,\n"
        "                        eval_fraction=0.2)\n"
        f"prepare_dataset(dataset, {N_CTX}, report)\n"
    )
    command = [sys.executable, "-c", script, f"{tmp_path}/texts", f"{tmp_path}/cache"]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL
    (left,) = (name for name in os.listdir(tmp_path / "cache") if name != ".lock")
    assert left.endswith(".partial")
    prepared, lines = prepare(dataset_of(tmp_path))
    assert lines[0].startswith("mine: preparing ")
    assert f"{os.path.basename(os.path.dirname(prepared.tokenizer_path))}.partial" == left
    assert left not in os.listdir(tmp_path / "cache")
    assert prepare(dataset_of(tmp_path))[1] == [f"mine: {os.path.dirname(prepared.tokenizer_path)} is up to date"]


def test_two_processes_at_once_prepare_the_text_once(tmp_path):
    write_documents(tmp_path / "texts")
    results: list[tuple[PreparedDataset, list[str]]] = []
    threads = [threading.Thread(target=lambda: results.append(prepare(dataset_of(tmp_path)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0][0] == results[1][0] == results[2][0]
    lines = [line for _, reported in results for line in reported]
    assert sum(": preparing " in line for line in lines) == 1
    assert len(os.listdir(tmp_path / "cache")) == 2


def test_a_tokenizer_that_is_named_is_used(tmp_path):
    write_documents(tmp_path / "texts")
    path = str(tmp_path / FILE_NAME)
    save_tokenizer(train_byte_level_bpe(["other text"] * 3, 265), path)
    prepared, lines = prepare(dataset_of(tmp_path, tokenizer_path=path, n_vocab=265))
    assert prepared.tokenizer_path == path
    assert not [line for line in lines if "trained" in line]
    assert sorted(set(sum(examples_of(prepared.train_pattern), ())))[-1] < 265
    save_tokenizer(train_byte_level_bpe(["yet another text"] * 3, 265), path)
    assert prepare(dataset_of(tmp_path, tokenizer_path=path, n_vocab=265))[1][0].startswith("mine: preparing ")


def test_special_ids_that_disagree_with_the_tokenizer_are_refused(tmp_path):
    write_documents(tmp_path / "texts")
    with pytest.raises(ConfigError) as error:
        prepare(dataset_of(tmp_path, eos_id=1, padding_id=0))
    assert str(error.value).splitlines() == [
        "mine: eos_id = 1: the tokenizer's <|endoftext|> is 0; set eos_id to 0",
        "mine: padding_id = 0: the tokenizer's <|padding|> is 1; set padding_id to 1",
    ]


def test_a_text_is_parted_at_the_end_of_text_and_what_is_not_read_is_said(tmp_path):
    documents = write_documents(tmp_path / "texts")
    for name in documents:
        (tmp_path / "texts" / name).unlink()
    (tmp_path / "texts" / "all.txt").write_text("<|endoftext|>\n".join(documents.values()), encoding="utf-8")
    (tmp_path / "texts" / "a.pdf").touch()
    (tmp_path / "texts" / "lost.txt").symlink_to("none")
    prepared, lines = prepare(dataset_of(tmp_path, document_separator=True, on_bad_file="skip"))
    held_out, manifest = texts_of(prepared.eval_pattern, prepared), manifest_of(prepared)
    assert set(held_out) < {text.strip("\n") for text in documents.values()}
    assert manifest["train"]["documents_kept"] + len(held_out) == 60
    assert lines[:2] == [
        "mine: passed over: 1 .pdf; a glob reads files of any suffix",
        "mine: left out 1 file(s) that cannot be read: lost.txt (a link to nothing)",
    ]
    assert not [line for line in lines if "special tokens" in line]
    with pytest.raises(DataError, match="lost.txt: cannot be read .a link to nothing.; "):
        prepare(dataset_of(tmp_path, document_separator=True))
    _, lines = prepare(dataset_of(tmp_path, on_bad_file="skip"))
    assert [line for line in lines if "texts spell special tokens, read as plain characters: <|endoftext|> 59" in line]


def test_undecodable_documents_are_reported(tmp_path):
    write_documents(tmp_path / "texts")
    (tmp_path / "texts" / "bad.py").write_bytes(b"caf\xe9")
    prepared, lines = prepare(dataset_of(tmp_path))
    assert "mine: left out bad.py: not UTF-8 at byte 3" in lines
    manifest = manifest_of(prepared)
    assert manifest["train"]["discarded_undecodable"] + manifest["eval"]["discarded_undecodable"] == 1


MORE = "add documents, change eval_fraction, or set eval_fraction to 0 to hold out nothing"


def test_at_least_one_document_is_held_out_of_two(tmp_path):
    write_documents(tmp_path / "texts", number=2)
    prepared, _ = prepare(dataset_of(tmp_path, eval_fraction=1e-9))
    assert len(texts_of(prepared.eval_pattern, prepared)) == 1


@pytest.mark.parametrize("name", ["input.txt", "input.txt.gz", "input.json", "input.zip"])
@pytest.mark.parametrize("max_bytes", [100, 1 << 26])
def test_the_end_of_one_document_is_held_out(tmp_path, monkeypatch, name, max_bytes):
    monkeypatch.setattr(data.preprocessing.splits, "MAX_TEXT_BYTES", max_bytes)
    text = "".join(f"line {n} of a schöner text\n" for n in range(100))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "empty.md").touch()
    with zipfile.ZipFile(tmp_path / "zipped", "w") as archive:
        archive.writestr("a.txt", text)
    written = {".txt": text.encode(), ".gz": gzip.compress(text.encode()), ".json": json.dumps([text]).encode()}
    content = written.get(Path(name).suffix) or (tmp_path / "zipped").read_bytes()
    (tmp_path / "texts" / name).write_bytes(content)
    prepared, lines = prepare(dataset_of(tmp_path, text=(f"{tmp_path}/texts",)))
    (held_out,), manifest = texts_of(prepared.eval_pattern, prepared), manifest_of(prepared)
    assert text.endswith(held_out) and held_out.startswith("line 8")
    assert manifest["eval"]["text_bytes"] == len(held_out.encode())
    assert manifest["train"]["text_bytes"] == len(text.removesuffix(held_out).encode())
    assert "mine: the text is one document: its end, 0.2 of it, is held out" in lines
    assert prepare(dataset_of(tmp_path))[1][0].endswith(" is up to date")


def test_one_document_that_is_too_short_cannot_be_split(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path))
    assert str(error.value) == f"mine: no document with text is left for eval; {MORE}"
    write_documents(tmp_path / "texts", number=1)
    (tmp_path / "texts" / "a.txt").unlink()
    prepared, _ = prepare(dataset_of(tmp_path, eval_fraction=0.0))
    assert prepared.eval_pattern is None
    assert len(examples_of(prepared.train_pattern)) > 1


def test_nothing_left_to_train_on_is_an_error(tmp_path):
    write_documents(tmp_path / "texts", number=3)
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path, eval_fraction=0.999999))
    assert str(error.value) == f"mine: no document with text is left for train; {MORE}"


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_documents(tmp_path / "texts")
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        prepare(dataset_of(tmp_path, cache_dir=f"{tmp_path}/file/cache"))
    assert str(error.value) == (
        f"{tmp_path}/file/cache/.lock: cannot be written: Not a directory; make room there, or give another path"
    )


def test_a_cache_in_a_bucket_is_refused(tmp_path):
    write_documents(tmp_path / "texts")
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path, cache_dir="gs://mine/cache"))
    assert str(error.value) == (
        "mine: cache_dir = gs://mine/cache: is not a local folder, which preparing raw text needs; give one, or "
        "write tfrecords into the bucket with data/create_tfrecords.py --output_dir, and name them in path"
    )


def test_tfrecords_are_passed_through():
    dataset = DatasetConfig(
        id="d",
        n_vocab=9,
        path="a/*.tfrecords",
        eval_path="",
        tokenizer_path="gpt2",
        tokenizer_is_pretrained=True,
        cache_dir="",
    )
    assert prepare(dataset) == (PreparedDataset("a/*.tfrecords", None, "gpt2", True), [])


def test_the_python_standard_library_is_ordinary_code_without_packages_and_tests():
    values = json.loads((REPOSITORY / "configs" / "dataset_configs" / "python_stdlib.json").read_text())
    assert values["text"] == "{python_stdlib}"
    files = find_files([sysconfig.get_path("stdlib")], (*values["text_exclude"], *NOT_THE_STDLIB))
    names = {file.relative for file in files}
    assert {"argparse.py", "json/decoder.py", "email/message.py"} <= names
    assert not [name for name in names if {"site-packages", "dist-packages", "test", "tests"} & set(name.split("/"))]
    assert 4e6 < sum(os.path.getsize(file.path) for file in files) < 20e6


def test_text_that_cannot_be_read_gives_the_reason(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path))
    assert str(error.value) == (
        f"mine: the data is 0 document(s) (left out: bad.txt: not UTF-8 at byte 3), and one must be held out; {MORE}"
    )
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path, eval_fraction=0.0))
    assert str(error.value) == (f"mine: no document with text is left for train (bad.txt: not UTF-8 at byte 3); {MORE}")


def test_a_dataset_with_a_slash_in_its_name_is_refused(tmp_path):
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path, id="a/b"))
    assert str(error.value) == ("a/b: cannot begin a file name; name the dataset config without a slash")


def test_a_file_in_the_way_is_named(tmp_path):
    write_documents(tmp_path / "texts")
    directory = Path(prepare(dataset_of(tmp_path))[0].tokenizer_path).parent
    directory.rename(tmp_path / "away")
    Path(f"{directory}.partial").touch()
    with pytest.raises(UserError) as error:
        prepare(dataset_of(tmp_path))
    assert str(error.value) == (
        f"{directory}.partial: cannot be written: File exists; make room there, or give another path"
    )


def test_a_cache_dir_may_have_glob_characters(tmp_path):
    write_documents(tmp_path / "texts")
    prepared, _ = prepare(dataset_of(tmp_path, cache_dir=f"{tmp_path}/a[b]*"))
    assert list_shards(prepared.train_pattern) and list_shards(prepared.eval_pattern)


def test_special_tokens_that_raw_text_spells_count_when_asked(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(5):
        (tmp_path / "texts" / f"{number}.txt").write_text("the <|endoftext|>end" * (number + 1))
    plain, lines = prepare(dataset_of(tmp_path, eval_fraction=0.0))
    read, read_lines = prepare(dataset_of(tmp_path, eval_fraction=0.0, special_tokens=True))
    counts = [
        sum(int((ids == 0).sum()) for shard in list_shards(found.train_pattern) for ids in read_examples(shard.path))
        for found in (plain, read)
    ]
    assert counts == [5, 5 + 15]
    assert ["spell special tokens" in "".join(said) for said in (lines, read_lines)] == [True, False]


def test_text_is_not_prepared_again_for_its_own_tokenizer(tmp_path):
    write_documents(tmp_path / "texts")
    first, _ = prepare(dataset_of(tmp_path))
    save_tokenizer(load_tokenizer(first.tokenizer_path), f"{tmp_path}/run/tokenizer.json")
    again, lines = prepare(dataset_of(tmp_path, tokenizer_path=f"{tmp_path}/run"))
    assert (again.train_pattern, again.eval_pattern) == (first.train_pattern, first.eval_pattern)
    assert "up to date" in lines[-1]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DERIVED = (FILE_NAME, "manifest.json", "train/*", "eval/*")
WAYS = {"is empty": _empty, "in place of": _cut, "is missing": Path.unlink}


def content_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def text_and_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_documents(folder / "texts", number=6)
    prepare(dataset_of(folder))
    return folder


@pytest.fixture
def cached(tmp_path: Path, text_and_cache: Path) -> tuple[DatasetConfig, Path]:
    """A dataset, and the folder of its own cache in which it is prepared."""
    cache = shutil.copytree(text_and_cache / "cache", tmp_path / "cache")
    (directory,) = cache.glob("n_ctx_*")
    return dataset_of(text_and_cache, cache_dir=str(cache)), directory


@pytest.mark.parametrize(
    ("file", "said", "damage"),
    [
        *((file, said, damage) for file in DERIVED for said, damage in WAYS.items()),
        (FILE_NAME, "is damaged", _zeros),
        ("manifest.json", "is damaged", _zeros),
    ],
)
def test_a_damaged_file_of_a_prepared_text_is_made_again(cached, file, said, damage):
    dataset, directory = cached
    before = content_of(directory)
    (damaged,) = directory.glob(file)
    damage(damaged)
    prepared, lines = prepare(dataset)
    assert content_of(directory) == before
    assert sorted(os.listdir(dataset.cache_dir)) == [".lock", directory.name]
    said = "is damaged" if damage is _cut and damaged.suffix == ".json" else said
    assert f"mine: {damaged} " in lines[0] and said in lines[0] and lines[0].endswith(", as after a power loss")
    assert (lines[-1] == "mine: it is the tokenizer of the tfrecords, which stay") == (file == FILE_NAME)
    assert prepare(dataset)[1] == [f"mine: {directory} is up to date"]


def test_a_damaged_tokenizer_is_not_replaced_by_another_one(cached):
    dataset, directory = cached
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"tokenizer_sha256": "of another version"}))
    _empty(directory / FILE_NAME)
    assert "mine: it is not that of the tfrecords" in (lines := prepare(dataset)[1])
    assert [line for line in lines if line.startswith("mine: preparing ")]
    assert json.loads((directory / "manifest.json").read_text()) == manifest


def test_whole_files_of_an_earlier_manifest_are_used(cached):
    dataset, directory = cached
    manifest = json.loads((directory / "manifest.json").read_text())
    earlier = {key: value for key, value in manifest.items() if key not in ("tfrecord_bytes", "tokenizer_sha256")}
    (directory / "manifest.json").write_text(json.dumps(earlier))
    assert prepare(dataset)[1] == [f"mine: {directory} is up to date"]


def test_a_damaged_directory_stays_until_it_is_made_again(cached):
    dataset, directory = cached
    _empty(directory / "manifest.json")
    before = content_of(directory)
    Path(f"{directory}.partial").touch()
    with pytest.raises(UserError, match=r"\.partial: cannot be written: File exists"):
        prepare(dataset)
    assert content_of(directory) == before


@pytest.mark.parametrize("damage", [_empty, _cut, _zeros, Path.unlink])
def test_a_damaged_tokenizer_of_an_interrupted_preparation_is_trained_again(cached, damage):
    dataset, directory = cached
    before = content_of(directory)
    unfinished = directory.rename(f"{directory}.partial")
    damage(unfinished / FILE_NAME)
    prepare(dataset)
    assert content_of(directory) == before
