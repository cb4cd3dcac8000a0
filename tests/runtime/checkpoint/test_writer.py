"""Checkpoint files: their names and tensors, and which of them stay."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.errors import CheckpointError, UserError
from configs.schema import ModelConfig
from meshtf import tf
from runtime.checkpoint import writer as writer_module
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import latest_checkpoint, restore
from runtime.checkpoint.writer import CheckpointWriter
from runtime.mesh.placement import VariableStore
from tests import tiny
from tests.file_cache import cached_bytes, needs_file_cache, wait_for_the_disk
from tests.runtime.checkpoint.checkpoint_files import (
    MODEL,
    POSITION,
    Written,
    save_steps,
    steps_in_state,
    steps_on_disk,
    store_of,
)


def gpt_neo_shapes(model: ModelConfig) -> dict[str, list[int]]:
    """Returns GPT-Neo's table of variables and shapes, without those of the optimiser."""
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


def test_names_and_shapes_are_those_of_gpt_neo(written: Written) -> None:
    model = gpt_neo_shapes(MODEL)
    moments = {f"{name}/{slot}": shape for name, shape in model.items() for slot in ("adam_m", "adam_v")}
    examples = "global_step_examples"
    position = {
        "global_step": [],
        examples: [],
        "global_step_functions": [],
        **{f"{examples}_of/{name}": [] for name in POSITION.examples_per_dataset},
    }
    assert dict(tf.train.list_variables(written.path)) == model | moments | position
    # Hugging Face's converter takes every name that holds neither "adam" nor "global_step" for a weight.
    weights = {name for name, _ in tf.train.list_variables(written.path) if "adam" not in name}
    assert {name for name in weights if "global_step" not in name} == set(model)


def test_every_tensor_of_a_split_mesh_is_written_whole(written: Written) -> None:
    for name, value in written.values.items():
        np.testing.assert_array_equal(tf.train.load_variable(written.path, name), value, err_msg=name)
    assert tf.train.load_variable(written.path, "gpt2/wte").dtype == np.float32
    assert tf.train.load_variable(written.path, "global_step") == 123
    assert tf.train.load_variable(written.path, "global_step_examples") == 5_000_000_000
    files = sorted(os.listdir(os.path.dirname(written.path)))
    assert files == ["checkpoint", "model.ckpt-123.data-00000-of-00001", "model.ckpt-123.index"]


def files_of(folder: Path, step: int) -> list[str]:
    return sorted(path.name for path in folder.glob(f"model.ckpt-{step}*"))


