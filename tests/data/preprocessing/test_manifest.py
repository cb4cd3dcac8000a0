"""Tests of data/preprocessing/manifest.py."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import DataError, UserError
from data.preprocessing.manifest import (
    FileEntry,
    Manifest,
    Split,
    checksum,
    find_entries,
    listed_files,
    manifest_path,
    read_manifest,
    write_json,
)
from data.preprocessing.packing import PackingStats
from data.preprocessing.splits import EVAL, TRAIN

TRAINING = FileEntry("a_0_0_2.tfrecords", 2, 8, 3, 77, "00ff")
HELD_OUT = FileEntry("a_eval_0_0_1.tfrecords", 1, 4, 1, 33, "11ee")
MANIFEST = Manifest(
    name="a",
    example_tokens=4,
    tokenizer={"path": "t.json", "n_vocab": 9, "sha256": "22dd"},
    settings={"chunk_size": 3, "deduplicate": True},
    input={"files": 1, "bytes": 20},
    splits={
        TRAIN: Split(PackingStats(documents_read=3, documents_kept=3, problems=["x: not UTF-8"]), (TRAINING,)),
        EVAL: Split(PackingStats(documents_read=1, documents_kept=1), (HELD_OUT,)),
    },
)


def write_manifest(folder: str) -> None:
    write_json(manifest_path(folder, "a"), MANIFEST.to_json())


def test_a_manifest_comes_back(tmp_path):
    write_manifest(str(tmp_path))
    assert read_manifest(manifest_path(str(tmp_path), "a")) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["a.manifest.json"]
    assert json.loads((tmp_path / "a.manifest.json").read_text())["parts"]["train"]["files"][0]["sha256"] == "00ff"


def test_the_entries_of_all_manifests_in_a_folder_are_found(tmp_path):
    assert find_entries(str(tmp_path / "none")) == {}
    assert find_entries(str(tmp_path)) == {}
    write_manifest(str(tmp_path))
    assert find_entries(str(tmp_path)) == {TRAINING.name: TRAINING, HELD_OUT.name: HELD_OUT}


def test_only_existing_files_are_listed(tmp_path):
    assert listed_files(str(tmp_path), "a") == []
    write_manifest(str(tmp_path))
    (tmp_path / HELD_OUT.name).touch()
    assert listed_files(str(tmp_path), "a") == [f"{tmp_path}/{HELD_OUT.name}"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "parts": {}}', '{"format": 1, "parts": {"train": 3}}'])
def test_an_invalid_manifest_is_named(tmp_path, text):
    path = tmp_path / "a.manifest.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_manifest(str(path))
    assert str(error.value).startswith(f"{path}: is not a manifest of a dataset (")
    assert str(error.value).endswith("); remove it, and write the dataset again with data/create_tfrecords.py")


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "na', bytes(40), b"\xff"])
def test_a_manifest_that_a_power_loss_damaged_lists_nothing_known(tmp_path, content):
    Path(manifest_path(str(tmp_path), "a")).write_bytes(content)
    assert listed_files(str(tmp_path), "a") is None


@pytest.mark.parametrize("name", ["../other/a.tfrecords", "/etc/passwd", "train/../../a"])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(tmp_path, name):
    outside = replace(MANIFEST, splits={TRAIN: Split(PackingStats(), (replace(TRAINING, name=name),))})
    write_json(manifest_path(str(tmp_path), "a"), outside.to_json())
    with pytest.raises(
        DataError, match=f"is not a manifest of a dataset \\(it names {name}, which is outside its folder"
    ):
        listed_files(str(tmp_path), "a")


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none: no such file; check the path"):
        read_manifest(str(tmp_path / "none"))


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a.manifest.json: cannot be written: "):
        write_manifest(f"{tmp_path}/file")


def test_a_checksum_is_that_of_sha256sum(tmp_path):
    path = Path(tmp_path) / "a"
    path.write_bytes(b"abc" * 3_000_000)
    assert checksum(str(path)) == (9_000_000, hashlib.sha256(b"abc" * 3_000_000).hexdigest())
