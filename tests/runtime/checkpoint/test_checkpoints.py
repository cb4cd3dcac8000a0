"""Checkpoints as files: names, whole tensors from any mesh, which one is the newest, and what is said when one cannot
be used.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.errors import CheckpointError, UserError
from configs.schema import ModelConfig
from meshtf import mtf, tf
from models.variables import SlicedVariable, zeros
from runtime.checkpoint.checkpoints import checkpoint_step, latest_checkpoint, restore
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.writer import CheckpointWriter
from runtime.mesh.placement import VariableStore, place
from runtime.training.steps import build_train_step
from tests import tiny

POSITION = TrainingPosition(123, 5_000_000_000, {"books": 4_999_999_998, "a/b c": 2})

MODEL = dataclasses.replace(tiny.MODEL, attention_types=("local", "none"))
EVERYTHING_SPLIT = ("x:2,y:2", "embd:x,heads:y,vocab:y,intermediate_expanded:y")
OTHER_LAYOUTS = [("", ""), ("x:4", "vocab:x,heads:x,embed_sequence:x"), ("x:2,y:2", "batch:x,vocab:x,embd:y")]


# What is in the file.


def gpt_neo_shapes(model: ModelConfig) -> dict[str, list[int]]:
    """GPT-Neo's table of variables and shapes, without those of the optimiser."""
    n = model.n_embd
    shapes = {"gpt2/wte": [model.n_vocab, n], "gpt2/wpe": [model.n_ctx, n], "gpt2/ln_f/g": [n], "gpt2/ln_f/b": [n]}
    for layer, kind in enumerate(model.attention_types):
        block = f"gpt2/h{layer}"
        if kind != "none":
            shapes |= {f"{block}/norm_1/g": [n], f"{block}/norm_1/b": [n]}
            shapes |= {f"{block}/attn/{name}": [n, n] for name in "qkvo"}
            shapes |= {f"{block}/attn/compute_output_bias/o_b": [n]}
        shapes |= {f"{block}/norm_2/g": [n], f"{block}/norm_2/b": [n]}
        main = f"{block}/mlp/conv1d_main"
        shapes |= {f"{main}/c_fc/kernel": [n, 4 * n], f"{main}/c_fc/bias": [4 * n]}
        shapes |= {f"{main}/c_proj/kernel": [4 * n, n], f"{main}/c_proj/bias": [n]}
    return shapes


