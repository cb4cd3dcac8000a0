"""Tests of data/preprocessing/apache_beam.py; some are skipped unless Apache Beam is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import data.preprocessing.parallel_encoding
import data.preprocessing.splits
import data.tokenization.tokenizer
from configs.errors import DataError
from data.preprocessing.apache_beam import _batches, _encode, load_beam, read_encoded
from data.preprocessing.encoding import TextEncoder
from data.preprocessing.parallel_encoding import encode_all
from data.preprocessing.pipeline import create_tfrecords
from data.preprocessing.settings import Settings
from data.preprocessing.splits import TRAIN, DocumentOptions, DocumentPosition, DocumentReader
from data.text.files import find_files
from data.tokenization.bpe_training import FILE_NAME, save_tokenizer, train_byte_level_bpe

REPOSITORY = Path(__file__).resolve().parents[3]
HAS_BEAM = find_spec("apache_beam") is not None


def write_texts(folder: Path) -> None:
    folder.mkdir()
    lines = [{"text": f"token stream {n % 40}"} for n in range(60)] + [{"other": "no text"}, {"text": ""}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "b.txt").write_text("example of\nmany lines " * 50)
    (folder / "c.txt").write_bytes(b"caf\xe9")
    (folder / "d.txt").write_text("the last one")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("start", [DocumentPosition(), DocumentPosition(0, 17, 17), DocumentPosition(1, 0, 62)])
def test_ids_from_files_are_those_of_the_pool(tmp_path, monkeypatch, start):
    monkeypatch.setattr(data.preprocessing.parallel_encoding, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(data.tokenization.tokenizer, "PIECE_CHARACTERS", 50)
    write_texts(tmp_path / "texts")
    encoder = TextEncoder(train_byte_level_bpe(["token stream example"] * 5, 270))
    files = find_files([f"{tmp_path}/texts"])
    (tmp_path / "ids").mkdir()
    for numbered in enumerate(files):
        for batch in _batches(DocumentOptions(), encoder, numbered):
            _encode(f"{tmp_path}/ids", encoder, batch)
    assert len(list((tmp_path / "ids").iterdir())) > 10

    def texts():
        reader = DocumentReader(files, DocumentOptions(deduplicate=start == DocumentPosition()), {TRAIN: start})
        return reader.pieces(encoder.cut, lambda n_files: None)

    expected = [(tag, None if ids is None else ids.tolist(), n) for tag, ids, n in encode_all(texts(), encoder, 1)]
    found = [(t, None if ids is None else ids.tolist(), n) for t, ids, n in read_encoded(texts(), f"{tmp_path}/ids")]
    assert found == expected
    assert any(not tag.is_last for tag, _, _ in found)


def test_missing_ids_are_an_error(tmp_path):
    write_texts(tmp_path / "texts")
    encoder = TextEncoder(train_byte_level_bpe(["token stream example"] * 5, 270))
    reader = DocumentReader(find_files([f"{tmp_path}/texts"]), DocumentOptions(), {TRAIN: DocumentPosition()})
    texts = reader.pieces(encoder.cut, lambda n_files: None)
    with pytest.raises(DataError, match="has no ids of .*; remove that folder, and start again"):
        list(read_encoded(texts, str(tmp_path)))


def test_an_unknown_runner_is_an_error():
    with pytest.raises(DataError) as error:
        load_beam("SparkRunner")
    assert str(error.value) == (
        "--runner SparkRunner: is unknown; choose one of DirectRunner, DataflowRunner, FlinkRunner, or leave it out"
    )


@pytest.mark.skipif(HAS_BEAM, reason="Apache Beam is installed")
def test_without_beam_the_error_says_what_to_install_and_nothing_is_written(tmp_path):
    write_texts(tmp_path / "texts")
    with pytest.raises(DataError) as error:
        create_tfrecords(Settings(f"{tmp_path}/texts", output_dir=f"{tmp_path}/out", runner="DataflowRunner"))
    assert str(error.value) == (
        "--runner DataflowRunner: Apache Beam is not installed; pip install 'apache-beam[gcp]', or leave out --runner"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not HAS_BEAM, reason="Apache Beam is not installed: pip install apache-beam")
def test_the_direct_runner_gives_the_bytes_of_the_pool(tmp_path):
    write_texts(tmp_path / "texts")
    encoder_path = str(tmp_path / "tokenizers" / FILE_NAME)
    save_tokenizer(train_byte_level_bpe(["token stream example"] * 5, 270), encoder_path)
    pool = Settings(f"{tmp_path}/texts", 7, "t", f"{tmp_path}/pool", encoder_path, chunk_size=9, eval_fraction=0.3)
    create_tfrecords(pool)
    flags = f"--input_dir {tmp_path}/texts --files_per 7 --name t --output_dir {tmp_path}/beam --chunk_size 9"
    command = [sys.executable, "data/create_tfrecords.py", *flags.split(), "--encoder_path", encoder_path]
    command += ["--eval_fraction", "0.3", "--runner", "DirectRunner", "--direct_num_workers", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert contents(tmp_path / "beam") == contents(tmp_path / "pool")
