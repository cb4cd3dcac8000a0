"""Reading checkpoints: the values on any mesh, the newest of a folder, and the errors of damaged ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from configs.errors import CheckpointError
from meshtf import tf
from runtime.checkpoint import writer as writer_module
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import (
    DamagedError,
    checkpoint_step,
    checkpoints_to_try,
    latest_checkpoint,
    read_state,
    restore,
)
from runtime.mesh.placement import VariableStore, place
from tests import tiny
from tests.runtime.checkpoint.checkpoint_files import (
    POSITION,
    Written,
    save_steps,
    steps_in_state,
    steps_on_disk,
    store_of,
)

OTHER_LAYOUTS = [("", ""), ("x:4", "vocab:x,heads:x,embed_sequence:x"), ("x:2,y:2", "batch:x,vocab:x,embd:y")]


@pytest.mark.parametrize(("mesh_shape", "layout"), OTHER_LAYOUTS, ids=["one device", "vocab and heads", "batch, embd"])
def test_another_layout_restores_the_same_values(
    devices: tuple[str, ...], written: Written, mesh_shape: str, layout: str
) -> None:
    mesh = tiny.mesh_config(mesh_shape, layout)
    placement = place(mesh, devices if mesh_shape else devices[:1])
    for variable in written.variables:
        placement.store.slices_of(variable, placement.implementation(tiny.BATCH_SIZE))
    assert restore(written.path, placement.store, train_batch_size=8) == POSITION
    restored = tiny.values_of(placement.store)
    assert set(restored) == set(written.values)
    for name, value in written.values.items():
        np.testing.assert_array_equal(restored[name], value, err_msg=name)


def write_foreign(path: Path, tensors: Mapping[str, np.ndarray | tf.Tensor]) -> str:
    """Writes a checkpoint as another program does, and returns the prefix of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return str(path)


def message(path: str, store: VariableStore) -> str:
    with pytest.raises(CheckpointError) as error:
        restore(path, store, train_batch_size=8)
    return str(error.value)


def test_bfloat16_variables_become_float32(tmp_path: Path, small: VariableStore) -> None:
    exact = tf.constant([[1 / 3, -2.5], [1e-8, 3e4], [0.0, 7.0]], tf.bfloat16)
    path = write_foreign(tmp_path / "model.ckpt-40", {"gpt2/wte": exact, "global_step": np.int64(40)})
    restore(path, small, train_batch_size=8)
    np.testing.assert_array_equal(tiny.values_of(small)["gpt2/wte"], tf.cast(exact, tf.float32).numpy())


def test_a_gpt_neo_checkpoint_counts_its_steps_times_the_batch_as_examples(
    tmp_path: Path, small: VariableStore
) -> None:
    wte = {"gpt2/wte": np.ones((3, 2), np.float32)}
    path = write_foreign(tmp_path / "model.ckpt-9", wte | {"global_step": np.int64(41)})
    assert restore(path, small, train_batch_size=8) == TrainingPosition(41, 328)
    path = write_foreign(tmp_path / "model.ckpt-7", wte)
    assert restore(path, small, train_batch_size=4) == TrainingPosition(7, 28)
    path = write_foreign(tmp_path / "renamed", wte)
    assert message(path, small) == f"{path}: the name does not end in a step; name checkpoints as model.ckpt-STEP"


def test_a_missing_variable_or_another_shape_is_named(tmp_path: Path, devices: tuple[str, ...]) -> None:
    path = write_foreign(tmp_path / "model.ckpt-1", {"gpt2/h0/attn/q": np.zeros((4, 4), np.float32)})
    assert message(path, store_of(devices, {"gpt2/h1/attn/q": [4, 4]})) == (
        f"{path}: has no variable gpt2/h1/attn/q; the nearest name there is gpt2/h0/attn/q; give the config "
        "that was trained, or another model_path"
    )
    assert message(path, store_of(devices, {"unlike/anything": [4]})) == (
        f"{path}: has no variable unlike/anything; give the config that was trained, or another model_path"
    )
    assert message(path, store_of(devices, {"gpt2/h0/attn/q": [4, 8]})) == (
        f"{path}: variable gpt2/h0/attn/q is [4, 4] there and [4, 8] in the config; give the config that was "
        "trained, or another model_path"
    )


