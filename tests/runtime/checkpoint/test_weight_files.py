"""The files of Hugging Face's folders as people have them: wrapped names, shards, indices, pickles and archives."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs.errors import CheckpointError
from configs.weights import initial_model_keys
from runtime.checkpoint.init_from import find_weights

GOLDEN = Path(__file__).parents[2] / "golden" / "gpt_2"
TENSORS = load_file(GOLDEN / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the config alone."""
    (tmp_path / "folder").mkdir()
    shutil.copy(GOLDEN / "config.json", tmp_path / "folder")
    return tmp_path / "folder"


def assert_same_weights(folder: Path) -> None:
    actual, expected = find_weights(str(folder)), find_weights(str(GOLDEN))
    assert actual.keys() == expected.keys() != set()
    for name, stored in expected.items():
        np.testing.assert_array_equal(actual[name].read(), stored.read(), err_msg=name)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        initial_model_keys(str(path))
        find_weights(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("transformer.", "_orig_mod.transformer."),
        ("transformer.", "module.transformer."),
        ("transformer.", "module._orig_mod.transformer."),
        ("transformer.", "_orig_mod.module."),
        ("transformer.", "_forward_module.module.model.transformer."),
        ("transformer.", "model."),
        ("h.1.", "h.1._orig_mod."),
        ("h.0.", "_fsdp_wrapped_module.h.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
    ],
)
def test_names_of_wrapped_models_are_understood(folder: Path, before: str, after: str) -> None:
    named = {name.replace(before, after): value for name, value in TENSORS.items()}
    assert named.keys() != TENSORS.keys()
    save_file(named, folder / "model.safetensors")
    assert_same_weights(folder)


def write_shards(folder: Path, count: int, stem: str = "model") -> list[Path]:
    names, paths = sorted(TENSORS), []
    for number in range(count):
        paths.append(folder / f"{stem}-{number + 1:05}-of-{count:05}.safetensors")
        save_file({name: TENSORS[name] for name in names[number::count]}, paths[-1])
    return paths


@pytest.mark.parametrize("stem", ["model", "model.safetensors", "gpt2-finetuned"])
def test_shards_need_no_index(folder: Path, stem: str) -> None:
    paths = write_shards(folder, 3, stem)
    (folder / f"._{paths[0].name}").write_bytes(b"\0\5\26\7")  # of an archive made by a Mac
    assert initial_model_keys(str(folder)) == initial_model_keys(str(GOLDEN))
    assert_same_weights(folder)
    paths[1].unlink()
    shards = f"{stem}-*-of-00003.safetensors"
    assert refusal(folder) == f"{folder}: holds shards {shards}, but not number 2 of 3; copy it too"


def write_index(folder: Path, weight_map: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_an_index_of_other_shards_gives_way_to_those_that_are_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(folder, 2)
    other = "model-00001-of-00005.safetensors"
    index = write_index(folder, dict.fromkeys(TENSORS, other))
    assert_same_weights(folder)
    assert capsys.readouterr().err == f"{index}: names {other}, which is not there; reading the 2 shards that are\n"


def test_an_index_that_does_not_fit_its_shards_is_named(folder: Path) -> None:
    first, second = write_shards(folder, 2)
    lost, kept = sorted(TENSORS)[1], dict(load_file(second))
    del kept[lost]
    save_file(kept, second)
    index = write_index(folder, dict.fromkeys(sorted(TENSORS)[0::2], first.name) | dict.fromkeys(kept, second.name))
    short = lost.removeprefix("transformer.")
    assert refusal(folder).startswith(f"{folder}: has no tensor {short}; ")
    write_index(folder, dict.fromkeys(sorted(TENSORS)[0::2], first.name) | dict.fromkeys([*kept, lost], second.name))
    assert refusal(folder) == f"{second}: has no tensor {short}, though {index} says so; copy both files again"


@pytest.mark.parametrize("leading", ["../other/", "./", "/", "sub/"])
def test_an_index_that_leads_out_of_its_folder_is_refused(folder: Path, leading: str) -> None:
    (shard,) = write_shards(folder, 1)
    (folder.parent / "other").mkdir()
    (folder / "sub").mkdir()
    shutil.copy(shard, folder.parent / "other")
    shutil.copy(shard, folder / "sub")
    named = f"{folder.parent}/other/{shard.name}" if leading == "/" else leading + shard.name
    shard.unlink()
    index = write_index(folder, dict.fromkeys(TENSORS, named))
    assert refusal(folder) == (f"{index}: names {named!r}, which is no file beside it; get the index from its source")
    write_index(folder, dict.fromkeys(TENSORS, ".."))
    assert "names '..', which is" in refusal(folder) or "is not there" in refusal(folder)


def test_a_pickle_is_found_by_its_own_path(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(Exception, match="pytorch_model.bin: (is PyTorch's format|cannot be read)"):
        find_weights(str(folder / "pytorch_model.bin"))


class Program:
    """An object whose unpickling runs a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_would_run_a_program_is_refused_in_our_words(folder: Path, is_zip: bool) -> None:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in TENSORS.items()}
    path, ran = folder / "pytorch_model.bin", folder / "ran"
    torch.save(tensors | {"extra": Program(ran)}, path, _use_new_zipfile_serialization=is_zip)
    assert refusal(folder) == (
        f"{path}: asks for posix.system, which is no tensor and could run a program, so it is not read; give "
        "model.safetensors, or a file that holds the state_dict alone"
    )
    assert not ran.exists()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
def test_a_pickle_of_a_trainer_is_read_by_its_tensors(folder: Path, key: str | None) -> None:
    torch = pytest.importorskip("torch")
    tensors = {f"module.{name}": torch.from_numpy(value) for name, value in TENSORS.items()}
    torch.save({key: tensors, "epoch": 3} if key else tensors, folder / "pytorch_model.bin")
    assert_same_weights(folder)
    torch.save({"net": tensors, "epoch": 3}, folder / "pytorch_model.bin")
    assert ": is not a tensor; save the state_dict of the model alone" in refusal(folder)


# Paths without weights.


@pytest.mark.parametrize("name", ["gpt2.zip", "gpt2.TAR.GZ", "gpt2.7z"])
def test_an_archive_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    remedy = "unpack it, and give the folder that holds the weights"
    assert refusal(tmp_path / name) == f"{tmp_path}/{name}: is an archive; {remedy}"


@pytest.mark.parametrize("inner", ["gpt2", "snapshots/607a30d"])
def test_a_folder_around_the_weights_leads_to_them(tmp_path: Path, inner: str) -> None:
    shutil.copytree(GOLDEN, tmp_path / inner)
    (tmp_path / "__MACOSX" / "gpt2").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "config.json").write_bytes(b"\0\5\26\7")
    assert refusal(tmp_path) == f"{tmp_path}: holds no weights; did you mean {tmp_path}/{inner}?"


def test_a_folder_around_a_file_of_pytorch_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "small_ft.pkl").write_bytes(b"x")
    assert refusal(tmp_path) == f"{tmp_path}: is a folder around weights; did you mean {tmp_path}/small_ft.pkl?"


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.gguf"])
def test_a_format_that_is_not_read_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    remedy = "give the weights as model.safetensors"
    for path in (folder, folder / name):
        with pytest.raises(CheckpointError) as error:
            find_weights(str(path))
        assert str(error.value) == f"{folder}/{name}: is of a format that is not read; {remedy}"
