"""Source files in a bucket: found and read as those of a disk."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from configs.errors import DataError
from configs.schema import DatasetConfig
from data import train_tokenizer
from data.preprocessing.prepare import prepare_dataset
from data.text.documents import read_all_documents
from data.text.files import find_files, open_source
from data.tfrecord.shards import list_shards
from data.tokenization.bpe_training import FILE_NAME
from data.tokenization.tokenizer import from_json
from storage import buckets
from storage.buckets import BucketError
from tests.storage.server import BROKEN_AFTER, BROKEN_BEFORE, Cloud

NAMES = ["b2.txt", "b10.txt", "a/z.jsonl", "a/test/t.txt", "a/notes.xyz", ".hidden.txt", ".git/x.txt", "folder/"]


@pytest.fixture
def tree(trials: Cloud) -> Cloud:
    for name in NAMES:
        trials.write("trials", f"texts/{name}", json.dumps(name).encode())
    return trials


def found(source: str) -> list[str]:
    return [file.relative for file in find_files([source])]


def test_folders_globs_and_objects_are_found_as_on_a_disk(tree: Cloud) -> None:
    for source in ("gs://trials/texts", "gs://trials/texts/"):
        assert found(source) == ["a/test/t.txt", "a/z.jsonl", "b2.txt", "b10.txt"]
    assert found("gs://trials/texts/*.txt") == ["b2.txt", "b10.txt"]
    assert found("gs://trials/texts/**/*.txt") == ["a/test/t.txt", "b2.txt", "b10.txt"]
    assert found("gs://trials/texts/a/*") == ["notes.xyz", "z.jsonl"]
    assert found("gs://trials/texts/a/notes.xyz") == ["notes.xyz"]


def test_one_request_finds_all_files(tree: Cloud) -> None:
    tree.requests.clear()
    files = find_files(["gs://trials/texts/"])
    assert [file.state()[0] for file in files] == [len(json.dumps(file.relative)) for file in files]
    assert len([request for request in tree.requests if "/trials/o" in request.path]) == 1
    tree.write("trials", "texts/b2.txt", b'"b2.tx2"')
    (again,) = find_files(["gs://trials/texts/b2.txt"])
    assert again.state() != next(file for file in files if file.relative == "b2.txt").state()


def test_a_missing_object_is_named(tree: Cloud) -> None:
    with pytest.raises(DataError, match="gs://trials/none: no file ending in .* found; name a directory, a glob or"):
        find_files(["gs://trials/none"])
    with pytest.raises(BucketError, match="there is no bucket nowhere"):
        find_files(["gs://nowhere/texts"])
    (file,) = find_files(["gs://trials/texts/b2.txt"])
    tree.client.bucket("trials").blob("texts/b2.txt").delete()
    with pytest.raises(DataError, match="gs://trials/texts/b2.txt: cannot be read .*No such file"):
        list(read_all_documents([file]))


def test_archives_are_read_over_a_network_that_breaks(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "READ_BYTES", 1000)
    texts = [f"text {number} " * 300 for number in range(9)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[:8])
    trials.write("trials", "texts/a.jsonl.gz", gzip.compress(lines.encode(), 0))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("z.txt", texts[8])
    trials.write("trials", "texts/b.zip", packed.getvalue())
    fates = iter([None, BROKEN_BEFORE, 503, None, BROKEN_AFTER] * 1000)
    trials.faults = lambda request: next(fates)
    assert [document.text for document in read_all_documents(find_files(["gs://trials/texts"]))] == texts


def test_raw_text_and_tokenizer_may_be_in_a_bucket(trials: Cloud, tmp_path: Path) -> None:
    texts = [f"text number {number} " * 20 for number in range(20)]
    for number, text in enumerate(texts):
        trials.write("trials", f"texts/{number}.txt", text.encode())
    dataset = DatasetConfig(
        id="mine",
        n_vocab=290,
        text=("gs://trials/texts",),
        eos_id=0,
        padding_id=1,
        eval_fraction=0.2,
        cache_dir=str(tmp_path / "cache"),
    )
    told: list[str] = []
    for _ in range(2):
        prepared = prepare_dataset(dataset, 16, told.append)
    assert told[0].startswith("mine: preparing 20 files of raw text in ") and told[-1].endswith(" is up to date")
    assert sum(shard.n_examples for shard in list_shards(prepared.train_pattern)) > 50
    trials.write("trials", "texts/0.txt", b"another text " * 30)
    assert prepare_dataset(dataset, 16, told.append) != prepared
    arguments = ["--base_dir", "gs://trials/texts", "--output_dir", "gs://trials/tokenizers", "--vocab_size", "290"]
    assert [train_tokenizer.main([*arguments, "--file_type", "txt", *more]) for more in ([], [], ["--overwrite"])] == [
        0,
        2,
        0,
    ]
    assert from_json(trials.read("trials", f"tokenizers/{FILE_NAME}").decode()).n_vocab == 290


def test_an_object_replaced_while_it_is_read_is_an_error(trials: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "READ_BYTES", 10)
    trials.write("trials", "a", b"0" * 100)
    with open_source("gs://trials/a") as file:
        assert file.read(10) == b"0" * 10
        trials.write("trials", "a", b"1" * 100)
        with pytest.raises(BucketError, match="gs://trials/a: changed while it was being read"):
            file.read()