@pytest.mark.parametrize("suffix", [".data-00000-of-00001", ".index"])
@pytest.mark.parametrize("kept_bytes", [0, 20])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, small: VariableStore, suffix: str, kept_bytes: int) -> None:
    save_steps(tmp_path, small, [5])
    path = str(tmp_path / "model.ckpt-5")
    os.truncate(path + suffix, kept_bytes)
    reason = message(path, small)
    place = path + suffix + ("" if suffix == ".index" else ": gpt2/wte")
    assert reason.startswith(f"{place}: cannot be read: ") and "\n" not in reason
    assert reason.endswith("; restore its files, or give another path")
    with pytest.raises(DamagedError):
        restore(path, small, train_batch_size=8)


def test_a_truncated_file_of_several_is_one_of_a_pattern(
    tmp_path: Path, small: VariableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "PIECE_BYTES", 1)
    save_steps(tmp_path, small, [5])
    path = str(tmp_path / "model.ckpt-5")
    os.truncate(f"{path}.data-00000-of-00004", 0)
    assert message(path, small).startswith(f"{path}.data-*: gpt2/wte: cannot be read: ")


def test_checkpoints_that_stay_for_good_are_tried_after_those_that_are_named(
    tmp_path: Path, small: VariableStore
) -> None:
    save_steps(tmp_path, small, range(1, 9), keep_checkpoints=2, keep_every_steps=3)
    assert (steps_in_state(tmp_path), steps_on_disk(tmp_path)) == ([7, 8], [3, 6, 7, 8])
    (tmp_path / "model.ckpt-9.index").write_text("left behind by a run of more steps")
    assert [checkpoint_step(path) for path in checkpoints_to_try(str(tmp_path))] == [8, 7, 6, 3]
    (tmp_path / "checkpoint").unlink()
    assert [checkpoint_step(path) for path in checkpoints_to_try(str(tmp_path))] == [9, 8, 7, 6, 3]


def names_that_cannot_be_read(path: str) -> set[str]:
    failing = set()
    for name, _ in tf.train.list_variables(path):
        try:
            tf.train.load_variable(path, name)
        except tf.errors.OpError:
            failing.add(name)
    return failing


@pytest.fixture
def flippable(written: Written, devices: tuple[str, ...], tmp_path: Path) -> tuple[str, VariableStore]:
    """A copy of the checkpoint of a 2x2 mesh, and its variables on another mesh, which reads parts of its slices."""
    shutil.copytree(Path(written.path).parent, tmp_path / "copy")
    placement = place(tiny.mesh_config("x:4", "vocab:x,heads:x,embed_sequence:x"), devices)
    for variable in written.variables:
        placement.store.slices_of(variable, placement.implementation(tiny.BATCH_SIZE))
    return f"{tmp_path}/copy/{Path(written.path).name}", placement.store


def test_a_flipped_byte_anywhere_in_the_tensors_is_found_and_named(flippable: tuple[str, VariableStore]) -> None:
    path, store = flippable
    file, draw = Path(f"{path}.data-00000-of-00001"), np.random.default_rng(7)
    content = file.read_bytes()
    for place_of_byte in [*draw.integers(0, len(content), 38), 0, len(content) - 1]:
        flipped = bytearray(content)
        flipped[place_of_byte] ^= 1 << draw.integers(8)
        file.write_bytes(flipped)
        (name,) = names_that_cannot_be_read(path)
        with pytest.raises(DamagedError) as error:
            restore(path, store, train_batch_size=8)
        reason = f"{file}: {name}: cannot be read: TensorBundle at "
        assert str(error.value).startswith(reason) and "Checksum does not match" in str(error.value)
    file.write_bytes(content)
    assert restore(path, store, train_batch_size=8) == POSITION


def test_a_flipped_byte_of_the_index_is_found_or_changes_nothing(
    flippable: tuple[str, VariableStore], written: Written
) -> None:
    path, store = flippable
    file, draw = Path(f"{path}.index"), np.random.default_rng(8)
    content = file.read_bytes()
    n_found = 0
    for place_of_byte in [*draw.integers(0, len(content), 40), *range(len(content) - 48, len(content))]:
        flipped = bytearray(content)
        flipped[place_of_byte] ^= 1 << draw.integers(8)
        file.write_bytes(flipped)
        try:
            assert restore(path, store, train_batch_size=8) == POSITION
        except DamagedError as error:
            n_found += 1
            assert str(error).startswith(f"{file}: cannot be read: ")
        else:  # a byte that says nothing, at the end
            assert place_of_byte >= len(content) - 80
            for name, value in tiny.values_of(store).items():
                np.testing.assert_array_equal(value, written.values[name])
    assert n_found >= 40


