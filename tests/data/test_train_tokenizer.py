"""Tests of data/train_tokenizer.py."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

import data.train_tokenizer
from configs.errors import DataError, UserError
from data.tokenization.bpe_training import FILE_NAME
from data.tokenization.tokenizer import load_tokenizer
from data.train_tokenizer import Settings, main, train_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = [f"the quick brown fox number {n} jumps over the lazy dogs, {word}\n" * 3 for n, word in enumerate("äbcdefg")]


def write_texts(folder: Path) -> str:
    folder.mkdir()
    for n, text in enumerate(TEXTS):
        (folder / f"{n}.txt").write_text(text, encoding="utf-8")
    return str(folder)


def test_the_command_line_gives_the_same_file_each_time_and_deletes_nothing(tmp_path):
    base = write_texts(tmp_path / "texts")
    written = []
    for seed in ("1", "2"):
        output = tmp_path / f"out{seed}"
        output.mkdir()
        (output / "mine.txt").write_text("keep me")
        script = str(REPOSITORY / "data" / "train_tokenizer.py")
        flags = ["--base_dir", base, "--output_dir", str(output), "--file_type", "txt", "--vocab_size", "290"]
        done = subprocess.run(
            [sys.executable, script, *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"tokenizer saved at {output}/{FILE_NAME}: 290 ids from 7 files\n"
        assert done.stderr == ""
        assert sorted(os.listdir(output)) == [FILE_NAME, "mine.txt"]
        written.append((output / FILE_NAME).read_bytes())
    assert written[0] == written[1]


def test_an_existing_tokenizer_is_kept_without_overwrite(tmp_path, capsys):
    base = write_texts(tmp_path / "texts")
    flags = ["--base_dir", base, "--output_dir", str(tmp_path), "--file_type", "txt", "--vocab_size", "280"]
    assert main(flags) == 0
    before = (tmp_path / FILE_NAME).read_bytes()
    assert main([*flags[:-1], "285"]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}/{FILE_NAME}: already exists; choose another --output_dir, or give --overwrite to replace it\n"
    )
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert main([*flags[:-1], "285", "--overwrite"]) == 0
    assert load_tokenizer(str(tmp_path / FILE_NAME)).n_vocab == 285


def test_the_default_file_type_is_xz_and_one_file_is_enough(tmp_path):
    (tmp_path / "a.xz").write_bytes(lzma.compress("\n".join(TEXTS).encode()))
    (tmp_path / "b.txt").write_text("zq zq zq zq zq")
    path = train_tokenizer(Settings(str(tmp_path), 270, str(tmp_path / "out")))
    assert "zq" not in path
    assert "zq" not in json.loads(Path(path).read_text())["model"]["vocab"]


def test_the_folder_that_training_writes_is_a_tokenizer(tmp_path):
    flags = ["--input_dir", write_texts(tmp_path / "texts"), "--output_dir", str(tmp_path), "--vocab_size", "280"]
    assert main([*flags, "--file_type", "txt"]) == 0
    assert load_tokenizer(str(tmp_path)).to_json() == load_tokenizer(str(tmp_path / FILE_NAME)).to_json()


def test_a_sample_leaves_documents_out(tmp_path):
    base = write_texts(tmp_path / "texts")
    whole = train_tokenizer(Settings(base, 400, str(tmp_path / "whole"), "txt"))
    sample = train_tokenizer(Settings(base, 400, str(tmp_path / "sample"), "txt", sample_share=0.5))
    assert Path(whole).read_bytes() != Path(sample).read_bytes()


def test_undecodable_documents_are_named(tmp_path, capsys):
    base = write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "bad.txt").write_bytes(b"caf\xe9")
    train_tokenizer(Settings(base, 270, str(tmp_path), "txt"))
    assert capsys.readouterr().err == "left out bad.txt: not UTF-8 at byte 3\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"file_type": "md"},
            "{base}: no file ending in .md found, only 7 .txt, 1 .py; name a directory, a glob or a file that has text",
        ),
        ({"sample_share": 0.0}, "sample_share 0.0: is not a fraction; give more than 0 and at most 1"),
        ({"file_type": "py"}, "{base}: has no text to train on; add text, or raise --sample_share"),
    ],
)
def test_each_error_says_what_to_do(tmp_path, settings, message):
    base = write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "empty.py").touch()
    with pytest.raises(DataError) as error:
        train_tokenizer(
            Settings(**({"base_dir": base, "vocab_size": 300, "output_dir": base, "file_type": "txt"} | settings))
        )
    assert str(error.value) == message.format(base=base)
    assert FILE_NAME not in os.listdir(base)


def test_an_unwritable_folder_is_an_error_before_anything_is_read(tmp_path, monkeypatch):
    base = write_texts(tmp_path / "texts")
    (tmp_path / "file").touch()
    monkeypatch.setattr(data.train_tokenizer, "read_all_documents", lambda *files: pytest.fail("read"))
    with pytest.raises(UserError) as error:
        train_tokenizer(Settings(base, 300, f"{tmp_path}/file", "txt"))
    assert str(error.value) == (
        f"{tmp_path}/file/{FILE_NAME}: cannot be written: File exists; make room there, or give another path"
    )


def test_ctrl_c_is_one_line_and_status_130(tmp_path, monkeypatch, capsys):
    def interrupted(*files):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.train_tokenizer, "read_all_documents", interrupted)
    flags = ["--base_dir", write_texts(tmp_path / "texts"), "--output_dir", f"{tmp_path}/out", "--vocab_size", "300"]
    assert main([*flags, "--file_type", "txt"]) == 130
    assert capsys.readouterr().err == "interrupted: no tokenizer was written\n"
    assert os.listdir(tmp_path / "out") == []


def train(folder: Path, *flags: str) -> int:
    return main(["--base_dir", str(folder), "--output_dir", f"{folder}/out", "--vocab_size", "270", *flags])


def test_texts_may_stand_under_another_key(tmp_path, capsys):
    lines = [json.dumps({"id": n, "content": text}) for n, text in enumerate(TEXTS * 5)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert train(tmp_path, "--file_type", "jsonl") == 2
    reason = "a.jsonl:1: no text under the key 'text'; text_key can name 'content'"
    *named, more, last = capsys.readouterr().err.splitlines()
    assert (named[0], len(named), more) == (f"left out {reason}", 20, "left out 15 more")
    assert last == f"{tmp_path}: has no text to train on ({reason}); give texts that can be read"
    assert train(tmp_path, "--file_type", "jsonl", "--text_key", "content") == 0
    assert capsys.readouterr().err == ""


def test_a_marker_between_documents_is_no_text_to_train_on(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(TEXTS * 5))
    for flags, is_text in (([], True), (["--document_separator"], False), (["--document_separator", "fox"], True)):
        assert train(tmp_path, "--file_type", "txt", "--vocab_size", "400", "--overwrite", *flags) == 0
        vocabulary = json.loads((tmp_path / "out" / FILE_NAME).read_text())["model"]["vocab"]
        assert ("endoftext" in vocabulary) == is_text


def test_what_is_passed_over_is_said(tmp_path, capsys):
    write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "a.pdf").touch()
    (tmp_path / "texts" / "b.txt").symlink_to("none")
    assert train(tmp_path / "texts", "--file_type", "all") == 2
    assert "b.txt: cannot be read (a link to nothing)" in capsys.readouterr().err
    assert train(tmp_path / "texts", "--file_type", "all", "--on_bad_file", "skip") == 0
    assert capsys.readouterr().err.splitlines() == [
        "passed over: 1 .pdf; a glob reads files of any suffix",
        "left out 1 file(s) that cannot be read: b.txt (a link to nothing)",
    ]
