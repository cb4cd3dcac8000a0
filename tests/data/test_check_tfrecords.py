"""The command runs on real files: output, exit status, and the files it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from data.check.report import BOUNDARY
from data.check_tfrecords import main
from data.preprocessing.pipeline import tokenizer_sha256
from data.tfrecord.records import read_examples, write_examples
from data.tfrecord.shards import list_shards
from data.tokenization.bpe_training import FILE_NAME
from data.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.data.check.test_scan import write_with_manifest
from tests.data.corruption import write_corrupted

REPOSITORY = Path(__file__).resolve().parents[2]


def write_two(folder: Path, break_one: bool = True) -> tuple[Path, Path]:
    """Writes two files of numbered examples; the second has a flipped bit in record 3 and is truncated."""
    folder.mkdir(exist_ok=True)
    good, bad = folder / "a_0_0_5.tfrecords", folder / "a_1_0_8.tfrecords"
    write_examples(str(good), [[number] * 4 for number in range(5)])
    write_examples(str(bad), [[number] * 4 for number in range(10, 18)])
    if break_one:
        content = bytearray(bad.read_bytes())
        content[3 * len(content) // 8 + 20] ^= 1
        bad.write_bytes(content[:-2])
    return good, bad


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    return status, *capsys.readouterr()


def test_valid_files_give_status_0(tmp_path, capsys):
    write_two(tmp_path, break_one=False)
    before = snapshot(tmp_path)
    status, out, err = run(capsys, f"{tmp_path}/*.tfrecords")
    assert (status, err, snapshot(tmp_path)) == (0, "", before)
    assert out.startswith("checking examples of 4 ids, ids below 1,048,576\n")
    assert "examples                   13" in out


def test_invalid_records_are_named_and_give_status_2(tmp_path, capsys):
    _, bad = write_two(tmp_path)
    before = snapshot(tmp_path)
    status, out, err = run(capsys, f"{tmp_path}/*.tfrecords", "--picture", f"{tmp_path}/p.png")
    assert status == 2 and "examples                   11" in out
    lines = err.splitlines()
    assert [line.split(" is truncated")[0] for line in lines[:2]] == [f"{bad}: record 3", f"{bad}: record 7"]
    assert lines[2:] == ["invalid records: 2; files with errors: 1"]
    picture = snapshot(tmp_path).pop(f"{tmp_path}/p.png")
    assert picture.startswith(b"\x89PNG") and {**before, f"{tmp_path}/p.png": picture} == snapshot(tmp_path)


def test_the_length_is_the_most_common_one(tmp_path, capsys):
    write_examples(f"{tmp_path}/a_5.tfrecords", [[1, 2], [1] * 4, [2] * 4, [3] * 4, [4] * 4])
    status, out, err = run(capsys, f"{tmp_path}/*")
    assert status == 2 and "record 0 holds 2 ids, but n_ctx 3 needs 4" in err and "\ninvalid records: 1;" in err


def test_missing_settings_come_from_the_manifest(tmp_path, capsys):
    write_with_manifest(tmp_path, [[5, 0, 6, 7], [1, 2, 3, 100]])
    status, out, err = run(capsys, f"{tmp_path}/*.tfrecords")
    assert "checking examples of 4 ids, ids below 100\n" in out and f"5{BOUNDARY}6 7\n" in out
    assert status == 2 and "record 1 holds the id 100, outside [0, 100)" in err


def save_words(path: Path, *words: str) -> Tokenizer:
    """Saves a tokenizer of these words, the first of which ends a document."""
    backend = RawTokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([word for word in words if word.startswith("<|")])
    backend.save(str(path))
    return load_tokenizer(str(path))


def test_a_tokenizer_decodes_text_and_gives_the_vocabulary(tmp_path, capsys):
    save_words(tmp_path / "t.json", "<|endoftext|>", "mesh", "word")
    write_examples(f"{tmp_path}/a_2.tfrecords", [[1, 0, 2, 2], [1, 1, 1, 3]])
    status, out, err = run(capsys, f"{tmp_path}/*.tfrecords", "--encoder_path", f"{tmp_path}/t.json")
    assert "ids below 3\n" in out and f"mesh{BOUNDARY}word word" in out
    assert status == 2 and "record 1 holds the id 3, outside [0, 3)" in err


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("none", f"first example:\nmesh{BOUNDARY}word word"),
        ("other", "ids are shown in place of text: {path} is not what wrote the files; give --encoder_path\n"),
        ("gone", "the tokenizer of the manifest, {path}, is not here; give --encoder_path\n"),
    ],
)
def test_the_tokenizer_of_the_manifest_decodes_text(tmp_path, capsys, change, shown):
    path = tmp_path / "t.json"
    sha256 = tokenizer_sha256(save_words(path, "<|endoftext|>", "mesh", "word"))
    write_with_manifest(tmp_path, [[1, 0, 2, 2]], {"path": str(path), "n_vocab": 3, "sha256": sha256})
    if change == "other":
        save_words(path, "<|endoftext|>", "mesh", "other")
    elif change == "gone":
        path.unlink()
    status, out, _ = run(capsys, f"{tmp_path}/*.tfrecords")
    assert status == 0 and shown.format(path=path) in out
    assert (f"first example:\n1{BOUNDARY}2 2" in out) == (change != "none")


def test_the_tokenizer_beside_prepared_text_decodes_it_and_padding_is_no_document(tmp_path, capsys):
    save_words(tmp_path / FILE_NAME, "<|endoftext|>", "<|padding|>", "mesh", "word")
    (tmp_path / "train").mkdir()
    write_examples(f"{tmp_path}/train/a_2.tfrecords", [[2, 0, 3, 3], [3, 0, 1, 1]])
    status, out, _ = run(capsys, f"{tmp_path}/train/*.tfrecords")
    assert status == 0 and f"mesh{BOUNDARY}word word" in out
    assert "documents                   2" in out


def test_without_a_tokenizer_ids_are_shown_and_why(tmp_path, capsys):
    write_two(tmp_path, break_one=False)
    _, out, _ = run(capsys, f"{tmp_path}/*.tfrecords")
    assert "ids are shown in place of text: no tokenizer is known; give --encoder_path\n" in out


def test_documents_are_of_any_length(tmp_path, capsys):
    write_examples(f"{tmp_path}/d_2.tfrecords", [[1], [2, 3, 4]])
    assert run(capsys, f"{tmp_path}/*", "--documents")[0] == 0
    assert run(capsys, f"{tmp_path}/*")[0] == 2


@pytest.mark.parametrize("given", [False, True])
def test_valid_records_are_copied_under_right_counts(tmp_path, capsys, given):
    good, bad = write_two(tmp_path / "in")
    before = snapshot(tmp_path / "in")
    folder = tmp_path / "elsewhere" / "new" if given else tmp_path / "in" / "repaired"
    status, out, err = run(
        capsys, f"{tmp_path}/in/*.tfrecords", "--repair", *(["--repair_dir", str(folder)] if given else [])
    )
    assert (status, err) == (0, "")
    assert f"{bad}: record 3 is truncated or damaged" in out
    assert f"repaired: 11 records kept, 2 lost\nread {folder}/*.tfrecords\n" in out
    assert sorted(os.listdir(folder)) == ["a_0_0_5.tfrecords", "a_1_0_6.tfrecords"]
    assert os.listdir(folder.parent) == [folder.name] or not given
    rows = [ids.tolist() for shard in list_shards(f"{folder}/*") for ids in read_examples(shard.path)]
    assert rows == [[number] * 4 for number in (*range(5), 10, 11, 12, 14, 15, 16)]
    assert (folder / good.name).read_bytes() == good.read_bytes()
    assert {path: content for path, content in snapshot(tmp_path / "in").items() if path in before} == before
    assert run(capsys, f"{folder}/*.tfrecords")[0] == 0
    assert run(capsys, f"{tmp_path}/in/*.tfrecords")[0] == 2


def test_nothing_is_written_without_errors(tmp_path, capsys):
    write_two(tmp_path, break_one=False)
    before = snapshot(tmp_path)
    status, out, _ = run(capsys, f"{tmp_path}/*.tfrecords", "--repair")
    assert status == 0 and "no errors: nothing to repair" in out and snapshot(tmp_path) == before


def test_all_kinds_of_corruption_can_be_repaired(tmp_path, capsys):
    for number in range(34):
        write_corrupted(tmp_path, number)
    arguments = ["--chunk_size", "4", "--n_vocab", "1000"]
    status, out, _ = run(capsys, f"{tmp_path}/*.tfrecords", "--repair", *arguments)
    assert status == 0 and out.count(": has no valid record; not copied") >= 8
    status, _, err = run(capsys, f"{tmp_path}/repaired/*.tfrecords", *arguments)
    assert (status, err) == (0, "")


def test_a_last_file_without_a_valid_record_leaves_nothing_behind(tmp_path, capsys):
    write_examples(f"{tmp_path}/a_3.tfrecords", [[1, 2, 3]] * 3)
    (tmp_path / "b_3.tfrecords").write_bytes(b"no record")
    status, out, _ = run(capsys, f"{tmp_path}/*.tfrecords", "--repair")
    assert status == 0 and f"{tmp_path}/b_3.tfrecords: has no valid record; not copied" in out
    assert [path.name for path in (tmp_path / "repaired").iterdir()] == ["a_3.tfrecords"]


def test_a_name_clash_stops_the_repair_and_leaves_nothing(tmp_path, capsys):
    write_examples(f"{tmp_path}/a_2.tfrecords", [[1, 2]] * 2)
    write_examples(f"{tmp_path}/a_3.tfrecords", [[1, 2]] * 2)
    before = snapshot(tmp_path)
    status, _, err = run(capsys, f"{tmp_path}/*", "--repair")
    assert status == 2 and f"{tmp_path}/a_3.tfrecords: {tmp_path}/repaired already has a file a_2.tfrecords" in err
    assert snapshot(tmp_path) == before and not (tmp_path / "repaired").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{here}/none*"], "{here}/none*: no file matches; check the path"),
        (["{here}"], "{here}: is a folder; give a glob such as {here}/*.tfrecords"),
        (["{here}/*", "--chunk_size", "0"], "--chunk_size 0: is too small; give 1 or more"),
        (["{here}/*", "--n_vocab", "0"], "--n_vocab 0: is too small; give 1 or more"),
        (["{here}/*", "--processes", "-1"], "--processes -1: is too small; give 0 or more"),
        (["{here}/*", "--chunk_size", "4", "--documents"], "--chunk_size and --documents: cannot be combined; "),
        (["{here}/*", "--repair_dir", "x"], "--repair_dir: has no effect without --repair; give --repair too"),
        (["{here}/*", "--repair", "--repair_dir", "{here}/there"], "{here}/there: already exists; remove it, or "),
        (["{here}/*.tfrecords", "--encoder_path", "{here}/none.json"], "{here}/none.json: "),
    ],
)
def test_an_impossible_command_gives_one_line_and_changes_nothing(tmp_path, capsys, arguments, message):
    write_two(tmp_path)
    (tmp_path / "there").mkdir()
    before = snapshot(tmp_path)
    status, _, err = run(capsys, *(argument.format(here=tmp_path) for argument in arguments))
    assert status == 2 and err.startswith(message.format(here=tmp_path)) and err.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    write_two(tmp_path)
    (tmp_path / "file").touch()
    status, _, err = run(capsys, f"{tmp_path}/*.tfrecords", "--repair", "--repair_dir", f"{tmp_path}/file/new")
    assert status == 2 and err.startswith(f"{tmp_path}/file: cannot be written: ")


@pytest.mark.slow
@pytest.mark.processes
def test_the_command_gives_the_same_in_one_and_two_processes(tmp_path):
    write_examples(f"{tmp_path}/a_3000.tfrecords", np.arange(12000).reshape(3000, 4) % 500)
    _, bad = write_two(tmp_path / "more")
    command = [sys.executable, str(REPOSITORY / "data" / "check_tfrecords.py"), "--processes"]
    runs = [
        subprocess.run(
            [*command, processes, "*.tfrecords", "more/*.tfrecords"], cwd=tmp_path, capture_output=True, text=True
        )
        for processes in ("1", "2")
    ]
    assert runs[0].returncode == runs[1].returncode == 2
    assert runs[0].stdout == runs[1].stdout and "examples                3,011" in runs[0].stdout
    assert runs[0].stderr == runs[1].stderr and runs[0].stderr.startswith("more/a_1_0_8.tfrecords: record 3 ")