def test_an_empty_folder_has_no_newest_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(str(tmp_path)) is None
    assert latest_checkpoint(str(tmp_path / "not there")) is None


def test_a_checkpoint_without_its_index_is_unfinished(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, [5, 10])
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    (tmp_path / "model.ckpt-10.index").unlink()
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-5")
    assert read_state(str(tmp_path)).problem == f"{tmp_path}/checkpoint: names model.ckpt-10, which is not there"
    # Killed before the state file was written: the tensors of step 15 are there, but nothing names them.
    shutil.copy(tmp_path / "model.ckpt-5.data-00000-of-00001", tmp_path / "model.ckpt-15.data-00000-of-00001")
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-5")
    save_steps(tmp_path, small, [10])
    assert (steps_in_state(tmp_path), steps_on_disk(tmp_path)) == ([5, 10], [5, 10])


def test_a_run_whose_checkpoints_are_missing_does_not_silently_start_over(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, [5])
    (tmp_path / "model.ckpt-5.index").unlink()
    for content, problem in (
        (None, "names model.ckpt-5, which is not there"),
        (b"", "names no checkpoint"),
    ):
        if content is not None:
            (tmp_path / "checkpoint").write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            latest_checkpoint(str(tmp_path))
        remedy = "restore the files of the checkpoint, or give another path"
        assert str(error.value) == f"{tmp_path}/checkpoint: {problem}; {remedy}"


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\0" * 4096,
        b"not a state file",
        b'model_checkpoint_path: "model.ck',
        b'all_model_checkpoint_paths: "model.ckpt-5"',
        b'model_checkpoint_path: "/lost/model.ckpt-70"\n',
    ],
)
def test_a_state_file_without_a_checkpoint_gives_way_to_those_that_are_there(
    tmp_path: Path, small: VariableStore, content: bytes | None
) -> None:
    save_steps(tmp_path, small, [5, 10, 100])
    (tmp_path / "checkpoint").unlink() if content is None else (tmp_path / "checkpoint").write_bytes(content)
    (tmp_path / "model.ckpt-200.data-00000-of-00001").write_bytes(b"x" * 100)  # has no index: is not finished
    (tmp_path / "._model.ckpt-300.index").write_bytes(b"")  # of an archive made by a Mac
    state = read_state(str(tmp_path))
    assert state.problem.startswith(str(tmp_path))
    assert list(state.times_seconds) == [str(tmp_path / f"model.ckpt-{step}") for step in (5, 10, 100)]
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-100")
    save_steps(tmp_path, small, [101])
    assert (read_state(str(tmp_path)).problem, steps_in_state(tmp_path)) == (None, [5, 10, 100, 101])


@pytest.mark.parametrize(
    "named",
    [
        "/old/place/model.ckpt-10",
        "gs://bucket/old/model.ckpt-10",
        "../run/model.ckpt-10",
        "C:\\\\old\\\\model.ckpt-10",
    ],
)
def test_a_state_file_counts_by_the_last_part_of_its_paths(tmp_path: Path, small: VariableStore, named: str) -> None:
    save_steps(tmp_path / "run", small, [5, 10, 15])
    original = f"{tmp_path}/run/model.ckpt"
    (tmp_path / "run" / "checkpoint").write_text(
        f'model_checkpoint_path: "{named}"\n'
        f'all_model_checkpoint_paths: "{original}-5"\nall_model_checkpoint_paths: "{named}"\n'
    )
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert latest_checkpoint(f"{tmp_path}/copy") == f"{tmp_path}/copy/model.ckpt-10"
    save_steps(tmp_path / "copy", small, range(20, 30))
    assert steps_on_disk(tmp_path / "copy") == [5, 15, *range(20, 30)]  # 5 is permanent, and 10 has made room
    assert steps_on_disk(tmp_path / "run") == [5, 10, 15]


def test_a_state_file_written_by_hand_is_followed(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, [5, 10, 15])
    listed = "".join(f'all_model_checkpoint_paths: "model.ckpt-{step}"\n' for step in (5, 10, 15))
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "model.ckpt-10"\n{listed}')
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-5"\n')
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-5")
    save_steps(tmp_path, small, [6])
    assert steps_in_state(tmp_path) == [5, 6]