@pytest.mark.parametrize(
    ("piece_bytes", "most_pieces", "n_files"),
    [(1, 16, 5), (1, 3, 3), (1, 2, 2), (1, 1, 1), (33, 16, 2), (2**20, 16, 1)],
)
def test_a_large_checkpoint_is_written_in_pieces(
    tmp_path: Path,
    devices: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    piece_bytes: int,
    most_pieces: int,
    n_files: int,
) -> None:
    monkeypatch.setattr(writer_module, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(writer_module, "MOST_PIECES", most_pieces)
    store = store_of(devices, {"a": [2, 4], "b": [2, 4]})  # 32 bytes each, and three numbers of 8
    for factor, stored in enumerate(store, 1):
        stored.assign_whole(np.full((2, 4), factor, np.float32))
    writer = CheckpointWriter(str(tmp_path), store)
    path = writer.save(TrainingPosition(7, 56))
    writer.finish()
    files = [f"model.ckpt-7.data-{number:05}-of-{n_files:05}" for number in range(n_files)]
    assert files_of(tmp_path, 7) == [*files, "model.ckpt-7.index"]
    for factor, name in enumerate("ab", 1):
        np.testing.assert_array_equal(tf.train.load_variable(path, name), np.full((2, 4), factor))
    assert restore(path, store, 1) == TrainingPosition(7, 56)


@needs_file_cache
@pytest.mark.parametrize(("piece_bytes", "stays"), [(1, False), (2**20, True)])
def test_pieces_leave_the_file_cache(
    tmp_path: Path, devices: Sequence[str], monkeypatch: pytest.MonkeyPatch, piece_bytes: int, stays: bool
) -> None:
    wait_for_the_disk(monkeypatch)
    monkeypatch.setattr(writer_module, "PIECE_BYTES", piece_bytes)
    writer = CheckpointWriter(str(tmp_path), store_of(devices, {"a": [2, 4], "b": [2, 4]}))
    writer.save(TrainingPosition(7, 56))
    writer.finish()
    assert {cached_bytes(path) > 0 for path in tmp_path.glob("*.data-*")} == {stays}


def test_a_step_that_is_written_again_in_other_pieces_has_the_new_files_alone(
    tmp_path: Path, devices: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(devices, {"a": [2, 4], "b": [2, 4]})
    writer = CheckpointWriter(str(tmp_path), store)
    for piece_bytes, n_files in ((1, 5), (33, 2), (33, 2), (2**20, 1), (2**20, 1), (1, 5)):
        monkeypatch.setattr(writer_module, "PIECE_BYTES", piece_bytes)
        path = writer.save(TrainingPosition(7, 56))
        writer.finish()
        files = [f"model.ckpt-7.data-{number:05}-of-{n_files:05}" for number in range(n_files)]
        assert files_of(tmp_path, 7) == [*files, "model.ckpt-7.index"]
        assert restore(path, store, 1) == TrainingPosition(7, 56)


def test_pieces_of_a_failed_write_are_removed(
    tmp_path: Path, devices: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(parts: Sequence[str], path: str) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(writer_module, "PIECE_BYTES", 1)
    monkeypatch.setattr(writer_module, "_merge", merge)
    writer = CheckpointWriter(str(tmp_path), store_of(devices, {"a": [2, 4]}))
    writer.save(TrainingPosition(7, 56))
    with pytest.raises(CheckpointError, match="No space left on device; make room there"):
        writer.finish()
    assert files_of(tmp_path, 7) == []


@pytest.mark.parametrize("n_written", [0, 1, 2, 3])
def test_a_crash_between_pieces_leaves_the_checkpoint_before(
    tmp_path: Path, devices: Sequence[str], monkeypatch: pytest.MonkeyPatch, n_written: int
) -> None:
    store = store_of(devices, {"a": [2, 4], "b": [2, 4]})
    before = CheckpointWriter(str(tmp_path), store)
    before.save(TrainingPosition(1, 8))
    before.finish()

    class Crash(BaseException):
        """As if the process ended there."""

    written = iter(range(n_written))

    def write(path: str, entries: Sequence[tuple[str, str, tf.Tensor]]) -> None:
        if next(written, None) is None:
            raise Crash
        write_tensors(path, entries)

    def merge(parts: Sequence[str], path: str) -> None:
        raise Crash

    write_tensors = writer_module._write_tensors
    monkeypatch.setattr(writer_module, "PIECE_BYTES", 1)
    monkeypatch.setattr(writer_module, "_write_tensors", write)
    monkeypatch.setattr(writer_module, "_merge", merge)
    writer = CheckpointWriter(str(tmp_path), store)
    writer.save(TrainingPosition(2, 16))
    with pytest.raises(Crash):
        writer.finish()
    assert restore(latest_checkpoint(str(tmp_path)), store, 1) == TrainingPosition(1, 8)
    assert (tmp_path / "model.ckpt-2.parts").exists() == (n_written > 0)
    monkeypatch.undo()
    writer = CheckpointWriter(str(tmp_path), store)
    assert files_of(tmp_path, 2) == []
    writer.save(TrainingPosition(2, 16))
    writer.finish()
    assert restore(latest_checkpoint(str(tmp_path)), store, 1) == TrainingPosition(2, 16)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, small: VariableStore) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError) as error:
        save_steps(tmp_path / "file", small, [5])
    path = f"{tmp_path}/file"
    assert str(error.value) == (
        f"{path}/model.ckpt-5: cannot be written: {path} is not a directory; make room there, or give another path"
    )
    assert (tmp_path / "file").read_text() == "mine"


@dataclasses.dataclass
class Gate:
    """Holds up the writing of tensors, in the thread that does it."""

    opened: threading.Event = dataclasses.field(default_factory=threading.Event)
    threads: list[threading.Thread] = dataclasses.field(default_factory=list)

    def write(self, path: str, entries: Sequence[tuple]) -> None:
        self.threads.append(threading.current_thread())
        assert self.opened.wait(60.0)
        WRITE_TENSORS(path, entries)


WRITE_TENSORS = writer_module._write_tensors


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(writer_module, "_write_tensors", gate.write)
    return gate


def test_a_checkpoint_holds_the_values_of_the_moment_and_is_the_newest_once_written(
    tmp_path: Path, small: VariableStore, gate: Gate
) -> None:
    (stored,), writer = small, CheckpointWriter(str(tmp_path), small)
    stored.assign_whole(np.full((3, 2), 5.0, np.float32))
    path = writer.save(TrainingPosition(5, 40))
    for piece in stored.slices:
        piece.assign_add(np.ones((3, 2), np.float32))  # the next step
    writer.check()
    assert latest_checkpoint(str(tmp_path)) is None
    gate.opened.set()
    writer.wait()
    assert latest_checkpoint(str(tmp_path)) == path
    np.testing.assert_array_equal(tf.train.load_variable(path, "gpt2/wte"), np.full((3, 2), 5.0))
    assert gate.threads != [threading.main_thread()] and not gate.threads[0].is_alive()


def test_a_second_checkpoint_waits_for_the_first(tmp_path: Path, small: VariableStore, gate: Gate) -> None:
    writer = CheckpointWriter(str(tmp_path), small)
    writer.save(TrainingPosition(5, 40))
    second = threading.Thread(target=writer.save, args=[TrainingPosition(6, 48)])
    second.start()
    second.join(0.2)
    assert second.is_alive() and len(gate.threads) == 1
    gate.opened.set()
    second.join()
    writer.finish()
    assert steps_in_state(tmp_path) == steps_on_disk(tmp_path) == [5, 6]


@pytest.mark.parametrize("asks", ["save", "check", "wait", "finish", "abandon"])
def test_an_error_of_the_thread_is_raised_once_by_whatever_comes_next(
    tmp_path: Path, small: VariableStore, asks: str
) -> None:
    (tmp_path / "file").write_text("mine")
    writer = CheckpointWriter(str(tmp_path / "file"), small)
    writer.save(TrainingPosition(5, 40))
    writer._work._thread.join()
    with pytest.raises(CheckpointError, match="model.ckpt-5: cannot be written: .* is not a directory; make room"):
        writer.save(TrainingPosition(6, 48)) if asks == "save" else getattr(writer, asks)()
    writer.finish()


def test_a_folder_can_be_moved(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path / "here", small, [5, 10])
    assert str(tmp_path) not in (tmp_path / "here" / "checkpoint").read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    path = latest_checkpoint(str(tmp_path / "there"))
    assert path == str(tmp_path / "there" / "model.ckpt-10")
    assert restore(path, small, train_batch_size=1) == TrainingPosition(10, 80)
    assert tf.train.latest_checkpoint(tmp_path / "there") == path


def test_the_last_ten_checkpoints_stay_also_after_a_restart(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, range(10, 80, 10))
    assert steps_on_disk(tmp_path) == steps_in_state(tmp_path) == list(range(10, 80, 10))
    save_steps(tmp_path, small, range(80, 130, 10))
    assert steps_on_disk(tmp_path) == steps_in_state(tmp_path) == list(range(30, 130, 10))
    assert not list(tmp_path.glob("model.ckpt-20.*"))
    assert restore(latest_checkpoint(str(tmp_path)), small, 1) == TrainingPosition(120, 960)
    np.testing.assert_array_equal(tiny.values_of(small)["gpt2/wte"], np.full((3, 2), 120.0))


@pytest.mark.parametrize("keep_checkpoints", [1, 3, 20])
def test_as_many_checkpoints_stay_as_the_config_says(
    tmp_path: Path, small: VariableStore, keep_checkpoints: int
) -> None:
    save_steps(tmp_path, small, range(1, 13), keep_checkpoints=20)
    save_steps(tmp_path, small, [13, 14], keep_checkpoints)  # a run that goes on with another number
    kept = list(range(max(1, 15 - keep_checkpoints), 15))
    assert steps_on_disk(tmp_path) == steps_in_state(tmp_path) == kept
    assert restore(latest_checkpoint(str(tmp_path)), small, 1) == TrainingPosition(14, 112)


def test_checkpoints_of_every_so_many_steps_stay_for_good(tmp_path: Path, small: VariableStore) -> None:
    save_steps(tmp_path, small, range(2, 14), keep_checkpoints=2, keep_every_steps=4)
    assert (steps_in_state(tmp_path), steps_on_disk(tmp_path)) == ([12, 13], [4, 8, 12, 13])
    save_steps(tmp_path, small, range(14, 20), keep_checkpoints=2, keep_every_steps=None)
    assert steps_on_disk(tmp_path) == [4, 8, 18, 19]
    save_steps(tmp_path, small, range(20, 26), keep_checkpoints=2, keep_every_steps=5)
    assert steps_on_disk(tmp_path) == [4, 8, 20, 24, 25]


@pytest.mark.parametrize("keep_checkpoints", [3, 20])
def test_without_the_list_of_checkpoints_older_ones_stay_and_the_next_are_counted(
    tmp_path: Path, small: VariableStore, keep_checkpoints: int
) -> None:
    save_steps(tmp_path, small, range(1, 15), keep_checkpoints=20)
    (tmp_path / "checkpoint").unlink()
    save_steps(tmp_path, small, range(15, 19), keep_checkpoints)
    newest = list(range(max(1, 19 - keep_checkpoints), 19))
    assert steps_in_state(tmp_path) == newest
    # 12 was the oldest of the newest three, and is permanent; which of the older ones were is not known.
    assert steps_on_disk(tmp_path) == (list(range(1, 13)) + newest if keep_checkpoints == 3 else newest)


def test_one_checkpoint_of_every_two_hours_is_permanent(tmp_path: Path, small: VariableStore) -> None:
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


def test_a_new_writer_removes_the_unfinished_files_of_a_killed_process(tmp_path: Path, small: VariableStore) -> None:
    part = ".0123456789abcdef0123456789abcdef.part"
    for name in (part, "model.ckpt-8.data-00000-of-00001.tempstate123", "mine.part", "model.ckpt-8.tempstate"):
        (tmp_path / name).write_text("x")
    (tmp_path / "model.ckpt-8.parts/0-of-2").mkdir(parents=True)
    (tmp_path / "model.ckpt-8.parts/0-of-2/done").write_text("3")
    CheckpointWriter(str(tmp_path), small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.part", "model.ckpt-8.tempstate"]