@dataclasses.dataclass(frozen=True)
class Written:
    """A checkpoint of a model on a 2x2 mesh, and what was in it."""

    path: str
    variables: list[SlicedVariable]
    values: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def written(devices: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Written:
    config = dataclasses.replace(tiny.run_config(tiny.mesh_config(*EVERYTHING_SPLIT)), model=MODEL)
    placement = place(config.mesh, devices)
    build_train_step(config, placement)
    random = np.random.default_rng(5)
    values = {stored.name: random.normal(size=stored.whole_shape).astype(np.float32) for stored in placement.store}
    for stored in placement.store:
        stored.assign_whole(values[stored.name])
    writer = CheckpointWriter(f"{tmp_path_factory.mktemp('run')}/deeper", placement.store)
    path = writer.save(POSITION)
    return Written(path, [stored.variable for stored in placement.store], values)


def test_names_and_shapes_are_those_of_gpt_neo(written: Written) -> None:
    model = gpt_neo_shapes(MODEL)
    moments = {f"{name}/{slot}": shape for name, shape in model.items() for slot in ("adam_m", "adam_v")}
    examples = "global_step_examples"
    position = {
        "global_step": [],
        examples: [],
        **{f"{examples}_of/{name}": [] for name in POSITION.examples_per_dataset},
    }
    assert dict(tf.train.list_variables(written.path)) == model | moments | position
    # Hugging Face's converter takes every name that holds neither "adam" nor "global_step" for a weight.
    weights = {name for name, _ in tf.train.list_variables(written.path) if "adam" not in name}
    assert {name for name in weights if "global_step" not in name} == set(model)


def test_every_tensor_is_whole_though_the_mesh_split_it(written: Written) -> None:
    for name, value in written.values.items():
        np.testing.assert_array_equal(tf.train.load_variable(written.path, name), value, err_msg=name)
    assert tf.train.load_variable(written.path, "gpt2/wte").dtype == np.float32
    assert tf.train.load_variable(written.path, "global_step") == 123
    assert tf.train.load_variable(written.path, "global_step_examples") == 5_000_000_000
    files = sorted(os.listdir(os.path.dirname(written.path)))
    assert files == ["checkpoint", "model.ckpt-123.data-00000-of-00001", "model.ckpt-123.index"]


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


# Checkpoints of a small store, and of others' making.


def store_of(devices: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> VariableStore:
    placement = place(tiny.mesh_config("", ""), devices[:1])
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    for name, shape in shapes.items():
        dims = [mtf.Dimension(f"dim{axis}", size) for axis, size in enumerate(shape)]
        variable = SlicedVariable(mesh, name, mtf.Shape(dims), zeros, trainable=True)
        placement.store.slices_of(variable, placement.implementation(1))
    return placement.store


@pytest.fixture
def small(devices: tuple[str, ...]) -> VariableStore:
    return store_of(devices, {"gpt2/wte": [3, 2]})


def save_steps(model_path: Path, store: VariableStore, steps: Sequence[int]) -> None:
    writer = CheckpointWriter(str(model_path), store)
    for step in steps:
        (stored,) = store
        stored.assign_whole(np.full((3, 2), step, np.float32))
        writer.save(TrainingPosition(step, 8 * step))


def steps_on_disk(model_path: Path) -> list[int]:
    return sorted(checkpoint_step(str(path.with_suffix(""))) for path in model_path.glob("*.index"))


def steps_in_state(model_path: Path) -> list[int]:
    return [checkpoint_step(path) for path in tf.train.get_checkpoint_state(model_path).all_model_checkpoint_paths]


def write_foreign(path: Path, tensors: Mapping[str, np.ndarray | tf.Tensor]) -> str:
    """A checkpoint that another program has written; the prefix of its path."""
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


def test_examples_of_a_checkpoint_of_gpt_neo_are_its_steps_times_the_batch(
    tmp_path: Path, small: VariableStore
) -> None:
    wte = {"gpt2/wte": np.ones((3, 2), np.float32)}
    path = write_foreign(tmp_path / "model.ckpt-9", wte | {"global_step": np.int64(41)})
    assert restore(path, small, train_batch_size=8) == TrainingPosition(41, 328)
    path = write_foreign(tmp_path / "model.ckpt-7", wte)
    assert restore(path, small, train_batch_size=4) == TrainingPosition(7, 28)
    path = write_foreign(tmp_path / "renamed", wte)
    assert message(path, small) == f"{path}: the name does not end in a step; name checkpoints as model.ckpt-STEP"


def test_a_variable_that_is_missing_or_of_another_shape(tmp_path: Path, devices: tuple[str, ...]) -> None:
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
    said = message(path, small)
    assert said.startswith(f"{path}: cannot be read: ") and "\n" not in said
    assert said.endswith(
        "; remove the files of this checkpoint to resume from the previous one, or give another model_path"
    )


def test_a_place_that_cannot_be_written_to(tmp_path: Path, small: VariableStore) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError) as error:
        save_steps(tmp_path / "file", small, [5])
    path = f"{tmp_path}/file"
    assert str(error.value) == (
        f"{path}/model.ckpt-5: cannot be written: {path} is not a directory; make room there, or give another path"
    )
    assert (tmp_path / "file").read_text() == "mine"


# Which one is the newest.


def test_nothing_is_newest_before_anything_is_saved(tmp_path: Path) -> None:
    assert latest_checkpoint(str(tmp_path)) is None
    assert latest_checkpoint(str(tmp_path / "not there")) is None


def test_a_checkpoint_without_its_index_is_unfinished(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, [5, 10])
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    (tmp_path / "model.ckpt-10.index").unlink()
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-5")
    # Killed before the state file was written: the tensors of step 15 are there, but nothing names them.
    shutil.copy(tmp_path / "model.ckpt-5.data-00000-of-00001", tmp_path / "model.ckpt-15.data-00000-of-00001")
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-5")
    save_steps(tmp_path, small, [10])
    assert (steps_in_state(tmp_path), steps_on_disk(tmp_path)) == ([5, 10], [5, 10])


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_in_silence(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, [5])
    (tmp_path / "model.ckpt-5.index").unlink()
    with pytest.raises(CheckpointError) as error:
        latest_checkpoint(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/checkpoint: names {tmp_path}/model.ckpt-5, which is missing; restore its files, or remove "
        "the file checkpoint to start from step 0"
    )


@pytest.mark.parametrize("content", ["", "not a state file", 'all_model_checkpoint_paths: "model.ckpt-5"'])
def test_a_state_file_that_names_nothing(tmp_path: Path, small: VariableStore, content: str) -> None:
    save_steps(tmp_path, small, [5])
    (tmp_path / "checkpoint").write_text(content)
    with pytest.raises(CheckpointError) as error:
        latest_checkpoint(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/checkpoint: names no checkpoint; rewrite it, or remove it to start from step 0"
    )


def test_a_state_file_written_by_hand(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, [5, 10, 15])
    listed = "".join(f'all_model_checkpoint_paths: "model.ckpt-{step}"\n' for step in (5, 10, 15))
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "model.ckpt-10"\n{listed}')
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-10")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-5"\n')
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-5")
    save_steps(tmp_path, small, [6])
    assert steps_in_state(tmp_path) == [5, 6]


def test_a_folder_can_be_moved(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path / "here", small, [5, 10])
    assert str(tmp_path) not in (tmp_path / "here" / "checkpoint").read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    path = latest_checkpoint(str(tmp_path / "there"))
    assert path == str(tmp_path / "there" / "model.ckpt-10")
    assert restore(path, small, train_batch_size=1) == TrainingPosition(10, 80)
    assert tf.train.latest_checkpoint(tmp_path / "there") == path


# Rotation.


def test_the_last_ten_stay_also_after_a_restart(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, range(10, 80, 10))
    assert steps_on_disk(tmp_path) == steps_in_state(tmp_path) == list(range(10, 80, 10))
    save_steps(tmp_path, small, range(80, 130, 10))
    assert steps_on_disk(tmp_path) == steps_in_state(tmp_path) == list(range(30, 130, 10))
    assert not list(tmp_path.glob("model.ckpt-20.*"))
    assert restore(latest_checkpoint(str(tmp_path)), small, 1) == TrainingPosition(120, 960)
    np.testing.assert_array_equal(tiny.values_of(small)["gpt2/wte"], np.full((3, 2), 120.0))


def test_one_of_each_two_hours_stays_for_good(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, range(1, 11))
    state = tf.train.get_checkpoint_state(tmp_path)
    # As if these ten had been saved every hour and a half, the last of them a day ago.
    first_seconds = time.time() - 2 * 24 * 3600
    state.last_preserved_timestamp = first_seconds
    state.all_model_checkpoint_timestamps[:] = [first_seconds + 1.5 * 3600 * index for index in range(10)]
    (tmp_path / "checkpoint").write_text(str(state))
    save_steps(tmp_path, small, range(11, 16))
    assert (steps_in_state(tmp_path), steps_on_disk(tmp_path)) == (list(range(6, 16)), [3, 5, *range(6, 16)])
    save_steps(tmp_path, small, range(16, 21))
    assert (steps_in_state(tmp_path), steps_on_disk(tmp_path)) == (list(range(11, 21)), [3, 5, 7, 9, *range(11, 21)])


def test_what_a_killed_process_was_writing_goes_when_the_next_one_begins(tmp_path: Path, small: VariableStore) -> None:
    part = ".0123456789abcdef0123456789abcdef.part"
    for name in (part, "model.ckpt-8.data-00000-of-00001.tempstate123", "mine.part", "model.ckpt-8.tempstate"):
        (tmp_path / name).write_text("x")
    CheckpointWriter(str(tmp_path), small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.part", "model.ckpt-8.tempstate"]
